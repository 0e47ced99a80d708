"""The list to capture under budgets, the front of time against memory, and other lists on the same trace."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mlaprof.buckets import effective_sizes
from mlaprof.errors import ConfigError
from mlaprof.sizing.costs import Costs
from mlaprof.sizing.lists import MOST_CANDIDATES, MOST_SIZES, BestLists, best_lists
from mlaprof.sizing.score import Expected, expected
from mlaprof.sizing.steps import Floats, Ints, Steps

SAME = 1e-9  # relative; of lists this near in time the one with fewer sizes and less memory is taken
FRONT_POINTS = 200


@dataclass(frozen=True)
class Limits:
    """What a list may cost; None is no limit."""

    memory_bytes: int | None = None
    capture_s: float | None = None
    sizes: int | None = None


@dataclass(frozen=True)
class Baseline:
    """Another list on the same trace, and the best one that costs no more memory than it."""

    name: str
    found: Expected
    at_equal_memory: Expected | None  # None: the run has no ledger


@dataclass(frozen=True)
class FrontPoint:
    """A list that no other one beats in both time and memory."""

    memory_bytes: int
    step_s: float
    sizes: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Choice:
    """What to capture for a trace, all predicted from one run."""

    steps: Steps
    costs: Costs
    limits: Limits
    chosen: Expected
    eager: Expected  # nothing captured
    baselines: tuple[Baseline, ...]
    front: tuple[FrontPoint, ...]
    candidates: int
    grain: int  # candidates are multiples of it, or in a baseline, or measured; 1 is every count of the trace


def choose(steps: Steps, costs: Costs, limits: Limits, others: Mapping[str, Sequence[int]]) -> Choice:
    """The list with the least expected step within the limits.

    others  lists to compare with, by name; clamped to what the run measured, as an engine clamps to its max_num_tokens

    Raises ConfigError where the trace reaches beyond the run, or no capture size fits the limits.
    """
    if steps.largest > costs.largest:
        raise ConfigError(
            f"a step of {steps.largest} tokens, but the run measured up to {costs.largest}",
            where=steps.name,
            hint=f"sweep up to {steps.largest} tokens in modes {costs.eager_way} and {costs.way}, or cap the trace's "
            "steps there",
        )
    _require_costs(costs, limits)
    lists = {
        name: effective_sizes(sizes, max_num_tokens=costs.largest, ceiling=None).sizes for name, sizes in others.items()
    }
    candidates, grain = candidates_of(steps, costs, lists)
    most = min(limits.sizes or MOST_SIZES, MOST_SIZES)
    table = best_lists(steps, costs, candidates, max([most, *(min(len(each), MOST_SIZES) for each in lists.values())]))
    memory, seconds = _costs_of(table, costs)
    fits = np.isfinite(table.seconds)
    fits[most:] = False
    allowed = fits.copy()
    for values, limit in ((memory, limits.memory_bytes), (seconds, limits.capture_s)):
        if values is not None and limit is not None:
            allowed &= values <= limit
    if not allowed.any():
        raise _nothing_fits(costs, limits, candidates, fits, memory, seconds)
    chosen = expected(_best(table, allowed, memory), steps, costs)
    eager = expected((), steps, costs)
    if eager.step_s <= chosen.step_s:
        chosen = eager
    return Choice(
        steps=steps,
        costs=costs,
        limits=limits,
        chosen=chosen,
        eager=eager,
        baselines=tuple(_baseline(name, sizes, table, memory, steps, costs) for name, sizes in lists.items()),
        front=_front(table, memory, fits),
        candidates=int(candidates.size),
        grain=grain,
    )


def candidates_of(steps: Steps, costs: Costs, lists: Mapping[str, Sequence[int]]) -> tuple[Ints, int]:
    """Every count of the trace, measured size and size of another list; thinned to multiples where they are too many.

    A size between two counts of the trace is never better than the lower count: both hold the same steps.
    """
    named = {int(size) for size in costs.graph.tokens} | {size for sizes in lists.values() for size in sizes}
    kept = np.array(sorted(size for size in named if size <= costs.largest), dtype=np.int64)
    grain = 1
    while True:
        found = np.union1d(kept, np.unique(np.minimum(-(-steps.tokens // grain) * grain, costs.largest)))
        if found.size <= MOST_CANDIDATES:
            return found, grain
        grain *= 2


def _require_costs(costs: Costs, limits: Limits) -> None:
    hint = "sweep with --set measure.memory=true"
    if limits.memory_bytes is not None and (costs.capture is None or costs.capture.bytes is None):
        raise ConfigError(f"the run has no memory ledger of {costs.way}", where="--memory", hint=hint)
    if limits.capture_s is not None and costs.capture is None:
        raise ConfigError(f"the run has no capture times of {costs.way}", where="--capture-time", hint=hint)


def _costs_of(table: BestLists, costs: Costs) -> tuple[Floats | None, Floats | None]:
    """Bytes and seconds of every list of the table, in its shape."""
    if costs.capture is None:
        return None, None
    further = np.arange(table.seconds.shape[0])[:, None]
    largest = table.candidates[None, :]
    return costs.capture.memory(largest, further), costs.capture.capture_s(largest, further)


def _best(table: BestLists, allowed: NDArray[np.bool_], memory: Floats | None) -> tuple[int, ...]:
    """The fastest allowed list; of equally fast ones the shortest, then the one of least memory."""
    seconds = np.where(allowed, table.seconds, np.inf)
    near = np.argwhere(seconds <= seconds.min() * (1 + SAME))
    shortest = near[near[:, 0] == near[:, 0].min()]
    weights = shortest[:, 1] if memory is None else memory[shortest[:, 0], shortest[:, 1]]
    further, place = shortest[int(np.argmin(weights))]
    return table.sizes(int(further), int(place))


def _baseline(
    name: str, sizes: Sequence[int], table: BestLists, memory: Floats | None, steps: Steps, costs: Costs
) -> Baseline:
    found = expected(sizes, steps, costs)
    if memory is None or found.memory_bytes is None:
        return Baseline(name, found, None)
    allowed = np.isfinite(table.seconds) & (memory <= found.memory_bytes)
    equal = expected(_best(table, allowed, memory), steps, costs) if allowed.any() else found
    return Baseline(name, found, equal if equal.step_s <= found.step_s else found)


def _front(table: BestLists, memory: Floats | None, fits: NDArray[np.bool_]) -> tuple[FrontPoint, ...]:
    """From the least memory up, every list that is faster than all cheaper ones; thinned where they are many."""
    if memory is None:
        return ()
    places = np.argwhere(fits)
    cost, time = memory[fits], table.seconds[fits]
    order = np.lexsort((time, cost))
    best = np.concatenate([[table.eager_s], np.minimum.accumulate(time[order])[:-1]])
    best = np.minimum(best, table.eager_s)
    kept = order[time[order] < best * (1 - SAME)]
    if kept.size > FRONT_POINTS:
        kept = kept[np.unique(np.linspace(0, kept.size - 1, FRONT_POINTS).astype(int))]
    nothing = FrontPoint(0, table.eager_s, ())
    return (
        nothing,
        *(
            FrontPoint(int(cost[at]), float(time[at]), table.sizes(int(places[at][0]), int(places[at][1])))
            for at in kept
        ),
    )


def _nothing_fits(
    costs: Costs,
    limits: Limits,
    candidates: Ints,
    fits: NDArray[np.bool_],
    memory: Floats | None,
    seconds: Floats | None,
) -> ConfigError:
    """Which budget is too small, and the smallest that would do."""
    least_bytes = None if memory is None else float(memory[fits].min())
    least_s = None if seconds is None else float(seconds[fits].min())
    if limits.memory_bytes is not None and least_bytes is not None and limits.memory_bytes < least_bytes:
        return ConfigError(
            f"no capture size fits into {limits.memory_bytes} bytes",
            where="--memory",
            hint=f"the smallest budget that holds one is {int(np.ceil(least_bytes))} bytes "
            f"({np.ceil(least_bytes / 2**20 * 100) / 100:g} MiB, {candidates[0]} tokens)",
        )
    if limits.capture_s is not None and least_s is not None and limits.capture_s < least_s:
        return ConfigError(
            f"no capture size fits into {limits.capture_s:g} s",
            where="--capture-time",
            hint=f"the smallest budget that holds one is {np.ceil(least_s * 1e5) / 1e5:g}s",
        )
    # Each budget alone holds a size, but no one size fits both.
    assert memory is not None and limits.memory_bytes is not None and seconds is not None
    needed = float(np.where(fits & (memory <= limits.memory_bytes), seconds, np.inf).min())
    return ConfigError(
        "no capture size fits both budgets",
        where="--memory --capture-time",
        hint=f"within that memory the smallest capture time is {np.ceil(needed * 1e5) / 1e5:g}s",
    )
