"""Sparse attention's Hopper form for few tokens: what it compiles to anywhere, and its answers on the GPU."""

from __future__ import annotations

import logging
import random
import re
from dataclasses import replace

import pytest
import torch
import triton
from triton.backends.compiler import GPUTarget

from mlaprof.kernels import reference
from mlaprof.kernels.cubin import read_cubin
from mlaprof.kernels.offline import compile_kernel
from mlaprof.kernels.reference import TOLERANCE, mismatch
from mlaprof.kernels.sources.build import build
from mlaprof.kernels.sparse_attn import sparse_attn
from mlaprof.kernels.tiles import SHARED_LIMIT_BYTES, Dims
from mlaprof.kernels.tiles import hopper_sparse_decode as tiles_of
from mlaprof.kernels.tiles.hopper_sparse_decode import HopperSparseDecodeTiles
from tests.kernels.packed import packed_pool

SCALE = 0.135
INT_MIN, INT_MAX = -(2**31), 2**31 - 1
TP8 = Dims(16, 512, 64, 64, 128, 2048)
PACKED_STACK_BYTES = 64  # of the group that decodes, outside its loop


@pytest.mark.parametrize("tiles", [HopperSparseDecodeTiles(16, 4, 8), HopperSparseDecodeTiles(64, 8, 1)], ids=str)
def test_compiles_for_hopper(tiles):
    """Warp-group products, everything in registers, shared memory within its estimate and the limit."""
    dims = replace(TP8, num_heads=tiles.block_h)
    compiled = compile_kernel("sparse_attn@hopper_decode", tiles, dims)
    assert re.search(rf"wgmma\.mma_async\S+m64n{tiles.block_h}k16", compiled.asm["ptx"])
    assert read_cubin(compiled.asm["cubin"]).stack_bytes == 0
    assert compiled.metadata.shared <= tiles_of.shared_bytes(tiles, dims) <= SHARED_LIMIT_BYTES


@pytest.mark.parametrize("block_h", [16, 32, 64])
def test_compiles_for_packed_rows(block_h):
    """Codes are widened four at a time, stores of their values take 16 bytes, and next to nothing is spilled."""
    from mlaprof.kernels.hopper.sparse_decode import PACKED_REGISTERS, sparse_decode_kernel

    registers, gather_registers = PACKED_REGISTERS[block_h]
    types = {"q_ptr": "*bf16", "cache_ptr": "*u8", "indices_ptr": "*i32", "scale_log2": "fp32"}
    types |= dict.fromkeys(("out_ptr", "lse_ptr", "max_ptr"), "*fp32")
    constants = {"HEADS": block_h, "STATS": 1, "PACKED": True, "GATHER_REGISTERS": gather_registers}
    strides = [name for name in sparse_decode_kernel.arg_names if "stride" in name]
    options = {"num_warps": 8 if block_h == 64 else 4, "maxnreg": registers}
    made = build(sparse_decode_kernel, types, constants, strides, **options)
    compiled = triton.compile(made.source, target=GPUTarget("cuda", 90, 32), options=made.options)
    ptx = compiled.asm["ptx"]
    assert len(re.findall(r"cvt\.rn\.f16x2\.e4m3x2", ptx)) == 2 * 64
    assert re.search(r"st\.shared\.v4", ptx)
    dims = replace(TP8, num_heads=block_h)
    tiles = HopperSparseDecodeTiles(block_h, options["num_warps"], 2)
    assert read_cubin(compiled.asm["cubin"]).stack_bytes <= PACKED_STACK_BYTES
    assert compiled.metadata.shared <= tiles_of.shared_bytes(tiles, dims) <= SHARED_LIMIT_BYTES


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("num_tokens", [1, 3, 16, 33, 64, 128, 200])
@pytest.mark.parametrize("num_heads", [8, 16, 32, 64, 128])
def test_chosen_tiles_are_legal(num_tokens, num_heads, packed):
    """Any step gets tiles that run."""
    dims = Dims(num_heads, 512, 64, 64, 128, 2048)
    tiles = tiles_of.choose(num_tokens, num_heads, 2048, packed=packed)
    assert tiles_of.problem(tiles, dims) is None
    assert tiles_of.shared_bytes(tiles, dims) <= SHARED_LIMIT_BYTES
    assert all(getattr(tiles, name) in values for name, values in tiles_of.CHOICES.items())


