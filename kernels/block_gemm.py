"""fp8 product with block scales: activations in groups of 1x128, weights in blocks of 128x128, sums in fp32."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mlaprof.kernels.checks import check_tensor
from mlaprof.kernels.device import is_hopper
from mlaprof.kernels.tiles import block_gemm as plain_tiles
from mlaprof.kernels.tiles import hopper_block_gemm as hopper_tiles
from mlaprof.kernels.tiles.block_gemm import BlockGemmTiles
from mlaprof.kernels.tiles.hopper_block_gemm import HopperBlockGemmTiles

GROUP = 128
BAND = 8  # tiles of tokens that share a stripe of weights before the next stripe begins


@triton.jit(do_not_specialize=["m", "num_blocks", "a_scale_stride", "b_scale_stride"])
def block_gemm_kernel(
    a_ptr,  # [m, k] e4m3
    a_scale_ptr,  # [m, k / 128] fp32, column-major
    b_ptr,  # [n, k] e4m3
    b_scale_ptr,  # [n / 128, k / 128] fp32
    out_ptr,  # [m, n] bf16
    m,
    n,
    num_blocks,
    a_stride,
    a_scale_stride,
    b_stride,
    b_scale_stride,
    out_stride,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BAND: tl.constexpr,
):
    num_m = tl.cdiv(m, BLOCK_M)
    num_n = tl.cdiv(n, BLOCK_N)
    tile = tl.program_id(0)
    first = tile // (BAND * num_n) * BAND
    height = tl.minimum(num_m - first, BAND)
    within = tile % (BAND * num_n)
    first_m = (first + within % height) * BLOCK_M
    first_n = within // height * BLOCK_N

    rows = first_m + tl.arange(0, BLOCK_M)
    cols = first_n + tl.arange(0, BLOCK_N)
    depth = tl.arange(0, 128)
    # Beyond the edge the last row is read again; what comes of it is not stored.
    row = tl.minimum(rows, m - 1).to(tl.int64)
    col = tl.minimum(cols, n - 1).to(tl.int64)
    a_at = a_ptr + row[:, None] * a_stride + depth[None, :]
    b_at = b_ptr + col[:, None] * b_stride + depth[None, :]
    a_scale_at = a_scale_ptr + row
    b_scale_at = b_scale_ptr + first_n // 128 * b_scale_stride
    if BLOCK_M < 64:
        # Few tokens: weights are the tall side of the product.
        total = tl.zeros([BLOCK_N, BLOCK_M], tl.float32)
        for block in range(num_blocks):
            a = tl.load(a_at + block * 128)
            b = tl.load(b_at + block * 128)
            scale = tl.load(a_scale_at + block * a_scale_stride) * tl.load(b_scale_at + block)
            total += tl.dot(b, tl.trans(a)) * scale[None, :]
        total = tl.trans(total)
    else:
        total = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        for block in range(num_blocks):
            a = tl.load(a_at + block * 128)
            b = tl.load(b_at + block * 128)
            scale = tl.load(a_scale_at + block * a_scale_stride) * tl.load(b_scale_at + block)
            total += tl.dot(a, tl.trans(b)) * scale[:, None]
    tl.store(
        out_ptr + rows.to(tl.int64)[:, None] * out_stride + cols[None, :],
        total.to(tl.bfloat16),
        mask=(rows < m)[:, None] & (cols < n)[None, :],
    )


def block_gemm(
    a: Tensor,
    a_scale: Tensor,
    b: Tensor,
    b_scale: Tensor,
    tiles: BlockGemmTiles | HopperBlockGemmTiles | None = None,
    *,
    out: Tensor | None = None,
) -> Tensor:
    """Product of activations and transposed weights [m, n] bf16, both e4m3 with scales.

    a        [m, k]                    e4m3   k a multiple of 128
    a_scale  [m, k / 128]              fp32   one per token and 128 of k; column-major: stride(0) is 1
    b        [n, k]                    e4m3   n a multiple of 16
    b_scale  [ceil(n / 128), k / 128]  fp32   one per 128 x 128 block
    tiles    None: chosen by shape, of the Hopper form on Hopper
    out      [m, n]                    bf16   None: a new tensor

    The products of every 128 of k are scaled and added in fp32, in an order that tiles and shape alone decide: equal
    calls give equal bits. Raises ValueError on a wrong shape, dtype, device, stride or alignment.
    """
    m, k = check_tensor("a", a, shape=("m", "k"), dtype=torch.float8_e4m3fn)
    (n,) = check_tensor("b", b, shape=("n", k), dtype=torch.float8_e4m3fn, device=a.device)
    if k == 0 or k % GROUP or n == 0 or n % 16:
        raise ValueError(f"b: expected n a multiple of 16 and k a multiple of {GROUP}, got [{n}, {k}]")
    groups = k // GROUP
    check_tensor("a_scale", a_scale, shape=(m, groups), dtype=torch.float32, device=a.device, contiguous="none")
    check_tensor("b_scale", b_scale, shape=(-(-n // GROUP), groups), dtype=torch.float32, device=a.device)
    if m > 1 and a_scale.stride(0) != 1:
        raise ValueError(f"a_scale: expected columns stored one after the other, got strides {a_scale.stride()}")
    if out is None:
        out = torch.empty(m, n, dtype=torch.bfloat16, device=a.device)
    else:
        check_tensor("out", out, shape=(m, n), dtype=torch.bfloat16, device=a.device)
    if m == 0:
        return out
    tiles = tiles or (hopper_tiles if is_hopper(a.device) else plain_tiles).choose(m, n, k)
    if isinstance(tiles, HopperBlockGemmTiles):
        from mlaprof.kernels.hopper.block_gemm import launch  # Gluon is of no use elsewhere

        launch(a, a_scale, b, b_scale, out, tiles)
        return out
    block_gemm_kernel[(triton.cdiv(m, tiles.block_m) * triton.cdiv(n, tiles.block_n),)](
        a,
        a_scale,
        b,
        b_scale,
        out,
        m,
        n,
        groups,
        a.stride(0),
        a_scale.stride(1),
        b.stride(0),
        b_scale.stride(0),
        out.stride(0),
        BLOCK_M=tiles.block_m,
        BLOCK_N=tiles.block_n,
        BAND=BAND,
        num_warps=tiles.num_warps,
        num_stages=tiles.num_stages,
    )
    return out
