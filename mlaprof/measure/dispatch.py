"""What the host pays to call a custom operator that does nothing: a tax on every operator of every layer, each step."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from time import perf_counter_ns
from typing import Any

import torch
from torch import Tensor

from mlaprof.measure.rounds import quiet_collector

NAMESPACE = "mlaprof_dispatch_tax"
# The argument list of mla_dsa_attn_inplace.
SCHEMA = (
    "(Tensor q, Tensor compressed_kv, Tensor k_pe, Tensor latent_cache, Tensor[] indexer_intermediates, "
    "Tensor position_ids, str layer_idx, Tensor(a!) output) -> ()"
)
WARMUP_CALLS = 100

Way = Callable[..., object]


@dataclass(frozen=True)
class DispatchSeconds:
    """Host seconds of one call, by the way it is made; medians. The clock's own tens of nanoseconds are in each."""

    bare_s: float  # the Python function itself
    define_s: float  # through torch.library define and impl
    custom_op_s: float  # through the torch.library.custom_op decorator
    calls: int  # behind each median


def dispatch_tax(device: torch.device | str, *, calls: int = 2000, seed: int = 0) -> DispatchSeconds:
    """Call one empty body in three ways, interleaved in random order, under inference mode.

    device  where the tensor arguments live; nothing is ever submitted to it
    calls   of each way; seed of their order

    Raises ValueError on calls < 1. Upstream registers its operators with the custom_op decorator, this project with
    define and impl.
    """
    if calls < 1:
        raise ValueError(f"calls: expected at least 1, got {calls}")
    _, define, custom_op = _operators()
    with torch.inference_mode():
        arguments = _arguments(torch.device(device))
        ways = {"bare_s": _attn, "define_s": define, "custom_op_s": custom_op}
        return DispatchSeconds(**_medians_s(ways, arguments, calls=calls, seed=seed), calls=calls)


def _attn(
    q: Tensor,
    compressed_kv: Tensor,
    k_pe: Tensor,
    latent_cache: Tensor,
    indexer_intermediates: list[Tensor],
    position_ids: Tensor,
    layer_idx: str,
    output: Tensor,
) -> None:
    """Op 2 without its work."""


@functools.cache  # a process registers an operator once
def _operators() -> tuple[torch.library.Library, Way, Way]:
    """(the library, whose end would be its operators', by define and impl, by the decorator), as layers call them."""
    library = torch.library.Library(NAMESPACE, "FRAGMENT")
    library.define(f"define{SCHEMA}")
    for key in ("CPU", "CUDA"):
        library.impl("define", _attn, key)
    torch.library.custom_op(f"{NAMESPACE}::custom_op", _attn, mutates_args=("output",), schema=SCHEMA)
    namespace = getattr(torch.ops, NAMESPACE)
    return library, namespace.define, namespace.custom_op


def _arguments(device: torch.device) -> tuple[Any, ...]:
    def tensor() -> Tensor:
        return torch.zeros(1, device=device)

    return tensor(), tensor(), tensor(), tensor(), [tensor() for _ in range(4)], tensor(), "0", tensor()


def _medians_s(ways: Mapping[str, Way], arguments: Sequence[Any], *, calls: int, seed: int) -> dict[str, float]:
    """Median seconds of each way; every round calls each once, in a fresh random order, garbage collector off."""
    shuffle = random.Random(seed).shuffle
    order = list(ways)
    spent_ns: dict[str, list[int]] = {name: [] for name in ways}
    for way in ways.values():
        for _ in range(WARMUP_CALLS):
            way(*arguments)
    with quiet_collector():
        for _ in range(calls):
            shuffle(order)
            for name in order:
                way = ways[name]
                begin_ns = perf_counter_ns()
                way(*arguments)
                spent_ns[name].append(perf_counter_ns() - begin_ns)
    return {name: median(each) * 1e-9 for name, each in spent_ns.items()}
