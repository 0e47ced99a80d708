"""The timeline of a step as a Chrome trace, which Perfetto (ui.perfetto.dev) and chrome://tracing open.

A JSON object: `traceEvents` in microseconds, and `otherData` with where the trace comes from. Process 1 is the host:
its segments, then a row a thread with operators and calls of CUDA. Process 2 is the device: its segments, from the
first to the last kernel of each, then its streams. An arrow leads from a call to the first work that it led to.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mlaprof.traces import TraceMeasurement, TraceSpan

HOST, DEVICE = 1, 2  # processes, as a trace numbers them
PROFILED = "one step under a profiler, which slows it: what runs when, not how long it takes in a run"
Event = dict[str, Any]


@dataclass(frozen=True)
class _Row:
    """A line of the display, on which spans lie inside each other or apart."""

    process: int
    number: int  # within the process, from 1
    name: str
    spans: Sequence[TraceSpan]


def chrome_trace(traced: TraceMeasurement, about: Mapping[str, object]) -> str:
    """The trace as JSON text. about: what `otherData` says beside the cell and whether it is emulated."""
    label = f"{'EMULATED on a CPU: ' if traced.emulated else ''}{traced.point.key}"
    rows = [*_numbered(HOST, _host_rows(traced.spans)), *_numbered(DEVICE, _device_rows(traced.spans))]
    segments = [span.name for span in _segments(traced.spans)]
    events = [
        *(event for row in rows for event in _row_names(row, label)),
        *(_complete(span, row, segments) for row in rows for span in row.spans),
        *_arrows(rows),
    ]
    other = {
        "label": label,
        "key": traced.point.key,
        "emulated": traced.emulated,
        "note": PROFILED,
        "graph": traced.graph.model_dump(mode="json") if traced.graph else None,
        **about,
    }
    whole = {"traceEvents": events, "displayTimeUnit": "ms", "otherData": other}
    return json.dumps(whole, indent=1, allow_nan=False) + "\n"


def _numbered(process: int, rows: Iterable[tuple[str, Sequence[TraceSpan]]]) -> list[_Row]:
    return [_Row(process, number, *row) for number, row in enumerate(rows, start=1)]


def _host_rows(spans: Sequence[TraceSpan]) -> Iterator[tuple[str, Sequence[TraceSpan]]]:
    yield "segments", [span for span in spans if span.track in ("step", "segment")]
    calls = [span for span in spans if span.track in ("operator", "call")]
    for thread in sorted({span.lane for span in calls}):
        yield f"thread {thread}: operators and CUDA calls", [span for span in calls if span.lane == thread]


def _device_rows(spans: Sequence[TraceSpan]) -> Iterator[tuple[str, Sequence[TraceSpan]]]:
    work = [span for span in spans if span.track == "device"]
    if not work:
        return
    yield "segments", _reaches(work, _segments(spans))
    for stream in sorted({span.lane for span in work}):
        for place, row in enumerate(_apart(span for span in work if span.lane == stream)):
            yield f"stream {stream}{f', beside it {place}' if place else ''}", row


def _reaches(work: Sequence[TraceSpan], segments: Sequence[TraceSpan]) -> list[TraceSpan]:
    """A span a segment, from the beginning of its first work on the device to the end of its last.

    One that begins before another has ended, on a second stream, is drawn behind that.
    """
    found: list[TraceSpan] = []
    for place, segment in enumerate(segments):
        own = [span for span in work if span.segment == place]
        if own:
            begin_s = max(min(span.start_s for span in own), _end_s(found[-1]) if found else 0.0)
            end_s = max(begin_s, *(_end_s(span) for span in own))
            update = {"start_s": begin_s, "duration_s": end_s - begin_s, "segment": place}
            found.append(segment.model_copy(update=update))
    return found


def _apart(spans: Iterable[TraceSpan]) -> list[list[TraceSpan]]:
    """The spans in rows within which none overlaps: branches of a graph may share a stream and run at the same time."""
    rows: list[list[TraceSpan]] = []
    for span in sorted(spans, key=lambda each: each.start_s):
        free = next((row for row in rows if _us(_end_s(row[-1])) <= _us(span.start_s)), None)
        if free is None:
            rows.append([span])
        else:
            free.append(span)
    return rows


def _row_names(row: _Row, label: str) -> Iterator[Event]:
    at = {"ph": "M", "pid": row.process, "tid": row.number}
    if row.number == 1:
        yield {
            **at,
            "name": "process_name",
            "args": {"name": f"{'host' if row.process == HOST else 'device'} | {label}"},
        }
        yield {**at, "name": "process_sort_index", "args": {"sort_index": row.process}}
    yield {**at, "name": "thread_name", "args": {"name": row.name}}
    yield {**at, "name": "thread_sort_index", "args": {"sort_index": row.number}}


def _complete(span: TraceSpan, row: _Row, segments: Sequence[str]) -> Event:
    args: dict[str, object] = {}
    if span.segment is not None:
        args["segment"] = segments[span.segment]
    if span.correlation:
        args["correlation"] = span.correlation
    begin_us, end_us = _us(span.start_s), _us(_end_s(span))
    at = {"pid": row.process, "tid": row.number, "ts": begin_us, "dur": round(end_us - begin_us, 3)}
    return {"ph": "X", "name": span.name, "cat": span.track, **at, "args": args}


def _arrows(rows: Sequence[_Row]) -> Iterator[Event]:
    placed = [(span, row) for row in rows for span in row.spans]
    work: dict[int, tuple[TraceSpan, _Row]] = {}
    for span, row in placed:
        if span.track == "device" and (
            span.correlation not in work or span.start_s < work[span.correlation][0].start_s
        ):
            work[span.correlation] = (span, row)
    for call, row in placed:
        if call.track != "call" or call.correlation not in work:
            continue
        first, end = work.pop(call.correlation)
        shared = {"cat": "launch", "name": "launch", "id": call.correlation}
        yield {"ph": "s", **shared, "pid": row.process, "tid": row.number, "ts": _us(call.start_s)}
        yield {"ph": "f", "bp": "e", **shared, "pid": end.process, "tid": end.number, "ts": _us(first.start_s)}


def _segments(spans: Iterable[TraceSpan]) -> list[TraceSpan]:
    return [span for span in spans if span.track == "segment"]


def _end_s(span: TraceSpan) -> float:
    return span.start_s + span.duration_s


def _us(seconds: float) -> float:
    return round(seconds * 1e6, 3)
