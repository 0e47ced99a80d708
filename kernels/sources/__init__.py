"""Kernels as Triton's compiler takes them, for compiling where there is no GPU; a module a kernel, all forms."""
