"""A configuration on its way through a search: what compiling it takes, and what the compiler made of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mlaprof.cases import Case
from mlaprof.facts import KernelResources
from mlaprof.kernel_shapes import dims
from mlaprof.kernels import tiles
from mlaprof.kernels.launches import Built, Offline, recorded
from mlaprof.records import KernelPoint, SearchJob
from mlaprof.study import TileChoice
from mlaprof.tuning.search import Proposal, Values
from mlaprof.worker.ranking import resources_of, target_of


@dataclass
class Candidate:
    """A proposal on its way. number: of proposals before it."""

    proposal: Proposal
    choice: TileChoice
    point: KernelPoint
    number: int
    compile_s: float = 0.0
    built: Built | None = None

    def resources(self, job: SearchJob) -> KernelResources | None:
        """Registers, stack and shared memory; None where it is not compiled."""
        return None if self.built is None else resources_of(self.choice, self.built, target_of(job))


def launches_of(job: SearchJob, case: Case | None, point: KernelPoint, choice: TileChoice) -> list[object]:
    """What compiling it takes; nothing where this process has compiled the same before. Raises what the launch does."""
    if case is not None and job.device == "cuda":
        return list(recorded(case.call(point.provider, point.tiles)))
    given = dims(job.target.kernel, job.target.shape)
    return [Offline(choice.kernel, tiles.complete(choice.kernel, choice.values, given), given, target_of(job))]


def launch_of(fields: Sequence[str], values: Values) -> Values:
    """What the launch itself reads of a configuration: all but the stages, which only the compiler sees."""
    return tuple(-1 if name == "num_stages" else value for name, value in zip(("form", *fields), values, strict=True))
