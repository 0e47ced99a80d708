"""The worker as a process of its own, at the other end of a real pipe."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from mlaprof.checkpoint import weight_shapes
from mlaprof.config.load import load_study
from mlaprof.engine.job import spawn_worker
from mlaprof.errors import ConfigError
from mlaprof.plan import Plan, expand
from mlaprof.records import Event, Job, Measurement, Started
from mlaprof.shapes import PRESETS
from mlaprof.sweep import sweep
from mlaprof.worker.events import ContextLost, recover

STUDY = """\
name: checkpoint
preset: tiny
num_layers: {num_layers}
mlp: {mlp}
weights: {{safetensors: weights.safetensors, layer: {layer}}}
sweep: {{num_tokens: 5, mode: [monolithic_eager, split_eager]}}
measure: {{cache: warm, processes: 1, min_samples: 20, max_samples: 20, warmup_s: 0,
  memory: false, counts: false, twin: false}}
"""
DEAD_CONTEXT = """
import mlaprof.worker.jobs as jobs
from mlaprof.records import Outcome
from mlaprof.worker.events import ContextLost, measurement, started
from mlaprof.worker.__main__ import main
def run_job(job, mark):
    for point in job.points:
        yield started(job, point, "measure")
        if point.num_tokens == 4:
            yield measurement(job, point, Outcome(status="failed", reason="CUDA error: illegal memory access"))
            raise ContextLost
        yield measurement(job, point, Outcome(status="ok"))
