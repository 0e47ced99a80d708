"""The timeline of one step, as it travels from the worker; it is written as a trace and never stored in a run file."""

from __future__ import annotations

from typing import Literal

from mlaprof.facts import Record
from mlaprof.records import Measurement

Track = Literal["step", "segment", "operator", "call", "device"]


class TraceSpan(Record):
    """Something that took time, in seconds from the beginning of the step, under a profiler.

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


class TraceMeasurement(Measurement):
    """What a job of kind trace found at a Point: how it is run (`graph`), and one warm step of it."""

    spans: tuple[TraceSpan, ...] = ()
