"""Counts jobs on a CPU: what a step of each arm asks for, and what a budget makes of it."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from mlaprof.analysis.summary import summarize
from mlaprof.config.load import load_study, resolved_yaml
from mlaprof.facts import StepCounts
from mlaprof.layer.mla import MLA
from mlaprof.plan import expand
from mlaprof.records import Environment, Job, Manifest, Measurement, Run
from mlaprof.study import BOUNDARIES, MODES, Mode
from mlaprof.worker.jobs import run_job

CAPTURED: tuple[Mode, ...] = ("monolithic_piecewise", "split_piecewise", "breakable", "full")
ALL = f"mode: [{', '.join(MODES)}]"


@pytest.fixture(scope="module")
def counts_of(planned) -> Callable[..., dict[str, StepCounts]]:
    """The counts of every way of a study, by way; all of it went well."""

    def count(*lines: str) -> dict[str, StepCounts]:
        (job,) = [job for job in planned(*lines, settings=("measure.counts=true",)).jobs if job.kind == "counts"]
        return {way: found.counts for way, found in counted(job).items()}

    return count


def counted(job: Job) -> dict[str, Measurement]:
    found = [event for event in run_job(job) if isinstance(event, Measurement)]
    for each in found:
        assert (each.outcome.status, each.outcome.reason) == ("ok", ""), each.point.way
        assert (each.kind, each.emulated, each.timing) == ("counts", True, None)
    return {each.point.way: each for each in found}


@pytest.fixture(scope="module")
def prefill(counts_of) -> dict[str, StepCounts]:
    """Every mode of two layers that need their top-k."""
    return counts_of("num_layers: 2", "mlp: dense", f"sweep: {{num_tokens: 5, context_len: 66, {ALL}}}")


def test_the_account_of_every_mode_closes(prefill) -> None:
    """Kernels seen are those launched and those in graphs, in every one of the profiled steps; nothing waits."""
    assert set(prefill) == set(MODES)
    for mode, counts in prefill.items():
        assert counts.complete and counts.steps >= 1, mode
        assert counts.kernels == counts.nodes.kernel + counts.kernel_launches > 0
        assert (counts.syncs, counts.d2h_copies, counts.h2d_copies) == (0, 0, 0)


def test_two_layers_are_three_captured_pieces_and_two_eager_ones(prefill) -> None:
    for mode in ("monolithic_piecewise", "split_piecewise", "breakable"):
        counts = prefill[mode]
        kinds = [piece.kind for piece in counts.segments if piece.kind != "free"]
        assert kinds == ["captured", "eager", "captured", "eager", "captured"], mode
        assert counts.graph_launches == 3
        assert sum(piece.kernels or 0 for piece in counts.segments) == counts.nodes.kernel


def test_the_eager_pieces_are_the_excluded_operators(prefill) -> None:
    ops = {
        mode: {op for piece in prefill[mode].segments if piece.kind == "eager" for op in piece.ops}
        for mode in ("monolithic_piecewise", "split_piecewise", "breakable")
    }

    assert ops["monolithic_piecewise"] == {"mlaprof::mla_custom_op_inplace"}
    assert ops["split_piecewise"] == ops["breakable"] == {"mlaprof::mla_dsa_attn_inplace"}


def test_a_full_graph_is_one_launch_and_an_eager_step_none(prefill) -> None:
    full = prefill["full"]

    assert (full.graph_launches, full.kernel_launches, full.coverage) == (1, 0, 1.0)
    for mode in ("monolithic_eager", "split_eager"):
        counts = prefill[mode]
        assert (counts.graph_launches, counts.nodes.total, counts.coverage) == (0, 0, 0.0)
        assert counts.kernels == counts.kernel_launches


def test_the_split_covers_more_than_the_monolith_and_less_than_the_full_graph(prefill) -> None:
    coverage = {mode: prefill[mode].coverage for mode in CAPTURED}

    assert 0 < coverage["monolithic_piecewise"] < coverage["split_piecewise"] == coverage["breakable"] < 1


def test_a_mode_runs_the_kernels_of_its_eager_form(prefill) -> None:
    """Capturing moves them and drops none."""
    assert {prefill[mode].kernels for mode in MODES} == {prefill["split_eager"].kernels}


@pytest.mark.parametrize("mode", ["split_piecewise", "breakable"])
def test_every_move_of_the_boundary_takes_kernels_into_graphs(counts_of, mode: str) -> None:
    """From the projections to the selection, each boundary captures more than the one before it."""
    sweep = f"sweep: {{num_tokens: 70, mode: [{mode}], boundary: [{', '.join(BOUNDARIES)}]}}"
    found = list(counts_of(sweep).values())

    assert len(found) == len(BOUNDARIES)
    for before, after in pairwise(found):
        assert after.nodes.kernel > before.nodes.kernel
        assert after.kernel_launches < before.kernel_launches
    assert all(counts.complete and counts.syncs == 0 for counts in found)


def test_a_step_above_the_captured_sizes_launches_every_kernel_itself(counts_of) -> None:
    """And what is reported is how it ran, not how it might have been captured."""
    counts = counts_of("capture: {sizes: [8]}", "sweep: {num_tokens: 20, mode: [split_piecewise]}")["split_piecewise"]

    assert (counts.graph_launches, counts.nodes.total, counts.coverage, counts.complete) == (0, 0, 0.0, True)
    assert {piece.kind for piece in counts.segments} <= {"eager", "free"}


def test_a_decode_step_is_one_graph_short_or_long(counts_of) -> None:
    """Above index_topk the graph holds the indexer, below it does not."""
    sweep = "sweep: {{phase: decode, num_tokens: 3, context_len: {}, mode: [full]}}"
    short, long = (counts_of(sweep.format(context_len))["full"] for context_len in (20, 100))

    assert short.graph_launches == long.graph_launches == 1
    assert 0 < short.nodes.kernel < long.nodes.kernel


def test_a_synchronisation_planted_in_op_2_is_one_a_layer_and_breaks_the_budget(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trap that costs milliseconds a step: an assertion that reads a value. The run says so, and exits 1."""
    right = MLA.dsa_attn

    def asserting(self: MLA, q: torch.Tensor, *args: Any) -> None:
        assert q.float().abs().sum().item() > 0
        right(self, q, *args)

    yaml = """\
name: budget
preset: tiny
num_layers: 2
sweep: {num_tokens: 5, mode: [split_eager, split_piecewise, breakable]}
measure: {cache: warm, processes: 1, min_samples: 20, max_samples: 20, warmup_s: 0, memory: false}
budget: {syncs: 0, d2h: 1}
"""
    (tmp_path / "study.yaml").write_text(yaml)
    study = load_study(tmp_path / "study.yaml")
    (job,) = [job for job in expand(study, "cpu").jobs if job.kind == "counts"]

    sound = summarize(run_of(resolved_yaml(study), counted(job)))
    monkeypatch.setattr(MLA, "dsa_attn", asserting)
    found = counted(job)
    broken = summarize(run_of(resolved_yaml(study), found))

    waits = {way: (each.counts.syncs, each.counts.d2h_copies) for way, each in found.items()}
    assert waits == dict.fromkeys(("split_eager", "split_piecewise", "breakable"), (2, 2))
    assert all(each.counts.complete for each in found.values())
    assert not any(cell.breaches for cell in sound.cells)
    assert [{(each.name, each.got, each.limit) for each in cell.breaches} for cell in broken.cells] == [
        {("syncs", 2, 0), ("d2h", 2, 1)}
    ] * 3
    assert "over_budget" in {finding.kind for finding in broken.findings}
    assert "over_budget" not in {finding.kind for finding in sound.findings}


