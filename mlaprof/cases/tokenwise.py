"""The fused kernels between the layer's products: norms, rotations, quantisation, the small products of every head."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from mlaprof.cases.case import (
    MAX_CODE_ERROR,
    close,
    dequantised,
    generator,
    normal,
    unwritten,
)
from mlaprof.cases.chain import Chain, Results
from mlaprof.facts import Check
from mlaprof.kernel_shapes import KV_LORA_RANK, ROPE_DIM
from mlaprof.kernels import reference_fused
from mlaprof.kernels.absorb import absorb, up_project
from mlaprof.kernels.index_query import index_query
from mlaprof.kernels.norm_rope import norm_rope
from mlaprof.kernels.query_rope import query_rope
from mlaprof.kernels.rmsnorm import rmsnorm, rmsnorm_quant
from mlaprof.kernels.tiles import Tiles
from mlaprof.kernels.work import absorb as absorb_work
from mlaprof.kernels.work import index_query as index_query_work
from mlaprof.kernels.work import norm_rope as norm_rope_work
from mlaprof.kernels.work import query_rope as query_rope_work
from mlaprof.kernels.work import rmsnorm as rmsnorm_work
from mlaprof.shapes import INDEX_HEAD_DIM, PRESETS

V3_2 = PRESETS["v3.2"]
EPS = V3_2.rms_norm_eps
MAX_POSITIONS = 4096


def angles(num_tokens: int, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """A table of cosines and sines [max_positions, 2, 32] fp32, and a position a token."""
    steps = 10_000.0 ** -(torch.arange(0, ROPE_DIM, 2, device=random.device) / ROPE_DIM)
    turns = torch.outer(torch.arange(MAX_POSITIONS, device=random.device), steps)
    positions = torch.randint(MAX_POSITIONS, (num_tokens,), generator=random, device=random.device)
    return torch.stack((turns.cos(), turns.sin()), dim=1), positions


def build_rmsnorm(shape: Mapping[str, int], seed: int, device: torch.device) -> Chain:
    m, k = shape["m"], shape["k"]
    random = generator(seed, device)
    operands = (normal(m, k, random=random), normal(k, random=random), EPS)
    return Chain(
        kernel="rmsnorm",
        work=rmsnorm_work.rmsnorm(m, k),
        device=device,
        shape=shape,
        num_tokens=m,
        own=lambda: rmsnorm(*operands),
        torch=lambda: reference_fused.rmsnorm(*operands),
        compare=lambda want, got: close("norm", want[0], got[0]),
        peer=operands,
    )


def build_rmsnorm_quant(shape: Mapping[str, int], seed: int, device: torch.device) -> Chain:
    m, k = shape["m"], shape["k"]
    random = generator(seed, device)
    operands = (normal(m, k, random=random), normal(k, random=random), EPS)
    return Chain(
        kernel="rmsnorm_quant",
        work=rmsnorm_work.rmsnorm_quant(m, k),
        device=device,
        shape=shape,
        num_tokens=m,
        own=lambda: rmsnorm_quant(*operands),
        torch=lambda: reference_fused.rmsnorm_quant(*operands),
        compare=lambda want, got: _codes("norm", want, got),
        peer=operands,
    )


def build_norm_rope(shape: Mapping[str, int], seed: int, device: torch.device) -> Chain:
    num_tokens, q_rank = shape["num_tokens"], V3_2.q_lora_rank
    random = generator(seed, device)
    cos_sin, positions = angles(num_tokens, random)
    operands = (
        normal(num_tokens, q_rank + KV_LORA_RANK + ROPE_DIM, random=random),
        normal(q_rank, random=random),
        normal(KV_LORA_RANK, random=random),
        EPS,
        normal(num_tokens, INDEX_HEAD_DIM, random=random, dtype=torch.float32),
        normal(INDEX_HEAD_DIM, random=random),
        normal(INDEX_HEAD_DIM, random=random),
        EPS,
        cos_sin,
        positions,
    )

    def compare(want: Results, got: Results) -> list[Check]:
        names = ("qr", "compressed_kv", "k_pe", "latent_cache")
        checks = [check for name, a, b in zip(names, want, got, strict=False) for check in close(name, a, b)]
        return checks + _codes("index key", want[4:], got[4:])

    return Chain(
        kernel="norm_rope",
        work=norm_rope_work.norm_rope(num_tokens, q_lora_rank=q_rank, kv_lora_rank=KV_LORA_RANK),
        device=device,
        shape=shape,
        num_tokens=num_tokens,
        own=lambda: norm_rope(*operands, interleaved=False),
        torch=lambda: reference_fused.norm_rope(*operands, interleaved=False),
        compare=compare,
    )


def build_index_query(shape: Mapping[str, int], seed: int, device: torch.device) -> Chain:
    num_tokens, heads = shape["num_tokens"], shape["index_n_heads"]
    random = generator(seed, device)
    operands = (
        normal(num_tokens, heads * INDEX_HEAD_DIM, random=random),
        normal(num_tokens, heads, random=random, dtype=torch.float32),
        *angles(num_tokens, random),
        V3_2.index_weight_scale,
    )

    def compare(want: Results, got: Results) -> list[Check]:
        # The scale is folded into the weight: codes times weights stand for what both stood for.
        products = [codes.float() * weights[..., None] for codes, weights in (want, got)]
        return close("query times weight", *products, limit=MAX_CODE_ERROR) + close("weights", want[1], got[1])

    return Chain(
        kernel="index_query",
        work=index_query_work.index_query(num_tokens, index_n_heads=heads),
        device=device,
        shape=shape,
        num_tokens=num_tokens,
        own=lambda: index_query(*operands, interleaved=False),
        torch=lambda: reference_fused.index_query(*operands, interleaved=False),
        compare=compare,
    )


def build_query_rope(shape: Mapping[str, int], seed: int, device: torch.device) -> Chain:
    num_tokens, heads = shape["num_tokens"], shape["num_heads"]
    random = generator(seed, device)
    # As in the layer: out of the projected query, into the absorbed one.
    q = normal(num_tokens, heads, V3_2.qk_head_dim, random=random)[..., V3_2.qk_nope_head_dim :]
    absorbed = unwritten(num_tokens, heads, KV_LORA_RANK + ROPE_DIM, device=device)
    out = absorbed[..., KV_LORA_RANK:]
    cos_sin, positions = angles(num_tokens, random)

    def own() -> Tensor:
        query_rope(q, cos_sin, positions, out)
        return out

    def chain() -> Tensor:
        reference_fused.query_rope(q, cos_sin, positions, out)
        return out

    return Chain(
        kernel="query_rope",
        work=query_rope_work.query_rope(num_tokens, num_heads=heads),
        device=device,
        shape=shape,
        num_tokens=num_tokens,
        own=own,
        torch=chain,
        compare=lambda want, got: close("rope part", want[0], got[0]),
    )


def build_absorb(shape: Mapping[str, int], seed: int, device: torch.device) -> Chain:
    """The product of every head, and the rotary part beside it; torch: its batched product and a chain of others."""
    num_tokens, heads, nope = shape["num_tokens"], shape["num_heads"], V3_2.qk_nope_head_dim
    random = generator(seed, device)
    q = normal(num_tokens, heads, nope + ROPE_DIM, random=random)
    w = normal(heads, KV_LORA_RANK, nope, random=random, size=nope**-0.5)
    cos_sin, positions = angles(num_tokens, random)
    out = unwritten(num_tokens, heads, KV_LORA_RANK + ROPE_DIM, device=device)
    product = out[..., :KV_LORA_RANK].transpose(0, 1)

    def own(tiles: Tiles) -> Tensor:
        absorb(q, w, cos_sin, positions, out, tiles)
        return out

    def chain() -> Tensor:
        torch.bmm(q[..., :nope].transpose(0, 1), w.mT, out=product)
        reference_fused.query_rope(q[..., nope:], cos_sin, positions, out[..., KV_LORA_RANK:])
        return out

    return Chain(
        kernel="absorb",
        work=absorb_work.absorb(num_tokens, num_heads=heads),
        device=device,
        shape=shape,
        num_tokens=num_tokens,
        own=own,
        torch=chain,
        compare=lambda want, got: close("query", want[0], got[0]),
        choose={
            "triton": lambda form: form.choose(num_tokens, heads, KV_LORA_RANK, nope),
            "hopper": lambda form: form.choose(KV_LORA_RANK, nope),
        },
        precision="bf16",
    )


def build_up_project(shape: Mapping[str, int], seed: int, device: torch.device) -> Chain:
    num_tokens, heads, value = shape["num_tokens"], shape["num_heads"], V3_2.v_head_dim
    random = generator(seed, device)
    x = normal(num_tokens, heads, KV_LORA_RANK, random=random)
    w = normal(heads, value, KV_LORA_RANK, random=random, size=KV_LORA_RANK**-0.5)
    out = unwritten(num_tokens, heads, value, device=device)
    product = out.transpose(0, 1)

    def own(tiles: Tiles) -> Tensor:
        up_project(x, w, out, tiles)
        return out

    def chain() -> Tensor:
        torch.bmm(x.transpose(0, 1), w.mT, out=product)
        return out

    return Chain(
        kernel="up_project",
        work=absorb_work.up_project(num_tokens, num_heads=heads),
        device=device,
        shape=shape,
        num_tokens=num_tokens,
        own=own,
        torch=chain,
        compare=lambda want, got: close("values", want[0], got[0]),
        choose={
            "triton": lambda form: form.choose(num_tokens, heads, value, KV_LORA_RANK),
            "hopper": lambda form: form.choose(value, KV_LORA_RANK),
        },
        precision="bf16",
    )


def _codes(what: str, want: Results, got: Results) -> list[Check]:
    """Codes [rows, k] and scales [rows, k / 128], compared as what they stand for."""
    pairs = [dequantised(codes, scale.view(scale.shape[0], -1)) for codes, scale in (want, got)]
    return close(what, *pairs, limit=MAX_CODE_ERROR)
