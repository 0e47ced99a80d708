from __future__ import annotations

from types import ModuleType
from typing import Any

import numpy as np
import pytest

from mlaprof.analysis.compare import FailOn, compare, is_quick
from mlaprof.analysis.sides import side_of
from mlaprof.errors import RunFileError


def arms(fake_runs: ModuleType, processes: int = 2, **factors: float) -> Any:
    """A run of two sizes in several processes, whose processes and rounds move all arms together by several per cent.

    factors  of the ways, `_at_` for `@`; `twin` is the baseline's
    """
    rng = np.random.default_rng(4)
    rows = []
    for process in range(processes):
        for tokens in (8, 64):
            shared = np.exp(rng.normal(0, 0.02, 30) + rng.normal(0, 0.05))
            for way, factor in factors.items():
                mode, _, boundary = way.partition("_at_")
                at = fake_runs.point(
                    "monolithic_eager" if way == "twin" else mode,
                    tokens,
                    twin=way == "twin",
                    **({"boundary": boundary} if boundary else {}),
                )
                device_s = 1e-4 * factor * shared * np.exp(rng.normal(0, 0.001, 30))
                rows.append(
                    fake_runs.timing(at, 1e-4, device_s=tuple(device_s.tolist())).model_copy(
                        update={"process": process}
                    )
                )
    return fake_runs.make_run(rows)


def test_two_ways_of_one_run_join_by_place_and_are_paired(fake_runs: ModuleType) -> None:
    """What process and round do to both is no part of their ratio: 2 % is seen behind 5 %."""
    run = arms(fake_runs, monolithic_eager=1.5, split_piecewise=1.0, breakable=1.02)
    found = compare(run, run, base_way="split_piecewise", new_way="breakable")
    assert [delta.key for delta in found.deltas] == ["v3.2-tp8/prefill/t8/ctx0", "v3.2-tp8/prefill/t64/ctx0"]
    assert {(delta.verdict, delta.paired, delta.processes) for delta in found.deltas} == {("SLOWER", True, (2, 2))}
    assert found.means.keys() == {"breakable over split_piecewise"}
    assert found.means["breakable over split_piecewise"].median == pytest.approx(1.02, abs=0.002)
    assert found.exit_code() == 1


def test_a_way_in_two_runs_is_compared_unpaired(fake_runs: ModuleType) -> None:
    base, new = (arms(fake_runs, monolithic_eager=1.5, full=factor) for factor in (1.0, 2.0))
    new = new.model_copy(update={"manifest": new.manifest.model_copy(update={"run_id": "other"})})
    found = compare(base, new, base_way="full", new_way="full")
    assert not any(delta.paired for delta in found.deltas) and found.means.keys() == {"full over full"}
    assert [delta.ratio and round(delta.ratio.median, 2) for delta in found.deltas] == [2.0, 2.0]


def test_the_twin_of_the_baseline_is_a_way_of_its_own(fake_runs: ModuleType) -> None:
    run = arms(fake_runs, monolithic_eager=1.0, twin=1.03, full=0.5)
    found = compare(run, run, base_way="monolithic_eager", new_way="monolithic_eager/aa")
    assert [delta.ratio and round(delta.ratio.median, 2) for delta in found.deltas] == [1.03, 1.03]
    assert {delta.verdict for delta in found.deltas} <= {"SAME", "AMBIGUOUS"}  # 3 % is that run's very noise floor


def test_a_way_against_itself_is_the_same_exactly(fake_runs: ModuleType) -> None:
    run = arms(fake_runs, full=1.0)
    found = compare(run, run, base_way="full", new_way="full")
    assert {(d.verdict, d.ratio.ci_low, d.ratio.ci_high) for d in found.deltas if d.ratio} == {("SAME", 1.0, 1.0)}


