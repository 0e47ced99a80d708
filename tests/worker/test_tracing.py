"""Trace jobs on a CPU: the segments of each mode by name, the operators in them, and a line that survives the pipe."""

from __future__ import annotations

import pytest

from mlaprof.facts import GraphFacts
from mlaprof.records import Measurement
from mlaprof.study import MODES
from mlaprof.traces import TraceMeasurement
from mlaprof.wire import decode_event, encode
from mlaprof.worker.jobs import run_job

OP_2 = "op mla_dsa_attn_inplace eager"
SEGMENTS = {
    "monolithic_eager": ["module eager"],
    "split_eager": ["module eager"],
    "monolithic_piecewise": [
        *("piece 0 graph", "op mla_custom_op_inplace eager"),
        *("piece 1 graph", "op mla_custom_op_inplace eager", "piece 2 graph"),
    ],
    "split_piecewise": ["piece 0 graph", OP_2, "piece 1 graph", OP_2, "piece 2 graph"],
    "breakable": ["piece 0 graph", OP_2, "piece 1 graph", OP_2, "piece 2 graph"],
    "full": ["piece 0 graph"],
}


def traced(job) -> dict[str, TraceMeasurement]:
    alone = job.model_copy(update={"kind": "trace"})
    found = [event for event in run_job(alone) if isinstance(event, Measurement)]
    for each in found:
        assert (each.outcome.status, each.outcome.reason) == ("ok", ""), each.point.way
        assert isinstance(each, TraceMeasurement)
    return {each.point.mode: each for each in found}


@pytest.fixture(scope="module")
def every(planned) -> dict[str, TraceMeasurement]:
    plan = planned("num_layers: 2", f"sweep: {{num_tokens: 5, mode: [{', '.join(MODES)}]}}")
    return traced(plan.jobs[0])


def test_the_segments_of_every_mode_go_by_name_in_their_order(every) -> None:
    for mode, measurement in every.items():
        names = [span.name for span in measurement.spans if span.track == "segment"]
        assert names == SEGMENTS[mode], mode


def test_operators_lie_in_the_segment_that_runs_them(every) -> None:
    """Op 2 in the eager segments of the split, and nothing of it in the graphs; an emulated step has no device."""
    spans = every["split_piecewise"].spans
    names = [span.name for span in spans if span.track == "segment"]
    ops = {(names[span.segment], span.name) for span in spans if span.track == "operator" and span.segment is not None}
    assert (OP_2, "mlaprof::mla_dsa_attn_inplace") in ops
    assert ("piece 0 graph", "mlaprof::mla_dsa_attn_inplace") not in ops
    assert any(segment == "piece 0 graph" for segment, _ in ops)
    for measurement in every.values():
        assert measurement.emulated and not any(span.track in ("call", "device") for span in measurement.spans)


def test_a_trace_is_of_a_warm_replay(every) -> None:
    for mode, measurement in every.items():
        assert isinstance(measurement.graph, GraphFacts)
        assert measurement.graph.state == ("eager" if mode.endswith("eager") else "replayed")


def test_a_step_above_the_captured_sizes_is_one_range(planned) -> None:
    """The pieces are run as one there, so no range claims to be a graph."""
    plan = planned("capture: {sizes: [8]}", "sweep: {num_tokens: 20, mode: [split_piecewise, breakable]}")
    for mode, measurement in traced(plan.jobs[0]).items():
        names = [span.name for span in measurement.spans if span.track == "segment"]
        assert names == {"split_piecewise": ["all pieces eager"], "breakable": ["module eager"]}[mode]


def test_a_trace_survives_the_pipe(every) -> None:
    for measurement in every.values():
        assert decode_event(encode(measurement)) == measurement
