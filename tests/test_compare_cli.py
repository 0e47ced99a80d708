"""`mlaprof compare` at the door: ways, processes, throttled cells, quick runs and --confirm."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from mlaprof import cli, store
from mlaprof.cli import door
from mlaprof.machine import environment
from mlaprof.records import Measurement, Run

TINY = """\
name: tiny
preset: tiny
sweep:
  num_tokens: [5, 3]
  mode: [monolithic_eager, split_eager]
measure: {cache: warm, processes: 2, min_samples: 6, max_samples: 6, warmup_s: 0, memory: false, counts: false}
"""
SLOW = "tiny/prefill/t3/ctx0/split_eager"


@dataclass(frozen=True)
class Answer:
    code: int
    out: str
    err: str


Mlaprof = Callable[..., Answer]


@pytest.fixture
def mlaprof(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Mlaprof:
    """Run a command line in this process, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    screens = {"out": door.Screen(width=160), "err": door.Screen(width=160, stderr=True)}
    for module in (cli, cli.measure, cli.read):
        for name in screens.keys() & vars(module).keys():
            monkeypatch.setattr(module, name, screens[name])

    def run(*arguments: object) -> Answer:
        monkeypatch.setattr(sys, "argv", ["mlaprof", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        printed = capsys.readouterr()
        return Answer(int(ended.value.code or 0), printed.out, printed.err)

    return run


def stored(run: Run, path: Path) -> Path:
    manifest = run.manifest.model_copy(update={"schema_version": store.SCHEMA_VERSION})
    with store.create(path, manifest) as writer:
        for measurement in run.measurements:
            writer.append(measurement)
    return path


def of_processes(fake_runs: ModuleType, name: str, factor: float, folder: Path, **options: Any) -> Path:
    """A run of two ways in three processes that differ by 0.1 %."""
    rows: list[Measurement] = []
    for process, level in enumerate((0.999, 1.0, 1.001)):
        for mode, times in (("monolithic_eager", 2.0), ("full", factor)):
            at = fake_runs.point(mode)
            device_s = fake_runs.samples(1e-4 * times * level, n=20, seed=hash((name, mode)) % 1000 + process)
            rows.append(
                fake_runs.timing(at, 1e-4, device_s=device_s, **options).model_copy(update={"process": process})
            )
            if mode == "monolithic_eager":
                twin = rows[-1].point.model_copy(update={"twin": True})
                rows.append(rows[-1].model_copy(update={"point": twin}))
    return stored(fake_runs.make_run(rows, run_id=name), folder / f"{name}.mlaprof")


def test_runs_of_several_processes_are_told_what_lies_between_them(
    mlaprof: Mlaprof, fake_runs: ModuleType, tmp_path: Path
) -> None:
    """The eager step's launches were not counted, so it is not taken to be the same for three alike processes."""
    base, new = (of_processes(fake_runs, name, factor, tmp_path) for name, factor in (("base", 1.0), ("new", 1.05)))
    answer = mlaprof("compare", base, new)
    assert answer.code == 1 and "1 SLOWER, 1 AMBIGUOUS at a threshold of 1.0%" in answer.out
    assert "between its 3 processes" in answer.out

    found = json.loads(mlaprof("compare", base, new, "--format", "json").out)
    (slower,) = (cell for cell in found["cells"] if cell["verdict"] == "SLOWER")
    assert slower["processes"] == {"base": 3, "new": 3} and slower["paired"] is False
    assert slower["floor"] == 0.005 and slower["limit"] == 0.01
    assert 0 < found["floors"]["new"]["between"] < 0.01


def test_two_ways_of_a_run_are_compared_round_by_round(mlaprof: Mlaprof, fake_runs: ModuleType, tmp_path: Path) -> None:
    run = of_processes(fake_runs, "run", 1.9, tmp_path)
    answer = mlaprof("compare", f"{run}:full", "run:monolithic_eager", "--results", tmp_path)
    assert answer.code == 1 and "paired by round" in answer.out
    assert "base run:full" in answer.out and "new  run:monolithic_eager" in answer.out
    assert "geomean monolithic_eager over full" in answer.out

    found = json.loads(mlaprof("compare", f"{run}:monolithic_eager", f"{run}:full", "--format", "json").out)
    (cell,) = found["cells"]
    assert (cell["key"], cell["paired"]) == ("v3.2-tp8/prefill/t64/ctx0", True)
    assert cell["verdict"] == "FASTER" and (found["base_way"], found["new_way"]) == ("monolithic_eager", "full")
    twin = mlaprof("compare", f"{run}:monolithic_eager", f"{run}:monolithic_eager/aa")
    assert twin.code == 0 and "1 SAME" in twin.out


@pytest.mark.parametrize(
    ("names", "complaint"),
    [
        (("{run}:full", "{run}:split_eager"), "no way 'split_eager'; its ways are monolithic_eager, full"),
        (("{run}:full", "{run}"), "one way against a whole run; give a way behind both runs, RUN:WAY, or none"),
        (("{run}:full", "nowhere:full"), "nowhere: no such file, and no such run"),
    ],
)
def test_a_way_that_is_not_there_is_one_line(
    mlaprof: Mlaprof, fake_runs: ModuleType, tmp_path: Path, names: Iterable[str], complaint: str
) -> None:
    run = of_processes(fake_runs, "run", 1.0, tmp_path)
    answer = mlaprof("compare", *(name.format(run=run) for name in names))
    assert (answer.code, answer.out, answer.err.count("\n")) == (2, "", 1)
    assert complaint in answer.err


def test_a_file_whose_name_has_a_colon_is_that_file(mlaprof: Mlaprof, fake_runs: ModuleType, tmp_path: Path) -> None:
    run = of_processes(fake_runs, "08:15", 1.0, tmp_path)
    assert mlaprof("compare", run, run).code == 0
    assert mlaprof("compare", f"{run}:full", f"{run}:full").code == 0


def test_a_throttled_cell_has_its_own_verdict_and_stops_a_strict_gate_alone(
    mlaprof: Mlaprof, fake_runs: ModuleType, tmp_path: Path
) -> None:
    base = of_processes(fake_runs, "base", 1.0, tmp_path)
    new = of_processes(fake_runs, "new", 1.5, tmp_path, throttled=True, stop="samples")
    assert "2 THROTTLED at a threshold" in mlaprof("compare", base, new).out
    codes = [mlaprof("compare", base, new, "--fail-on", on).code for on in ("slower", "ambiguous", "never")]
    assert codes == [0, 3, 0]


def test_a_quick_run_says_that_it_does_not_gate(mlaprof: Mlaprof, fake_runs: ModuleType, tmp_path: Path) -> None:
    quick = "name: fake\nmeasure: {processes: 1, min_samples: 10}\n"
    pair = [
        stored(
            fake_runs.make_run([fake_runs.timing(fake_runs.point(), 1e-4 * factor)], run_id=name, study_yaml=quick),
            tmp_path / f"{name}.mlaprof",
        )
        for name, factor in (("base", 1.0), ("new", 1.2))
    ]
    answer = mlaprof("compare", *pair)
    assert answer.code == 0 and "1 SLOWER" in answer.out
    assert "new is a quick run: it reports, it does not gate" in answer.out


# --confirm, with real processes on the CPU.


STEADY_S = 0.01  # about what the emulation takes


@pytest.fixture
def tiny_run(mlaprof: Mlaprof, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run file of a real sweep, on a machine and code that stand still meanwhile."""
    now = environment.snapshot()
    monkeypatch.setattr(environment, "snapshot", lambda: now)
    (tmp_path / "tiny.yaml").write_text(TINY)
    path = tmp_path / "results" / "tiny.mlaprof"
    assert mlaprof("sweep", "tiny.yaml", "--device", "cpu", "--out", path).code == 0
    return path


def edited(path: Path, name: str, factor: float) -> Path:
    """The run with the samples of SLOW times factor, as another run. All are steady: a loaded machine's say anything"""
    run = store.load(path)

    def times(each: Measurement) -> Measurement:
        if each.timing is None:
            return each
        scale_s = STEADY_S * (factor if each.point.key == SLOW else 1.0)
        device_s = tuple(scale_s * (1 + 0.001 * (place % 3)) for place in range(len(each.timing.device_s)))
        return each.model_copy(update={"timing": each.timing.model_copy(update={"device_s": device_s})})

    manifest = run.manifest.model_copy(update={"run_id": name})
    changed = Run(manifest=manifest, measurements=tuple(map(times, run.measurements)))
    return stored(changed, path.with_name(f"{name}.mlaprof"))


def test_what_is_slower_is_measured_again_before_the_gate_fails(mlaprof: Mlaprof, tiny_run: Path) -> None:
    """A planted slowness of NEW is gone the second time; one that only BASE lacks is there again. Both times the new
    run file holds the cell, its baseline and twin, in two processes, and nothing else."""
    steady, slowed, hastened = (
        edited(tiny_run, *each) for each in (("steady", 1.0), ("slowed", 50.0), ("hastened", 0.02))
    )
    before = set(tiny_run.parent.glob("*.mlaprof"))
    for base, new, code, words in (
        (steady, slowed, 0, ("AMBIGUOUS: not confirmed: ", "when measured again")),
        (hastened, steady, 1, ("SLOWER: confirmed: ", "(same processor, so a weak check)")),
    ):
        plain = mlaprof("compare", base, new, "--threshold", "0.9")
        assert plain.code == 1 and "1 SLOWER" in plain.out
        answer = mlaprof("compare", base, new, "--threshold", "0.9", "--confirm")
        assert answer.code == code, answer.err
        assert all(word in answer.out for word in words) and "measured again in run" in answer.out
        assert SLOW in answer.err  # the progress
        (made,) = set(tiny_run.parent.glob("*.mlaprof")) - before
        before.add(made)
        again = store.load(made)
        at = SLOW.rpartition("/")[0]
        assert sorted({each.point.key for each in again.measurements}) == [
            f"{at}/monolithic_eager",
            f"{at}/monolithic_eager/aa",
            SLOW,
        ]
        assert {(each.kind, each.process) for each in again.measurements} == {("timing", 0), ("timing", 1)}
        assert "--confirm" in again.manifest.command


def test_nothing_is_measured_where_nothing_is_slower_or_the_code_is_another(
    mlaprof: Mlaprof, fake_runs: ModuleType, tmp_path: Path
) -> None:
    """Refused before anything is written: exit 4, and one line."""
    base, new = (of_processes(fake_runs, name, factor, tmp_path) for name, factor in (("base", 1.0), ("new", 1.5)))
    files = set(tmp_path.rglob("*"))
    same = mlaprof("compare", base, base, "--confirm")
    assert (same.code, same.err) == (0, "")
    other = mlaprof("compare", base, new, "--confirm")
    assert (other.code, other.out, other.err.count("\n")) == (4, "", 1)
    assert "--confirm: run new cannot be measured again here: " in other.err and "kernel source" in other.err
    assert set(tmp_path.rglob("*")) == files