def test_many_tokens_of_many_heads_are_for_the_form_for_prefill():
    """It pays for any number of tokens with few heads, and where a token and 64 heads leave half the GPU idle.

    Of packed rows it pays for a token or so.
    """
    assert tiles_of.pays(4096, 16, 2048) and tiles_of.pays(66, 64, 2048) and tiles_of.pays(33, 128, 2048)
    assert not tiles_of.pays(67, 64, 2048) and not tiles_of.pays(34, 128, 2048)
    assert tiles_of.pays(1, 128, 2048, packed=True) and tiles_of.pays(4096, 16, 2048, packed=True)
    assert not tiles_of.pays(64, 64, 2048, packed=True) and not tiles_of.pays(64, 128, 2048, packed=True)


@pytest.mark.parametrize(
    "tiles,dims,reason",
    [
        (HopperSparseDecodeTiles(64, 8, 1), TP8, "rows for 16 heads would idle"),
        (HopperSparseDecodeTiles(64, 4, 1), Dims(64, 512, 64, 64, 128, 2048), "use 8"),
        (HopperSparseDecodeTiles(16, 4, 1), Dims(16, 256, 64, 64, 128, 2048), "use the plain form"),
    ],
)
def test_what_does_not_fit_is_said(tiles, dims, reason):
    """Each refusal carries a remedy."""
    assert reason in str(tiles_of.problem(tiles, dims))


