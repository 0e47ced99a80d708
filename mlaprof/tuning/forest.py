"""Extremely randomised regression trees: what few measured configurations say of those that were not.

Source: Geurts, Ernst and Wehenkel, "Extremely randomized trees" (2006): a random cut of each of a few random features,
the best of them taken; every tree sees all samples. The spread of the trees stands for what is not known.

All trees grow together, a level at a time: one at a time, node by node, a fit takes half a second where this takes
some milliseconds, and it is made between two measurements.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Places = NDArray[np.intp]

TREES = 48
LEAF = 2  # samples below twice of which a node is not cut further
NO_CUT = -1


@dataclass(frozen=True)
class _Level:
    """Nodes of one depth, all trees together, and the samples in them, in the order of the nodes."""

    nodes: Places  # [k]
    starts: Places  # [k] of each node's samples
    counts: Places  # [k]
    group: Places  # [n] which of the k nodes a sample is in
    rows: Places  # [n] of features and targets


class Forest:
    """Fitted once to features [n, d] and targets [n]; predicts the mean and the spread of its trees.

    Raises ValueError on no samples.
    """

    def __init__(self, features: Floats, targets: Floats, *, seed: int, trees: int = TREES) -> None:
        if len(targets) == 0:
            raise ValueError("targets: expected at least one sample, got none")
        self._trees = trees
        most = trees * 2 * len(targets)  # a binary tree whose leaves hold a sample at least
        self._feature = np.full(most, NO_CUT, dtype=np.intp)
        self._cut, self._value = np.zeros(most), np.zeros(most)
        self._below = np.zeros(most, dtype=np.intp)  # the other child has the next number
        self._grow(features, targets, np.random.default_rng(seed))

    def predict(self, features: Floats) -> tuple[Floats, Floats]:
        """(mean, standard deviation over the trees) [m] for features [m, d]."""
        place = np.repeat(np.arange(self._trees)[:, None], len(features), axis=1)  # [trees, m]
        columns = np.arange(len(features))[None, :]
        while True:
            feature = self._feature[place]
            inside = feature != NO_CUT
            if not inside.any():
                break
            above = features[columns, np.maximum(feature, 0)] >= self._cut[place]
            place = np.where(inside, self._below[place] + above, place)
        every = self._value[place]
        return every.mean(0), every.std(0)

    def _grow(self, features: Floats, targets: Floats, draw: np.random.Generator) -> None:
        tries = max(1, round(np.sqrt(features.shape[1])) + 1)
        count = len(targets)
        node = np.repeat(np.arange(self._trees), count)
        rows = np.tile(np.arange(count), self._trees)
        # Sums of squares about the mean: those of the raw values would lose its digits.
        centred = targets - targets.mean()
        used = self._trees
        while len(rows):
            level = _level(node, rows)
            sums = np.add.reduceat(centred[level.rows], level.starts)
            self._value[level.nodes] = sums / level.counts + targets.mean()
            feature, cut = _best_cuts(level, features, centred, draw, tries)
            is_cut = feature != NO_CUT
            children = used + 2 * (np.cumsum(is_cut) - 1)
            used += 2 * int(is_cut.sum())
            self._feature[level.nodes], self._cut[level.nodes] = feature, cut
            self._below[level.nodes] = np.where(is_cut, children, 0)
            kept = is_cut[level.group]
            group, rows = level.group[kept], level.rows[kept]
            node = children[group] + (features[rows, feature[group]] >= cut[group])


def _level(node: Places, rows: Places) -> _Level:
    order = np.argsort(node, kind="stable")
    node, rows = node[order], rows[order]
    starts = np.flatnonzero(np.r_[True, node[1:] != node[:-1]])
    counts = np.diff(np.r_[starts, len(node)])
    return _Level(node[starts], starts, counts, np.repeat(np.arange(len(starts)), counts), rows)


def _best_cuts(
    level: _Level, features: Floats, targets: Floats, draw: np.random.Generator, tries: int
) -> tuple[Places, Floats]:
    """(feature, cut) [k] of each node: of one random cut each of `tries` features that vary in it, the one that leaves
    the least variance; NO_CUT where a node is too small, of one value, or nothing varies."""
    x, y = features[level.rows], targets[level.rows]
    low, high = np.minimum.reduceat(x, level.starts), np.maximum.reduceat(x, level.starts)  # [k, d]
    varied = np.minimum.reduceat(y, level.starts) < np.maximum.reduceat(y, level.starts)
    usable = (high > low) & (varied & (level.counts >= 2 * LEAF))[:, None]
    ranks = np.where(usable, draw.random(usable.shape), np.inf)
    chosen = np.argsort(ranks, axis=1)[:, :tries]  # [k, tries]
    sums, squares = np.add.reduceat(y, level.starts), np.add.reduceat(y * y, level.starts)
    nodes = np.arange(len(level.nodes))
    best = np.full(len(nodes), np.inf)
    feature, cut = np.full(len(nodes), NO_CUT, dtype=np.intp), np.zeros(len(nodes))
    for each in chosen.T:
        at = draw.uniform(low[nodes, each], high[nodes, each])
        below = x[np.arange(len(x)), each[level.group]] < at[level.group]
        count = np.add.reduceat(below.astype(np.float64), level.starts)
        part, part_squares = (np.add.reduceat(np.where(below, of, 0.0), level.starts) for of in (y, y * y))
        rest = level.counts - count
        fits = usable[nodes, each] & (count > 0) & (rest > 0)
        left = part_squares - part**2 / np.where(fits, count, 1.0)
        right = squares - part_squares - (sums - part) ** 2 / np.where(fits, rest, 1.0)
        better = fits & (left + right < best)
        best = np.where(better, left + right, best)
        feature, cut = np.where(better, each, feature), np.where(better, at, cut)
    return feature, cut
