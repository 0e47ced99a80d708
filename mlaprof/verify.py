"""Correctness before any time: the eager layer against the oracle, every captured mode against eager, bit for bit.

Each function answers with Checks; whoever measures shows no latency where one fails.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mlaprof.facts import Check
from mlaprof.layer import reference
from mlaprof.layer.batch import Batch
from mlaprof.layer.cache import Caches
from mlaprof.layer.context import ForwardContext
from mlaprof.layer.mla import MLA, NUM_PROJ_TENSORS
from mlaprof.layer.ops import NAMESPACE
from mlaprof.layer.stack import Stack
from mlaprof.study import PR_BOUNDARY

# bf16 products in series against fp32. The largest of 168 layer checks on an H100 (2026-11-23, V3.2 and GLM-5, TP1 and
# TP8, 1 to 8192 tokens) were 0.0114 for a row, 0.038 for an index key and 0.023 for the top-k; a wrong page, scale or
# rotation gives 0.1 and more.
NON_FINITE = "non-finite elements"
MAX_ROW_ERROR = 0.02  # worst row of |out - ref| / |ref|
MAX_KEY_ERROR = 0.08  # of a cached index key: e4m3 keeps 3 bits, and an amax at a power of two may round either way
MAX_TOPK_MISS = 0.05  # 1 - mean Jaccard of the selected sets; upstream's own decode test demands as much
# With e4m3 activations in the projections: two values that differ by bf16's rounding fall into different codes, and a
# row of codes is 0.026 from what was rounded. The oracle rounds, too, so that a layer is up to twice that from it:
# 0.053 at most of 12 layer checks (emulated, tiny and 1536 wide), 0.049 of 4 on an H100 (V3.2 TP1; both 2026-11-23).
MAX_FP8_ROW_ERROR = 0.08
SAMPLED_ROWS = 16


@dataclass(frozen=True)
class Probe:
    """What went through one attention layer in an eager run."""

    attn: MLA
    hidden: Tensor  # [rows, hidden_size], after the input norm
    output: Tensor  # [rows, hidden_size], after o_proj


def probe(stack: Stack, hidden_states: Tensor, position_ids: Tensor) -> tuple[Tensor, list[Probe]]:
    """Run stack once and keep what each attention layer saw and said."""
    probes: list[Probe] = []

    def keep(attn: torch.nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(attn, MLA)
        probes.append(Probe(attn, args[0].clone(), output.clone()))

    hooks = [attn.register_forward_hook(keep) for attn in stack.attention.values()]
    try:
        return stack(hidden_states, position_ids), probes
    finally:
        for hook in hooks:
            hook.remove()


def against_oracle(
    probed: Probe,
    weights: dict[str, Tensor],
    batch: Batch,
    caches: Caches,
    position_ids: Tensor,
    context: ForwardContext,
    *,
    total: Callable[[Tensor], Tensor] = lambda partial: partial,
) -> tuple[Check, ...]:
    """One layer's eager output against the dense fp32 reference, on up to SAMPLED_ROWS rows of the batch.

    The reference attends to the layer's own selection, so that a tie broken differently in the top-k cannot hide a
    real error nor feign one; the selection itself is compared as a set.

    total  sums what is said of one rank's heads over the ranks, as the layer does behind o_proj
    """
    attn, shape, number = probed.attn, probed.attn.shape, probed.attn.layer_number
    index_pool = caches.index_k[number] if shape.is_dsa else None
    rows = sampled_rows(batch.num_tokens)
    latent, index_k = reference.read_tokens(caches.latent, index_pool, number, _places(batch, rows))
    histories = _histories(batch, caches, number, index_pool, rows)
    hidden = probed.hidden[: batch.num_tokens]
    selected = _selection(probed, batch, position_ids, context, rows)
    # The reference has no rows for positions to come; a selection of them is counted below.
    legal = {row: picked[picked <= position_ids[row]] for row, picked in selected.items()}
    fp8 = attn.linear != "bf16"
    expected = reference.attention(weights, shape, hidden, histories, rows=rows, selected=legal, fp8_activations=fp8)

    def check(what: str, value: float, limit: float) -> Check:
        return Check(name=f"layer {number}: {what}", value=value, limit=limit)

    output = probed.output[list(expected.rows)].float()
    checks = [
        check(
            "worst row error vs oracle",
            _worst_row(total(expected.output), output),
            MAX_FP8_ROW_ERROR if fp8 else MAX_ROW_ERROR,
        ),
        # One row among the thousands of a long context moves no output: what was cached must be looked at itself.
        check("latent rows written", _worst_row(expected.latent, latent.float()), MAX_ROW_ERROR),
    ]
    if expected.index_k is None or index_k is None:
        return tuple(checks)
    illegal = sum(_illegal(selected[row], int(position_ids[row])) for row in rows)
    # The reference follows the layer's selection, so a leak from the future must be caught here.
    checks.append(check("top-k future or repeated", float(illegal), 0.0))
    dense_tokens = batch.num_ctx_tokens if attn.short_mha(context, position_ids) else 0
    if dense_tokens < batch.num_tokens:
        checks.append(check("index keys written", _worst_row(expected.index_k, index_k), MAX_KEY_ERROR))
    if choosing := [row for row in rows if row >= dense_tokens]:
        own = reference.attention(weights, shape, hidden, histories, rows=choosing, fp8_activations=fp8)
        overlap = [_jaccard(a, selected[row]) for row, a in zip(own.rows, own.topk, strict=True)]
        checks.append(check("top-k sets missing vs oracle", 1.0 - sum(overlap) / len(overlap), MAX_TOPK_MISS))
    return tuple(checks)


def same_bits(name: str, expected: Tensor, got: Tensor) -> Check:
    """How many elements differ in any bit; NaN equals the same NaN. Limit 0."""
    if expected.shape != got.shape or expected.dtype != got.dtype:
        raise ValueError(f"{name}: expected {expected.dtype} {list(expected.shape)}, got {got.dtype} {list(got.shape)}")
    differing = (expected.contiguous().view(torch.uint8) != got.contiguous().view(torch.uint8)).sum()
    return Check(name=f"{name}: differing bytes vs eager", value=float(differing), limit=0.0)


def finite(name: str, output: Tensor) -> Check:
    """How many elements are NaN or infinite. Limit 0: two equal NaNs are still wrong."""
    return Check(name=f"{name}: {NON_FINITE}", value=float((~output.isfinite()).sum()), limit=0.0)


def undeclared_writes(stack: Stack, hidden_states: Tensor, position_ids: Tensor) -> list[Check]:
    """How many tensor arguments each registered operator writes that its schema does not declare, in one eager run.

    A graph optimizer trusts the schema: it may give such an operator a copy, or drop it (TensorRT-LLM's `inplace_info`
    exists for that). And whoever runs Op 2 twice on the same arguments, as a benchmark does, must get the same result.
    """
    with (watch := _Writes()):
        stack(hidden_states, position_ids)
    return [
        Check(name=f"{name}: arguments written against its schema", value=float(count), limit=0.0)
        for name, count in watch.undeclared.items()
    ]


class _Writes(TorchDispatchMode):
    """Looks at the arguments of mlaprof's operators before and after each call."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.undeclared: dict[str, int] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func._schema.name
        if not name.startswith(f"{NAMESPACE}::"):
            return func(*args, **(kwargs or {}))
        declared = zip(func._schema.arguments, args, strict=False)
        constant = [value for argument, value in declared if not (argument.alias_info and argument.alias_info.is_write)]
        watched = [leaf for leaf in tree_leaves(constant) if isinstance(leaf, Tensor)]
        before = [tensor.clone() for tensor in watched]
        result = func(*args, **(kwargs or {}))
        changed = sum(not _same(old, new) for old, new in zip(before, watched, strict=True))
        self.undeclared[name] = self.undeclared.get(name, 0) + changed
        return result


