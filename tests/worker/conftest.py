"""Studies as the jobs a worker gets, on the tiny preset at odd sizes, on a CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from mlaprof.config.load import load_study
from mlaprof.plan import Plan, expand
from mlaprof.records import Job, Measurement, Point, Started
from mlaprof.shapes import PRESETS
from mlaprof.study import BatchSpec, CaptureSpec, LayerSpec, MeasureSpec, Mode
from mlaprof.worker.jobs import run_job
from mlaprof.worker.rig import Rig

QUICK = (
    "measure: {cache: warm, processes: 1, min_samples: 20, max_samples: 20, warmup_s: 0, memory: false, counts: false, "
    "twin: false}"
)
Planned = Callable[..., Plan]
Measured = Callable[[Job], dict[Mode, Measurement]]
RigOf = Callable[..., Rig]


@pytest.fixture(scope="session")
def planned(tmp_path_factory: pytest.TempPathFactory) -> Planned:
    """The plan of a study of the tiny preset; each argument is a line of its YAML."""

    def plan(*lines: str, layer: str = "preset: tiny", settings: tuple[str, ...] = ()) -> Plan:
        path = tmp_path_factory.mktemp("study") / "study.yaml"
        path.write_text("\n".join(["name: study", layer, *lines, QUICK]) + "\n")
        return expand(load_study(path, settings=settings), "cpu")

    return plan


@pytest.fixture(scope="session")
def measured() -> Measured:
    """Do a job of one cell in this process, and answer with its Measurements by mode."""

    def measure(job: Job) -> dict[Mode, Measurement]:
        events = list(run_job(job))
        assert events and all(event.kind == job.kind for event in events)
        found = [event for event in events if isinstance(event, Measurement)]
        assert sorted(each.point.key for each in found) == sorted(point.key for point in job.points)
        begun: set[str] = set()
        for event in events:
            if isinstance(event, Started):
                begun.add(event.key)
            elif event.outcome.stage != "build":
                assert event.point.key in begun, "a Measurement came before its Started"
        return {each.point.mode: each for each in found}

    return measure


@pytest.fixture(scope="session")
def rig_of() -> RigOf:
    """The rig of a timing job of the tiny preset with a Point a size and mode, its arms yet to be prepared."""

    def make(
        *sizes: int, modes: tuple[Mode, ...], batch: BatchSpec | None = None, num_layers: int = 1, **fields: Any
    ) -> Rig:
        capture = {name: fields.pop(name) for name in CaptureSpec.model_fields if name in fields}
        points = (Point(preset="tiny", num_tokens=size, mode=mode, **fields) for size in sizes for mode in modes)
        job = Job(
            kind="timing",
            device="cpu",
            layer=LayerSpec(preset="tiny", shape=PRESETS["tiny"], num_layers=num_layers),
            batch=batch or BatchSpec(),
            capture=CaptureSpec(**capture),
            measure=MeasureSpec(),
            points=tuple(points),
        )
        with torch.inference_mode():
            return Rig(job)

    return make


@pytest.fixture(autouse=True)
def forget_traces() -> Iterator[None]:
    """Each test traces afresh, as a worker process does."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()
