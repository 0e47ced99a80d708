"""What runs on the GPU. Knows nothing of the rest of mlaprof; imported as mlaprof.kernels."""
