"""What a Study means on a device: Jobs in run order, and skips with reasons that follow from the numbers alone."""

from __future__ import annotations

import gc
import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from operator import attrgetter

from mlaprof.buckets import Buckets
from mlaprof.config.axes import Combination, combinations
from mlaprof.config.sizes import captured_sizes
from mlaprof.facts import TunedUse
from mlaprof.kernels.tiles import kernel_of
from mlaprof.records import Device, Job, KernelPoint, Kind, Measurement, Outcome, PlannedJob, Point
from mlaprof.skips import skip_reason
from mlaprof.study import BASELINE, BOUNDED_MODES, PHASES, PR_BOUNDARY, Phase, Study, TileChoice

Work = tuple[Kind, str, int]
"""(kind, key, process) of one Measurement: what records.work makes a line of."""

# Contexts are scored from gathered keys, generations through the page table.
_IDLE_KERNELS: dict[Phase, str] = {"prefill": "paged_index_logits", "decode": "index_logits"}


@dataclass(frozen=True)
class Plan:
    """Jobs in run order, and the Points that cannot run, as Measurements already answered."""

    jobs: tuple[Job, ...]
    skips: tuple[Measurement, ...]
    buckets: Buckets | None = None  # what the engine's rule made of the capture sizes; None: none but the sweep's

    @property
    def planned(self) -> tuple[Work, ...]:
        """Every Measurement to expect, in run order: the skips, then the jobs."""
        skipped = ((skip.kind, skip.point.key, skip.process) for skip in self.skips)
        return (*skipped, *((job.kind, point.key, job.process) for job in self.jobs for point in job.points))

    @property
    def points(self) -> tuple[Point, ...]:
        """Every Point once, in run order."""
        measured = (point for job in self.jobs for point in job.points)
        every = itertools.chain((skip.point for skip in self.skips), measured)
        return tuple({point.key: point for point in every}.values())

    def __len__(self) -> int:
        return len(self.skips) + sum(len(job.points) for job in self.jobs)

    def with_tuned(self, uses: Sequence[TunedUse]) -> Plan:
        """The same work, each job told which tuned tiles serve its Points."""
        served: dict[tuple[str, int], list[TunedUse]] = {}
        for use in uses:
            if use.values is not None:
                served.setdefault((use.phase, use.context_len), []).append(use)
        jobs = (
            job.model_copy(update={"tuned": tuple(served.get((job.points[0].phase, job.points[0].context_len), ()))})
            for job in self.jobs
        )
        return replace(self, jobs=tuple(jobs))

    def part(self, number: int, of: int) -> Plan:
        """Every of-th job from the number-th on, 1 being the first, which has the skips as well."""
        return replace(self, jobs=self.jobs[number - 1 :: of], skips=self.skips if number == 1 else ())

    def without(self, done: Collection[Work]) -> Plan:
        """What is left when the work in `done` is finished.

        Samples of a cell's arms are paired round by round in one process, and a memory job's sizes share one graph
        pool: a cell of one timing job, and a memory job, is left whole until all of it is done; what the same cell was
        in another process stays. Counts and compile facts are of one Point alone.
        """
        finished = frozenset(done)
        jobs = (job.model_copy(update={"points": unfinished(job, finished)}) for job in self.jobs)
        return replace(
            self,
            jobs=tuple(job for job in jobs if job.points),
            skips=tuple(skip for skip in self.skips if (skip.kind, skip.point.key, skip.process) not in finished),
        )


def expand(study: Study, device: Device) -> Plan:
    """All work of a study on a device.

    cuda  one timing job a (phase, context_len) with all sizes, arms of a cell adjacent: modes and their boundaries,
          each with its tiles
    cpu   the same with default tiles only, emulated; tile Points go to one compile job, which yields no time
    Both  the timing jobs once a process of measure.processes: all of the first, then all of the next
          with default tiles, if the study asks for it: in a timing job the A/A twin of each cell's baseline; one memory
          job a (phase, context_len, mode, boundary); one counts job a (phase, context_len) with every arm
    Sizes run largest first, as engines capture them.
    """
    with _no_collector():
        return _expanded(study, device)


def _expanded(study: Study, device: Device) -> Plan:
    buckets, groups = captured_sizes(study), _groups(study)
    tiles = {phase: tuple(_tile_choices(study, phase)) for phase in PHASES}
    skips: list[Measurement] = []
    timing: list[Job] = []
    memory: list[Job] = []
    counts: list[Job] = []
    compiled: list[Point] = []
    now = _now()
    for (phase, _), members in groups.items():
        arms: list[Point] = []
        defaults: list[Point] = []
        for combination in members:
            points = [_point(study, combination, choices) for choices in ((), *tiles[phase])]
            if reason := skip_reason(study, combination, buckets):
                skips += (_skip(point, "timing", reason, device, now) for point in points)
                continue
            defaults.append(points[0])
            arms += points if device == "cuda" else points[:1]
            compiled += () if device == "cuda" else points[1:]
        timed = list(_with_twins(arms)) if study.measure.twin else arms
        timing += _jobs(study, device, "timing", [timed], buckets)
        if study.measure.memory:
            ways: dict[str, list[Point]] = {}
            for point in sorted(defaults, key=_place_of_way(study)):
                ways.setdefault(point.way, []).append(point)
            memory += _jobs(study, device, "memory", ways.values(), buckets)
        if study.measure.counts:
            counts += _jobs(study, device, "counts", [defaults], buckets)
    repeated = (job.model_copy(update={"process": each}) for each in range(study.measure.processes) for job in timing)
    compiling = _jobs(study, device, "compile", [compiled], buckets)
    return Plan(jobs=(*repeated, *memory, *counts, *compiling), skips=tuple(skips), buckets=buckets)


