"""What a Point key says, where no Point was measured."""

from __future__ import annotations

import re
from dataclasses import dataclass

from mlaprof.records import Point
from mlaprof.study import BOUNDARIES, MODES, PHASES, PR_BOUNDARY, Boundary, Mode, Phase

_KEY = re.compile(
    rf"(?P<preset>.+)/(?P<phase>{'|'.join(PHASES)})/t(?P<num_tokens>\d+)/ctx(?P<context_len>\d+)"
    rf"/(?P<way>(?P<mode>{'|'.join(MODES)})(?:@(?P<boundary>{'|'.join(BOUNDARIES)}))?)(?:/(?P<tiles>.+?))??(?P<twin>/aa)?"
)


@dataclass(frozen=True)
class Identity:
    """What a key says; the tiles of a Point that was never measured are known by their label alone."""

    preset: str
    phase: Phase
    num_tokens: int
    context_len: int
    mode: Mode
    boundary: Boundary
    way: str
    tiles: str


def is_twin(key: str) -> bool:
    found = _KEY.fullmatch(key)
    return found is not None and found["twin"] is not None


def identity(key: str) -> Identity:
    """The parts of a Point key. Raises ValueError on anything else."""
    found = _KEY.fullmatch(key)
    if not found:
        raise ValueError(f"key: expected preset/phase/tN/ctxN/mode[@boundary][/tiles][/aa], got {key!r}")
    return Identity(
        preset=found["preset"],
        phase=next(phase for phase in PHASES if phase == found["phase"]),
        num_tokens=int(found["num_tokens"]),
        context_len=int(found["context_len"]),
        mode=next(mode for mode in MODES if mode == found["mode"]),
        boundary=next((each for each in BOUNDARIES if each == found["boundary"]), PR_BOUNDARY),
        way=found["way"],
        tiles=found["tiles"] or "",
    )


def of_point(point: Point) -> Identity:
    return Identity(
        preset=point.preset,
        phase=point.phase,
        num_tokens=point.num_tokens,
        context_len=point.context_len,
        mode=point.mode,
        boundary=point.boundary,
        way=point.way,
        tiles=point.tiles_label,
    )
