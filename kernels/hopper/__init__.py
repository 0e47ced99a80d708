"""Forms of kernels that need what Hopper alone has and plain Triton cannot say: written in Gluon, for sm_90 only."""