def test_boundaries_are_ways_and_tiles_keep_apart(fake_runs: ModuleType) -> None:
    tiled = fake_runs.tile(block_n=64, num_warps=4, num_stages=3)
    rows = [
        fake_runs.timing(fake_runs.point(mode, 8, boundary=boundary, tiles=tiles), 1e-4 * factor)
        for mode, boundary, factor in (("breakable", "logits", 1.1), ("split_piecewise", "index_quant", 1.0))
        for tiles in ((), (tiled,))
    ]
    run = fake_runs.make_run(rows)
    found = compare(run, run, base_way="split_piecewise", new_way="breakable@logits")
    assert [delta.key for delta in found.deltas] == [
        "v3.2-tp8/prefill/t8/ctx0",
        "v3.2-tp8/prefill/t8/ctx0/sparse_attn=n64.w4.s3",
    ]
    assert {delta.verdict for delta in found.deltas} == {"SLOWER"}


def test_a_way_that_the_run_lacks_is_told_with_those_that_it_has(fake_runs: ModuleType) -> None:
    run = arms(fake_runs, monolithic_eager=1.0, twin=1.0, breakable_at_logits=1.0)
    with pytest.raises(
        RunFileError, match=r"no way 'full'; its ways are monolithic_eager, breakable@logits, mono.*/aa"
    ):
        side_of(run, "full")
    with pytest.raises(RunFileError, match="no way ''"):
        side_of(run, "")
    with pytest.raises(ValueError, match="both or neither"):
        compare(run, run, new_way="monolithic_eager")


def test_a_process_without_a_time_leaves_the_others(fake_runs: ModuleType) -> None:
    """And a later measurement of the same process takes the place of an earlier one."""
    at = fake_runs.point()
    rows = [
        fake_runs.timing(at, 1e-4 * factor).model_copy(update={"process": p}) for p, factor in ((2, 1), (0, 9), (0, 2))
    ]
    side = side_of(fake_runs.make_run(rows))
    (series,) = side.series.values()
    assert list(series) == [0, 2]
    assert np.median(series[0].device_s) == pytest.approx(2e-4)
    lost = fake_runs.ended(at, "failed", "IMA").model_copy(update={"process": 2})
    assert list(side_of(fake_runs.make_run([*rows, lost])).series[at.key]) == [0]


# Quick runs.


@pytest.mark.parametrize(
    ("measure", "quick"),
    [
        ("{processes: 1, min_samples: 10}", True),
        ("{processes: 1, min_samples: 20, max_samples: 20}", False),
        ("{processes: 3, min_samples: 10}", False),
        ("{min_samples: 10}", True),
        ("{}", False),
        ("quick", False),
    ],
)
def test_a_quick_run_is_known_by_what_was_asked_of_it(fake_runs: ModuleType, measure: str, quick: bool) -> None:
    """A run of before there were several processes has one."""
    assert is_quick(fake_runs.make_run([], study_yaml=f"name: fake\nmeasure: {measure}\n").manifest) is quick


@pytest.mark.parametrize("quick_side", ["base", "new"])
def test_a_quick_run_reports_and_does_not_gate(fake_runs: ModuleType, quick_side: str) -> None:
    """What is slower passes; a strict gate takes it for ambiguous; what is broken fails as ever."""

    def run(name: str, factor: float, broken: bool = False) -> Any:
        at, other = fake_runs.point("full"), fake_runs.point("split_eager")
        last = fake_runs.ended(other, "incorrect", "NaN") if broken else fake_runs.timing(other, 1e-4)
        quick = "name: fake\nmeasure: {processes: 1, min_samples: 10}\n"
        options = {"study_yaml": quick} if name == quick_side else {}
        return fake_runs.make_run([fake_runs.timing(at, 1e-4 * factor), last], run_id=name, **options)

    found = compare(run("base", 1.0), run("new", 1.2))
    assert found.quick == (quick_side,) and found.deltas[0].verdict == "SLOWER"
    assert [found.exit_code(each) for each in FailOn] == [0, 3, 0]
    broken = compare(run("base", 1.0), run("new", 1.2, broken=True))
    assert [broken.exit_code(each) for each in FailOn] == [1, 1, 0]
