"""A compile job: what the compiler says of each tile configuration, for sm_90, on a machine without a GPU. No times."""

from __future__ import annotations

import functools
from collections.abc import Iterator

from mlaprof.facts import KernelResources
from mlaprof.kernels import tiles
from mlaprof.kernels.offline import compile_resources
from mlaprof.kernels.tiles import Dims
from mlaprof.records import Job, Outcome, Point
from mlaprof.study import kernel_dims
from mlaprof.worker.events import Event, failure, measurement, started

TARGET = 90  # Hopper


def compile_job(job: Job) -> Iterator[Event]:
    dims = kernel_dims(job.layer.shape)
    for point in job.points:
        yield started(job, point, "compile")
        try:
            resources = _point_resources(point, dims)
        except Exception as error:
            yield failure(job, point, "compile", error)
            continue
        yield measurement(job, point, Outcome(status="compiled", stage="compile"), resources=resources)


def _point_resources(point: Point, dims: Dims) -> tuple[KernelResources, ...]:
    return tuple(_resources(choice.kernel, tuple(choice.values.items()), dims) for choice in point.tiles)


@functools.cache
def _resources(kernel: str, values: tuple[tuple[str, int], ...], dims: Dims) -> KernelResources:
    """Facts of one configuration; the same for every token count and mode, so compiled once."""
    found = compile_resources(kernel, tiles.complete(kernel, dict(values), dims), dims, TARGET)
    return KernelResources(
        kernel=kernel,
        tiles=tiles.label(kernel, dict(values)),
        target=f"sm_{TARGET}",
        registers=found.registers,
        stack_bytes=found.stack_bytes,
        shared_bytes=found.shared_bytes,
    )
