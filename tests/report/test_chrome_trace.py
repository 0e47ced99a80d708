"""A trace as Perfetto reads it: rows whose spans nest, arrows from a call to its work, and where it is from."""

from __future__ import annotations

import json
from itertools import pairwise
from types import ModuleType
from typing import Any

import pytest

from mlaprof.report.chrome_trace import chrome_trace
from mlaprof.traces import TraceMeasurement, TraceSpan

US = 1e-6


def span(
    name: str, track: str, lane: int, begin_us: float, us: float, segment: int | None = None, correlation: int = 0
):
    return TraceSpan.model_validate(
        {
            **{"name": name, "track": track, "lane": lane, "segment": segment, "correlation": correlation},
            **{"start_s": begin_us * US, "duration_s": us * US},
        }
    )


STEP = (
    span("mlaprof step", "step", 1, 0, 100),
    span("piece 0 graph", "segment", 1, 1, 20, 0),
    span("cudaGraphLaunch", "call", 1, 2, 15, 0, 11),
    span("op b eager", "segment", 1, 30, 40, 1),
    span("toy::b", "operator", 1, 31, 30, 1),
    span("cudaLaunchKernel", "call", 1, 35, 5, 1, 12),
    span("cuLaunchKernel", "call", 1, 36, 3, 1, 12),
    span("gemm", "device", 7, 50, 30, 0, 11),
    span("branch", "device", 7, 60, 10, 0, 11),  # of a graph with two branches
    span("b_kernel", "device", 7, 80, 10, 1, 12),
)


@pytest.fixture
def trace(fake_runs: ModuleType):
    def make(*spans: TraceSpan, emulated: bool = False) -> dict[str, Any]:
        found = fake_runs.ended(fake_runs.point("split_piecewise", 64), "ok", "", kind="trace")
        fields = {**dict(found), "emulated": emulated, "spans": spans}
        return json.loads(chrome_trace(TraceMeasurement(**fields), {"run_id": "r"}))

    return make


def rows(trace: dict[str, Any]) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """(process, row) -> its complete events, both by the names that a reader sees."""
    names = {
        (event["name"], event["pid"], event["tid"]): event["args"].get("name")
        for event in trace["traceEvents"]
        if event["ph"] == "M"
    }
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for event in trace["traceEvents"]:
        if event["ph"] == "X":
            process = names["process_name", event["pid"], 1].split(" | ")[0]
            found.setdefault((process, names["thread_name", event["pid"], event["tid"]]), []).append(event)
    return found


def test_segments_threads_and_streams_have_rows_of_their_own(trace) -> None:
    """Work that overlaps on one stream lies on two rows; the device's segments reach over their kernels."""
    found = {row: [event["name"] for event in events] for row, events in rows(trace(*STEP)).items()}
    assert found == {
        ("host", "segments"): ["mlaprof step", "piece 0 graph", "op b eager"],
        ("host", "thread 1: operators and CUDA calls"): [
            *("cudaGraphLaunch", "toy::b", "cudaLaunchKernel", "cuLaunchKernel")
        ],
        ("device", "segments"): ["piece 0 graph", "op b eager"],
        ("device", "stream 7"): ["gemm", "b_kernel"],
        ("device", "stream 7, beside it 1"): ["branch"],
    }
    reach = rows(trace(*STEP))["device", "segments"]
    assert [(event["ts"], event["dur"]) for event in reach] == [(50, 30), (80, 10)]


def test_spans_of_a_row_lie_inside_each_other_or_apart(trace) -> None:
    """Anything else a viewer drops or draws at the wrong depth."""
    for row, events in rows(trace(*STEP)).items():
        open_until: list[float] = []
        for event in sorted(events, key=lambda each: (each["ts"], -each["dur"])):
            while open_until and open_until[-1] <= event["ts"]:
                open_until.pop()
            assert not open_until or event["ts"] + event["dur"] <= open_until[-1], row
            open_until.append(event["ts"] + event["dur"])


def test_an_arrow_leads_from_each_launch_to_the_first_work_of_it(trace) -> None:
    """One a launch, though the driver's call inside the runtime's has the same number."""
    events = trace(*STEP)["traceEvents"]
    arrows = [event for event in events if event["ph"] in "sf"]
    assert [(event["ph"], event["id"], event["ts"]) for event in arrows] == [
        *(("s", 11, 2), ("f", 11, 50)),
        *(("s", 12, 35), ("f", 12, 80)),
    ]
    for begin, end in pairwise(arrows):
        if begin["ph"] == "s":
            assert (begin["cat"], begin["name"]) == (end["cat"], end["name"]) and end["bp"] == "e"


def test_every_event_says_its_segment(trace) -> None:
    by_name = {event["name"]: event for event in trace(*STEP)["traceEvents"] if event["ph"] == "X"}
    assert by_name["gemm"]["args"] == {"segment": "piece 0 graph", "correlation": 11}
    assert by_name["toy::b"]["args"] == {"segment": "op b eager"}


@pytest.mark.parametrize("emulated", [True, False])
def test_an_emulated_trace_says_so_where_a_reader_looks(trace, emulated: bool) -> None:
    """In the metadata and in the name of the process, which Perfetto shows; it has no device."""
    host_only = [each for each in STEP if each.track not in ("call", "device")]
    found = trace(*(host_only if emulated else STEP), emulated=emulated)
    assert found["otherData"]["emulated"] is emulated
    assert found["otherData"]["run_id"] == "r" and "profiler" in found["otherData"]["note"]
    for text in (found["otherData"]["label"], found["traceEvents"][0]["args"]["name"]):
        assert ("EMULATED" in text) is emulated
    assert {process for process, _ in rows(found)} == ({"host"} if emulated else {"host", "device"})
