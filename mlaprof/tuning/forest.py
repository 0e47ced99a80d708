"""Extremely randomised regression trees: what few measured configurations say of those that were not.

Source: Geurts, Ernst and Wehenkel, "Extremely randomized trees" (2006): a random cut of each of a few random features,
the best of them taken; every tree sees all samples. The spread of the trees stands for what is not known.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

TREES = 48
LEAF = 2  # samples below which a node is not cut further


@dataclass(frozen=True)
class _Node:
    feature: int  # -1: a leaf
    cut: float
    value: float
    left: int
    right: int


class Forest:
    """Fitted once to features [n, d] and targets [n]; predicts the mean and the spread of its trees.

    Raises ValueError on no samples.
    """

    def __init__(self, features: Floats, targets: Floats, *, seed: int, trees: int = TREES) -> None:
        if len(targets) == 0:
            raise ValueError("targets: expected at least one sample, got none")
        draw = np.random.default_rng(seed)
        self._trees = [_grow(features, targets, draw) for _ in range(trees)]

    def predict(self, features: Floats) -> tuple[Floats, Floats]:
        """(mean, standard deviation over the trees) [m] for features [m, d]."""
        every = np.stack([_walk(tree, features) for tree in self._trees])
        return every.mean(0), every.std(0)


def _grow(features: Floats, targets: Floats, draw: np.random.Generator) -> list[_Node]:
    nodes: list[_Node] = []
    tries = max(1, round(np.sqrt(features.shape[1])) + 1)

    def grow(rows: NDArray[np.intp]) -> int:
        place = len(nodes)
        nodes.append(_Node(-1, 0.0, float(targets[rows].mean()), -1, -1))
        found = _best_cut(features[rows], targets[rows], draw, tries) if len(rows) >= 2 * LEAF else None
        if found is not None:
            feature, cut = found
            below = features[rows, feature] < cut
            left, right = grow(rows[below]), grow(rows[~below])
            nodes[place] = _Node(feature, cut, nodes[place].value, left, right)
        return place

    grow(np.arange(len(targets)))
    return nodes


def _best_cut(features: Floats, targets: Floats, draw: np.random.Generator, tries: int) -> tuple[int, float] | None:
    """Of one random cut each of `tries` features that vary, the one that leaves the least variance."""
    low, high = features.min(0), features.max(0)
    varying = np.flatnonzero(high > low)
    if not len(varying) or targets.min() == targets.max():
        return None
    best: tuple[float, int, float] | None = None
    for feature in draw.permutation(varying)[:tries]:
        cut = float(draw.uniform(low[feature], high[feature]))
        below = features[:, feature] < cut
        count = int(below.sum())
        if count in (0, len(targets)):
            continue
        left = count * targets[below].var() + (len(targets) - count) * targets[~below].var()
        if best is None or left < best[0]:
            best = (float(left), int(feature), cut)
    return None if best is None else best[1:]


def _walk(nodes: list[_Node], features: Floats) -> Floats:
    result = np.empty(len(features))
    waiting = [(0, np.arange(len(features)))]
    while waiting:
        place, rows = waiting.pop()
        node = nodes[place]
        if node.feature < 0:
            result[rows] = node.value
            continue
        below = features[rows, node.feature] < node.cut
        waiting += [(node.left, rows[below]), (node.right, rows[~below])]
    return result
