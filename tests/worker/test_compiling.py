"""Compile jobs: facts of each tile configuration, asked of the compiler once."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from mlaprof.records import Measurement
from mlaprof.worker import compiling
from mlaprof.worker.jobs import run_job


@pytest.fixture(autouse=True)
def no_facts_from_earlier() -> Iterator[None]:
    compiling._resources.cache_clear()
    yield
    compiling._resources.cache_clear()


@pytest.fixture
def job(planned):
    """Two modes at two sizes with two configurations: eight Points."""
    plan = planned(
        "sweep: {num_tokens: [5, 70], mode: [split_piecewise, full]}",
        "tiles: {sparse_attn: [{block_n: 16}, {block_n: 64, num_warps: 8}]}",
    )
    (job,) = [job for job in plan.jobs if job.kind == "compile"]
    assert len(job.points) == 8
    return job


def test_a_configuration_is_compiled_once_for_all_its_cells(job, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every Point gets the facts of its own tiles, missing fields filled from the default, and no time."""
    asked = []

    def compile_resources(kernel: str, tiles: object, dims: object, target: int) -> SimpleNamespace:
        asked.append((kernel, tiles.block_n, tiles.num_warps, target))
        return SimpleNamespace(registers=tiles.block_n, stack_bytes=0, shared_bytes=1024)

    monkeypatch.setattr(compiling, "compile_resources", compile_resources)
    found = [event for event in run_job(job) if isinstance(event, Measurement)]

    assert asked == [("sparse_attn", 16, 4, 90), ("sparse_attn", 64, 8, 90)]
    assert {(each.outcome.status, each.kind, each.timing) for each in found} == {("compiled", "compile", None)}
    facts = {(each.point.tiles_label, each.resources[0].tiles, each.resources[0].registers) for each in found}
    assert facts == {("sparse_attn=n16", "n16", 16), ("sparse_attn=n64.w8", "n64.w8", 64)}
    assert {each.resources[0].target for each in found} == {"sm_90"}


def test_a_configuration_that_does_not_compile_fails_alone(job, monkeypatch: pytest.MonkeyPatch) -> None:
    def compile_resources(kernel: str, tiles: object, dims: object, target: int) -> SimpleNamespace:
        if tiles.block_n == 16:
            raise RuntimeError("ptxas died of signal 9")
        return SimpleNamespace(registers=168, stack_bytes=0, shared_bytes=1024)

    monkeypatch.setattr(compiling, "compile_resources", compile_resources)
    found = [event for event in run_job(job) if isinstance(event, Measurement)]

    outcomes = {each.point.tiles_label: (each.outcome.status, each.outcome.reason) for each in found}
    assert outcomes == {
        "sparse_attn=n16": ("failed", "RuntimeError: ptxas died of signal 9"),
        "sparse_attn=n64.w8": ("compiled", ""),
    }