@contextmanager
def _no_collector() -> Iterator[None]:
    """A million Points are no garbage: looking for some among them takes three times as long as making them."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def inspection(study: Study, device: Device, num_tokens: int | None = None) -> Plan:
    """What `mlaprof graph` looks at: one size, every mode and boundary of the study, default tiles, no time.

    num_tokens  the size, in the study or not; by default the largest of each (phase, context_len)

    One counts job a (phase, context_len).
    """
    buckets = captured_sizes(study)
    skips: list[Measurement] = []
    groups: list[list[Point]] = []
    now = _now()
    for members in _groups(study).values():
        size = members[0].num_tokens if num_tokens is None else num_tokens
        at_size = [each for each in members if each.num_tokens == size]
        # A size that the study lacks is looked at in every way that the study has for another.
        chosen = at_size or dict.fromkeys(each._replace(num_tokens=size) for each in members)
        groups.append([])
        for combination in chosen:
            point = _point(study, combination, ())
            if reason := skip_reason(study, combination, buckets):
                skips.append(_skip(point, "counts", reason, device, now))
            else:
                groups[-1].append(point)
    return Plan(jobs=tuple(_jobs(study, device, "counts", groups, buckets)), skips=tuple(skips), buckets=buckets)


def dispatch_plan(study: Study, device: Device, num_tokens: int | None = None) -> Plan:
    """One job that times what calling an operator costs the host, at a size where the inspection finds work.

    Its Point is a step that dispatches the layer's operators one by one, without a graph to spare it the calls.
    """
    points = [point for job in inspection(study, device, num_tokens).jobs for point in job.points]
    mode = "split_eager" if study.layer.shape.is_dsa else "monolithic_eager"
    eager = [point.model_copy(update={"mode": mode, "boundary": PR_BOUNDARY}) for point in points[:1]]
    return Plan(jobs=tuple(_jobs(study, device, "dispatch", [eager], captured_sizes(study))), skips=())


def _groups(study: Study) -> dict[tuple[Phase, int], list[Combination]]:
    """The combinations of each (phase, context_len), largest size first, ways of one size adjacent."""
    groups: dict[tuple[Phase, int], list[Combination]] = {}
    for combination in combinations(study.axes, study.exclude, study.include):
        groups.setdefault((combination.phase, combination.context_len), []).append(combination)
    for members in groups.values():
        if study.include:  # without rules the product has the ways of a size in their order
            members.sort(key=_place_of_way(study))
        members.sort(key=attrgetter("num_tokens"), reverse=True)  # keeps the order of equals
    return groups


def _place_of_way(study: Study) -> Callable[[Combination | Point], tuple[int, int]]:
    """A sort key: modes and boundaries as the axes list them, then those that only the include rules name."""
    rules = study.include
    modes = list(dict.fromkeys((*study.axes.mode, *(rule.mode for rule in rules if rule.mode))))
    boundaries = list(dict.fromkeys((*study.axes.boundary, *(rule.boundary for rule in rules if rule.boundary))))

    def place(each: Combination | Point) -> tuple[int, int]:
        return modes.index(each.mode), boundaries.index(each.boundary) if each.mode in BOUNDED_MODES else 0

    return place


def _tile_choices(study: Study, phase: Phase) -> Iterator[tuple[TileChoice, ...]]:
    """Every combination of the listed alternatives, a kernel each; kernels that a phase does not run are left out."""
    by_kernel: dict[str, list[TileChoice]] = {}
    for name, choices in study.tiles.items():  # the forms of a kernel exclude each other
        by_kernel.setdefault(kernel_of(name), []).extend(choices)
    alternatives = [choices for kernel, choices in by_kernel.items() if kernel != _IDLE_KERNELS.get(phase)]
    if alternatives:
        yield from itertools.product(*alternatives)


def _point(study: Study, combination: Combination, tiles: tuple[TileChoice, ...]) -> Point:
    return Point.trusted(study.layer.preset, *combination, tiles)


def _with_twins(arms: Iterable[Point]) -> Iterator[Point]:
    """The arms, those of a cell adjacent, with a twin behind each cell's baseline.

    A cell without study.BASELINE has the first of its ways in its place.
    """
    for _, group in itertools.groupby(arms, key=lambda point: point.cell):
        members = list(group)
        baseline = min((each for each in members if not each.tiles), key=lambda each: each.mode != BASELINE)
        for point in members:
            yield point
            if point is baseline:
                yield point.model_copy(update={"twin": True})


def _skip(point: Point, kind: Kind, reason: str, device: Device, now: str) -> Measurement:
    outcome = Outcome(status="skipped", stage="plan", reason=reason)
    return Measurement(point=point, kind=kind, outcome=outcome, emulated=device == "cpu", recorded_at=now)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _jobs(
    study: Study, device: Device, kind: Kind, groups: Iterable[Sequence[Point]], buckets: Buckets | None
) -> Iterator[Job]:
    """A job a group, none for an empty one."""
    capture = study.capture if buckets is None else study.capture.model_copy(update={"sizes": buckets.sizes})
    for points in groups:
        if points:
            yield Job(
                kind=kind,
                device=device,
                layer=study.layer,
                batch=study.batch,
                capture=capture,
                measure=study.measure,
                points=tuple(points),
                faults=study.faults,
            )


def unfinished(job: PlannedJob, finished: Collection[Work]) -> tuple[Point | KernelPoint, ...]:
    """The Points of a job that are left when the work in `finished` is done: see Plan.without."""
    left = [point for point in job.points if (job.kind, point.key, job.process) not in finished]
    if job.kind == "memory" and left:
        return job.points
    if job.kind in ("timing", "kernel"):
        cells = {point.cell for point in left}
        return tuple(point for point in job.points if point.cell in cells)
    return tuple(left)
