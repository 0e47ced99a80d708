"""The door: what is typed, what is printed, what is left on disk, and every exit code from a real situation."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from mlaprof import __version__, cli, store
from mlaprof.cli.door import Screen
from mlaprof.engine.job import spawn_worker
from mlaprof.engine.local import Engine, in_turn
from mlaprof.facts import DispatchTax, Ledger, MemoryUse, NodeCounts, SizeFacts, StepCounts
from mlaprof.machine import environment
from mlaprof.machine.child import Child
from mlaprof.plan import Plan
from mlaprof.records import Gpu, Job, Measurement, Outcome, Run, work
from mlaprof.sweep import sweep

H100 = Gpu(name="NVIDIA H100 80GB HBM3", uuid="GPU-a", driver="580", compute_capability="9.0", memory_bytes=80 * 2**30)
FAKE_WORKER = Path(__file__).with_name("fake_worker.py")

SMALL = """\
name: small
preset: tiny
sweep:
  num_tokens: [5, 3]
  mode: [monolithic_eager, split_eager]
measure: {cache: warm, processes: 1, min_samples: 20, max_samples: 20, warmup_s: 0, memory: false, counts: false, twin: false}
"""  # noqa: E501
# Two modes in place of the title's three, because each captured one traces for seconds; the others have tests/worker.
WHOLE = """\
name: whole
preset: tiny
sweep:
  num_tokens: 3
  mode: [monolithic_eager, split_piecewise]
tiles:
  sparse_attn: [{block_n: 16}]
measure: {cache: warm, processes: 1, min_samples: 20, max_samples: 20, warmup_s: 0}
"""
# The fields that others read; part of mlaprof's interface.
ARTIFACT = {
    *("key", "preset", "phase", "num_tokens", "context_len", "mode", "tiles", "outcome", "reason"),
    *("device_s", "submit_s", "memory", "emulated"),
}
MEMORY = {"weights_bytes", "caches_bytes", "buffers_bytes", "graph_pool_bytes", "allocator_peak_bytes"}


@dataclass(frozen=True)
class Answer:
    code: int
    out: str
    err: str

    @property
    def complaint(self) -> str:
        """The one line of an error."""
        line, end, rest = self.err.partition("\n")
        assert (end, rest) == ("\n", ""), f"expected one line, got {self.err!r}"
        assert self.out == ""
        return line


Mlaprof = Callable[..., Answer]
TERMINAL_VARIABLES = ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLUMNS")


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The study lies in the working directory, and nothing lands in the checkout."""
    monkeypatch.chdir(tmp_path)
    for name in TERMINAL_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "study.yaml").write_text(SMALL)


@pytest.fixture
def mlaprof(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Mlaprof:
    """Run a command line in this process."""
    screens = {"out": Screen(width=160), "err": Screen(width=160, stderr=True)}
    for module in (cli, cli.measure, cli.read, cli.surroundings):
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


@pytest.fixture
def fake_worker(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Job]]:
    """Let sweeps use the worker without torch, told to fail in some way; answers with the jobs given to it."""

    def use(*told: object) -> list[Job]:
        jobs: list[Job] = []

        def spawn(job: Job) -> Child:
            jobs.append(job)
            return spawn_worker(job, command=[sys.executable, str(FAKE_WORKER), *map(str, told)])

        monkeypatch.setattr(cli.measure, "run_sweep", partial(sweep, spawn=spawn))
        return jobs

    return use


def stored(run: Run, path: Path) -> Path:
    manifest = run.manifest.model_copy(update={"schema_version": store.SCHEMA_VERSION})
    with store.create(path, manifest) as writer:
        for measurement in run.measurements:
            writer.append(measurement)
    return path


def surroundings() -> dict[str, str]:
    """The environment without what makes Rich take a pipe for a terminal."""
    return {name: value for name, value in os.environ.items() if name not in TERMINAL_VARIABLES}


def start(checkout: Path, *arguments: object, cwd: Path) -> subprocess.Popen[str]:
    """`python -m mlaprof` of this checkout as a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "mlaprof", *map(str, arguments)],
        cwd=cwd,
        env={**surroundings(), "PYTHONPATH": str(checkout), "COLUMNS": "160", "PYTHONIOENCODING": "utf-8"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    )


def really(checkout: Path, *arguments: object, cwd: Path) -> Answer:
    process = start(checkout, *arguments, cwd=cwd)
    out, err = process.communicate(timeout=120)
    return Answer(process.returncode, out, err)


@pytest.fixture(scope="module")
def whole_run(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Answer]:
    """A run file from a real sweep in a real process, and what the sweep printed."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "whole.yaml").write_text(WHOLE)
    answer = really(checkout, "sweep", "whole.yaml", "--device", "cpu", "--out", "runs/a run.mlaprof", cwd=folder)
    return folder / "runs" / "a run.mlaprof", answer


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# sweep


def test_a_sweep_measures_stores_prints_and_draws(whole_run: tuple[Path, Answer]) -> None:
    """One command: progress on stderr; the table and the paths of the figures on stdout; a run file; the figures."""
    path, answer = whole_run

    assert answer.code == 0
    assert "EMULATED tiny prefill, context 0" in answer.out
    assert "split_piecewise" in answer.out and "sm_90" in answer.out
    assert "[1/9] ✓ ok timing tiny/prefill/t3/ctx0/monolithic_eager" in answer.err
    run = store.load(path)
    assert {work(m.kind, m.point.key, m.process) for m in run.measurements} == set(run.manifest.planned)
    assert {m.outcome.status for m in run.measurements} == {"ok", "compiled"}
    assert sorted(each.name for each in path.parent.iterdir()) == ["a run", "a run.mlaprof"]
    for figure in ("latency", "speedup", "memory", "tiles"):
        for kind in ("png", "svg"):
            assert (path.parent / "a run" / f"{figure}-prefill-ctx0.{kind}").stat().st_size > 1000
    shown = [line.split("  ", 1)[1] for line in answer.out.splitlines() if line.startswith(("plot  ", "json  "))]
    told = [path.parent / "a run" / "summary.json", *(path.parent / "a run").glob("*.png")]
    assert {path.parents[1] / each for each in shown} == set(told) and len(shown) == len(told)


def test_a_sweep_tells_repeated_compile_facts_once(whole_run: tuple[Path, Answer]) -> None:
    """The facts of a tile configuration are the same for every mode and size."""
    _, answer = whole_run

    assert answer.err.count("registers") == 1
    assert "[9/9] 1 more cell compiled with the same tiles and facts" in answer.err


