from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from mlaprof.analysis.spread import Levels, spreads


def levels(drawn: NDArray[np.float64]) -> dict[str, Levels]:
    """Of [cell, side, process]."""
    return {str(place): (base.tolist(), new.tolist()) for place, (base, new) in enumerate(drawn)}


def drawn(cells: int, own: float, common: float = 0.0, processes: int = 3, seed: int = 1) -> NDArray[np.float64]:
    rng = np.random.default_rng(seed)
    return np.asarray(rng.normal(0, own, (cells, 2, processes)) + rng.normal(0, common, (1, 2, processes)))


def test_cells_that_spread_alike_tell_of_each_other() -> None:
    """Each cell's spread comes near the true one, with far more degrees of freedom than its own four."""
    found = spreads(levels(drawn(100, 0.003)))
    sds = [each.variance**0.5 for each in found.values()]
    assert min(sds) > 0.0024 and max(sds) < 0.0036
    assert min(each.freedom for each in found.values()) > 40


def test_a_process_that_moves_all_cells_together_counts_once() -> None:
    """A hundred cells of six processes are then no more than six observations."""
    found = spreads(levels(drawn(100, 0.00001, common=0.003)))
    assert max(each.freedom for each in found.values()) < 6


def test_a_cell_that_spreads_more_than_the_others_keeps_most_of_it() -> None:
    rows = drawn(40, 0.001)
    rows[7] *= 20
    found = spreads(levels(rows))
    own = np.var(rows[7], axis=1, ddof=1).mean()
    assert found["7"].variance > own / 3 > 20 * found["0"].variance


def test_a_single_cell_has_its_own_spread() -> None:
    rows = drawn(1, 0.003)
    (found,) = spreads(levels(rows)).values()
    assert found.freedom == 4
    assert found.variance == pytest.approx(np.var(rows[0], axis=1, ddof=1).mean())


def test_a_run_of_one_process_takes_the_spread_of_the_other_and_two_of_one_have_none() -> None:
    found = spreads({"a": ([0.0], [0.01, 0.02, 0.03]), "b": ([0.0], [0.5])})
    assert found.keys() == {"a"}
    assert (found["a"].freedom, found["a"].variance) == (2, pytest.approx(0.0001))


@pytest.mark.parametrize("processes", [2, 3, 5])
def test_processes_that_agree_exactly_have_no_spread_and_break_nothing(processes: int) -> None:
    rows = np.zeros((5, 2, processes))
    assert {each.variance for each in spreads(levels(rows)).values()} == {0.0}
    rows[0] = np.arange(processes) / 100  # but one
    found = spreads(levels(rows))
    assert all(np.isfinite((each.variance, each.freedom)).all() for each in found.values())
    assert found["0"].variance > found["1"].variance >= 0
    assert spreads({}) == {}