def run_of(study_yaml: str, found: dict[str, Measurement]) -> Run:
    """What a sweep of the study would have stored."""
    environment = Environment(
        gpus=(),
        nvml="absent",
        cpu="some CPU",
        cpu_count=2,
        memory_bytes=2**34,
        os="some Linux",
        python="3.11.7",
        packages={},
        kernel_source_sha256="0" * 64,
    )
    manifest = Manifest(
        schema_version=2,
        run_id="20261123-101500-budget-3f2a",
        created_at="2026-11-23T10:15:00+00:00",
        mlaprof_version="0.1.0",
        command=("mlaprof", "sweep", "study.yaml"),
        device="cpu",
        study_yaml=study_yaml,
        environment=environment,
        planned=tuple(f"counts {each.point.key}" for each in found.values()),
    )
    return Run(manifest=manifest, measurements=tuple(found.values()))


def test_an_arm_that_cannot_be_captured_leaves_the_others_counted(planned, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full graph would have to hold the wait; the operator is named."""
    right = MLA.dsa_attn

    def waiting(self: MLA, q: torch.Tensor, *args: Any) -> None:
        assert q.float().abs().sum().item() > 0
        right(self, q, *args)

    monkeypatch.setattr(MLA, "dsa_attn", waiting)
    plan = planned("sweep: {num_tokens: 5, mode: [full, breakable]}", settings=("measure.counts=true",))
    (job,) = [job for job in plan.jobs if job.kind == "counts"]
    found = {event.point.mode: event for event in run_job(job) if isinstance(event, Measurement)}

    assert (found["full"].outcome.status, found["full"].outcome.stage) == ("skipped", "capture")
    assert "aten::_local_scalar_dense" in found["full"].outcome.reason
    assert (found["breakable"].outcome.status, found["breakable"].counts.syncs) == ("ok", 1)