def test_the_default_run_file_lies_under_results(mlaprof: Mlaprof, fake_worker, tmp_path: Path) -> None:
    fake_worker("ok")

    assert mlaprof("sweep", "study.yaml", "--device", "cpu", "--results", "mine").code == 0

    (path,) = (tmp_path / "mine").glob("*.mlaprof")
    assert path.name == f"{store.load(path).manifest.run_id}.mlaprof"


def test_a_run_file_without_a_suffix_has_its_figures_beside_it(mlaprof: Mlaprof, fake_worker, tmp_path: Path) -> None:
    """The folder of the figures cannot have the file's own name."""
    fake_worker("ok")

    answer = mlaprof("sweep", "study.yaml", "--device", "cpu", "--out", "run")

    assert answer.code == 0
    assert (tmp_path / "run").is_file() and (tmp_path / "run-plots" / "summary.json").is_file()


def test_axes_and_settings_change_the_study(mlaprof: Mlaprof, fake_worker, tmp_path: Path) -> None:
    """The command line wins over the file, and the run remembers both."""
    jobs = fake_worker("ok")
    changes = ("-a", "tokens=1,7", "--axis", "mode=full", "--set", "batch.seed=9", "--set", "num_layers=2")

    assert mlaprof("sweep", "study.yaml", "--device", "cpu", *changes, "--out", "run.mlaprof").code == 0

    (job,) = jobs
    assert [(point.num_tokens, point.mode) for point in job.points] == [(7, "full"), (1, "full")]
    assert (job.batch.seed, job.layer.num_layers) == (9, 2)
    manifest = store.read_manifest(tmp_path / "run.mlaprof")
    assert manifest.command == ("mlaprof", "sweep", "study.yaml", "--device", "cpu", *changes, "--out", "run.mlaprof")


def test_a_dry_run_prints_the_plan_and_writes_nothing(mlaprof: Mlaprof, fake_worker, tmp_path: Path) -> None:
    jobs = fake_worker("ok")
    before = everything(tmp_path)

    answer = mlaprof(
        "sweep", "study.yaml", "-a", "phase=prefill,decode", "-a", "mode=full,split_piecewise", "--dry-run"
    )

    assert (answer.code, answer.err, jobs) == (0, "", [])
    assert "tiny/prefill/ctx0, tokens 5 3: full, split_piecewise" in answer.out
    assert "skipped 2: decode-only batches are not piecewise" in answer.out
    assert "nothing was run" in answer.out
    assert everything(tmp_path) == before


def test_a_preset_of_measuring_is_an_option(mlaprof: Mlaprof, fake_worker, tmp_path: Path) -> None:
    """In the plan and in the jobs; the run file holds what it came to."""
    quick = mlaprof("sweep", "study.yaml", "--dry-run", "--quick")
    rigorous = mlaprof("sweep", "study.yaml", "--dry-run", "--rigorous", "--set", "measure.processes=2")
    assert "timing: 10 to 30 rounds a cell" in quick.out and "4 measurements in 1 worker process;" in quick.out
    assert "timing x2: 2 fresh processes time each cell, 100 to 5000 rounds each" in rigorous.out
    assert "8 measurements in 2 worker processes;" in rigorous.out

    jobs = fake_worker("ok")
    assert mlaprof("sweep", "study.yaml", "--device", "cpu", "--rigorous", "--out", "run.mlaprof").code == 0

    assert [(job.process, job.measure.min_samples, job.measure.cache) for job in jobs] == [
        (process, 100, "warm") for process in range(5)
    ]
    planned = store.read_manifest(tmp_path / "run.mlaprof").planned
    assert len(planned) == 20 and planned[4] == "timing#2 tiny/prefill/t5/ctx0/monolithic_eager"


