from __future__ import annotations

from dataclasses import fields
from typing import get_args

import pytest

from mlaprof.analysis.cells import CellStatus
from mlaprof.analysis.clocks import StepBudget
from mlaprof.analysis.verdicts import VERDICTS, Verdict
from mlaprof.facts import MemoryUse
from mlaprof.report.style import BOUNDARY, BUDGET_PARTS, MEMORY_PARTS, MODE, STATUS, VERDICT
from mlaprof.study import BOUNDARIES, MODES


def test_every_word_of_the_vocabulary_has_a_look() -> None:
    assert set(STATUS) == set(get_args(CellStatus))
    assert set(VERDICT) == set(get_args(Verdict)) == set(VERDICTS)
    assert set(MODE) == set(MODES)
    assert set(BOUNDARY) == set(BOUNDARIES)
    assert set(MEMORY_PARTS) <= set(MemoryUse.model_fields)
    assert set(BUDGET_PARTS) == {field.name for field in fields(StepBudget)}


@pytest.mark.parametrize("looks", [STATUS, VERDICT], ids=["status", "verdict"])
def test_words_tell_apart_without_colour_and_without_unicode(looks: dict) -> None:
    plain = [look.text(ascii_only=True) for look in looks.values()]
    assert len(set(plain)) == len(plain)
    assert all(text.isascii() for text in plain)


def test_modes_tell_apart_by_marker_alone_and_by_colour_alone() -> None:
    assert len({look.marker for look in MODE.values()}) == len(MODES)
    assert len({look.colour for look in MODE.values()}) == len(MODES)


def test_parts_of_a_step_tell_apart_by_hatch_alone_and_by_colour_alone() -> None:
    assert len({look.hatch for look in BUDGET_PARTS.values()}) == len(BUDGET_PARTS)
    assert len({look.colour for look in BUDGET_PARTS.values()}) == len(BUDGET_PARTS)


def test_boundaries_tell_apart_by_line_alone_and_by_fill_alone() -> None:
    assert len({look.line for look in BOUNDARY.values()}) == len(BOUNDARIES)
    assert len({look.fill for look in BOUNDARY.values()}) == len(BOUNDARIES)


def test_mode_colours_keep_their_distance_for_the_colour_blind() -> None:
    """Simulated deuteranopia and protanopia (Vienot 1999, linear RGB): no two modes come closer than 0.1."""
    matrices = {
        "protan": ((0.11238, 0.88762, 0.0), (0.11238, 0.88762, 0.0), (0.00401, -0.00401, 1.0)),
        "deutan": ((0.29275, 0.70725, 0.0), (0.29275, 0.70725, 0.0), (-0.02234, 0.02234, 1.0)),
    }

    def linear(colour: str) -> list[float]:
        channels = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        return [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]

    for matrix in matrices.values():
        seen = {}
        for mode, look in MODE.items():
            rgb = linear(look.colour)
            dim = [max(0.0, sum(w * c for w, c in zip(row, rgb, strict=True))) for row in matrix]
            seen[mode] = [c ** (1 / 2.2) for c in dim]
        pairs = [(a, b) for a in MODES for b in MODES if a < b]
        nearest = min(sum((x - y) ** 2 for x, y in zip(seen[a], seen[b], strict=True)) ** 0.5 for a, b in pairs)
        assert nearest > 0.1
