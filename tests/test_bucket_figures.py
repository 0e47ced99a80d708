"""docs/buckets.md and results/reference/buckets-h100.json: what lists of capture sizes took, held to the samples."""

from __future__ import annotations

import gzip
import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from mlaprof import store
from mlaprof.analysis.stored import stored_layers
from mlaprof.analysis.summary import summarize
from mlaprof.sizing.costs import costs_of
from mlaprof.sizing.named import NAMED

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "results" / "reference" / "buckets-h100"
RUN = FOLDER / "v3.2-tp8-prefill.mlaprof"
STORED = json.loads(FOLDER.with_suffix(".json").read_text())
PAGE = (ROOT / "docs" / "buckets.md").read_text()


@pytest.fixture(scope="module")
def buckets() -> Iterator[ModuleType]:
    """The module behind `python benchmarks/buckets.py`."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        yield importlib.import_module("buckets")
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))


def beside(clock: str, trace: str) -> dict[str, Any]:
    return json.loads(gzip.decompress((FOLDER / f"{clock}-{trace}.json.gz").read_bytes()))


@pytest.mark.parametrize("clock", ["step", "device"])
def test_the_artifact_is_what_the_run_and_the_samples_say(buckets: ModuleType, clock: str) -> None:
    base = store.load_layers(RUN)
    layers = stored_layers(base.manifest.study_yaml)
    costs = costs_of(summarize(base), measured_layers=layers, clock=clock)
    again = buckets.compared(costs, buckets.entries_of(costs), FOLDER)
    assert json.loads(json.dumps(again)) == STORED["clocks"][clock]


def test_the_page_is_what_the_artifact_says(buckets: ModuleType) -> None:
    assert buckets.filled(PAGE, STORED["clocks"]) == PAGE, "run python benchmarks/buckets.py report"


@pytest.mark.parametrize("trace", NAMED)
@pytest.mark.parametrize("clock", ["step", "device"])
def test_every_list_of_a_trace_was_timed_on_a_gpu_at_what_it_pads_to(clock: str, trace: str) -> None:
    found = beside(clock, trace)
    assert not found["emulated"] and len(found["steps"]) == 16
    for step in found["steps"]:
        for name, captured in found["captured"].items():
            next_size = next((size for size in captured["sizes"] if size >= step["num_tokens"]), None)
            assert step["padded"][name] == next_size
            assert all(seconds > 0 for seconds in step["sustained_s" if clock == "step" else "device_s"][name])


def test_what_the_page_says_of_the_lists_holds() -> None:
    """Which defaults are slower, by more than the same list captured again differs."""
    device, step = (
        {(each["trace"], each["engine"]): each["measured"] for each in STORED["clocks"][clock]["default_over_ours"]}
        for clock in ("device", "step")
    )
    again = "again over tensorrt-llm default"
    for trace in NAMED:
        noise = max(abs(device[trace, again][end] - 1) for end in ("ci_low", "ci_high"))
        assert device[trace, "tensorrt-llm"]["ci_low"] > 1 + noise
        assert device[trace, "vllm"]["median"] == pytest.approx(1, abs=0.004)
        assert device[trace, "sglang"]["ci_low"] > 1 and device[trace, "sglang"]["median"] < 1.009
        assert step[trace, "tensorrt-llm"]["ci_low"] < 1
        assert step[trace, again]["ci_low"] < 1 < step[trace, again]["ci_high"]
    assert device["chat", "tensorrt-llm"]["ci_low"] > 1.03
    assert step["chat", "vllm"]["ci_low"] > 1.02 and step["agentic", "vllm"]["ci_low"] > 1
    assert step["long-cached", "vllm"]["ci_low"] < 1


@pytest.mark.parametrize("clock", ["step", "device"])
def test_no_best_list_took_more_memory_than_its_default(clock: str) -> None:
    rows = STORED["clocks"][clock]["rows"]
    for default, ours in zip(rows[::2], rows[1::2], strict=True):
        taken, most = (each["measured"]["pool_bytes"] + each["measured"]["driver_bytes"] for each in (ours, default))
        assert taken <= most