def test_some_failed_cells_are_exit_code_5(mlaprof: Mlaprof, fake_worker, tmp_path: Path) -> None:
    """The rest is measured, and the reason is in the table."""
    fake_worker("exit", 3)

    answer = mlaprof("sweep", "study.yaml", "--device", "cpu", "--out", "run.mlaprof")

    assert answer.code == 5
    assert "FAILED" in answer.out and "exit code 3" in answer.out and "--resume" in answer.out
    statuses = {m.point.key: m.outcome.status for m in store.load(tmp_path / "run.mlaprof").measurements}
    assert statuses["tiny/prefill/t5/ctx0/split_eager"] == "ok"
    assert statuses["tiny/prefill/t3/ctx0/monolithic_eager"] == "failed"


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Let sweeps record Measurements with planted parts, without a worker."""

    def use(**parts: object) -> None:
        def pretend(
            plan: Plan, *, keep: Callable[[Measurement], None], engine: Engine = in_turn
        ) -> Iterator[Measurement]:
            for job in plan.jobs:
                for point in job.points:
                    found = Measurement(
                        point=point,
                        kind=job.kind,
                        process=job.process,
                        outcome=parts.get("outcome", Outcome(status="ok")),
                        emulated=True,
                        recorded_at="2026-11-23T10:15:00+00:00",
                        **({job.kind: parts[job.kind]} if job.kind in parts else {}),
                    )
                    keep(found)
                    yield found

        monkeypatch.setattr(cli.measure, "run_sweep", pretend)

    return use


def memory_with(*sizes: SizeFacts) -> MemoryUse:
    ledger = Ledger(hold="strong", weights_bytes=3, caches_bytes=2, buffers_bytes=1, sizes=sizes)
    return MemoryUse(weights_bytes=3, caches_bytes=2, buffers_bytes=1, graph_pool_bytes=0, ledger=ledger)


COUNTED = StepCounts(
    steps=3, kernels=9, kernel_launches=9, graph_launches=0, nodes=NodeCounts(), stream_syncs=2, complete=True
)
CAPTURED = SizeFacts(num_tokens=8, state="captured", capture_s=0.1, instantiate_s=0.02, first_replay_s=0.01)
NOT_CAPTURED = SizeFacts(num_tokens=64, state="not_captured", reason="out of memory")


@pytest.mark.parametrize(
    ("parts", "settings", "code"),
    [
        ({"memory": memory_with(CAPTURED), "counts": COUNTED}, ("budget.syncs=2",), 0),
        ({"memory": memory_with(CAPTURED), "counts": COUNTED}, ("budget.syncs=1",), 1),
        ({"memory": memory_with(CAPTURED, NOT_CAPTURED), "counts": COUNTED}, (), 5),
        ({"memory": memory_with(CAPTURED, NOT_CAPTURED), "counts": COUNTED}, ("budget.syncs=1",), 5),
        ({"outcome": Outcome(status="incorrect", stage="verify", reason="pages")}, (), 5),
        ({"outcome": Outcome(status="skipped", stage="plan", reason="pages")}, (), 0),
    ],
    ids=["within", "over budget", "size not captured", "not captured and over budget", "incorrect", "skipped"],
)
def test_a_sweep_ends_with_the_worst_of_what_it_found(
    mlaprof: Mlaprof, recorded, tmp_path: Path, parts: dict[str, object], settings: tuple[str, ...], code: int
) -> None:
    """5 for what failed, is wrong or was not captured though asked for; else 1 for a broken budget; else 0."""
    recorded(**parts)
    options = [word for text in ("measure.memory=true", "measure.counts=true", *settings) for word in ("--set", text)]

    answer = mlaprof("sweep", "study.yaml", "--device", "cpu", "-a", "mode=full", *options, "--out", "run.mlaprof")

    assert answer.code == code
    assert len(store.load(tmp_path / "run.mlaprof").measurements) == 6


# capture sizes


SIZES = "capture={sizes: {pow2: [2, 16]}, max_num_tokens: 8, max_batch_size: 1, max_seq_len: 6}"


def test_a_dry_run_says_what_became_of_the_capture_sizes(mlaprof: Mlaprof) -> None:
    """What is captured, what is clamped and what is dropped, each with its remedy."""
    answer = mlaprof("sweep", "study.yaml", "--dry-run", "--set", SIZES)

    assert (answer.code, answer.err) == (0, "")
    captured, clamped, dropped = answer.out.splitlines()[-3:]
    assert captured.endswith("graphs of 2 4 5 tokens")
    assert "capture sizes 8 clamped to 5 tokens" in clamped and "next: raise capture.max_seq_len" in clamped
    assert "capture sizes 16 dropped" in dropped and "next: raise capture.max_num_tokens" in dropped
    assert "capture sizes" not in mlaprof("sweep", "study.yaml", "--dry-run").out


def test_a_sweep_says_it_too_and_gives_the_sizes_to_its_jobs(mlaprof: Mlaprof, fake_worker) -> None:
    """Nobody runs eagerly unawares."""
    jobs = fake_worker("ok")

    answer = mlaprof("sweep", "study.yaml", "--device", "cpu", "--set", SIZES)

    assert answer.code == 0
    assert "capture sizes 8 clamped to 5 tokens" in answer.err and "clamped" not in answer.out
    assert {job.capture.sizes for job in jobs} == {(2, 4, 5)}


# graph


def test_graph_prints_every_way_at_one_size_and_stores_nothing(mlaprof: Mlaprof, recorded, tmp_path: Path) -> None:
    recorded(counts=COUNTED)
    before = everything(tmp_path)

    answer = mlaprof("graph", "study.yaml", "--device", "cpu", "-a", "mode=breakable,full", "-a", "boundary=proj")

    assert answer.code == 0
    assert "[2/2]" in answer.err and "breakable@proj" in answer.out and "full" in answer.out
    assert "tokens 5" in answer.out and "tokens 3" not in answer.out
    assert everything(tmp_path) == before


def test_graph_as_json_is_json_alone(mlaprof: Mlaprof, recorded) -> None:
    """With the dispatch tax where it is asked for."""
    recorded(
        counts=COUNTED, dispatch=DispatchTax(bare_s=1e-6, define_s=2e-6, custom_op_s=7e-6, calls=100, ops_per_step=4)
    )
    arguments = ("graph", "study.yaml", "--device", "cpu", "--tokens", "7", "--format", "json")

    told = json.loads(mlaprof(*arguments).out)
    with_tax = json.loads(mlaprof(*arguments, "--dispatch-tax").out)

    keys = [f"tiny/prefill/t7/ctx0/{mode}" for mode in ("monolithic_eager", "split_eager")]
    assert [each["key"] for each in told["partitions"]] == keys
    assert (told["dispatch_tax"], with_tax["partitions"]) == ([], told["partitions"])
    assert with_tax["dispatch_tax"][0]["tax"]["custom_op_s"] == 7e-6


def test_graph_of_a_step_that_failed_is_exit_code_5(mlaprof: Mlaprof, fake_worker) -> None:
    """The reason is printed; what only cannot run is no failure."""
    fake_worker("exit", 5)
    answer = mlaprof("graph", "study.yaml", "--device", "cpu")
    assert answer.code == 5 and "exit code 3" in answer.out

    skipped = mlaprof("graph", "study.yaml", "--device", "cpu", "--tokens", "5000")
    assert skipped.code == 0 and "max_position_embeddings" in skipped.out


def test_graph_really_counts(checkout: Path, tmp_path: Path) -> None:
    """Two layers give three captured pieces and two eager ones, in both ways of cutting."""
    modes = ("-a", "mode=monolithic_eager,split_piecewise,breakable", "--set", "num_layers=2")

    answer = really(checkout, "graph", "study.yaml", "--device", "cpu", *modes, "--format", "json", cwd=tmp_path)

    assert answer.code == 0, answer.err
    found = {each["way"]: each for each in json.loads(answer.out)["partitions"]}
    for way in ("split_piecewise", "breakable"):
        assert (found[way]["captured_segments"], found[way]["eager_segments"]) == (3, 2)
        assert 0 < found[way]["coverage"] < 1
    assert found["monolithic_eager"]["coverage"] == 0
    assert [each.name for each in tmp_path.iterdir()] == ["study.yaml"]


# resume


def test_a_run_of_an_older_schema_is_shown_and_not_resumed(mlaprof: Mlaprof, checkout: Path) -> None:
    """What another mlaprof began, it may finish."""
    path = checkout / "results" / "reference" / "v3.2-prefill" / "run.mlaprof"
    before = path.read_bytes()

    answer = mlaprof("sweep", "--resume", path, "--dry-run")

    assert answer.code == 2
    assert (
        f"schema 1, this one writes {store.SCHEMA_VERSION}" in answer.complaint
        and "start a new run" in answer.complaint
    )
    assert mlaprof("show", path).code == 0
    assert path.read_bytes() == before


def test_a_resumed_run_measures_what_failed_again(mlaprof: Mlaprof, fake_worker, tmp_path: Path) -> None:
    """The whole cell, for its arms are paired; not the cells that are done."""
    fake_worker("exit", 3)
    assert mlaprof("sweep", "study.yaml", "--device", "cpu", "--out", "run.mlaprof").code == 5
    jobs = fake_worker("ok")

    assert mlaprof("sweep", "--resume", "run.mlaprof").code == 0

    assert [[point.num_tokens for point in job.points] for job in jobs] == [[3, 3]]
    measurements = store.load(tmp_path / "run.mlaprof").measurements
    assert [m.outcome.status for m in measurements] == ["ok"] * 4


def test_a_cell_left_incomplete_is_measured_whole(mlaprof: Mlaprof, fake_worker, tmp_path: Path) -> None:
    """An arm alone has no partner sampled beside it."""
    fake_worker("ok")
    assert mlaprof("sweep", "study.yaml", "--device", "cpu", "--out", "run.mlaprof").code == 0
    with sqlite3.connect("run.mlaprof") as connection:
        connection.execute("DELETE FROM measurement WHERE key = 'tiny/prefill/t3/ctx0/split_eager'")
    connection.close()
    jobs = fake_worker("ok")

    assert mlaprof("sweep", "study.yaml", "--resume", "run.mlaprof").code == 0

    assert [(point.num_tokens, point.mode) for job in jobs for point in job.points] == [
        (3, "monolithic_eager"),
        (3, "split_eager"),
    ]
    assert len(store.load(tmp_path / "run.mlaprof").measurements) == 4


def test_a_cell_that_one_process_lost_is_measured_in_that_process_alone(
    mlaprof: Mlaprof, fake_worker, tmp_path: Path
) -> None:
    """What the others measured stays as it is."""
    fake_worker("ok")
    arguments = ("study.yaml", "--device", "cpu", "--set", "measure.processes=3", "--out", "run.mlaprof")
    assert mlaprof("sweep", *arguments).code == 0
    with sqlite3.connect("run.mlaprof") as connection:
        lost = "key = 'tiny/prefill/t5/ctx0/split_eager' AND process = 1"
        connection.execute(f"DELETE FROM measurement WHERE {lost}")
    connection.close()
    jobs = fake_worker("ok")

    answer = mlaprof("sweep", "--resume", "run.mlaprof")

    assert answer.code == 0 and "[2/2]" in answer.err
    assert [(job.process, [point.num_tokens for point in job.points]) for job in jobs] == [(1, [5, 5])]
    run = store.load(tmp_path / "run.mlaprof")
    assert sorted(run.manifest.planned) == sorted(work(m.kind, m.point.key, m.process) for m in run.measurements)


def test_resuming_a_finished_run_measures_nothing_and_shows_it(mlaprof: Mlaprof, fake_worker, tmp_path: Path) -> None:
    fake_worker("ok")
    assert mlaprof("sweep", "study.yaml", "--device", "cpu", "--results", ".").code == 0
    jobs = fake_worker("dead")

    answer = mlaprof("sweep", "--resume", "latest", "--results", ".")

    assert (answer.code, jobs) == (0, [])
    assert "tiny prefill" in answer.out


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("other.yaml",), 2, "other.yaml: not the study of run"),
        (("study.yaml", "-a", "tokens=1"), 2, "not the study of run"),
        (("-a", "tokens=1"), 2, "a resumed run keeps its axes and settings"),
        (("--quick",), 2, "a resumed run keeps its axes and settings; leave out"),
        (("study.yaml", "--rigorous"), 2, "not the study of run"),
        (("--out", "b.mlaprof"), 2, "--out: a resumed run stays in its file"),
        (("--device", "cuda"), 4, "--device cuda: run "),
    ],
)
def test_a_resumed_run_goes_on_as_it_began(
    mlaprof: Mlaprof, fake_worker, tmp_path: Path, arguments: tuple[str, ...], code: int, words: str
) -> None:
    fake_worker("ok")
    assert mlaprof("sweep", "study.yaml", "--device", "cpu", "--out", "run.mlaprof").code == 0
    (tmp_path / "other.yaml").write_text(SMALL.replace("[5, 3]", "[5, 4]"))
    before = everything(tmp_path)

    answer = mlaprof("sweep", *arguments, "--resume", "run.mlaprof")

    assert answer.code == code
    assert words in answer.complaint
    assert everything(tmp_path) == before


def test_a_run_is_not_resumed_on_another_processor(mlaprof: Mlaprof, fake_runs, tmp_path: Path) -> None:
    """A run holds times of one processor only."""
    stored(
        fake_runs.make_run([], device="cuda", gpus=(fake_runs.H100.model_copy(update={"name": "A99"}),)),
        tmp_path / "run",
    )

    answer = mlaprof("sweep", "--resume", "run")

    assert answer.code == 4
    assert "began on A99" in answer.complaint and "start a new run" in answer.complaint


def test_a_sweep_killed_in_its_second_process_goes_on_there(checkout: Path, tmp_path: Path) -> None:
    """kill -9 of the parent: the first process's times stay, and what the second lacks is measured in a second one."""
    settings = ("--set", "measure.processes=2", "--set", "measure.warmup_s=1", "--set", "measure.max_samples=20")
    process = start(checkout, "sweep", "study.yaml", "--device", "cpu", *settings, "--out", "run.mlaprof", cwd=tmp_path)
    assert process.stderr is not None
    seen = ""
    while "[6/8]" not in seen:  # the second process has one cell, and warms up for the other
        line = process.stderr.readline()
        assert line, f"the sweep ended early: {seen}"
        seen += line
    process.kill()
    process.communicate(timeout=60)
    first = store.load(tmp_path / "run.mlaprof").measurements
    assert [(m.process, m.point.num_tokens) for m in first] == [(0, 5), (0, 5), (0, 3), (0, 3), (1, 5), (1, 5)]

    answer = really(checkout, "sweep", "--resume", "run.mlaprof", cwd=tmp_path)

    assert answer.code == 0, answer.err
    assert "[2/2]" in answer.err
    run = store.load(tmp_path / "run.mlaprof")
    assert run.measurements[:6] == first
    assert [work(m.kind, m.point.key, m.process) for m in run.measurements] == list(run.manifest.planned)
    assert {m.outcome.status for m in run.measurements} == {"ok"}
    assert sorted(each.name for each in tmp_path.iterdir()) == ["run", "run.mlaprof", "study.yaml"]


