"""What moves rows between a step's tokens and the paged caches, and positions to rows."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from mlaprof.cases.case import close, equal, generator, normal, unwritten
from mlaprof.cases.chain import Chain, Results
from mlaprof.cases.tokenwise import angles
from mlaprof.facts import Check
from mlaprof.kernel_shapes import KV_LORA_RANK, ROPE_DIM
from mlaprof.kernels import reference, reference_fused
from mlaprof.kernels.cache_write import cache_write
from mlaprof.kernels.index_cache import gather_index_cache
from mlaprof.kernels.index_convert import convert_indices
from mlaprof.kernels.work import cache_write as cache_work
from mlaprof.kernels.work import index_convert as convert_work
from mlaprof.shapes import INDEX_HEAD_DIM, TOKENS_PER_BLOCK

BLOCK_BYTES = TOKENS_PER_BLOCK * (INDEX_HEAD_DIM + 4)
CODE_BYTES = TOKENS_PER_BLOCK * INDEX_HEAD_DIM
SPARE_BLOCKS = 4


def slots(num_tokens: int, random: torch.Generator) -> tuple[Tensor, Tensor, Tensor, int]:
    """A place for every token in shuffled blocks: its row, the byte offsets of its codes and scale; and the blocks."""
    blocks = -(-num_tokens // TOKENS_PER_BLOCK) + SPARE_BLOCKS
    order = torch.randperm(blocks, generator=random, device=random.device)
    token = torch.arange(num_tokens, device=random.device)
    block, place = order[token // TOKENS_PER_BLOCK], token % TOKENS_PER_BLOCK
    first = block * BLOCK_BYTES
    return (
        block * TOKENS_PER_BLOCK + place,
        first + place * INDEX_HEAD_DIM,
        first + CODE_BYTES + 4 * place,
        blocks,
    )


def build_cache_write(shape: Mapping[str, int], seed: int, device: torch.device) -> Chain:
    """Compared are the rows written; torch writes into caches of its own."""
    num_tokens = shape["num_tokens"]
    random = generator(seed, device)
    row, slot_fp8, slot_scale, blocks = slots(num_tokens, random)
    cos_sin, positions = angles(num_tokens, random)
    k, k_scale = reference.act_quant(normal(num_tokens, INDEX_HEAD_DIM, random=random))
    read = (normal(num_tokens, KV_LORA_RANK, random=random), normal(num_tokens, ROPE_DIM, random=random))

    def caches() -> tuple[Tensor, Tensor]:
        latent = unwritten(blocks * TOKENS_PER_BLOCK, KV_LORA_RANK + ROPE_DIM, device=device)
        return latent, torch.full((blocks, BLOCK_BYTES), 0xFF, dtype=torch.uint8, device=device)

    own_latent, own_index = caches()
    latent, index = caches()

    def own() -> Results:
        cache_write(*read, cos_sin, positions, row, 0, own_latent, k, k_scale, slot_fp8, slot_scale, own_index)
        return own_latent, own_index

    def chain() -> Results:
        reference_fused.append(*read, cos_sin, positions, row, 0, latent, k, k_scale, slot_fp8, slot_scale, index)
        return latent, index

    def by_token(caches: Results) -> Results:
        return caches[0][row], *reference.gather_index_cache(caches[1], slot_fp8, slot_scale)

    def compare(want: Results, got: Results) -> list[Check]:
        return close("latent rows", want[0], got[0]) + _same(("index keys", "index scales"), want[1:], got[1:])

    return Chain(
        kernel="cache_write",
        work=cache_work.cache_write(num_tokens),
        device=device,
        shape=shape,
        num_tokens=num_tokens,
        own=own,
        torch=chain,
        compare=compare,
        by_token=by_token,
    )


def build_gather(shape: Mapping[str, int], seed: int, device: torch.device) -> Chain:
    """One request's keys in the order of its tokens."""
    num_tokens = shape["num_tokens"]
    random = generator(seed, device)
    row, slot_fp8, slot_scale, blocks = slots(num_tokens, random)
    cache = torch.full((blocks, BLOCK_BYTES), 0xFF, dtype=torch.uint8, device=device)
    reference.update_index_cache(
        *reference.act_quant(normal(num_tokens, INDEX_HEAD_DIM, random=random)), slot_fp8, slot_scale, cache
    )
    table = (row[::TOKENS_PER_BLOCK] // TOKENS_PER_BLOCK).int()[None]
    operands = (cache, slot_fp8, slot_scale)

    return Chain(
        kernel="gather_index_cache",
        work=cache_work.gather_index_cache(num_tokens),
        device=device,
        shape=shape,
        num_tokens=num_tokens,
        own=lambda: gather_index_cache(*operands),
        torch=lambda: reference.gather_index_cache(*operands),
        compare=lambda want, got: _same(("keys", "scales"), want, got),
        peer=(cache, table, num_tokens),
    )


def build_convert(shape: Mapping[str, int], seed: int, device: torch.device) -> Chain:
    """Positions of requests of 8 tokens each, some empty, in a pool of two layers."""
    num_tokens, topk = shape["num_tokens"], shape["topk"]
    random = generator(seed, device)
    tokens_of_request, layers = 8, 2
    requests = -(-num_tokens // tokens_of_request)
    blocks = max(1, -(-4 * topk // TOKENS_PER_BLOCK))
    table = torch.randperm(requests * blocks, generator=random, device=device).int().view(requests, blocks)
    positions = torch.randint(
        -1, blocks * TOKENS_PER_BLOCK, (num_tokens, topk), generator=random, device=device, dtype=torch.int32
    )
    request = torch.arange(num_tokens, dtype=torch.int32, device=device) // tokens_of_request
    operands = (positions, table, request, layers * TOKENS_PER_BLOCK, TOKENS_PER_BLOCK)
    return Chain(
        kernel="convert_indices",
        work=convert_work.convert_indices(num_tokens, topk=topk),
        device=device,
        shape=shape,
        num_tokens=num_tokens,
        own=lambda: convert_indices(*operands),
        torch=lambda: reference.convert_indices(*operands),
        compare=lambda want, got: [equal("rows", want[0], got[0])],
    )


def _same(names: tuple[str, ...], want: Results, got: Results) -> list[Check]:
    return [equal(name, a.float(), b.float()) for name, a, b in zip(names, want, got, strict=True)]
