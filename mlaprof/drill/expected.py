"""Studies with a fault plan, and what a sweep must make of each fault: the same table for a CPU and a GPU."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mlaprof import store
from mlaprof.records import Kind, Measurement, Stage, work
from mlaprof.study import DrilledFault

# fault of the plan -> (status, fault) of the Measurement; its stage is the one that was struck
NAMED: dict[DrilledFault, tuple[str, str]] = {
    "illegal_address": ("failed", "illegal_address"),
    "misaligned_address": ("failed", "misaligned_address"),
    "endless_kernel": ("failed", "timeout"),
    "device_oom": ("failed", "device_oom"),
    "host_oom": ("failed", "host_oom"),
    "abort": ("failed", "crashed"),
    "segfault": ("failed", "crashed"),
    "sigkill": ("failed", "killed"),
    "sigint": ("failed", "killed"),
    "sigterm": ("failed", "killed"),
    "exit": ("failed", "exited"),
    "rubbish": ("failed", "rubbish"),
    "hang": ("failed", "timeout"),
    "slow_compile": ("failed", "timeout"),
    "broken_compiler": ("failed", "compiler"),
    "nan": ("incorrect", "not_finite"),
    "nvml_gone": ("failed", "nvml_gone"),
}

Found = dict[str, tuple[str, str, str]]
"""A piece of work (records.work) -> (status, stage, fault) of its Measurement."""


@dataclass(frozen=True)
class Struck:
    """One fault of a plan, and the work that it may cost."""

    fault: DrilledFault
    at: Stage
    key: str
    kind: Kind = "timing"
    costs: tuple[str, ...] = ()  # keys; none: its own alone

    @property
    def yaml(self) -> str:
        return f"- {{fault: {self.fault}, at: {self.at}, key: '{self.key}', kind: {self.kind}}}"

    @property
    def expected(self) -> Found:
        status, fault = NAMED[self.fault]
        return {work(self.kind, key): (status, self.at, fault) for key in self.costs or (self.key,)}


def with_faults(study: str, plan: list[Struck]) -> str:
    return "\n".join([study.rstrip(), "faults:", *(each.yaml for each in plan)]) + "\n"


def outcomes(path: Path) -> Found:
    found: Found = {}
    for each in store.load(path).measurements:
        assert isinstance(each, Measurement)
        found[work(each.kind, each.point.key, each.process)] = (
            each.outcome.status,
            each.outcome.stage,
            each.outcome.fault,
        )
    return found


def differences(clean: Found, drilled: Found, plan: list[Struck]) -> list[str]:
    """What is not as it must be: a struck cell without its fault's name, or another one that is not as in `clean`."""
    expected = dict(clean)
    for each in plan:
        expected |= each.expected
    lines = [f"{name}: expected {want}, got {drilled.get(name)}" for name, want in expected.items()]
    wrong = [line for line, name in zip(lines, expected, strict=True) if drilled.get(name) != expected[name]]
    return wrong + [f"{name}: not planned" for name in drilled.keys() - expected.keys()]
