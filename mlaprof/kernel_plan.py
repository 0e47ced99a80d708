"""A kernel study as jobs: one for each of measure.processes, all of which do the same."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from mlaprof import kernel_shapes
from mlaprof.records import Device, KernelJob, KernelMeasurement, KernelPoint, Kind
from mlaprof.study import KernelStudy, KernelSweep, TileChoice


@dataclass(frozen=True)
class KernelPlan:
    """Jobs in run order. Nothing is skipped beforehand: what a provider lacks shows when it is asked."""

    jobs: tuple[KernelJob, ...]
    skips: tuple[KernelMeasurement, ...] = ()

    @property
    def planned(self) -> tuple[tuple[Kind, str, int], ...]:
        """Every measurement to expect, in run order."""
        return tuple((job.kind, point.key, job.process) for job in self.jobs for point in job.points)

    def __len__(self) -> int:
        return sum(len(job.points) for job in self.jobs)


def expand_kernels(study: KernelStudy, device: Device) -> KernelPlan:
    """All work of a kernel study: on a GPU its ceilings first, then the kernels in the order of the study.

    A rate means little without the ceilings of the same run: one card differs from the next.
    """
    kernels = dict(study.kernels)
    if device == "cuda":
        ceilings = {name: _CEILING for name in kernel_shapes.CEILINGS if name not in kernels}
        kernels = {**ceilings, **kernels}
    points = tuple(point for name, sweep in kernels.items() for point in _points(study, name, sweep))
    return KernelPlan(
        tuple(
            KernelJob(process=process, device=device, seed=study.seed, measure=study.measure, points=points)
            for process in range(study.measure.processes)
        )
    )


_CEILING = KernelSweep(shapes=({},), provider=("torch",))


def _points(study: KernelStudy, name: str, sweep: KernelSweep) -> Iterator[KernelPoint]:
    """The arms of a cell adjacent: every provider, each with its own choice of tiles first."""
    for given in sweep.shapes:
        shape = kernel_shapes.complete(name, given)
        for provider in sweep.provider:
            choices: tuple[TileChoice | None, ...] = (None, *sweep.tiles.get(provider, ()))
            for choice in choices:
                for launch in study.launch:
                    tiles = None if choice is None else choice.values
                    yield KernelPoint(kernel=name, shape=shape, provider=provider, launch=launch, tiles=tiles)
