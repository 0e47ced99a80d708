"""Jobs for the worker that answers at once, and what an engine made of them."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest

from mlaprof.engine.job import spawn_worker
from mlaprof.plan import Plan
from mlaprof.records import Job, Measurement, Point
from mlaprof.shapes import PRESETS
from mlaprof.study import BatchSpec, LayerSpec, MeasureSpec
from mlaprof.sweep import sweep

FAKE_WORKER = Path(__file__).parents[1] / "fake_worker.py"


class Bench(NamedTuple):
    """Makes jobs, and sweeps them."""

    @staticmethod
    def job(*num_tokens: int, process: int = 0, timeout_s: float = 60.0) -> Job:
        return Job(
            kind="timing",
            process=process,
            device="cpu",
            layer=LayerSpec(preset="tiny", shape=PRESETS["tiny"]),
            batch=BatchSpec(),
            measure=MeasureSpec(point_timeout_s=timeout_s),
            points=tuple(
                Point(preset="tiny", phase="prefill", num_tokens=each, context_len=0, mode="split_eager")
                for each in num_tokens
            ),
        )

    @staticmethod
    def fake(mode: str, *target: int):
        return partial(spawn_worker, command=[sys.executable, "-S", "-E", str(FAKE_WORKER), mode, *map(str, target)])

    @staticmethod
    def run(*jobs: Job, engine, spawn) -> list[Measurement]:
        """What is kept; each is kept before it is told, by the thread that sweeps."""
        kept: list[Measurement] = []
        for event in sweep(Plan(jobs=jobs, skips=()), engine=engine, spawn=spawn, keep=kept.append):
            assert not isinstance(event, Measurement) or kept[-1] is event
        return kept


@pytest.fixture
def bench() -> Bench:
    return Bench()
