from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from numpy.typing import NDArray

from mlaprof.analysis.changes import Change, Stepped, adjusted, changes_of, mean_of
from mlaprof.analysis.sides import Series
from mlaprof.analysis.verdicts import SIGNIFICANCE, Verdict, verdict
from mlaprof.facts import Timing


def series(processes: NDArray[np.float64]) -> Series:
    """Of [process, round]."""
    settings = {"submit_s": (), "cache": "cold", "clock": "cuda_event", "warmup_s": 0.0, "first_call_s": 0.0}
    return {
        place: Timing.model_validate({"device_s": tuple(rounds.tolist()), **settings})
        for place, rounds in enumerate(processes)
    }


def measured(
    cells: int,
    factor: float = 1.0,
    *,
    between: float,
    seed: int,
    common: float = 0.0,
    processes: int = 3,
    rounds: int = 20,
) -> NDArray[np.float64]:
    """[cell, process, round]: rounds of 0.4 % noise on a level that drifts by 0.1 % in a process, and processes that
    differ by `between` in each cell, and by `common` in all together."""
    rng = np.random.default_rng(seed)
    level = rng.normal(0, between, (cells, processes, 1)) + rng.normal(0, common, (1, processes, 1))
    drift = np.cumsum(rng.normal(size=(cells, processes, rounds)), axis=2) * 0.001 / math.sqrt(rounds)
    noise = rng.normal(0, 0.004, (cells, processes, rounds))
    return np.asarray(1e-4 * factor * np.exp(level + drift + noise))


GRAPH = Stepped("full", 0)


def compared(
    base: NDArray[np.float64], new: NDArray[np.float64], *, one_run: bool = False, step: Stepped = GRAPH
) -> dict[str, Change]:
    """Of steps in one graph, so that nothing is known of how processes differ but what they show."""
    pairs = {str(place): (series(one), series(other)) for place, (one, other) in enumerate(zip(base, new, strict=True))}
    return adjusted(changes_of(pairs, dict.fromkeys(pairs, step), one_run=one_run))


def verdicts(changes: dict[str, Change], limit: float) -> Counter[Verdict]:
    """As the gate finds them: by the interval, with Holm's p-value as a veto."""
    found: Counter[Verdict] = Counter()
    for change in changes.values():
        seen = verdict(change.ratio, limit)
        vetoed = seen in ("SLOWER", "FASTER") and (change.p_holm or 0.0) >= SIGNIFICANCE
        found["AMBIGUOUS" if vetoed else seen] += 1
    return found


# The gate by simulation, three processes against three.


@pytest.mark.parametrize("between", [0.001, 0.003])
def test_of_a_thousand_comparisons_of_the_same_none_in_a_hundred_finds_a_change(between: float) -> None:
    found = verdicts(compared(*(measured(1000, between=between, seed=seed) for seed in (1, 2))), 0.01)
    assert found["SLOWER"] + found["FASTER"] <= 10
    assert found["SAME"] > (990 if between == 0.001 else 800)


def test_alone_or_all_moved_together_the_same_is_not_found_to_have_changed() -> None:
    """Where cells cannot tell of each other: one cell a comparison, and processes that move all cells."""
    found: Counter[Verdict] = Counter()
    for seed in range(0, 400, 2):
        base, new = (measured(1, between=0.003, seed=each) for each in (seed, seed + 1))
        found += verdicts(compared(base, new), 0.01)
    for seed in range(1000, 1080, 2):
        base, new = (measured(10, between=0.0, common=0.003, seed=each) for each in (seed, seed + 1))
        found += verdicts(compared(base, new), 0.01)
    assert found["SLOWER"] + found["FASTER"] <= 6 and found.total() == 600


