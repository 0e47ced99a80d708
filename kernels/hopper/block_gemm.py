"""Launching the Hopper forms of block_gemm: descriptors for the TMA unit, and the grid."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import triton
from torch import Tensor
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from mlaprof.kernels.hopper.block_gemm_stream import add_parts_kernel, block_gemm_stream_kernel
from mlaprof.kernels.hopper.block_gemm_uneven import block_gemm_uneven_kernel
from mlaprof.kernels.hopper.block_gemm_wide import block_gemm_wide_kernel
from mlaprof.kernels.tiles.hopper_block_gemm import GROUP, MIN_SCALES, UNEVEN, HopperBlockGemmTiles, out_columns
from mlaprof.kernels.tiles.limits import NUM_SMS

TMA_BYTES = 16  # addresses and strides that the TMA unit takes are multiples of this
ADD_VALUES = 1024  # values that one program of the second launch adds up
FIRST_WARPS = 4  # of the group that loads; those that multiply come beside it
# More of ptxas moves the sums of one product behind the next, and then has no registers for both.
PTXAS_LEVEL = "-O1"


@dataclass(frozen=True)
class _Address:
    """What a descriptor needs of a tensor. Descriptors are remembered, and must not keep tensors alive."""

    address: int
    dtype: torch.dtype

    def data_ptr(self) -> int:
        return self.address


@lru_cache(maxsize=4096)
def _describe(
    address: int, dtype: torch.dtype, shape: tuple[int, ...], strides: tuple[int, ...], box: tuple[int, ...]
) -> Any:
    """A descriptor: a pure value of the address and the shape, made once for a weight."""
    return TensorDescriptor(_Address(address, dtype), list(shape), list(strides), list(box), _layout(dtype, box))


def _layout(dtype: torch.dtype, box: tuple[int, ...]) -> gl.NVMMASharedLayout:
    swizzle = 0 if dtype == torch.float32 else 128
    return gl.NVMMASharedLayout(swizzle_byte_width=swizzle, element_bitwidth=8 * dtype.itemsize, rank=len(box))


def _rows(x: Tensor, box: tuple[int, int]) -> Any:
    return _describe(x.data_ptr(), x.dtype, tuple(x.shape), x.stride(), box)


def launch(a: Tensor, a_scale: Tensor, b: Tensor, b_scale: Tensor, out: Tensor, tiles: HopperBlockGemmTiles) -> None:
    """block_gemm with operands already checked and at least one token.

    Raises ValueError where an address or a stride is not a multiple of 16 bytes.
    """
    for name, x, stride in (
        ("a", a, a.stride(0)),
        ("b", b, b.stride(0)),
        ("a_scale", a_scale, 4 * a_scale.stride(1)),
        ("out", out, 2 * out.stride(0)),
    ):
        if x.data_ptr() % TMA_BYTES or stride % TMA_BYTES:
            raise ValueError(f"{name}: expected an address and strides in multiples of {TMA_BYTES} bytes; copy it")
    if tiles.block_n == UNEVEN:
        _launch_uneven(a, a_scale, b, b_scale, out, tiles)
    elif tiles.specialised:
        _launch_wide(a, a_scale, b, b_scale, out, tiles)
    else:
        _launch_stream(a, a_scale, b, b_scale, out, tiles)


def _launch_wide(
    a: Tensor, a_scale: Tensor, b: Tensor, b_scale: Tensor, out: Tensor, tiles: HopperBlockGemmTiles
) -> None:
    (m, k), n = a.shape, b.shape[0]
    block_m, block_n = tiles.block_m, tiles.block_n
    groups, columns = k // GROUP, a_scale.stride(1)
    count = triton.cdiv(m, block_m) * triton.cdiv(n, block_n)
    block_gemm_wide_kernel[(min(NUM_SMS, count),)](
        _rows(a, (block_m, GROUP)),
        _rows(b, (block_n, GROUP)),
        _describe(a_scale.data_ptr(), a_scale.dtype, ((groups - 1) * columns + m,), (1,), (block_m,)),
        _rows(out, (64, out_columns(tiles))),
        b_scale,
        m,
        n,
        groups,
        columns,
        b_scale.stride(0),
        BLOCK_M=block_m,
        BLOCK_N=block_n,
        STAGES=tiles.num_stages,
        OUT_N=out_columns(tiles),
        num_warps=FIRST_WARPS,
        ptx_options=PTXAS_LEVEL,
    )


def _launch_uneven(
    a: Tensor, a_scale: Tensor, b: Tensor, b_scale: Tensor, out: Tensor, tiles: HopperBlockGemmTiles
) -> None:
    (m, k), n = a.shape, b.shape[0]
    groups, columns = k // GROUP, a_scale.stride(1)
    count = triton.cdiv(m, tiles.block_m) * triton.cdiv(n, UNEVEN)
    block_gemm_uneven_kernel[(min(NUM_SMS, count),)](
        _rows(a, (tiles.block_m, GROUP)),
        _rows(b, (128, GROUP)),
        _rows(b, (64, GROUP)),
        _describe(a_scale.data_ptr(), a_scale.dtype, ((groups - 1) * columns + m,), (1,), (tiles.block_m,)),
        _rows(out, (64, 128)),
        _rows(out, (64, 64)),
        b_scale,
        m,
        n,
        groups,
        columns,
        b_scale.stride(0),
        STAGES=tiles.num_stages,
        num_warps=FIRST_WARPS,
        ptx_options=PTXAS_LEVEL,
    )


def _launch_stream(
    a: Tensor, a_scale: Tensor, b: Tensor, b_scale: Tensor, out: Tensor, tiles: HopperBlockGemmTiles
) -> None:
    (m, k), n = a.shape, b.shape[0]
    block_m, block_n, depth, splits = tiles.block_m, tiles.block_n, tiles.depth, tiles.splits
    groups = k // GROUP
    parts = out if splits == 1 else torch.empty(splits, m, n, dtype=torch.float32, device=a.device)
    box = (depth, max(block_m, MIN_SCALES))
    block_gemm_stream_kernel[(triton.cdiv(n, block_n), splits, triton.cdiv(m, block_m))](
        _rows(a, (block_m, depth * GROUP)),
        _rows(b, (block_n, depth * GROUP)),
        _describe(a_scale.data_ptr(), a_scale.dtype, (groups, m), (a_scale.stride(1), 1), box),
        b_scale,
        parts,
        m,
        n,
        groups,
        b_scale.stride(0),
        parts.stride(-2),
        TOKENS=block_m,
        BLOCK_N=block_n,
        DEPTH=depth,
        SPLITS=splits,
        STAGES=tiles.num_stages,
        num_warps=tiles.num_warps,
    )
    if splits > 1:
        add_parts_kernel[(triton.cdiv(m * n, ADD_VALUES),)](
            parts, out, n, m * n, out.stride(0), SPLITS=splits, BLOCK=ADD_VALUES, num_warps=4, launch_pdl=True
        )


def descriptor_types(tiles: HopperBlockGemmTiles) -> dict[str, str]:
    """How the compiler spells the types of the descriptors that launch() makes."""

    def descriptor(kind: str, dtype: torch.dtype, *box: int) -> str:
        return f"tensordesc<{kind}{list(box)},{_layout(dtype, box)!r}>"

    m, n, width = tiles.block_m, tiles.block_n, tiles.depth * GROUP
    if n == UNEVEN:
        return {
            "a_desc": descriptor("fp8e4nv", torch.float8_e4m3fn, m, GROUP),
            "wide_desc": descriptor("fp8e4nv", torch.float8_e4m3fn, 128, GROUP),
            "narrow_desc": descriptor("fp8e4nv", torch.float8_e4m3fn, 64, GROUP),
            "a_scale_desc": descriptor("fp32", torch.float32, m),
            "wide_out_desc": descriptor("bf16", torch.bfloat16, 64, 128),
            "narrow_out_desc": descriptor("bf16", torch.bfloat16, 64, 64),
        }
    codes, scales = torch.float8_e4m3fn, (m,) if tiles.specialised else (tiles.depth, max(m, MIN_SCALES))
    return {
        "a_desc": descriptor("fp8e4nv", codes, m, width),
        "b_desc": descriptor("fp8e4nv", codes, n, width),
        "a_scale_desc": descriptor("fp32", torch.float32, *scales),
        "out_desc": descriptor("bf16", torch.bfloat16, 64, out_columns(tiles)),  # only where loads have their own warps
    }