def test_an_interrupted_sweep_ends_with_130_and_can_go_on(checkout: Path, tmp_path: Path) -> None:
    """Ctrl-C in a real sweep: what is finished stays and is not measured twice, and nothing is left beside the file."""
    slow = ("--set", "measure.warmup_s=1")
    process = start(checkout, "sweep", "study.yaml", "--device", "cpu", *slow, "--out", "run.mlaprof", cwd=tmp_path)
    assert process.stderr is not None
    seen = ""
    while "[2/4]" not in seen:  # the first cell is kept, the second warms up for a second
        line = process.stderr.readline()
        assert line, f"the sweep ended early: {seen}"
        seen += line
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)

    assert (process.returncode, out) == (130, "")
    assert "--resume run.mlaprof" in err and "Traceback" not in err
    assert sorted(each.name for each in tmp_path.iterdir()) == ["run.mlaprof", "study.yaml"]
    first = store.load(tmp_path / "run.mlaprof").measurements
    assert [m.point.num_tokens for m in first] == [5, 5]

    answer = really(checkout, "sweep", "--resume", "run.mlaprof", cwd=tmp_path)

    assert answer.code == 0
    assert "[2/2]" in answer.err
    measurements = store.load(tmp_path / "run.mlaprof").measurements
    assert measurements[:2] == first
    assert [(m.point.num_tokens, m.outcome.status) for m in measurements[2:]] == [(3, "ok"), (3, "ok")]


