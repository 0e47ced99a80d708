"""Which rounds count by what NVML says, and who else is on the GPU."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mlaprof.machine.nvml import Nvml, Reading
from mlaprof.worker.health import Beside, Watch, undisturbed, valid_at

FINE = Reading(sm_clock_hz=1.98e9, mem_clock_hz=2.6e9, power_w=400.0, temperature_c=50.0, event_reasons=0)
WARM = [replace(FINE, sm_clock_hz=clock) for clock in (1.2e9, 1.98e9, 1.98e9)]


@pytest.mark.parametrize(
    ("changed", "counts"),
    [
        ({}, True),
        ({"event_reasons": 0x1}, True),  # idle
        ({"event_reasons": 0x4}, True),  # the power cap is a regime
        ({"event_reasons": 0x8}, False),
        ({"event_reasons": 0x20}, False),
        ({"event_reasons": 0x40 | 0x4}, False),
        ({"event_reasons": 0x80}, False),
        ({"event_reasons": None}, True),
        ({"sm_clock_hz": 0.76 * 1.98e9}, True),
        ({"sm_clock_hz": 0.74 * 1.98e9}, False),
        ({"sm_clock_hz": None}, True),
    ],
)
def test_one_arm_that_was_held_down_voids_the_round(changed: dict[str, float | None], counts: bool) -> None:
    """Against heat or a fault by the reasons, or below three quarters of the warm chip's median clock."""
    assert valid_at(0.75)(WARM, [FINE, replace(FINE, **changed), FINE]) is counts


def test_without_readings_every_round_counts() -> None:
    assert valid_at(0.9)([None, None], [None, None])
    assert valid_at(0.9)([None], [FINE])
    assert valid_at(0.9)([], [FINE])


class CrowdedNvml(Nvml):
    def __init__(self, *pids: int) -> None:
        self._pids = pids

    def compute_pids(self, index: int) -> tuple[int, ...]:
        return self._pids


@pytest.mark.parametrize(("pids", "others"), [((), 0), ((7,), 0), ((7, 8), 1), ((7, 8, 9), 2)])
def test_one_process_of_those_on_the_gpu_is_the_worker_itself(pids: tuple[int, ...], others: int) -> None:
    """Whatever its number is where NVML looks from; and where NVML lists nobody, nobody is there."""
    assert Watch(CrowdedNvml(*pids), 0).other_processes() == others


def test_a_cpu_has_nothing_to_watch() -> None:
    watch = Watch(CrowdedNvml(7, 8, 9), None)
    assert (watch.reading(), watch.other_processes()) == (None, 0)


@pytest.mark.parametrize(
    ("waits", "kept", "asked"),
    [
        ([0.01], 0.01, 1),
        ([None], None, 1),  # a kernel that does not tell
        ([0.20, 0.01], 0.01, 2),
        ([0.20, 0.30], 0.20, 2),  # it stayed so: the row says it
        ([0.30, 0.20], 0.20, 2),
    ],
)
def test_a_cell_on_contended_cpus_is_timed_once_more(waits, kept, asked) -> None:
    answers = iter(waits)
    taken = []

    def sample() -> tuple[str, Beside]:
        taken.append(None)
        return "rounds", Beside(cpu_wait=next(answers))

    assert undisturbed(sample)[1].cpu_wait == kept
    assert len(taken) == asked


def test_what_stands_beside_the_rounds_is_told() -> None:
    _, beside = Watch(CrowdedNvml(), None).over(lambda: None)
    assert (beside.gpu, beside.other_processes) == ("", 0)
    assert beside.cpus and (beside.cpu_wait is None or beside.cpu_wait >= 0)
