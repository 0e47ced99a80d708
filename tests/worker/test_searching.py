"""A search in this process, on a kernel whose times are planted and compilers that answer at once."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping

import pytest

from mlaprof.cases import CASES
from mlaprof.facts import Check
from mlaprof.kernel_choices import choices
from mlaprof.kernel_shapes import complete
from mlaprof.kernels.launches import Built
from mlaprof.kernels.offline import Resources
from mlaprof.kernels.work import Work
from mlaprof.measure.clock import Sample
from mlaprof.records import KernelMeasurement, SearchJob, Started, Told
from mlaprof.study import MeasureSpec, TuneTarget
from mlaprof.worker import searching
from mlaprof.worker.compilers import Compiled

SHAPE = complete("topk", {"num_rows": 4, "width": 300, "k": 64})
TARGET = TuneTarget(kernel="topk", shape=SHAPE)


class Planted:
    """A topk whose seconds follow from its tiles; what wrong() and broken() say is wrong or raises."""

    kernel, precision, work = "topk", "", Work(flops=0, bytes=12)

    def __init__(self) -> None:
        self.launched: list[Mapping[str, int]] = []

    def call(self, provider: str, tiles: Mapping[str, int] | None = None):
        def run() -> object:
            self.launched.append(dict(tiles or {}))
            if tiles and tiles["num_pieces"] == 8:
                raise RuntimeError("misaligned address")
            return dict(tiles or {})

        run.tiles = tiles
        return run

    def check(self, result) -> list[Check]:
        return [Check(name="rows", value=float(result.get("num_registers") == 128), limit=0.5)]


class PlantedClock:
    """Device times without running anything."""

    name = "perf_counter"

    def sample(self, step) -> Sample:
        tiles = step.tiles
        seconds = 1e-6 * (1 + abs(tiles["block"] - 1024) / 512 + abs(tiles["num_warps"] - 8) / 4 + tiles["num_pieces"])
        return Sample(seconds, seconds, seconds, seconds)

    def settle(self) -> None:
        pass


class Instant:
    """Compilers that spill from 32 warps on, fail at one block, and make one binary of all `ambiguous` above 64."""

    def __init__(self, count: int) -> None:
        self._waiting: list = []

    def __enter__(self):
        return self

    def __exit__(self, *rest) -> None:
        pass

    def __len__(self) -> int:
        return len(self._waiting)

    def submit(self, key, launches) -> None:
        self._waiting.append((key, launches[0].tiles))

    def close(self) -> None:
        self._waiting.clear()

    def done(self, timeout_s: float):
        answers, self._waiting = [self._answer(*each) for each in self._waiting], []
        return answers

    def _answer(self, key, tiles) -> Compiled:
        if tiles.block == 16384:
            return Compiled(key, None, "PassManager failed", 0.1)
        stack = 4096 if tiles.num_warps == 32 else 0
        return Compiled(key, Built(Resources(64, stack, 1024), repr(tiles)), "", 0.1)


@pytest.fixture
def searched(monkeypatch):
    case = Planted()
    monkeypatch.setitem(CASES, "topk", lambda *given, **named: case)
    monkeypatch.setattr(searching, "Compilers", Instant)
    monkeypatch.setattr(searching, "clock_of", lambda job: PlantedClock())
    monkeypatch.setenv("TRITON_INTERPRET", "1")

    def searched(**changed):
        job = SearchJob(
            device="cpu", seed=1, measure=MeasureSpec(cache="warm"), target=TARGET, forms=("topk",),
            first=choices("topk", SHAPE, hopper=False), began_at=time.time(), search_s=60.0, compilers=2,
        ).model_copy(update=changed)  # fmt: skip
        events = list(searching.search_job(job))
        return [each for each in events if isinstance(each, KernelMeasurement)], events, case

    return searched


def test_every_proposal_becomes_a_row_and_each_failure_says_why(searched):
    rows, _, _ = searched(max_evals=40)
    kinds = Counter((row.outcome.status, row.outcome.stage) for row in {row.point.key: row for row in rows}.values())
    assert kinds["ok", "measure"] and kinds["skipped", "compile"]
    reasons = {row.outcome.reason for row in rows if row.outcome.status != "ok"}
    assert any("spills: 4,096 bytes of stack" in reason for reason in reasons)
    for row in rows:
        assert row.kind == "search" and row.search is not None and (row.outcome.status == "ok") == bool(row.timing)
        if row.outcome.status == "ok":
            assert row.checks and all(check.passed for check in row.checks)


def test_what_is_wrong_has_no_time_and_what_spills_is_never_launched(searched):
    rows, _, case = searched(max_evals=60)
    wrong = [row for row in rows if (row.point.tiles or {})["num_registers"] == 128 and row.outcome.stage == "verify"]
    assert wrong and all(row.outcome.status in ("incorrect", "failed") and row.timing is None for row in wrong)
    assert not any(tiles["num_warps"] == 32 for tiles in case.launched)
    assert any(row.outcome.status == "failed" and "misaligned address" in row.outcome.reason for row in rows)


def test_the_default_comes_first_and_the_best_are_sampled_again_interleaved(searched):
    rows, events, _ = searched(max_evals=50)
    assert rows[0].point.tiles == choices("topk", SHAPE, hopper=False)[0].values
    assert rows[0].search is not None and rows[0].search.origin == "seed"
    keys = Counter(row.point.key for row in rows)
    again = [key for key, count in keys.items() if count == 2]
    assert 2 <= len(again) <= searching.MOST_AGAIN and max(keys.values()) == 2
    assert isinstance(events[-1], KernelMeasurement) and len(events[-1].timing.device_s) > 5
    assert events[-1].search.first_device_s is not None


def test_it_ends_near_the_best_of_what_runs(searched):
    rows, _, _ = searched(max_evals=64)
    best = min((row for row in rows if row.timing), key=lambda row: min(row.timing.device_s))
    assert (best.point.tiles["block"], best.point.tiles["num_warps"], best.point.tiles["num_pieces"]) == (1024, 8, 1)


def test_it_goes_on_from_what_an_earlier_process_found(searched):
    first, _, _ = searched(max_evals=10)
    known = {row.point.key: row for row in first}.values()
    told = tuple(Told(point=row.point, device_s=row.search.first_device_s) for row in known)
    rows, _, _ = searched(told=told, max_evals=10)
    assert not {row.point.key for row in rows if row.search.number >= len(told)} & {each.point.key for each in told}


def test_the_budget_ends_it_at_once(searched):
    assert searched(began_at=time.time() - 100.0)[0] == []


def test_without_a_device_everything_is_compiled_and_nothing_has_a_time(searched, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET")
    rows, events, case = searched(max_evals=12)
    assert {row.outcome.status for row in rows} <= {"compiled", "skipped", "failed"}
    assert not case.launched and not any(row.timing for row in rows)
    assert all(row.resources is not None for row in rows if row.outcome.status == "compiled")
    assert {each.key for each in events if isinstance(each, Started)} == {"topk"}  # no configuration was begun