@pytest.mark.parametrize(
    ("factor", "limit", "between", "share"),
    [(1.02, 0.01, 0.001, 0.99), (1.01, 0.005, 0.001, 0.90), (1.02, 0.01, 0.003, 0.9)],
)
def test_a_planted_change_is_found(factor: float, limit: float, between: float, share: float) -> None:
    """Whoever is not found is told to be ambiguous: none is called SAME or FASTER."""
    base, new = measured(500, between=between, seed=3), measured(500, factor, between=between, seed=4)
    found = verdicts(compared(base, new), limit)
    assert found["SLOWER"] >= share * 500
    assert found["SLOWER"] + found["AMBIGUOUS"] == 500


def test_what_processes_hide_is_ambiguous_and_not_wrong() -> None:
    """A change of 1 % among processes that differ by 0.5 %, with three of them."""
    base, new = measured(500, between=0.005, seed=5), measured(500, 1.01, between=0.005, seed=6)
    found = verdicts(compared(base, new), 0.005)
    assert found["AMBIGUOUS"] > 350 and found["FASTER"] + found["SAME"] <= 5


@pytest.mark.parametrize(
    ("cells", "between", "common"), [(1, 0.003, 0.0), (1, 0.0, 0.0), (20, 0.003, 0.0), (20, 0.001, 0.003)]
)
def test_the_interval_holds_the_truth_as_often_as_it_says(cells: int, between: float, common: float) -> None:
    held = []
    for seed in range(0, 2 * (400 if cells == 1 else 40), 2):
        base = measured(cells, between=between, common=common, seed=seed)
        new = measured(cells, 1.01, between=between, common=common, seed=seed + 1)
        ratios = [change.ratio for change in compared(base, new).values()]
        held += [each.ci_low <= 1.01 <= each.ci_high for each in ratios]
    assert np.mean(held) > 0.92


def test_the_mean_of_cells_that_move_together_is_no_better_known_than_the_processes() -> None:
    held = []
    for seed in range(0, 240, 2):
        base, new = (measured(8, between=0.0, common=0.003, seed=each) for each in (seed, seed + 1))
        mean = mean_of(list(compared(base, new).values()))
        held.append(mean.ci_low <= 1 <= mean.ci_high)
    assert np.mean(held) > 0.92


# What is known of processes beforehand.


def in_groups(cells: int, *, seed: int, processes: int = 3) -> NDArray[np.float64]:
    """Steps of 0.4 ms with 72 launches: each process is of one of two groups 12 us apart, in all of its cells."""
    rng = np.random.default_rng(seed)
    base = 4 * measured(cells, between=0.0005, seed=seed, processes=processes)
    return np.asarray(base + 12e-6 * rng.integers(0, 2, (1, processes, 1)))


def test_processes_that_agree_by_chance_find_no_change_of_eager_steps() -> None:
    """In 3 of 100 comparisons all processes of one side are of another group than all of the other's."""
    eager, graphs = Counter[Verdict](), Counter[Verdict]()
    for seed in range(0, 600, 2):
        base, new = in_groups(1, seed=seed), in_groups(1, seed=seed + 1)
        eager += verdicts(compared(base, new, step=Stepped("monolithic_eager", 72)), 0.01)
        graphs += verdicts(compared(base, new), 0.01)
    assert eager["SLOWER"] + eager["FASTER"] <= 3
    assert graphs["SLOWER"] + graphs["FASTER"] > 3  # the trap is there


def test_the_mean_of_eager_steps_is_no_better_known_than_the_processes_are_alike() -> None:
    found = []
    for seed in range(0, 200, 2):
        base, new = in_groups(8, seed=seed), in_groups(8, seed=seed + 1)
        mean = mean_of(list(compared(base, new, step=Stepped("monolithic_eager", 72)).values()))
        found.append(mean.ci_low <= 1 <= mean.ci_high)
    assert np.mean(found) > 0.92


def test_long_steps_hide_what_processes_do_to_their_launches() -> None:
    """Of 5 ms, 12 us are 0.2 %: a change of 2 % is found, however many launches there are."""
    base, new = (50 * measured(20, factor, between=0.001, seed=3 + (factor > 1)) for factor in (1.0, 1.02))
    assert verdicts(compared(base, new, step=Stepped("split_eager", 95)), 0.01)["SLOWER"] >= 19