@pytest.mark.gpu
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    "tiles,num_tokens,num_heads,topk",
    [
        (None, 1, 16, 2048),
        (None, 70, 64, 2048),
        ((16, 4, 32), 5, 128, 1000),
        ((32, 4, 2), 9, 40, 70),
        ((64, 8, 4), 5, 128, 2048),
        ((16, 4, 1), 3, 8, 1),
        (None, 2, 16, 0),
    ],
    ids=str,
)
def test_full_size_on_the_gpu(tiles, num_tokens, num_heads, topk, packed):
    """Values and statistics, with empty slots of every kind and NaN in the unused half of a strided pool."""
    seed = random.randrange(2**31)
    logging.getLogger(__name__).warning("seed %d", seed)
    g = torch.Generator("cuda").manual_seed(seed)
    q = torch.randn(num_tokens, num_heads, 640, device="cuda", generator=g).bfloat16()[..., :576]
    cache = torch.randn(8192, 704, device="cuda", generator=g).bfloat16()[:, 64:640]
    cache[4096:] = float("nan")
    pool, cache = packed_pool(cache) if packed else (cache, cache)
    indices = torch.randint(0, 4096, (num_tokens, topk), device="cuda", generator=g, dtype=torch.int32)
    indices[:, ::3] = torch.tensor(INT_MIN, dtype=torch.int32)
    indices[0, 1:8] = torch.tensor([-1, 8192, 8193, INT_MAX, -64, 5, 5], device="cuda", dtype=torch.int32)[
        : max(topk - 1, 0)
    ]
    indices[-1, : topk // 2] = -1
    indices[num_tokens // 2] = -1 if num_tokens > 2 else indices[num_tokens // 2]
    out = torch.full((num_tokens, num_heads, 512), float("nan"), device="cuda", dtype=torch.bfloat16)
    lse, largest = (torch.full(q.shape[:2], float("nan"), device="cuda") for _ in range(2))
    chosen = HopperSparseDecodeTiles(*tiles) if tiles else tiles_of.choose(num_tokens, num_heads, topk, packed=packed)
    sparse_attn(q, pool, indices, SCALE, chosen, out=out, lse=lse, max_logits=largest)
    want = torch.empty_like(out)
    reference.sparse_attn(q, cache, indices, SCALE, out=want)
    assert mismatch(want, out, TOLERANCE[torch.bfloat16]) is None
    valid = (indices >= 0) & (indices < 8192)
    rows = torch.where(valid[..., None], cache[indices.long().clamp(0, 8191)], 0.0).float()
    scores = torch.where(valid[:, None], q.float() @ rows.mT * SCALE, -torch.inf)
    if topk:
        assert mismatch(scores.logsumexp(-1), lse, TOLERANCE[torch.bfloat16]) is None
        assert mismatch(scores.amax(-1), largest, TOLERANCE[torch.bfloat16]) is None
    else:
        assert bool((lse == -torch.inf).all()) and bool((largest == -torch.inf).all())


@pytest.mark.gpu
@pytest.mark.parametrize("block_h", [16, 32, 64])
def test_packed_rows_give_the_same_bits_each_time_on_the_gpu(block_h):
    """With every multiprocessor busy, where a fence or a barrier too few would show."""
    pool, _ = packed_pool(torch.randn(1 << 16, 576, device="cuda").bfloat16())
    q = torch.randn(64, max(block_h, 16), 576, device="cuda").bfloat16()
    indices = torch.randint(0, 1 << 16, (64, 2048), device="cuda", dtype=torch.int32)
    tiles = HopperSparseDecodeTiles(block_h, 8 if block_h == 64 else 4, 2)
    outs = [torch.full((*q.shape[:2], 512), float("nan"), device="cuda").bfloat16() for _ in range(40)]
    for out in outs:
        sparse_attn(q, pool, indices, SCALE, tiles, out=out)
    assert all(torch.equal(out.view(torch.int16), outs[0].view(torch.int16)) for out in outs)


@pytest.mark.gpu
def test_one_packed_row_is_given_back_bit_by_bit_on_the_gpu():
    """With one key the result is that row: every code of e4m3 but NaN is widened as the definition says."""
    codes = torch.arange(256, dtype=torch.uint8, device="cuda").repeat(8, 2)
    codes[(codes & 127) == 127] = 0
    scales = torch.rand(8, 4, device="cuda").exp()
    rope = torch.randn(8, 64, device="cuda").bfloat16()
    pool = torch.cat([codes, scales.view(torch.uint8), rope.view(torch.uint8)], 1)
    want = (codes.view(torch.float8_e4m3fn).float() * scales.repeat_interleave(128, 1)).bfloat16()
    q = torch.randn(8, 16, 576, device="cuda").bfloat16()
    out = torch.full((8, 16, 512), float("nan"), device="cuda").bfloat16()
    sparse_attn(q, pool, torch.arange(8, device="cuda", dtype=torch.int32)[:, None], SCALE, out=out)
    assert torch.equal(out, want[:, None].expand_as(out))


@pytest.mark.gpu
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("num_tokens,num_heads,stat", [(2, 16, "lse"), (70, 64, "lse"), (70, 64, "max_logits")])
def test_launcher_finds_a_form_on_the_gpu(num_tokens, num_heads, stat, packed):
    """Without tiles either Hopper form may run, and either statistic may be asked for alone."""
    q = torch.randn(num_tokens, num_heads, 576, device="cuda").bfloat16()
    cache = torch.randn(4096, 576, device="cuda").bfloat16()
    pool, cache = packed_pool(cache) if packed else (cache, cache)
    indices = torch.randint(-1, 4096, (num_tokens, 2048), device="cuda", dtype=torch.int32)
    got = {name: torch.full(q.shape[:2], float("nan"), device="cuda") for name in ("lse", "max_logits")}
    out, want = (torch.full((num_tokens, num_heads, 512), float("nan"), device="cuda").bfloat16() for _ in range(2))
    sparse_attn(q, pool, indices, SCALE, out=out, **{stat: got[stat]})
    reference.sparse_attn(q, cache, indices, SCALE, out=want)
    assert mismatch(want, out, TOLERANCE[torch.bfloat16]) is None
    rows = torch.where(indices[..., None] >= 0, cache[indices.long().clamp(min=0)], 0.0).float()
    scores = torch.where(indices[:, None] >= 0, q.float() @ rows.mT * SCALE, -torch.inf)
    expected = scores.logsumexp(-1) if stat == "lse" else scores.amax(-1)
    assert mismatch(expected, got[stat], TOLERANCE[torch.bfloat16]) is None


def test_misaligned_rows_are_refused():
    """16 bytes are copied at a time."""
    q = torch.zeros(1, 16, 576, dtype=torch.bfloat16)
    cache = torch.zeros(64, 577, dtype=torch.bfloat16)[:, :576]
    indices = torch.zeros(1, 64, dtype=torch.int32)
    with pytest.raises(ValueError, match="cache: expected rows at multiples of 16 elements"):
        sparse_attn(q, cache, indices, SCALE, HopperSparseDecodeTiles(16, 4, 1), out=torch.empty_like(q[..., :512]))
