"""What the clocks of a cell say together: who sets the pace in service, and where the time of a step there goes.

All of it is of medians over the samples of all processes, a few bursts a process; a stall that few steps meet is in
sustained_s alone, whose samples are means over a burst.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Bound = Literal["host", "device", "mixed"]

# Proposals of the protocol: no run has settled yet where one regime ends and the next begins.
HOST_BOUND_RATIO = 1.10  # sustained over warm device time: from here the device waits for more than launches
SUBMIT_SHARE = 0.9  # of sustained_s that submitting must fill for the host to be what the device waits for
DEVICE_BOUND_RATIO = 1.03  # sustained over warm device time: below it what the device waits is within the noise


@dataclass(frozen=True)
class StepBudget:
    """Where the time of a step in service goes, seconds; the parts sum to sustained_s, or to a longer busy_s."""

    busy_s: float  # the device works: warm_device_s
    sync_wait_s: float  # the device is idle, the host inside a synchronising call
    host_stall_s: float  # the device is idle, the host's thread on no CPU
    launch_gap_s: float  # the device is idle, waiting for the host to submit: what is left

    @property
    def total_s(self) -> float:
        return self.busy_s + self.sync_wait_s + self.host_stall_s + self.launch_gap_s


def bound(device_s: float, submit_s: float, sustained_s: float | None, warm_device_s: float | None) -> Bound:
    """Who sets the pace in service.

    Warm is compared with warm: the misses of a cold device_s would hide the gaps. Without the bursts, as in runs of
    before them, it is the host where it needs longer to submit the step than the device to run it.
    """
    if sustained_s is None or not warm_device_s:
        return "host" if submit_s > device_s else "device"
    if sustained_s >= HOST_BOUND_RATIO * warm_device_s and submit_s >= SUBMIT_SHARE * sustained_s:
        return "host"
    return "device" if sustained_s <= DEVICE_BOUND_RATIO * warm_device_s else "mixed"


def step_budget(sustained_s: float, warm_device_s: float, host_stall_s: float, sync_wait_s: float) -> StepBudget:
    """The StepBudget of a step in service.

    host_stall_s   of submitting, the time that the thread was on no CPU
    sync_wait_s    inside synchronising calls; of a profiled pass, so rather too long

    Sync waits are served first, then stalls, each from the idle time that is left; what remains is launch gaps.
    """
    idle = max(0.0, sustained_s - warm_device_s)
    waits = min(max(0.0, sync_wait_s), idle)
    stalls = min(max(0.0, host_stall_s), idle - waits)
    return StepBudget(busy_s=warm_device_s, sync_wait_s=waits, host_stall_s=stalls, launch_gap_s=idle - waits - stalls)