# bad input


def bad(text: str) -> str:
    return SMALL + text


@pytest.mark.parametrize(
    ("study", "words"),
    [
        (bad("mesure: {}\n"), ("bad.yaml:7: mesure: unknown key", "did you mean measure?")),
        (SMALL.replace("tiny", "tinny"), ("bad.yaml:2: ", "tinny", "did you mean tiny?")),
        (SMALL.replace("[5, 3]", "many"), ("bad.yaml:4: sweep.num_tokens", "; ")),
        (SMALL.replace("[5, 3]", "[]"), ("bad.yaml:4: sweep.num_tokens: the axis is empty", "at least one value")),
        (SMALL.replace("[5, 3]", "[5, 0]"), ("bad.yaml:4: sweep.num_tokens", "0 is less than 1", "use 1 or more")),
        (
            bad("tiles: {sparse_attn: [{block_n: 256, num_stages: 4}]}\n"),
            ("bad.yaml:7: tiles.sparse_attn", "shared memory", "smaller"),
        ),
        (
            bad("weights: {safetensors: gone.safetensors}\n"),
            ("bad.yaml:7: weights.safetensors", "gone.safetensors", "give a"),
        ),
        (bad("weights: {safetensors: bad.yaml}\n"), ("bad.yaml:7: weights.safetensors", "is not a safetensors file")),
        (bad("layer: {llama_4_scaling: true}\n"), ("bad.yaml:7: layer.llama_4_scaling", "use false")),
        (
            SMALL.replace("preset: tiny", "shape: {hf_config: hf.json}"),
            ("bad.yaml:2: shape.hf_config", "qk_head_dim: 100 disagrees"),
        ),
        ("name: [unclosed\n", ("bad.yaml:",)),
        ("", ("bad.yaml:1: is empty", "quickstart.yaml")),
    ],
    ids=[
        *("unknown key", "unknown preset", "wrong type", "empty axis", "zero tokens", "large tile", "no checkpoint"),
        *("foreign checkpoint", "refused option", "shape at odds", "not YAML", "empty"),
    ],
)
def test_a_bad_study_is_one_line_and_leaves_nothing(
    mlaprof: Mlaprof, tmp_path: Path, study: str, words: Iterable[str]
) -> None:
    """Exit 2 with file, line, key and remedy; no run file, no folder."""
    (tmp_path / "bad.yaml").write_text(study)
    (tmp_path / "hf.json").write_text(
        json.dumps({"model_type": "deepseek_v32", "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "qk_head_dim": 100})
    )
    before = everything(tmp_path)

    answer = mlaprof("sweep", "bad.yaml")

    assert answer.code == 2
    assert answer.complaint.startswith("error: ")
    assert [each for each in words if each not in answer.complaint] == []
    assert everything(tmp_path) == before and not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("sweep",), "CONFIG: no study given"),
        (("graph",), "CONFIG: no study given"),
        (("graph", "gone.yaml"), "gone.yaml"),
        (("graph", "study.yaml", "-a", "boundary=projj"), "did you mean proj?"),
        (("sweep", "study.yaml", "--set", "capture.max_seq_len=9"), "--set capture.max_seq_len=9"),
        (("sweep", "gone.yaml"), "gone.yaml"),
        (("sweep", "."), "."),
        (("sweep", "study.yaml", "-a", "tokens"), "-a: 'tokens' is not axis=values"),
        (("sweep", "study.yaml", "-a", "tokens=1", "-a", "tokens=2"), "tokens is given twice"),
        (("sweep", "study.yaml", "-a", "token=1"), "did you mean"),
        (("sweep", "study.yaml", "-a", "tokens=0"), "-a tokens=0"),
        (("sweep", "study.yaml", "--set", "measure.min_sample=30"), "did you mean min_samples?"),
        (("sweep", "study.yaml", "--set", "measure"), "--set measure"),
        (("sweep", "study.yaml", "--quick", "--rigorous"), "--quick --rigorous: "),
        (("sweep", "study.yaml", "--quick", "--set", "measure.min_samples=40"), "--quick: measure.max_samples"),
        (("sweep", "study.yaml", "--out", "study.yaml"), "study.yaml: this file exists"),
        (("sweep", "--resume", "study.yaml"), "study.yaml: not a run file"),
        (("show", "study.yaml"), "study.yaml: not a run file"),
        (("show", "latest"), "latest: no such file, and no such run"),
        (("plot", "nothing"), "nothing: no such file"),
        (("compare", "study.yaml", "study.yaml"), "study.yaml: not a run file"),
        (("compare", "a", "b", "--threshold", "1.5"), "--threshold: 1.5 is not a ratio"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_bad_arguments_are_one_line_and_leave_nothing(
    mlaprof: Mlaprof, fake_worker, tmp_path: Path, arguments: tuple[str, ...], words: str
) -> None:
    jobs = fake_worker("ok")
    before = everything(tmp_path)

    answer = mlaprof(*arguments)

    assert answer.code == 2
    assert words in answer.complaint and "; " in answer.complaint
    assert (everything(tmp_path), jobs) == (before, [])
    assert sorted(each.name for each in tmp_path.iterdir()) == ["study.yaml"]


@pytest.mark.parametrize(
    "arguments",
    [
        ("swep",),
        ("show",),
        ("sweep", "study.yaml", "--fast"),
        ("list", "gpus"),
        ("graph", "study.yaml", "--tokens", "0"),
    ],
)
def test_what_the_parser_refuses_is_exit_code_2(mlaprof: Mlaprof, arguments: tuple[str, ...]) -> None:
    answer = mlaprof(*arguments)

    assert (answer.code, answer.out) == (2, "")
    assert answer.err and "Traceback" not in answer.err


def test_the_first_complaint_is_red_and_the_others_follow(
    mlaprof: Mlaprof, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that is wrong is told at once; the eye meets one line."""
    (tmp_path / "bad.yaml").write_text(bad("mesure: {}\nnum_layers: 0\n") + "mlp: dens\n")
    plain = mlaprof("sweep", "bad.yaml")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr(cli, "err", Screen(width=60, stderr=True, force_terminal=True, color_system="standard"))
    red = mlaprof("sweep", "bad.yaml")

    assert plain.code == red.code == 2
    first, more, *others = plain.err.splitlines()
    assert first.startswith("error: bad.yaml:7: mesure")
    assert more == "and 2 more:"
    assert [line.startswith(f"  bad.yaml:{number}: ") for number, line in zip((8, 9), others, strict=True)] == [
        True,
        True,
    ]
    assert red.err.splitlines() == [f"\x1b[1;31m{first}\x1b[0m", more, *others]


def test_a_bug_is_not_dressed_up_as_a_mistake_of_the_user(mlaprof: Mlaprof, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only MlaprofErrors become one line; anything else keeps its traceback."""

    def broken(*_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(cli.surroundings.listing, "print_presets", broken)
    monkeypatch.setattr(sys, "argv", ["mlaprof", "list", "presets"])
    with pytest.raises(RuntimeError, match="a bug"):
        cli.main()


# machine


def test_a_gpu_that_is_not_there_is_exit_code_4(
    mlaprof: Mlaprof, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlaprof.machine.environment.cuda_present", lambda: False)
    before = everything(tmp_path)

    for command in ("sweep", "graph"):
        answer = mlaprof(command, "study.yaml", "--device", "cuda")

        assert answer.code == 4
        assert "--device cuda: no CUDA GPU" in answer.complaint and "--device cpu" in answer.complaint
    assert everything(tmp_path) == before


@pytest.fixture
def shared(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with a GPU that two other processes use."""
    there = environment.snapshot().model_copy(
        update={"gpus": (H100.model_copy(update={"compute_pids": (4711, 12)}),), "used_gpu": 0}
    )
    monkeypatch.setattr(environment, "cuda_present", lambda: True)
    monkeypatch.setattr(environment, "snapshot", lambda: there)
    monkeypatch.setattr(environment, "other_processes", lambda visible=None: (4711, 12))


def test_a_gpu_that_others_use_is_exit_code_4(mlaprof: Mlaprof, fake_worker, shared: None, tmp_path: Path) -> None:
    """One line, before anything is written; a plan and what takes no times are nobody's concern."""
    jobs = fake_worker("ok")
    before = everything(tmp_path)

    for command in (("sweep",), ("graph", "--dispatch-tax")):
        answer = mlaprof(*command, "study.yaml")
        assert answer.code == 4
        assert (
            "NVIDIA H100 80GB HBM3: also used by process 4711, 12," in answer.complaint
            and "--shared-gpu" in answer.complaint
        )
    assert (everything(tmp_path), jobs) == (before, [])

    assert mlaprof("sweep", "study.yaml", "--dry-run").code == 0
    assert mlaprof("sweep", "study.yaml", "--device", "cpu").code == 0


def test_a_shared_gpu_is_measured_where_the_user_says_so(
    mlaprof: Mlaprof, fake_worker, shared: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With a warning; a run that began beside nobody is not resumed beside others unasked."""
    fake_worker("exit", 3)
    begun = mlaprof("sweep", "study.yaml", "--shared-gpu", "--out", "run.mlaprof")
    assert begun.code == 5 and "warning: NVIDIA H100" in begun.err and "also used by process 4711, 12" in begun.err
    before = (tmp_path / "run.mlaprof").read_bytes()
    jobs = fake_worker("ok")

    refused = mlaprof("sweep", "--resume", "run.mlaprof")
    assert refused.code == 4 and "4711, 12" in refused.complaint
    assert ((tmp_path / "run.mlaprof").read_bytes(), jobs) == (before, [])

    assert mlaprof("sweep", "--resume", "run.mlaprof", "--shared-gpu").code == 0
    assert mlaprof("sweep", "--resume", "run.mlaprof").code == 0  # nothing is left to be distorted
    assert len(jobs) == 1


def test_doctor_tells_what_this_machine_is(mlaprof: Mlaprof) -> None:
    answer = mlaprof("doctor")

    assert (answer.code, answer.err) == (0, "")
    for fact in ("GPU", "NVML", "CPU", "cores", "Python 3.", "torch", "mlaprof"):
        assert fact in answer.out
    assert all("; next: " in line for line in answer.out.splitlines() if line.startswith("warning: "))


# show, plot, list


def test_json_holds_every_field_of_the_interface_for_every_cell(
    mlaprof: Mlaprof, whole_run: tuple[Path, Answer]
) -> None:
    """What is not known is null, never absent; times in seconds, memory in bytes by name."""
    path, _ = whole_run

    answer = mlaprof("show", path, "--format", "json")

    assert (answer.code, answer.err) == (0, "")
    cells = {cell["key"]: cell for cell in json.loads(answer.out)}
    modes = ("monolithic_eager", "split_piecewise")
    arms = {f"tiny/prefill/t3/ctx0/{mode}{tiles}" for mode in modes for tiles in ("", "/sparse_attn=n16")}
    assert set(cells) == arms
    for key, cell in cells.items():
        assert cell.keys() >= ARTIFACT
        assert key.startswith(
            f"{cell['preset']}/{cell['phase']}/t{cell['num_tokens']}/ctx{cell['context_len']}/{cell['mode']}"
        )
        if cell["tiles"]:
            assert (cell["outcome"], cell["device_s"], cell["submit_s"]) == ("compiled", None, None)
            assert cell["resources"][0]["target"] == "sm_90"
            continue
        assert (cell["outcome"], cell["reason"], cell["emulated"]) == ("ok", "", True)
        for name in ("device_s", "submit_s"):
            assert cell[name].keys() == {"median", "ci_low", "ci_high", "n"}
            assert 0 < cell[name]["ci_low"] <= cell[name]["median"] <= cell[name]["ci_high"] < 60
            assert cell[name]["n"] == 20
        assert cell["memory"].keys() >= MEMORY
        assert all(cell["memory"][name] > 0 for name in ("weights_bytes", "caches_bytes", "buffers_bytes"))
        assert (cell["memory"]["graph_pool_bytes"] > 0) == (cell["mode"] == "split_piecewise")
        assert all(check["passed"] for check in cell["checks"]) and cell["checks"]


def test_json_of_cells_that_failed_or_were_skipped_has_the_same_fields(
    mlaprof: Mlaprof, fake_runs, tmp_path: Path
) -> None:
    at = [fake_runs.point("full", n) for n in (1, 2, 3, 4)]
    rows = [
        fake_runs.timing(at[0], 1e-4),
        fake_runs.ended(at[1], "failed", "OOM"),
        fake_runs.ended(at[2], "skipped", "not in this mode"),
    ]
    run = fake_runs.make_run(rows, planned=[f"timing {each.key}" for each in at])

    answer = mlaprof("show", stored(run, tmp_path / "run.mlaprof"), "--format", "json")

    cells = json.loads(answer.out)
    assert [cell["outcome"] for cell in cells] == ["ok", "failed", "skipped", "missing"]
    assert all(cell.keys() >= ARTIFACT for cell in cells)
    assert [cell["reason"] for cell in cells[1:3]] == ["OOM", "not in this mode"]
    assert {cell["device_s"] for cell in cells[1:]} == {None}


def test_every_format_shows_every_cell(mlaprof: Mlaprof, whole_run: tuple[Path, Answer]) -> None:
    path, _ = whole_run
    keys = {cell["key"] for cell in json.loads(mlaprof("show", path, "--format", "json").out)}

    rows = list(csv.DictReader(io.StringIO(mlaprof("show", path, "--format", "csv").out)))
    markdown = mlaprof("show", path, "--format", "md").out
    table = mlaprof("show", path).out

    assert {row["key"] for row in rows} == keys
    assert {row["device_s_median"] == "" for row in rows if row["tiles"]} == {True}
    assert "| 3 | split_piecewise |" in markdown and markdown.startswith("## ")
    assert table == mlaprof("show", path, "--format", "table").out
    assert "split_piecewise" in table and "n16" in table


def test_a_run_goes_by_file_by_id_by_its_beginning_and_by_latest(mlaprof: Mlaprof, fake_runs, tmp_path: Path) -> None:
    rows = [fake_runs.timing(fake_runs.point("full"), 1e-4)]
    stored(fake_runs.make_run(rows, run_id="20260102-030405-fake"), tmp_path / "results" / "one.mlaprof")

    names = ("results/one.mlaprof", "20260102-030405-fake", "20260102", "latest")

    assert len({mlaprof("show", name, "--format", "json").out for name in names}) == 1


def test_plot_draws_into_the_folder_it_is_given(mlaprof: Mlaprof, fake_runs, tmp_path: Path) -> None:
    rows = fake_runs.sweep(fake_runs.h100(sizes=(1, 8)))
    path = stored(fake_runs.make_run(rows), tmp_path / "run.mlaprof")

    answer = mlaprof("plot", path, "--out", "figures")

    assert (answer.code, answer.err) == (0, "")
    names = {each.name for each in (tmp_path / "figures").iterdir()}
    assert {"summary.json", "latency-prefill-ctx0.png", "latency-prefill-ctx0.svg"} <= names
    assert json.loads((tmp_path / "figures" / "summary.json").read_text())["cells"]
    assert not (tmp_path / "run").exists()


def test_plot_into_a_file_is_one_line(mlaprof: Mlaprof, fake_runs, tmp_path: Path) -> None:
    path = stored(fake_runs.make_run([fake_runs.timing(fake_runs.point("full"), 1e-4)]), tmp_path / "run.mlaprof")

    answer = mlaprof("plot", path, "--out", "study.yaml")

    assert answer.code == 2
    assert "study.yaml: cannot write plots" in answer.complaint


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("presets", ("v3.2", "v3.2-tp8", "glm-5", "glm-5-tp8", "tiny", "7168")),
        ("modes", ("monolithic_eager", "monolithic_piecewise", "split_eager", "split_piecewise", "breakable", "full")),
        ("boundaries", ("proj", "index_quant", "cache_update", "logits")),
        ("kernels", ("sparse_attn", "index_logits", "paged_index_logits", "block_n", "num_stages")),
    ],
)
def test_list_names_what_there_is(mlaprof: Mlaprof, what: str, words: Iterable[str]) -> None:
    answer = mlaprof("list", what)

    assert (answer.code, answer.err) == (0, "")
    assert [each for each in words if each not in answer.out] == []


def test_list_runs_counts_what_is_recorded(mlaprof: Mlaprof, fake_runs, tmp_path: Path) -> None:
    """Foreign files in the folder are passed over."""
    assert "no runs yet" in mlaprof("list", "runs").out
    at = fake_runs.point("full")
    run = fake_runs.make_run([fake_runs.timing(at, 1e-4)], planned=[f"timing {at.key}", f"memory {at.key}"])
    stored(run, tmp_path / "results" / "mine.mlaprof")
    (tmp_path / "results" / "broken.mlaprof").write_text("not a run")

    answer = mlaprof("list", "runs")

    assert answer.code == 0
    (line,) = [line for line in answer.out.splitlines() if run.manifest.run_id in line]
    assert line.split()[-3:] == ["cuda", "1/2", "mine.mlaprof"]


def test_what_only_reads_never_imports_torch(checkout: Path, tmp_path: Path, fake_runs) -> None:
    """show, plot, compare, list, doctor and a dry run answer at once, and leave no context on a GPU."""
    stored(fake_runs.make_run(fake_runs.sweep(fake_runs.laptop()), device="cpu"), tmp_path / "run.mlaprof")
    commands = [
        *(f"list {what}" for what in ("presets", "modes", "boundaries", "kernels", "runs")),
        *("show run.mlaprof", "show run.mlaprof --format json", "plot run.mlaprof", "compare run.mlaprof run.mlaprof"),
        *("doctor", "sweep study.yaml --device cpu --dry-run"),
    ]
    script = (
        "import sys\nfrom mlaprof import cli\n"
        f"for command in {commands!r}:\n"
        "    sys.argv = ['mlaprof', *command.split()]\n"
        "    try:\n        cli.main()\n"
        "    except SystemExit as end:\n        assert not end.code, command\n"
        "    heavy = {'torch', 'triton'} & set(sys.modules)\n"
        "    assert not heavy, (command, heavy)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(checkout)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr


def test_a_reader_that_leaves_is_no_regression(checkout: Path, tmp_path: Path, fake_runs) -> None:
    """`mlaprof compare ... | head -0` ends as other programs do, not with a verdict."""
    stored(fake_runs.make_run(fake_runs.sweep(fake_runs.h100())), tmp_path / "run.mlaprof")
    for command in ("compare run.mlaprof run.mlaprof", "show run.mlaprof --format json"):
        process = start(checkout, *command.split(), cwd=tmp_path)
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        err = process.stderr.read()
        process.stderr.close()
        assert (process.wait(60), err) == (141, "")


# compare


@pytest.mark.parametrize(
    ("factor", "spread", "codes", "word"),
    [
        (1.0, 0.002, (0, 0, 0), "SAME"),
        (0.8, 0.002, (0, 0, 0), "FASTER"),
        (1.2, 0.002, (1, 1, 0), "SLOWER"),
        (1.01, 0.5, (0, 3, 0), "AMBIGUOUS"),
    ],
    ids=["same", "faster", "slower", "noisy"],
)
def test_compare_ends_with_its_verdict(
    mlaprof: Mlaprof, fake_runs, tmp_path: Path, factor: float, spread: float, codes: tuple[int, ...], word: str
) -> None:
    def run(name: str, factor: float, seed: int) -> Path:
        at = fake_runs.point("full")
        device_s = fake_runs.samples(1e-4 * factor, spread=spread, seed=seed)
        found = fake_runs.make_run([fake_runs.timing(at, 1e-4, device_s=device_s)], run_id=name)
        return stored(found, tmp_path / f"{name}.mlaprof")

    pair = run("base", 1.0, 1), run("new", factor, 2)
    answer = mlaprof("compare", *pair)

    assert (answer.code, answer.err) == (codes[0], "")
    assert f"1 {word} at a threshold of 1.0%" in answer.out
    assert tuple(mlaprof("compare", *pair, "--fail-on", on).code for on in ("slower", "ambiguous", "never")) == codes


def test_a_missing_cell_fails_a_strict_gate_alone(mlaprof: Mlaprof, fake_runs, tmp_path: Path) -> None:
    rows = [fake_runs.timing(fake_runs.point("full", tokens), 1e-4) for tokens in (1, 8)]
    base = stored(fake_runs.make_run(rows, run_id="base"), tmp_path / "base.mlaprof")
    new = stored(fake_runs.make_run(rows[:1], run_id="new"), tmp_path / "new.mlaprof")

    assert [mlaprof("compare", base, new, "--fail-on", on).code for on in ("slower", "ambiguous")] == [0, 1]


def test_a_comparison_that_compares_nothing_passes_no_gate(mlaprof: Mlaprof, fake_runs, tmp_path: Path) -> None:
    """Runs of different studies share no cell: that is a mistake, not a success."""
    names = []
    for tokens in (1, 8):
        run = fake_runs.make_run([fake_runs.timing(fake_runs.point("full", tokens), 1e-4)])
        names.append(stored(run, tmp_path / f"t{tokens}.mlaprof"))

    answer = mlaprof("compare", *names, "--fail-on", "never")

    assert answer.code == 2 and "1 MISSING, 1 NEW" in answer.out
    assert answer.err.endswith("no cell was timed in both runs; measure the cells of the base run\n")


def test_compare_prints_json_and_nothing_else(mlaprof: Mlaprof, fake_runs, tmp_path: Path) -> None:
    at = fake_runs.point("full")
    base = stored(fake_runs.make_run([fake_runs.timing(at, 1e-4)], run_id="base"), tmp_path / "base.mlaprof")
    new = stored(fake_runs.make_run([fake_runs.timing(at, 1.2e-4)], run_id="new"), tmp_path / "new.mlaprof")

    answer = mlaprof("compare", base, new, "--format", "json")

    assert (answer.code, answer.err) == (1, "")
    found = json.loads(answer.out)
    assert {"key", "ratio", "ci_low", "ci_high", "verdict", "p_adjusted", "floor"} <= set(found["cells"][0])
    assert [mean["way"] for mean in found["geomean"]] == ["full"]


def test_compare_takes_a_threshold(mlaprof: Mlaprof, fake_runs, tmp_path: Path) -> None:
    at = fake_runs.point("full")
    base = stored(fake_runs.make_run([fake_runs.timing(at, 1e-4)], run_id="base"), tmp_path / "base.mlaprof")
    new = stored(fake_runs.make_run([fake_runs.timing(at, 1.05e-4)], run_id="new"), tmp_path / "new.mlaprof")

    assert mlaprof("compare", base, new).code == 1
    assert mlaprof("compare", base, new, "--threshold", "0.1").code == 0


def test_compare_refuses_an_emulated_run_beside_a_real_one(
    mlaprof: Mlaprof, fake_runs, tmp_path: Path, whole_run: tuple[Path, Answer]
) -> None:
    """Exit 4: a ratio of a CPU's times and a GPU's means nothing."""
    path, _ = whole_run
    at = fake_runs.point("monolithic_eager", 3, preset="tiny")
    real = stored(fake_runs.make_run([fake_runs.timing(at, 1e-4, cache="warm")]), tmp_path / "real.mlaprof")

    for pair in ((path, real), (real, path)):
        answer = mlaprof("compare", *pair)
        assert answer.code == 4
        assert "MISMATCH device" in answer.out
        assert "they differ in device and processor and capture" in answer.err and "--cross-machine" in answer.err
        asked = mlaprof("compare", *pair, "--cross-machine", "--fail-on", "never")
        assert (asked.code, asked.err) == (0, "") and "CROSS-MACHINE device" in asked.out


def test_the_version_is_told(mlaprof: Mlaprof) -> None:
    assert mlaprof("--version") == Answer(0, f"mlaprof {__version__}\n", "")