jobs.run_job = run_job
main()
"""


def events_of(*jobs: Job, spawn=spawn_worker) -> list[Event]:
    return list(sweep(Plan(jobs=jobs, skips=()), spawn=spawn, keep=lambda measurement: None))


def write_checkpoint(path: Path, *, layers: range, mlp: bool = False, **changes: torch.Tensor | None) -> None:
    """Random weights of the tiny preset under Hugging Face's names, q_b_proj in FP8 as checkpoints of V3.2 are."""
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(3)
    tensors: dict[str, torch.Tensor] = {}
    for layer in layers:
        for name, size in weight_shapes(PRESETS["tiny"], mlp=mlp).items():
            value = torch.randn(size, generator=generator) * (size[-1] ** -0.5 if len(size) == 2 else 0.1)
            if name == "self_attn.q_b_proj.weight":
                scale = torch.full([-(-each // 128) for each in size], 2.0**-7)
                tensors[f"model.layers.{layer}.{name}"] = (value * 128).to(torch.float8_e4m3fn)
                tensors[f"model.layers.{layer}.{name}_scale_inv"] = scale
            else:
                tensors[f"model.layers.{layer}.{name}"] = (value + (len(size) == 1)).to(torch.bfloat16)
    for name, value in changes.items():
        if value is None:
            del tensors[name]
        else:
            tensors[name] = value
    save_file(tensors, path)


def split_in_two(path: Path) -> None:
    """Turn a file into a folder of its name, with the FP8 scales in a second file and an index over both."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(path)
    path.unlink()
    path.mkdir()
    places = {name: f"{int(name.endswith('_scale_inv'))}.safetensors" for name in tensors}
    for file in set(places.values()):
        save_file({name: tensors[name] for name in tensors if places[name] == file}, path / file)
    (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))


def test_a_checkpoint_is_measured_end_to_end(tmp_path: Path) -> None:
    """Names, FP8 scales and fusions are right: the oracle agrees with the layer on every check."""
    write_checkpoint(tmp_path / "weights.safetensors", layers=range(3, 5))
    split_in_two(tmp_path / "weights.safetensors")
    (tmp_path / "study.yaml").write_text(STUDY.format(num_layers=2, mlp="none", layer=3))

    events = events_of(*expand(load_study(tmp_path / "study.yaml"), "cpu").jobs)

    found = [event for event in events if isinstance(event, Measurement)]
    assert [(each.point.mode, each.outcome.status) for each in found] == [
        ("monolithic_eager", "ok"),
        ("split_eager", "ok"),
    ]
    assert all(check.passed for each in found for check in each.checks)
    stages = [event.stage for event in events if isinstance(event, Started)]
    assert stages[0] == "build" and set(stages) == {"build", "capture", "verify", "measure"}


@pytest.mark.parametrize(
    ("num_layers", "mlp", "changes", "words"),
    [
        (3, "none", {}, "has no tensor model.layers.5."),
        (1, "dense", {}, "has no tensor model.layers.3.post_attention_layernorm.weight"),
        (
            1,
            "none",
            {"model.layers.3.self_attn.indexer.wk.weight": None},
            "has no tensor model.layers.3.self_attn.indexer.wk.weight",
        ),
        (1, "none", {"model.layers.3.self_attn.q_b_proj.weight_scale_inv": None}, "q_b_proj.weight_scale_inv"),
        (
            1,
            "none",
            {"model.layers.3.self_attn.q_b_proj.weight_scale_inv": torch.ones(3072, 1)},
            "as [3072, 1], blocks of 128 x 128 need [24, 2]",
        ),
        (
            1,
            "none",
            {"model.layers.3.self_attn.o_proj.weight": torch.zeros(512, 3)},
            "as [512, 3], the study's shape needs [512, 2048]",
        ),
    ],
    ids=["too few layers", "no MLP", "no indexer", "no scales", "scales a row", "another shape"],
)
def test_a_checkpoint_that_does_not_fit_is_refused_before_a_worker_starts(
    tmp_path: Path, num_layers: int, mlp: str, changes: dict[str, torch.Tensor | None], words: str
) -> None:
    """Headers tell: every tensor that will be read, and its shape."""
    write_checkpoint(tmp_path / "weights.safetensors", layers=range(3, 5), **changes)
    (tmp_path / "study.yaml").write_text(STUDY.format(num_layers=num_layers, mlp=mlp, layer=3))

    with pytest.raises(ConfigError) as caught:
        load_study(tmp_path / "study.yaml")

    assert caught.value.where == f"{tmp_path / 'study.yaml'}:5"
    assert caught.value.message.startswith("weights.safetensors: ") and words in caught.value.message
    assert caught.value.hint


def test_a_checkpoint_that_vanishes_fails_its_points_with_a_readable_reason(tmp_path: Path) -> None:
    """Between plan and build: rows in stage build, not the traceback of a dead worker."""
    write_checkpoint(tmp_path / "weights.safetensors", layers=range(3, 4))
    (tmp_path / "study.yaml").write_text(STUDY.format(num_layers=1, mlp="none", layer=3))
    jobs = expand(load_study(tmp_path / "study.yaml"), "cpu").jobs
    (tmp_path / "weights.safetensors").unlink()

    found = [event for event in events_of(*jobs) if isinstance(event, Measurement)]

    assert [(each.outcome.status, each.outcome.stage) for each in found] == [("failed", "build")] * 2
    assert "weights.safetensors" in found[0].outcome.reason
    assert "Traceback" not in found[0].outcome.reason


def test_a_lost_context_ends_the_worker_and_the_rest_runs_in_another(planned) -> None:
    """Exit 3 after the Measurement that says why: nothing is measured twice, nothing is lost."""
    (job,) = planned("sweep: {num_tokens: [8, 4, 2], mode: [monolithic_eager]}").jobs
    jobs: list[Job] = []

    def spawn(job: Job):
        jobs.append(job)
        return spawn_worker(job, command=[sys.executable, "-c", DEAD_CONTEXT])

    found = [event for event in events_of(job, spawn=spawn) if isinstance(event, Measurement)]

    assert [(each.point.num_tokens, each.outcome.status) for each in found] == [(8, "ok"), (4, "failed"), (2, "ok")]
    assert [[point.num_tokens for point in job.points] for job in jobs] == [[8, 4, 2], [2]]


def test_a_sticky_cuda_error_is_a_lost_context(planned, monkeypatch: pytest.MonkeyPatch) -> None:
    """A context that a failed Point left usable goes on; one that answers with an error again does not."""
    (job,) = planned("sweep: {num_tokens: 8, mode: [monolithic_eager]}").jobs
    on_gpu = job.model_copy(update={"device": "cuda"})
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    recover(on_gpu)

    def sticky() -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "synchronize", sticky)
    recover(job)  # a CPU has no context to lose
    with pytest.raises(ContextLost):
        recover(on_gpu)
