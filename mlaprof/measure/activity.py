"""What torch.profiler records while something runs: calls of the host, and what they led to on the device."""

from __future__ import annotations

import re
from dataclasses import dataclass

from torch.profiler import DeviceType, ProfilerActivity, profile

# Between a step and our own synchronisation: far more than the host's and CUPTI's clocks are apart.
PAD_S = 0.002

API = re.compile(r"cu(da)?[A-Z]")  # a call of CUDA's runtime or driver


@dataclass(frozen=True)
class Activity:
    """One record of the profiler: a call of the host, or what it led to on the device."""

    name: str
    on_device: bool
    correlation: int  # what a call of CUDA's API and its device work share
    start_ns: int
    end_ns: int
    lane: int = 0  # the thread of the host, or the stream of the device
    marked: bool = False  # a range that someone named, no operator


def profiler(*, cuda: bool = True) -> profile:
    """A session to enter; cuda: watch the device, too."""
    return profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])])


def activities(session: profile) -> list[Activity]:
    """What a session recorded, once it was left; without the shadows that named ranges cast on the device."""
    # The raw records, not session.events(): that list is filtered, renamed and grown into a tree.
    assert session.profiler is not None and session.profiler.kineto_results is not None
    found = []
    for event in session.profiler.kineto_results.events():
        on_device, marked = event.device_type() == DeviceType.CUDA, event.is_user_annotation()
        if on_device and marked:  # the shadow of a mark, no work
            continue
        lane = event.device_resource_id() if on_device else event.start_thread_id()
        correlation = event.correlation_id()
        found.append(Activity(event.name(), on_device, correlation, event.start_ns(), event.end_ns(), lane, marked))
    return found
