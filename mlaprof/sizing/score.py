"""What a given list of capture sizes makes of a trace: every step padded up, eager above the largest size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mlaprof.sizing.costs import Costs
from mlaprof.sizing.steps import Floats, Ints, Steps


@dataclass(frozen=True)
class Expected:
    """A list with the mean over all steps of a trace, in seconds, and what it costs; all predicted.

    low, high bound the seconds by the intervals of the measured sizes and by what a rising curve can do between them.
    """

    sizes: tuple[int, ...]
    step_s: float
    low_s: float
    high_s: float
    eager_share: float  # of the steps, above the largest size
    padded_tokens: float  # mean over the captured steps, of padded size - own size
    memory_bytes: int | None  # None: the run has no ledger
    capture_s: float | None

    @property
    def fallback(self) -> int:
        """The most tokens of a step that runs in a graph; 0 where nothing is captured."""
        return self.sizes[-1] if self.sizes else 0


def expected(sizes: Sequence[int], steps: Steps, costs: Costs) -> Expected:
    """Score a list. Raises ValueError on a size above what the run measured."""
    chosen = np.array(sorted(set(sizes)), dtype=np.int64)
    if chosen.size and (chosen[0] < 1 or chosen[-1] > costs.largest):
        raise ValueError(f"sizes: expected 1 to {costs.largest} tokens, got {chosen[0]} to {chosen[-1]}")
    in_graph = steps.tokens <= (chosen[-1] if chosen.size else 0)
    own = steps.tokens[in_graph]
    padded = chosen[np.searchsorted(chosen, own)] if own.size else own
    weights = steps.weights[in_graph]
    rest, rest_weights = steps.tokens[~in_graph], steps.weights[~in_graph]
    captured = float(weights.sum())

    def mean(graph_own: Floats, graph_padded: Floats, eager: Floats) -> float:
        step = (1 - costs.padding_share) * graph_own + costs.padding_share * graph_padded
        return float(weights @ step + rest_weights @ eager)

    bounds = [costs.graph.bounds(own), costs.graph.bounds(padded), costs.eager.bounds(rest)]
    return Expected(
        sizes=tuple(chosen.tolist()),
        step_s=mean(costs.graph.at(own), costs.graph.at(padded), costs.eager.at(rest)),
        low_s=mean(*(low for low, _ in bounds)),
        high_s=mean(*(high for _, high in bounds)),
        eager_share=round(float(rest_weights.sum()), 12),  # all of them are 1
        padded_tokens=float(weights @ (padded - own)) / captured if captured else 0.0,
        memory_bytes=memory_bytes(chosen, costs),
        capture_s=capture_s(chosen, costs),
    )


def memory_bytes(sizes: Ints, costs: Costs) -> int | None:
    """Device memory of a list's graphs; None where the run has no ledger."""
    if not sizes.size:
        return 0
    found = costs.capture.memory(sizes[-1:], np.array([sizes.size - 1])) if costs.capture else None
    return None if found is None else int(found[0])


def capture_s(sizes: Ints, costs: Costs) -> float | None:
    """Seconds to capture a list; None where the run did not measure any."""
    if not sizes.size:
        return 0.0
    return float(costs.capture.capture_s(sizes[-1:], np.array([sizes.size - 1]))[0]) if costs.capture else None
