"""What a Study means on a device: Jobs in run order, and skips with reasons that follow from the numbers alone."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

from mlaprof.config.axes import Combination, combinations
from mlaprof.records import Device, Job, Kind, Measurement, Outcome, Point
from mlaprof.study import PHASES, BatchSpec, Phase, Study, TileChoice

PIECEWISE = ("monolithic_piecewise", "split_piecewise")
# Contexts are scored from gathered keys, generations through the page table.
_IDLE_KERNELS: dict[Phase, str] = {"prefill": "paged_index_logits", "decode": "index_logits"}


@dataclass(frozen=True)
class Plan:
    """Jobs in run order, and the Points that cannot run, as Measurements already answered."""

    jobs: tuple[Job, ...]
    skips: tuple[Measurement, ...]

    @property
    def planned(self) -> tuple[tuple[Kind, str], ...]:
        """(kind, key) of every Measurement to expect, in run order: the skips, then the jobs."""
        skipped = ((skip.kind, skip.point.key) for skip in self.skips)
        return (*skipped, *((job.kind, point.key) for job in self.jobs for point in job.points))

    @property
    def points(self) -> tuple[Point, ...]:
        """Every Point once, in run order."""
        measured = (point for job in self.jobs for point in job.points)
        every = itertools.chain((skip.point for skip in self.skips), measured)
        return tuple({point.key: point for point in every}.values())

    def __len__(self) -> int:
        return len(self.skips) + sum(len(job.points) for job in self.jobs)

    def without(self, done: Collection[tuple[str, str]]) -> Plan:
        """What is left when the (kind, key) pairs in `done` are finished.

        Samples of a cell's arms are paired round by round in one process, and a memory job's sizes share one graph
        pool: a cell of a timing job, and a memory job, is left whole until all of it is done.
        """
        finished = frozenset(done)
        jobs = (_remaining(job, finished) for job in self.jobs)
        return Plan(
            jobs=tuple(job for job in jobs if job.points),
            skips=tuple(skip for skip in self.skips if (skip.kind, skip.point.key) not in finished),
        )


def expand(study: Study, device: Device) -> Plan:
    """All work of a study on a device.

    cuda  one timing job a (phase, context_len) with all sizes, arms of a cell adjacent: modes, each with its tiles
    cpu   the same with default tiles only, emulated; tile Points go to one compile job, which yields no time
    Both  one memory job a (phase, context_len, mode) with default tiles, if the study asks for memory
    Sizes run largest first, as engines capture them.
    """
    found = combinations(study.axes, study.exclude, study.include)
    order = {each: place for place, each in enumerate(dict.fromkeys((*study.axes.mode, *(c.mode for c in found))))}
    groups: dict[tuple[Phase, int], list[Combination]] = {}
    for combination in found:
        groups.setdefault((combination.phase, combination.context_len), []).append(combination)

    tiles = {phase: tuple(_tile_choices(study, phase)) for phase in PHASES}
    skips: list[Measurement] = []
    timing: list[Job] = []
    memory: list[Job] = []
    compiled: list[Point] = []
    now = datetime.now(UTC).isoformat(timespec="seconds")
    for (phase, _), members in groups.items():
        arms: list[Point] = []
        defaults: list[Point] = []
        for combination in sorted(members, key=lambda each: (-each.num_tokens, order[each.mode])):
            points = [_point(study, combination, choices) for choices in ((), *tiles[phase])]
            if reason := skip_reason(study, combination):
                skips += (_skip(point, reason, device, now) for point in points)
                continue
            defaults.append(points[0])
            arms += points if device == "cuda" else points[:1]
            compiled += () if device == "cuda" else points[1:]
        timing += _jobs(study, device, "timing", [arms])
        if study.measure.memory:
            by_mode = ([point for point in defaults if point.mode == mode] for mode in order)
            memory += _jobs(study, device, "memory", by_mode)
    return Plan(jobs=(*timing, *memory, *_jobs(study, device, "compile", [compiled])), skips=tuple(skips))


def skip_reason(study: Study, combination: Combination) -> str | None:
    """Why a combination cannot run, or None."""
    phase, num_tokens, context_len, mode = combination
    batch, shape = study.batch, study.layer.shape
    if reason := _batch_problem(batch, phase, num_tokens):
        return reason
    longest = context_len + _longest_request(batch, phase, num_tokens)
    if longest > shape.max_position_embeddings:
        return f"a request of {longest} tokens exceeds max_position_embeddings {shape.max_position_embeddings}"
    if 0 < study.layer.options.max_seq_len < longest:
        return f"a request of {longest} tokens exceeds layer.max_seq_len {study.layer.options.max_seq_len}"
    if mode.startswith("split_") and not shape.is_dsa:
        return "the split exists only for DSA; plain MLA is one op"
    if mode in PIECEWISE and phase == "decode":
        return "decode-only batches are not piecewise in the engine; use mode full"
    return None


def _batch_problem(batch: BatchSpec, phase: Phase, num_tokens: int) -> str | None:
    generated = batch.num_generations * batch.next_n
    if phase == "prefill" and num_tokens < batch.num_contexts:
        return f"{num_tokens} tokens are fewer than num_contexts {batch.num_contexts}"
    if phase == "decode" and num_tokens % batch.next_n:
        return f"{num_tokens} tokens are no multiple of next_n {batch.next_n}"
    if phase == "mixed" and num_tokens < generated + batch.num_contexts:
        return (
            f"{num_tokens} tokens are fewer than {batch.num_generations} generations x next_n {batch.next_n} "
            f"+ {batch.num_contexts} contexts = {generated + batch.num_contexts}"
        )
    return None


def _longest_request(batch: BatchSpec, phase: Phase, num_tokens: int) -> int:
    """New tokens of the request that has most of them."""
    if phase == "decode":
        return batch.next_n
    if phase == "prefill":
        return -(-num_tokens // batch.num_contexts)
    context_tokens = num_tokens - batch.num_generations * batch.next_n
    return max(batch.next_n, -(-context_tokens // batch.num_contexts))


def _tile_choices(study: Study, phase: Phase) -> Iterator[tuple[TileChoice, ...]]:
    """Every combination of the listed alternatives, a kernel each; kernels that a phase does not run are left out."""
    alternatives = [choices for kernel, choices in study.tiles.items() if kernel != _IDLE_KERNELS.get(phase)]
    if alternatives:
        yield from itertools.product(*alternatives)


def _point(study: Study, combination: Combination, tiles: tuple[TileChoice, ...]) -> Point:
    return Point(preset=study.layer.preset, **combination._asdict(), tiles=tiles)


def _skip(point: Point, reason: str, device: Device, now: str) -> Measurement:
    outcome = Outcome(status="skipped", stage="plan", reason=reason)
    return Measurement(point=point, kind="timing", outcome=outcome, emulated=device == "cpu", recorded_at=now)


def _jobs(study: Study, device: Device, kind: Kind, groups: Iterable[list[Point]]) -> Iterator[Job]:
    """A job a group, none for an empty one."""
    for points in groups:
        if points:
            yield Job(
                kind=kind,
                device=device,
                layer=study.layer,
                batch=study.batch,
                measure=study.measure,
                points=tuple(points),
            )


def _remaining(job: Job, finished: frozenset[tuple[str, str]]) -> Job:
    open_points = [point for point in job.points if (job.kind, point.key) not in finished]
    if job.kind == "memory" and open_points:
        return job
    if job.kind == "timing":
        cells = {point.cell for point in open_points}
        open_points = [point for point in job.points if point.cell in cells]
    return job.model_copy(update={"points": tuple(open_points)})
