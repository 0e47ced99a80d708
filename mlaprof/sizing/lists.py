"""The best list of each length and largest size, by dynamic programming over candidate sizes. Exact; numpy only.

A list s_1 < ... < s_k costs, with F the share of steps of at most so many tokens, t the time in a graph, e the eager
one and a the share of its growth that a padded step shows,

    sum_i (F(s_i) - F(s_i-1)) * a * t(s_i)  +  (1 - a) * E[t(n); n <= s_k]  +  E[e(n); n > s_k]

so best(k, j), the least sum of k sizes that end at candidate j, is the minimum over i < j of best(k - 1, i) +
(F_j - F_i) * a * t_j. As t rises, that table is a Monge array and the best i never falls as j grows: each layer is
found by divide and conquer in m log m instead of m^2 steps, all divisions of one level at once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mlaprof.sizing.costs import Costs
from mlaprof.sizing.steps import Floats, Ints, Steps

MOST_CANDIDATES = 8192
MOST_SIZES = 128  # layers of the table; engines' own lists have 20 to 66 sizes


@dataclass(frozen=True, eq=False)
class BestLists:
    """seconds[k, j]: the least expected step of k + 1 sizes, the largest of them candidates[j]; inf where k > j."""

    candidates: Ints
    seconds: Floats
    eager_s: float  # of the empty list
    _before: Ints  # [k, j]: the candidate before the last, as its place + 1; 0 is none

    def sizes(self, further: int, place: int) -> tuple[int, ...]:
        """The list of `further` + 1 sizes that ends at candidates[place], ascending."""
        found, node = [], place + 1
        for layer in range(further, -1, -1):
            found.append(int(self.candidates[node - 1]))
            node = int(self._before[layer, node - 1])
        return tuple(reversed(found))


def best_lists(steps: Steps, costs: Costs, candidates: Ints, most: int) -> BestLists:
    """Solve for every length up to `most` and every largest candidate.

    candidates  ascending, distinct, at most costs.largest

    Raises ValueError on none, on more than MOST_CANDIDATES, and on a length beyond 1 to MOST_SIZES.
    """
    if not 0 < candidates.size <= MOST_CANDIDATES or not 0 < most <= MOST_SIZES:
        raise ValueError(f"expected 1 to {MOST_CANDIDATES} candidates and 1 to {MOST_SIZES} sizes, got "
                         f"{candidates.size} and {most}")  # fmt: skip
    places = np.concatenate([[0], np.searchsorted(steps.tokens, candidates, side="right")])
    shares = np.concatenate([[0.0], np.cumsum(steps.weights)])[places]  # [candidates + 1]
    in_graph = _running(steps.weights * costs.graph.at(steps.tokens))[places]
    eager = _running(steps.weights * costs.eager.at(steps.tokens))
    tail = (1 - costs.padding_share) * in_graph + eager[-1] - eager[places]
    padded = np.concatenate([[0.0], costs.padding_share * costs.graph.at(candidates)])
    most = min(most, candidates.size)
    seconds = np.full((most, candidates.size), np.inf)
    before = np.zeros((most, candidates.size), dtype=np.int64)
    layer = np.concatenate([[0.0], np.full(candidates.size, np.inf)])
    for number in range(most):
        layer, origin = _next_layer(layer, shares, padded, first=number)
        seconds[number] = (layer + tail)[1:]
        before[number] = origin[1:]
    return BestLists(candidates, seconds, float(tail[0]), before)


def _running(values: Floats) -> Floats:
    return np.concatenate([[0.0], np.cumsum(values)])


def _next_layer(layer: Floats, shares: Floats, padded: Floats, *, first: int) -> tuple[Floats, Ints]:
    """min over i < j of layer[i] + (shares[j] - shares[i]) * padded[j] for all j, and the i; layer is finite from
    `first` on, and at `first` alone where that is 0."""
    nodes = layer.size
    best, origin = np.full(nodes, np.inf), np.zeros(nodes, dtype=np.int64)
    if first == 0:
        best[1:] = layer[0] + shares[1:] * padded[1:]
        return best, origin
    # Divisions still open: nodes begin..end, whose best origins lie in least..most.
    begin, end = np.array([first + 1]), np.array([nodes - 1])
    least, most = np.array([first]), np.array([nodes - 2])
    while begin.size:
        middle = (begin + end) // 2
        lengths = np.minimum(most, middle - 1) - least + 1
        starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
        origins = np.arange(lengths.sum()) + np.repeat(least - starts, lengths)
        of = np.repeat(middle, lengths)
        values = layer[origins] + (shares[of] - shares[origins]) * padded[of]
        lowest = np.minimum.reduceat(values, starts)
        at = np.minimum.reduceat(np.where(values == np.repeat(lowest, lengths), origins, nodes), starts)
        best[middle], origin[middle] = lowest, at
        left, right = begin < middle, middle < end
        begin, end, least, most = (
            np.concatenate([begin[left], middle[right] + 1]),
            np.concatenate([middle[left] - 1, end[right]]),
            np.concatenate([least[left], at[right]]),
            np.concatenate([at[left], most[right]]),
        )
    return best, origin
