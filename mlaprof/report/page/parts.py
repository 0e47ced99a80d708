"""What a page is made of. All texts are plain: they become HTML in render.py alone, escaped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from mlaprof.analysis.strips import Strip
from mlaprof.report.columns import Column
from mlaprof.report.figures.marks import Mark


@dataclass(frozen=True)
class Words:
    """A paragraph. code: lines as they are; missing: what a run lacks, and what to run to get it."""

    text: str
    kind: Literal["plain", "note", "missing", "warning", "code"] = "plain"


@dataclass(frozen=True)
class Sheet:
    """A table that can be sorted and filtered; empty columns of a rank above 0 are left out."""

    title: str
    columns: Sequence[Column]
    note: str = ""
    strips: Sequence[Strip | None] = ()  # a row each, drawn as a column of their own; none where no row has one
    strips_after: str = ""  # title of the column before it
    reach: float = 0.0  # of the axis that the strips share


@dataclass(frozen=True)
class Picture:
    """A figure with what stands where in it; `stem` names its files beside the page."""

    stem: str
    title: str
    svg: str
    marks: Sequence[Mark]


Part = Words | Sheet | Picture


@dataclass(frozen=True)
class Section:
    """One question and what answers it."""

    anchor: str
    title: str
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Page:
    """A whole report. verdict is one sentence; stamp, where there is one, stands above everything else."""

    title: str
    verdict: str
    facts: tuple[str, ...]  # below the verdict
    sections: tuple[Section, ...]
    stamp: str = ""
