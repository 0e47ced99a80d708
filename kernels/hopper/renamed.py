"""What Gluon calls otherwise since Triton 3.7 or 3.9, under one name for all versions from 3.6 on."""

from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy
from triton.experimental.gluon.language.nvidia.hopper import tma

meet = gl.barrier if hasattr(gl, "barrier") else gl.thread_barrier  # of a role's threads
copy_async = getattr(async_copy, "async_load", None) or async_copy.async_copy_global_to_shared  # 16 bytes a thread
tma_load = getattr(tma, "async_load", None) or tma.async_copy_global_to_shared
reinterpret = getattr(gl.shared_memory_descriptor, "reinterpret", None) or gl.shared_memory_descriptor._reinterpret
tma_store = getattr(tma, "async_store", None) or tma.async_copy_shared_to_global
