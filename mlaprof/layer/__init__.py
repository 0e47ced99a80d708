"""The thing measured: the split MLA-DSA layer of TensorRT-LLM PR #12503. torch; no clock, no capture."""