def _same(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one.contiguous().view(torch.uint8), other.contiguous().view(torch.uint8))


def sampled_rows(num_tokens: int) -> list[int]:
    """First, last and evenly spread rows of the batch, at most SAMPLED_ROWS."""
    if num_tokens <= SAMPLED_ROWS:
        return list(range(num_tokens))
    return sorted({round(i * (num_tokens - 1) / (SAMPLED_ROWS - 1)) for i in range(SAMPLED_ROWS)})


def _places(batch: Batch, rows: Sequence[int]) -> list[tuple[Sequence[int], int]]:
    """(pages of its request, absolute position) of each of these rows of the batch."""
    places = [
        (pages, position)
        for request, pages in zip(batch.requests, batch.pages, strict=True)
        for position in range(request.cached_tokens, request.kv_len)
    ]
    return [places[row] for row in rows]


def _histories(
    batch: Batch, caches: Caches, layer: int, index_pool: Tensor | None, rows: Sequence[int]
) -> list[reference.History]:
    """Every request's past; empty where none of rows is of that request, as thousands of pasts would not fit."""
    histories, start = [], 0
    for request, pages in zip(batch.requests, batch.pages, strict=True):
        stop = start + request.new_tokens
        cached = request.cached_tokens if any(start <= row < stop for row in rows) else 0
        histories.append(reference.read_history(caches.latent, index_pool, layer, pages, cached, request.new_tokens))
        start = stop
    return histories


def _selection(
    probed: Probe, batch: Batch, position_ids: Tensor, context: ForwardContext, rows: Sequence[int]
) -> dict[int, Tensor]:
    """The positions each row attends to, as the layer itself selects them (everything, for dense attention)."""
    # Whatever the boundary, the selection is the same; at the PR's the indexer's four tensors can be had.
    attn = probed.attn.variant(form=probed.attn.form, tiles=probed.attn.tiles, boundary=PR_BOUNDARY)
    num_tokens = batch.num_tokens
    everything = {row: torch.arange(int(position_ids[row]) + 1, device=position_ids.device) for row in rows}
    if attn.indexer is None:
        return everything
    parts = attn.dsa_proj(probed.hidden, position_ids, context)
    dense_contexts = attn.short_mha(context, position_ids)
    if len(parts) == NUM_PROJ_TENSORS:
        return everything
    q_fp8, k_fp8, k_scale, weights = (part[:num_tokens] for part in parts[NUM_PROJ_TENSORS:])
    topk = attn.indexer.sparse_attn_indexer(
        context.metadata,
        q_fp8,
        k_fp8,
        k_scale,
        weights,
        index_k_cache=attn.caches.index_k[attn.layer_number],
        tiles=attn.tiles,
    )
    picked = {row: topk[row][topk[row] >= 0].long() for row in rows}
    if dense_contexts:
        picked |= {row: everything[row] for row in rows if row < batch.num_ctx_tokens}
    return picked


def _jaccard(a: Tensor, b: Tensor) -> float:
    first, second = set(a.tolist()), set(b.tolist())
    return len(first & second) / max(len(first | second), 1)


def _illegal(selected: Tensor, position: int) -> int:
    """Selected positions after the token's own, and those selected more than once."""
    repeated = selected.numel() - int(selected.unique().numel())
    return int((selected > position).sum()) + repeated


def _worst_row(want: Tensor, got: Tensor) -> float:
    """The largest |got - want| / |want| of a row, NaN if any is NaN."""
    error = (got - want).norm(dim=-1) / want.norm(dim=-1)
    return float(error.max()) if not error.isnan().any() else float("nan")
