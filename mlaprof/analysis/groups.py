"""How the cells of a run belong together: a Group is one table or one figure."""

from __future__ import annotations

from dataclasses import dataclass

from mlaprof.analysis.cells import Cell, Summary
from mlaprof.analysis.ratios import BoundaryPrice, ModeMean, PiecewiseVsBreakable
from mlaprof.facts import Ledger
from mlaprof.study import BOUNDARIES, MODES, Phase


@dataclass(frozen=True)
class Group:
    """The cells that share a table or a figure: by num_tokens, then mode, boundary, default tiles first."""

    preset: str
    phase: Phase
    context_len: int
    cells: tuple[Cell, ...]
    means: tuple[ModeMean, ...]
    piecewise_vs_breakable: tuple[PiecewiseVsBreakable, ...]
    boundary_prices: tuple[BoundaryPrice, ...]

    @property
    def ledgers(self) -> dict[str, Ledger]:
        """The memory ledger of each way; of several processes the last one's, that of the smallest size."""
        found: dict[str, Ledger] = {}
        for cell in self.cells:
            if cell.memory and cell.memory.ledger:
                found.setdefault(cell.way, cell.memory.ledger)
        return found


def groups(summary: Summary) -> tuple[Group, ...]:
    """The cells by preset, phase and context length, in the order of the plan."""
    found: dict[tuple[str, Phase, int], list[Cell]] = {}
    for cell in summary.cells:
        found.setdefault(_group(cell), []).append(cell)
    return tuple(
        Group(
            *place,
            cells=tuple(sorted(cells, key=_row_order)),
            means=tuple(each for each in summary.means if _group(each) == place),
            piecewise_vs_breakable=tuple(
                sorted(
                    (each for each in summary.piecewise_vs_breakable if _group(each) == place),
                    key=lambda each: each.num_tokens,
                )
            ),
            boundary_prices=tuple(
                sorted(
                    (each for each in summary.boundary_prices if _group(each) == place),
                    key=lambda each: each.num_tokens,
                )
            ),
        )
        for place, cells in found.items()
    )


def _group(each: Cell | ModeMean | PiecewiseVsBreakable | BoundaryPrice) -> tuple[str, Phase, int]:
    return each.preset, each.phase, each.context_len


def _row_order(cell: Cell) -> tuple[int, int, int, bool]:
    # Tiles keep the order of the study.
    return cell.num_tokens, MODES.index(cell.mode), BOUNDARIES.index(cell.boundary), bool(cell.tiles)
