"""One step as a timeline: its named pieces, the operators and calls of the host, and the work of the device.

A profiler slows what it watches, so no time of a timeline is a measured one: it shows what runs when, and for whom.
"""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal

import torch
from torch.profiler import record_function

from mlaprof.measure.activity import API, PAD_S, Activity, activities, profiler
from mlaprof.measure.counts import MARK, check_seen

Track = Literal["step", "segment", "operator", "call", "device"]
Named = Callable[[str], AbstractContextManager[object]]
"""Makes a range of this name, to be entered around a piece."""
NamedStep = Callable[[Named], object]

SEGMENT = "mlaprof segment: "  # before the name of a range that a timeline shows


@dataclass(frozen=True)
class Span:
    """Something that took time, in seconds from the beginning of the step.

    track        step: all of it, as the host saw it. segment: a named piece, as the host went through it. operator: of
                 torch. call: of CUDA's API. device: a kernel, a copy or a memset
    lane         the thread of the host, or the stream of the device
    segment      the place of the segment, among the segments, that it was done in or launched from
    correlation  what a call and its device work share; 0: none
    """

    name: str
    track: Track
    lane: int
    start_s: float
    duration_s: float
    segment: int | None = None
    correlation: int = 0


def named(name: str) -> AbstractContextManager[object]:
    """A range that the profiler sees: a segment of a timeline."""
    return record_function(SEGMENT + name)


def record_step(step: NamedStep, *, cuda: bool) -> tuple[Span, ...]:
    """The timeline of one call of step, which was called before. A GPU is idle before it and waited for behind it.

    Raises RuntimeError where the profiler saw no kernel, or not the step.
    """
    probe = torch.empty(1, device="cuda" if cuda else "cpu")
    with profiler(cuda=cuda):  # the first session, and the first step of each, may lose records (SGLang #22590)
        step(named)
    with profiler(cuda=cuda) as session:
        step(named)
        probe.fill_(1.0)
        _settle(cuda)
        with record_function(MARK):
            step(named)
        _settle(cuda)
    found = activities(session)
    if cuda:
        check_seen(found)
    return timeline(found)


def timeline(found: Sequence[Activity]) -> tuple[Span, ...]:
    """The spans of the one marked step among these records, in order of time, a range before what it holds.

    A call of the host belongs to the step if it began in its mark; device work if its call does, or, where the profiler
    kept no such call, if it ran later than the mark began. Raises RuntimeError on records without exactly one mark.
    """
    marks = [each for each in found if each.name == MARK and each.marked]
    if len(marks) != 1:
        raise RuntimeError(f"profiler: expected one marked step in its records, got {len(marks)}")
    (mark,) = marks
    host = [each for each in found if not each.on_device and each is not mark]
    inside = [each for each in host if mark.start_ns <= each.start_ns <= mark.end_ns]
    ranges = sorted((each for each in inside if _is_segment(each)), key=lambda each: each.start_ns)
    begins = [each.start_ns for each in ranges]

    def segment_at(moment_ns: int) -> int | None:
        place = bisect_right(begins, moment_ns) - 1
        return place if place >= 0 and moment_ns <= ranges[place].end_ns else None

    def span(each: Activity, track: Track, segment: int | None, correlation: int = 0) -> Span:
        start_s, duration_s = (each.start_ns - mark.start_ns) * 1e-9, (each.end_ns - each.start_ns) * 1e-9
        name = each.name.removeprefix(SEGMENT) if track == "segment" else each.name
        return Span(name, track, each.lane, start_s, duration_s, segment, correlation)

    spans = [span(mark, "step", None), *(span(each, "segment", place) for place, each in enumerate(ranges))]
    for each in inside:
        if API.match(each.name):
            spans.append(span(each, "call", segment_at(each.start_ns), each.correlation))
        elif not each.marked:
            spans.append(span(each, "operator", segment_at(each.start_ns)))
    # The first of a correlation: a call of the driver that one of the runtime makes has the same.
    began_ns = {each.correlation: each.start_ns for each in reversed(host) if API.match(each.name)}
    for work in (each for each in found if each.on_device):
        call_ns = began_ns.get(work.correlation)
        if call_ns is None and work.start_ns >= mark.start_ns:
            spans.append(span(work, "device", None, work.correlation))
        elif call_ns is not None and mark.start_ns <= call_ns <= mark.end_ns:
            spans.append(span(work, "device", segment_at(call_ns), work.correlation))
    return tuple(sorted(spans, key=lambda each: (each.start_s, -each.duration_s)))


def _is_segment(each: Activity) -> bool:
    return each.marked and each.name.startswith(SEGMENT)


def _settle(cuda: bool) -> None:
    if cuda:
        torch.cuda.synchronize()
        time.sleep(PAD_S)
