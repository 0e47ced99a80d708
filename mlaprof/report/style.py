"""How a status, a verdict and a mode look, in the terminal and on paper, with and without colour."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mlaprof.study import Boundary, Mode


@dataclass(frozen=True)
class Look:
    """A word with a symbol before it; `plain` is the symbol of an ASCII terminal. The word alone tells it all."""

    word: str
    symbol: str
    plain: str
    colour: str  # of Rich

    def text(self, ascii_only: bool = False) -> str:
        return f"{self.plain if ascii_only else self.symbol} {self.word}"


STATUS: dict[str, Look] = {
    "ok": Look("ok", "✓", "+", "green"),
    "compiled": Look("compiled", "○", "o", "cyan"),
    "skipped": Look("SKIPPED", "–", "-", "bright_black"),  # noqa: RUF001
    "failed": Look("FAILED", "✗", "x", "red"),
    "incorrect": Look("INCORRECT", "≠", "!", "bold red"),
    "missing": Look("MISSING", "?", "?", "yellow"),
}

VERDICT: dict[str, Look] = {
    "SLOWER": Look("SLOWER", "▲", "+", "bold red"),
    "FASTER": Look("FASTER", "▼", "-", "green"),
    "SAME": Look("SAME", "=", "=", "bright_black"),
    "AMBIGUOUS": Look("AMBIGUOUS", "~", "~", "yellow"),
    "THROTTLED": Look("THROTTLED", "≈", "%", "yellow"),
    "INCORRECT": Look("INCORRECT", "≠", "!", "bold red"),
    "FAILED": Look("FAILED", "✗", "x", "red"),
    "MISSING": Look("MISSING", "?", "?", "yellow"),
    "NEW": Look("NEW", "○", "o", "cyan"),
}


@dataclass(frozen=True)
class ModeLook:
    """Colour (hex) and matplotlib marker of a mode."""

    colour: str
    marker: str


# Okabe and Ito's palette: told apart by the common forms of colour blindness, and by luminance in grey print.
MODE: dict[Mode, ModeLook] = {
    "monolithic_eager": ModeLook("#444444", "o"),
    "monolithic_piecewise": ModeLook("#E69F00", "s"),
    "split_eager": ModeLook("#56B4E9", "^"),
    "split_piecewise": ModeLook("#0072B2", "D"),
    "breakable": ModeLook("#009E73", "P"),
    "full": ModeLook("#D55E00", "v"),
}


@dataclass(frozen=True)
class BoundaryLook:
    """matplotlib line style and marker fill of a boundary; colour and marker are the mode's."""

    line: str
    fill: Literal["full", "none", "left", "top"]


BOUNDARY: dict[Boundary, BoundaryLook] = {
    "proj": BoundaryLook(":", "none"),
    "index_quant": BoundaryLook("-", "full"),
    "cache_update": BoundaryLook("-.", "left"),
    "logits": BoundaryLook("--", "top"),
}

CAPTURED_COLOUR, EAGER_COLOUR = "#0072B2", "#E69F00"  # kernels in graphs, and launched one by one


@dataclass(frozen=True)
class PartLook:
    """A part of a step's time: its column, its label, its colour and the hatch that tells it in grey print."""

    name: str
    label: str
    colour: str
    hatch: str


BUDGET_PARTS: dict[str, PartLook] = {  # field of StepBudget -> look, in the order of a bar
    "busy_s": PartLook("busy", "GPU busy", "#0072B2", ""),
    "launch_gap_s": PartLook("gaps", "launch gaps", "#E69F00", "//"),
    "host_stall_s": PartLook("stalls", "host stalls", "#CC79A7", "xx"),
    "sync_wait_s": PartLook("waits", "sync waits", "#009E73", ".."),
}

MEMORY_PARTS: dict[str, tuple[str, str]] = {  # field of MemoryUse -> (label, colour)
    "weights_bytes": ("weights", "#0072B2"),
    "caches_bytes": ("caches", "#56B4E9"),
    "buffers_bytes": ("inputs and metadata", "#009E73"),
    "graph_pool_bytes": ("graph pool, all sizes", "#E69F00"),
}
LEDGER_PARTS: dict[str, tuple[str, str]] = {  # part of a memory ledger -> (label, colour)
    "weights_bytes": ("weights", "#0072B2"),
    "caches_bytes": ("caches", "#56B4E9"),
    "context_bytes": ("context and libraries", "#BBBBBB"),
    "buffers_bytes": ("inputs and metadata", "#009E73"),
    "workspace_bytes": ("workspaces, tables, spare inputs", "#CC79A7"),
    "slack_bytes": ("allocator's slack", "#F0E442"),
    "pool_bytes": ("graph pool, all sizes", "#E69F00"),
    "driver_bytes": ("graphs' driver memory", "#D55E00"),
}
MEMORY_REST = ("rest of the allocator's peak", "#BBBBBB")

ROOFLINE_MARKERS: tuple[tuple[str, str], ...] = (  # colour and marker of each kernel in turn
    ("#0072B2", "o"),
    ("#D55E00", "s"),
    ("#009E73", "^"),
    ("#CC79A7", "D"),
    ("#E69F00", "P"),
    ("#56B4E9", "v"),
    ("#444444", "X"),
)
