"""What a run holds of one Point: every kind of measurement, timings of several processes, and how it ended."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import get_args

from mlaprof.analysis.keys import is_twin
from mlaprof.records import Kind, Measurement, Run, Status

GRAVITY: tuple[Status, ...] = ("incorrect", "failed", "skipped", "compiled", "ok")  # the gravest first
ENDED = "the run ended before"


@dataclass(frozen=True)
class Seen:
    """The measurements of one key; only timings have more than one process."""

    planned: tuple[tuple[Kind, int], ...] = ()  # kind and process
    timings: Mapping[int, Measurement] = field(default_factory=dict)  # by process, in their order
    others: Mapping[Kind, Measurement] = field(default_factory=dict)

    @property
    def first(self) -> Measurement | None:
        return next(iter((*self.timings.values(), *self.others.values())), None)

    @property
    def leading(self) -> Measurement | None:
        """The measurement whose outcome is the cell's: of several processes the gravest one's, and of those the first.

        None where nothing was measured, or no timing of those planned.
        """
        if self.timings:
            return min(self.timings.values(), key=lambda each: GRAVITY.index(each.outcome.status))
        if any(kind == "timing" for kind, _ in self.planned):
            return None
        return next(iter(self.of("compile", "memory", "counts", "dispatch")), None)

    @property
    def reason(self) -> str:
        """Why the outcome is what it is, and in which processes where not in all."""
        if (leading := self.leading) is None:
            return f"{ENDED} this was measured"
        alike = [process for process, each in self.timings.items() if each.outcome == leading.outcome]
        if not alike or not leading.outcome.cause or set(alike) == self._processes:
            return leading.outcome.cause
        return f"{_named(alike)}: {leading.outcome.cause}"

    @property
    def notes(self) -> tuple[str, ...]:
        """What else went wrong or is missing, where the cell has an outcome of its own."""
        return tuple(self._notes())

    def of(self, *kinds: Kind) -> list[Measurement]:
        """The measurements of these kinds in this order; of several timings the one that leads."""
        timing = (self.leading,) if self.timings else ()
        return [
            each
            for kind in kinds
            for each in (timing if kind == "timing" else (self.others.get(kind),))
            if each is not None
        ]

    @property
    def _processes(self) -> set[int]:
        return {process for kind, process in self.planned if kind == "timing"} | self.timings.keys()

    def _notes(self) -> Iterator[str]:
        leading = self.leading
        for kind, each in self.others.items():
            if each is not leading and each.outcome.status in ("failed", "incorrect", "skipped"):
                yield f"{kind} {each.outcome.status}{f': {each.outcome.cause}' if each.outcome.cause else ''}"
        if leading is None:
            return
        if absent := sorted(self._processes - self.timings.keys()):
            one = len(self._processes) == 1
            yield f"timing{'' if one else f' of {_named(absent)}'} missing: {ENDED} it was measured"
        for kind, _ in self.planned:
            if kind != "timing" and kind not in self.others:
                yield f"{kind} missing: {ENDED} it was measured"


def _named(processes: Sequence[int]) -> str:
    return f"process {', '.join(str(process + 1) for process in processes)}"


def collect(run: Run) -> tuple[dict[str, Seen], dict[str, Seen]]:
    """What was seen of each key, in plan order, and likewise of each twin; a later measurement replaces an earlier.

    Raises ValueError on a planned line that is none.
    """
    planned: dict[str, list[tuple[Kind, int]]] = {}
    for line in run.manifest.planned:
        kind, process, key = parts(line)
        planned.setdefault(key, []).append((kind, process))
    timings: dict[str, dict[int, Measurement]] = {}
    others: dict[str, dict[Kind, Measurement]] = {}
    for each in run.measurements:
        if each.kind == "timing":
            timings.setdefault(each.point.key, {})[each.process] = each
        else:
            others.setdefault(each.point.key, {})[each.kind] = each
    twins = {each.point.key for each in run.measurements if each.point.twin}

    def seen(keys: Iterable[str]) -> dict[str, Seen]:
        return {
            key: Seen(tuple(planned.get(key, ())), dict(sorted(timings.get(key, {}).items())), others.get(key, {}))
            for key in keys
        }

    every = dict.fromkeys([*planned, *(each.point.key for each in run.measurements)])
    return (
        seen(key for key in every if key not in twins and not is_twin(key)),
        seen(key for key in every if key in twins),
    )


def parts(line: str) -> tuple[Kind, int, str]:
    """Kind, process and key of what records.work wrote. Raises ValueError on anything else."""
    head, _, key = line.partition(" ")
    name, _, number = head.partition("#")
    kind = next((each for each in get_args(Kind) if each == name), None)
    if kind is None or not (number or "1").isdecimal():
        raise ValueError(f"planned: expected `KIND KEY` or `KIND#N KEY`, got {line!r}")
    return kind, int(number or 1) - 1, key
