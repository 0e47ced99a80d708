"""The two products that are one small matrix a head: q into the latent space, and the result out of it.

out[t, h] = x[t, h] W[h]^T. Memory is the limit at every token count: at most about 100 FLOP a byte. The portable form
is a tiled product, with programs beside it that rotate the other columns; the Hopper form (`hopper.head_product`) keeps
a head's matrix in shared memory and takes over when there are many tokens.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mlaprof.kernels.checks import check_tensor
from mlaprof.kernels.device import is_hopper
from mlaprof.kernels.rotation import ROPE, check_angles, join_pairs, load_angles, split_pairs, turn
from mlaprof.kernels.tiles import absorb as absorb_tiles
from mlaprof.kernels.tiles import hopper_absorb, hopper_up_project
from mlaprof.kernels.tiles import up_project as up_project_tiles
from mlaprof.kernels.tiles.absorb import AbsorbTiles
from mlaprof.kernels.tiles.hopper_absorb import HopperAbsorbTiles
from mlaprof.kernels.tiles.hopper_up_project import HopperUpProjectTiles
from mlaprof.kernels.tiles.up_project import UpProjectTiles

Tiles = AbsorbTiles | HopperAbsorbTiles | UpProjectTiles | HopperUpProjectTiles


@triton.jit(do_not_specialize=["num_tokens"])
def head_product_kernel(
    x_ptr,  # [num_tokens, heads, K + ROPE] bf16
    w_ptr,  # [heads, N, K] bf16
    out_ptr,  # [num_tokens, heads, N + ROPE] bf16
    cos_sin_ptr,  # [max_positions, 2, ROPE / 2] fp32
    positions_ptr,  # [num_tokens] int64
    num_tokens,
    max_positions,
    x_stride_t,
    x_stride_h,
    w_stride_h,
    w_stride_n,
    out_stride_t,
    out_stride_h,
    K: tl.constexpr,
    N: tl.constexpr,
    ROPE: tl.constexpr,  # 0: product only
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    parts: tl.constexpr = N // BLOCK_N + (1 if ROPE > 0 else 0)
    part = tl.program_id(0) % parts
    rest = tl.program_id(0) // parts
    # All tokens of a head before the next head, so that its matrix stays in L2.
    blocks = tl.cdiv(num_tokens, BLOCK_M)
    head = (rest // blocks).to(tl.int64)
    tokens = (rest % blocks).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    is_token = (tokens < num_tokens)[:, None]
    x_rows = x_ptr + tokens[:, None] * x_stride_t + head * x_stride_h
    out_rows = out_ptr + tokens[:, None] * out_stride_t + head * out_stride_h
    if part * BLOCK_N < N:
        cols = part * BLOCK_N + tl.arange(0, BLOCK_N)
        w_cols = w_ptr + head * w_stride_h + cols[None, :] * w_stride_n
        total = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for k in range(0, K, BLOCK_K):
            inner = k + tl.arange(0, BLOCK_K)
            x = tl.load(x_rows + inner[None, :], mask=is_token, other=0.0)
            w = tl.load(w_cols + inner[:, None])
            total = tl.dot(x, w, total)
        tl.store(out_rows + cols[None, :], total.to(tl.bfloat16), mask=is_token)
    elif ROPE > 0:
        pe_cols = tl.arange(0, ROPE)[None, :]
        positions = tl.load(positions_ptr + tokens, mask=tokens < num_tokens, other=0)
        x = tl.load(x_rows + K + pe_cols, mask=is_token, other=0.0)
        cos, sin = load_angles(cos_sin_ptr, positions, max_positions, ROPE // 2)
        even, odd = split_pairs(x, BLOCK_M, ROPE // 2)
        even, odd = turn(even, odd, cos, sin)
        tl.store(out_rows + N + pe_cols, join_pairs(even, odd, BLOCK_M, ROPE // 2), mask=is_token)


def absorb(
    q: Tensor,
    w: Tensor,
    cos_sin: Tensor,
    positions: Tensor,
    out: Tensor,
    tiles: AbsorbTiles | HopperAbsorbTiles | None = None,
) -> None:
    """Take queries into the latent space: a product a head, and the rotary part rotated beside it.

    q          [num_tokens, num_heads, nope + 64]    bf16   not rotated; tokens and heads at any stride
    w          [num_heads, latent, nope]             bf16
    cos_sin    [max_positions, 2, 32]                fp32
    positions  [num_tokens]                          int64  outside the table: its nearest row
    out        [num_tokens, num_heads, latent + 64]  bf16   tokens and heads at any stride
    tiles      None: chosen by shape, of the Hopper form on Hopper when there are many tokens
    out[t, h, :latent] = q[t, h, :nope] w[h]^T; the other columns turn in pairs (2i, 2i + 1).

    Raises ValueError on a wrong shape, dtype or device, and for tiles that do not fit it.
    """
    heads, latent, nope = check_tensor("w", w, shape=("num_heads", "latent", "nope"), dtype=torch.bfloat16)
    (num_tokens,) = check_tensor(
        "q", q, shape=("num_tokens", heads, nope + ROPE), dtype=torch.bfloat16, device=w.device
    )
    check_tensor("out", out, shape=(num_tokens, heads, latent + ROPE), dtype=torch.bfloat16, device=w.device)
    check_angles(num_tokens, cos_sin, positions, w.device)
    if num_tokens * heads == 0:
        return
    if tiles is None and hopper_absorb.pays(num_tokens, heads) and _hopper_runs(q, w, out):
        tiles = hopper_absorb.choose(latent, nope)
    _launch(q, w, out, tiles or absorb_tiles.choose(num_tokens, heads, latent, nope), cos_sin, positions)


def up_project(x: Tensor, w: Tensor, out: Tensor, tiles: UpProjectTiles | HopperUpProjectTiles | None = None) -> None:
    """Take results out of the latent space: out[t, h] = x[t, h] w[h]^T.

    x      [num_tokens, num_heads, latent]      bf16  tokens and heads at any stride
    w      [num_heads, v_head_dim, latent]      bf16
    out    [num_tokens, num_heads, v_head_dim]  bf16  tokens and heads at any stride
    tiles  None: chosen by shape, of the Hopper form on Hopper when there are many tokens

    Raises ValueError on a wrong shape, dtype or device, and for tiles that do not fit it.
    """
    heads, v_dim, latent = check_tensor("w", w, shape=("num_heads", "v_head_dim", "latent"), dtype=torch.bfloat16)
    (num_tokens,) = check_tensor("x", x, shape=("num_tokens", heads, latent), dtype=torch.bfloat16, device=w.device)
    check_tensor("out", out, shape=(num_tokens, heads, v_dim), dtype=torch.bfloat16, device=w.device)
    if num_tokens * heads == 0:
        return
    if tiles is None and hopper_up_project.pays(num_tokens, heads) and _hopper_runs(x, w, out):
        tiles = hopper_up_project.choose(v_dim, latent)
    _launch(x, w, out, tiles or up_project_tiles.choose(num_tokens, heads, v_dim, latent), None, None)


def _hopper_runs(x: Tensor, w: Tensor, out: Tensor) -> bool:
    return is_hopper(w.device) and _tma_reaches(x, w, out)


def _tma_reaches(x: Tensor, w: Tensor, out: Tensor) -> bool:
    """Whether the copy engine can address these operands: rows at 16-byte places, matrices one after the other."""
    aligned = all(each.data_ptr() % 16 == each.stride(0) % 8 == each.stride(1) % 8 == 0 for each in (x, out))
    return aligned and w.is_contiguous() and w.data_ptr() % 16 == 0


def _launch(x: Tensor, w: Tensor, out: Tensor, tiles: Tiles, cos_sin: Tensor | None, positions: Tensor | None) -> None:
    heads, n, k = w.shape
    rope = 0 if cos_sin is None else ROPE
    if isinstance(tiles, HopperAbsorbTiles | HopperUpProjectTiles):
        if wrong := hopper_absorb.misfit(tiles.block_n, tiles.block_k, tiles.num_stages, n, k):
            raise ValueError(f"tiles: {wrong}")
        if not _tma_reaches(x, w, out):
            raise ValueError(
                "tiles: the Hopper form needs rows at 16-byte places and contiguous w; use the portable form"
            )
        from mlaprof.kernels.hopper.head_product import launch  # Gluon is of no use elsewhere

        launch(x, w, out, tiles, rope=rope, cos_sin=cos_sin, positions=positions)
        return
    if wrong := absorb_tiles.uneven(tiles.block_n, tiles.block_k, n, k):
        raise ValueError(f"tiles: {wrong}")
    parts = n // tiles.block_n + (rope > 0)
    head_product_kernel[(triton.cdiv(x.shape[0], tiles.block_m) * heads * parts,)](
        x, w, out, cos_sin, positions, x.shape[0], 0 if cos_sin is None else cos_sin.shape[0],
        x.stride(0), x.stride(1), w.stride(0), w.stride(1), out.stride(0), out.stride(1),
        K=k, N=n, ROPE=rope, BLOCK_M=tiles.block_m, BLOCK_N=tiles.block_n, BLOCK_K=tiles.block_k,
        num_warps=tiles.num_warps, num_stages=tiles.num_stages, enable_fp_fusion=False,
    )  # fmt: skip
