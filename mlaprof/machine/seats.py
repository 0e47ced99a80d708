"""Where workers sit when several run at once: a GPU each, and CPUs near it that no other uses."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from mlaprof.errors import ConfigError, MachineError
from mlaprof.machine.cpus import allowed, listed, shares
from mlaprof.machine.nvml import Nvml
from mlaprof.records import Device, Gpu

WHERE = "--gpus"


@dataclass(frozen=True)
class Seat:
    """One worker's place.

    gpu        None where the GPU is emulated
    cpus       empty: not pinned, because there are too few to keep workers apart
    """

    name: str
    gpu: Gpu | None = None
    cpus: frozenset[int] = frozenset()
    variables: Mapping[str, str] = field(default_factory=dict)  # of the worker's environment

    def __str__(self) -> str:
        """`0: NVIDIA H100 80GB HBM3 GPU-5ce1..., CPUs 0-15`"""
        what = f"{self.gpu.name} {self.gpu.uuid}" if self.gpu else "emulated on the CPU"
        return f"{self.name}: {what}, {f'CPUs {listed(self.cpus)}' if self.cpus else 'not pinned: too few CPUs'}"


def seats(wanted: str, device: Device) -> tuple[Seat, ...]:
    """A seat for each GPU of `0,1`, or of (beginnings of) UUIDs; numbers are CUDA's, so CUDA_VISIBLE_DEVICES counts.

    On a CPU each is an emulated one. Raises ConfigError on what names no GPU or one twice, MachineError on GPUs of
    several kinds: a run holds times of one.
    """
    names = [name.strip() for name in wanted.split(",")]
    if not all(names):
        raise ConfigError("an empty name", where=WHERE, hint="e.g. --gpus 0,1")
    if len(set(names)) < len(names):
        raise ConfigError("a GPU is named twice", where=WHERE, hint="name each once: one worker sits at a GPU")
    if device == "cpu":
        return _emulated(names)
    with Nvml() as nvml:
        every = nvml.gpus()
        indices = [_index(name, nvml, every) for name in names]
    if len(set(indices)) < len(indices):
        raise ConfigError("a GPU is named twice", where=WHERE, hint="name each once: one worker sits at a GPU")
    chosen = [every[index] for index in indices]
    if len(kinds := sorted({gpu.name for gpu in chosen})) > 1:
        raise MachineError(
            f"GPUs of several kinds: {', '.join(kinds)}",
            where=WHERE,
            hint="make a run of each kind, and `mlaprof compare --cross-machine` them",
        )
    parts = shares([gpu.numa_node for gpu in chosen], allowed())
    return tuple(
        Seat(name, gpu, cpus, {"CUDA_VISIBLE_DEVICES": gpu.uuid})
        for name, gpu, cpus in zip(names, chosen, parts, strict=True)
    )


def _emulated(names: Sequence[str]) -> tuple[Seat, ...]:
    for name in names:
        if not name.isdecimal():
            raise ConfigError(f"{name!r} is no number", where=WHERE, hint="emulated GPUs are numbered: --gpus 0,1")
    parts = shares([None] * len(names), allowed())
    return tuple(Seat(name, cpus=cpus) for name, cpus in zip(names, parts, strict=True))


def _index(name: str, nvml: Nvml, every: Sequence[Gpu]) -> int:
    """NVML's index of the GPU that is meant."""
    if name.isdecimal():
        index = nvml.cuda_index(int(name))
    else:
        matches = [each for each, gpu in enumerate(every) if name.startswith("GPU-") and gpu.uuid.startswith(name)]
        index = matches[0] if len(matches) == 1 else None
    if index is None:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        seen = f"; CUDA_VISIBLE_DEVICES is {visible}" if visible is not None else ""
        raise ConfigError(
            f"{name!r} names no GPU that CUDA sees{seen}",
            where=WHERE,
            hint="`mlaprof doctor` lists those of this machine",
        )
    return index
