"""mlaprof: profile and autotune the split MLA-DSA attention layer across CUDA-graph capture modes."""

__version__ = "0.1.0"
