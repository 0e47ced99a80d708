"""Faults at every stage of the real worker, on the CPU's emulation: each costs its own cell and is called by its name.

Many faults share a sweep, each in a cell of its own, because every fault costs the start of a worker.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlaprof.drill.expected import Found, Struck, differences, outcomes, with_faults
from mlaprof.records import Stage
from mlaprof.study import DrilledFault

pytestmark = [pytest.mark.drill, pytest.mark.timeout(590)]  # many workers, on a machine that may be shared

LIMIT_S = 10  # of the stage that hangs; a tiny stage takes a twentieth of it on a busy machine
MEASURE = (
    "measure: {{cache: warm, processes: 1, min_samples: 6, max_samples: 6, warmup_s: 0, memory: {memory}, "
    "counts: {memory}, twin: false, limits_s: {{{limits}}}}}"
)
# One of each way in which a fault shows: an error behind which the context is lost, and one behind which it is not; a
# death from inside and one from outside; a word that is none, and silence.
EACH_WAY: tuple[DrilledFault, ...] = ("illegal_address", "host_oom", "abort", "sigkill", "rubbish", "hang")
EVERY: tuple[DrilledFault, ...] = (
    *EACH_WAY,
    *("misaligned_address", "device_oom", "segfault", "sigint", "sigterm", "exit", "nan"),
)


def study(*lines: str, memory: bool = False, limits: str = "") -> str:
    return "\n".join(["name: drill", "preset: tiny", *lines, MEASURE.format(memory=str(memory).lower(), limits=limits)])


def sweep(place, text: str, name: str) -> tuple[int, Path]:
    """Exit code and run file of a sweep of this study."""
    (place.folder / f"{name}.yaml").write_text(text)
    path = place.folder / f"{name}.mlaprof"
    ended = place.run("sweep", f"{name}.yaml", "--device", "cpu", "--out", path)
    assert "Traceback (most recent call last)" not in ended.out.partition("FAILED")[0]
    assert path.is_file(), ended.err
    return ended.code, path


@pytest.fixture(autouse=True)
def allowed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("MLAPROF_DRILL", "1")
    yield


def whole(place, text: str) -> Found:
    """The outcomes of the sweep without faults, all of them good."""
    code, path = sweep(place, text, "clean")
    clean = outcomes(path)
    assert code == 0 and {status for status, _, _ in clean.values()} <= {"ok", "compiled"}
    return clean


def drill(place, text: str, plan: list[Struck], clean: Found) -> None:
    """The same sweep with the faults: nothing but what they cost is different."""
    code, path = sweep(place, with_faults(text, plan), "drilled")

    assert differences(clean, outcomes(path), plan) == []
    assert code == 5
    shown = " ".join(place.run("show", path).out.split())
    for name in {fault for each in plan for _, _, fault in each.expected.values()}:
        assert f"{name}:" in shown, name


def cell(num_tokens: int, mode: str = "split_eager", context_len: int = 0) -> str:
    return f"tiny/prefill/t{num_tokens}/ctx{context_len}/{mode}"


def test_a_fault_in_the_stages_of_a_point(place) -> None:
    """Every fault in a cell of its own, whose other arm is sound; the last cell has none. One sweep for all stages."""
    struck: list[tuple[DrilledFault, Stage]] = [
        *((fault, "capture") for fault in EACH_WAY),
        *((fault, "verify") for fault in EVERY),
        *((fault, "measure") for fault in EACH_WAY),
    ]
    sizes = list(range(len(struck) + 1, 0, -1))
    plan = [Struck(fault, stage, cell(size)) for (fault, stage), size in zip(struck, sizes, strict=False)]
    limits = ", ".join(f"{stage}: {LIMIT_S}" for stage in ("capture", "verify", "measure"))
    text = study(f"sweep: {{num_tokens: {sizes}, mode: [monolithic_eager, split_eager]}}", limits=limits)

    drill(place, text, plan, whole(place, text))


def test_a_fault_while_the_layer_is_built(place) -> None:
    """It costs the largest cell of its job, whose other cells are built without it; a job for each context length."""
    faults: list[DrilledFault] = ["abort", "host_oom", "hang"]
    modes = ("monolithic_eager", "split_eager")
    plan = [
        Struck(fault, "build", cell(3, modes[0], context), costs=tuple(cell(3, mode, context) for mode in modes))
        for context, fault in enumerate(faults)
    ]
    text = study(
        f"sweep: {{num_tokens: [3, 2], context_len: {list(range(len(faults)))}, mode: [{', '.join(modes)}]}}",
        limits=f"build: {LIMIT_S}",
    )

    drill(place, text, plan, whole(place, text))


def test_a_fault_of_the_compiler(place) -> None:
    """Among them one that takes a minute: its assembler is ended with the worker. For sm_90, without a GPU."""
    faults: list[DrilledFault] = ["slow_compile", "broken_compiler", "abort", "rubbish"]
    tiles = [(n, w, s) for n, w, s in itertools.product((16, 32, 64), (4, 8), (1, 2, 3))][: len(faults) + 1]
    listed = ", ".join(f"{{block_n: {n}, num_warps: {w}, num_stages: {s}}}" for n, w, s in tiles)
    text = study(
        "sweep: {num_tokens: 2, mode: [monolithic_eager]}",
        f"tiles: {{sparse_attn: [{listed}]}}",
        limits=f"compile: {LIMIT_S}",
    )
    clean = whole(place, text)
    keys = [name.removeprefix("compile ") for name in clean if name.startswith("compile ")]
    assert len(keys) == len(faults) + 1

    plan = [Struck(fault, "compile", key, "compile") for fault, key in zip(faults, keys, strict=False)]
    drill(place, text, plan, clean)


def test_a_fault_while_memory_is_weighed_and_launches_are_counted(place) -> None:
    """The sizes of a memory job share a capture stage and a pool: the others are weighed without the broken one."""
    mode = "monolithic_eager"
    plan = [
        Struck("sigkill", "capture", cell(5, mode), "memory"),
        Struck("illegal_address", "capture", cell(4, mode), "memory"),
        Struck("abort", "measure", cell(3, mode), "memory"),
        Struck("rubbish", "capture", cell(4, mode), "counts"),
        Struck("host_oom", "measure", cell(2, mode), "counts"),
    ]
    text = study(f"sweep: {{num_tokens: [5, 4, 3, 2, 1], mode: [{mode}]}}", memory=True)
    drill(place, text, plan, whole(place, text))


def test_a_fault_in_modes_with_graphs(place) -> None:
    """A capture under way when the worker dies, and a replay whose result is NaN."""
    plan = [
        Struck("sigkill", "capture", cell(3, "full")),
        Struck("nan", "verify", cell(2, "full")),
        Struck("illegal_address", "capture", cell(2, "split_piecewise")),
        Struck("abort", "measure", cell(1, "split_piecewise")),
    ]
    text = study("sweep: {num_tokens: [3, 2, 1], mode: [monolithic_eager, split_piecewise, full]}")
    drill(place, text, plan, whole(place, text))


def test_a_fault_plan_is_refused_wherever_nobody_allows_it(place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the variable, and with another value of it: a line, exit code 2, and nothing begun."""
    text = with_faults(study("sweep: {num_tokens: 2}"), [Struck("sigkill", "verify", cell(2))])
    (place.folder / "study.yaml").write_text(text)
    for value in (None, "0", "yes"):
        monkeypatch.delenv("MLAPROF_DRILL") if value is None else monkeypatch.setenv("MLAPROF_DRILL", value)
        ended = place.run("sweep", "study.yaml", "--device", "cpu")
        assert (ended.code, ended.out) == (2, "")
        assert (
            ended.err
            == "error: study.yaml:5: faults: only the drills of mlaprof's own tests inject faults; remove it\n"
        )
    assert {each.name for each in place.folder.iterdir()} == {"study.yaml", "temporary"}
