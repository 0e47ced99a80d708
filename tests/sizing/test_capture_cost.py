"""Bytes and seconds of lists, of planted ledgers."""

from __future__ import annotations

import numpy as np
import pytest

from mlaprof.sizing.capture_cost import CaptureCost

MIB = 2.0**20
TOKENS = np.array([16, 64, 256, 1024])
ADDED = np.array([1.0, 3.0, 8.0, 100.0]) * MIB


@pytest.mark.parametrize("hold,further_mib", [("strong", 2.0), ("weak", 4.0)])
def test_a_further_size_counts_for_smaller_ones_or_for_all(hold, further_mib):
    """Held strongly its hand-overs stay, and grow with its tokens; held weakly they live in what the largest made."""
    cost = CaptureCost(TOKENS, ADDED, np.full(4, 0.01), hold)

    found = cost.memory(np.array([256]), np.array([3]))

    assert found is not None and found[0] == pytest.approx(25 * MIB + 3 * further_mib * MIB)


def test_seconds_count_likewise():
    cost = CaptureCost(TOKENS, ADDED, np.array([1.0, 2.0, 6.0, 8.0]), "weak")
    assert cost.capture_s(np.array([1024]), np.array([2]))[0] == pytest.approx(8.0 + 2 * 3.0)