@pytest.mark.parametrize(("step", "factor", "expected"), [
    (Stepped("monolithic_eager", 72), 1.03, "AMBIGUOUS"),
    (Stepped("monolithic_eager", None), 1.03, "AMBIGUOUS"),
    (Stepped("monolithic_eager", 72), 1.15, "SLOWER"),
    (GRAPH, 1.03, "SLOWER"),
    (GRAPH, 1.0, "SAME"),
])  # fmt: skip
def test_one_process_on_either_side_is_taken_to_differ_as_processes_are_known_to(
    step: Stepped, factor: float, expected: str
) -> None:
    base, new = (4 * measured(1, each, between=0.0, seed=1, processes=1) for each in (1.0, factor))
    (change,) = compared(base, new[..., ::-1], step=step).values()
    assert verdict(change.ratio, 0.01) == expected
    assert change.by_processes


def test_cells_of_one_way_do_not_lend_their_spread_to_another() -> None:
    """Graphs that processes repeat beside eager steps that they do not: the change of the graphs is found."""
    graphs = [measured(10, factor, between=0.0005, seed=5 + (factor > 1)) for factor in (1.0, 1.02)]
    eager = [measured(10, between=0.02, seed=each) for each in (7, 8)]
    pairs = {
        f"{way} {place}": (series(one), series(other))
        for way, (base, new) in (("full", graphs), ("monolithic_eager", eager))
        for place, (one, other) in enumerate(zip(base, new, strict=True))
    }
    found = changes_of(pairs, {key: Stepped(key.split()[0], 0) for key in pairs}, one_run=False)
    assert [verdict(found[f"full {place}"].ratio, 0.01) for place in range(10)] == ["SLOWER"] * 10


# Pairing.


def test_arms_of_one_run_are_paired_by_round() -> None:
    """What moves both arms of a round, or of a process, is gone from their ratio."""
    rng = np.random.default_rng(7)
    shared = np.exp(rng.normal(0, 0.02, (30, 3, 20)) + rng.normal(0, 0.05, (30, 3, 1)))
    base, new = (1e-4 * f * shared * np.exp(rng.normal(0, 0.002, (30, 3, 20))) for f in (1.0, 1.01))
    together, apart = compared(base, new, one_run=True), compared(base, new)
    assert all(change.paired and change.processes == (3, 3) for change in together.values())
    assert verdicts(together, 0.005) == {"SLOWER": 30}
    assert not any(change.paired for change in apart.values()) and verdicts(apart, 0.005) == {"AMBIGUOUS": 30}


def test_arms_with_unequal_rounds_are_not_paired() -> None:
    base, new = measured(1, between=0, seed=1), measured(1, between=0, seed=2, rounds=21)
    (change,) = compared(base, new, one_run=True).values()
    assert not change.paired


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_a_series_over_itself_is_one_exactly(processes: int) -> None:
    same = measured(1, between=0.01, seed=1, processes=processes)
    (change,) = compared(same, same).values()
    estimate = change.ratio
    assert (estimate.median, estimate.ci_low, estimate.ci_high, change.p) == (1.0, 1.0, 1.0, 1.0)


@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize("one_run", [False, True])
def test_exchanging_the_sides_inverts_ratio_and_interval(processes: int, one_run: bool) -> None:
    base, new = (
        measured(5, between=0.003, seed=1, processes=processes),
        measured(5, 1.03, between=0.003, seed=2, processes=processes),
    )
    there, back = compared(base, new, one_run=one_run), compared(new, base, one_run=one_run)
    for key, change in there.items():
        one, other = change.ratio, back[key].ratio
        assert (one.median, one.ci_low, one.ci_high) == pytest.approx(
            (1 / other.median, 1 / other.ci_high, 1 / other.ci_low), rel=1e-6
        )
        assert change.p_holm == pytest.approx(back[key].p_holm)
