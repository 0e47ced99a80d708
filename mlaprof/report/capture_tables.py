"""The columns of what capturing buys and costs: breakable beside piecewise, boundaries, the memory ledger, capture."""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text

from mlaprof.analysis.cells import Floor
from mlaprof.analysis.groups import Group
from mlaprof.analysis.ratios import BoundaryPrice
from mlaprof.analysis.stats import Estimate
from mlaprof.facts import Ledger
from mlaprof.report.cells_table import ratio_text
from mlaprof.report.columns import Column
from mlaprof.report.units import Unit, plus_minus, signed, significant, time_unit

BREAKABLE_TITLE = "Breakable beside split_piecewise"
BOUNDARY_TITLE = "What it changes to move the boundary of the captured part; numbers are after minus before"
LEDGER_TITLE = "Memory of one process a mode, MiB; graph pool and driver memory of all sizes"
CAPTURE_TITLE = "What each captured size cost"

MIB = Unit("MiB", 2.0**20)


def breakable_columns(group: Group, *, floor: Floor | None = None, ascii_only: bool = False) -> list[Column]:
    """A row wherever both modes were timed; empty without one. floor: the run's, of device times."""
    rows = group.piecewise_vs_breakable
    if not rows:
        return []
    sign = "+-" if ascii_only else "±"
    several = len({each.boundary for each in rows}) > 1
    return [
        Column("tokens", 0, [str(each.num_tokens) for each in rows]),
        Column("boundary", 0 if several else 9, [each.boundary if several else "" for each in rows], right=False),
        Column("tiles", 0 if any(each.tiles for each in rows) else 9, [each.tiles for each in rows], right=False),
        Column("device", 0, [_ratio(each.device, floor) for each in rows]),
        Column(f"{sign}CI", 2, [_interval(each.device, sign) for each in rows]),
        Column("submit", 1, [_ratio(each.submit) for each in rows]),
        Column(f"submit {sign}CI", 3, [_interval(each.submit, sign) for each in rows]),
    ]


def boundary_columns(
    prices: Sequence[BoundaryPrice], *, floor: Floor | None = None, ascii_only: bool = False
) -> list[Column]:
    """A row a move that has a price; empty without one. floor: the run's, of device times."""
    rows = [each for each in prices if not each.reason]
    if not rows:
        return []
    sign = "+-" if ascii_only else "±"
    times = time_unit(abs(each) for row in rows for each in (row.device_change_s, row.submit_change_s) if each)

    def seconds(values: Sequence[float | None]) -> list[str]:
        return ["" if value is None else signed(value, times) for value in values]

    def number(value: int | None) -> str:
        return "" if value is None else f"{value:+d}" if value else "0"

    return [
        Column("tokens", 0, [str(each.num_tokens) for each in rows]),
        Column("mode", 0, [each.mode for each in rows], right=False),
        Column("from", 0, [each.start for each in rows], right=False),
        Column("to", 0, [each.end for each in rows], right=False),
        Column("device", 0, [_ratio(each.device, floor) for each in rows]),
        Column(f"{sign}CI", 6, [_interval(each.device, sign) for each in rows]),
        Column(f"device {times.name}", 4, seconds([each.device_change_s for each in rows])),
        Column("submit", 1, [_ratio(each.submit) for each in rows]),
        Column(f"submit {times.name}", 5, seconds([each.submit_change_s for each in rows])),
        Column("eager kernels", 2, [number(each.eager_kernels) for each in rows]),
        Column("graph nodes", 7, [number(each.graph_nodes) for each in rows]),
        Column("pool MiB", 3, ["" if each.pool_bytes is None else signed(each.pool_bytes, MIB) for each in rows]),
    ]


def ledger_columns(ledgers: dict[str, Ledger]) -> list[Column]:
    """A row a way; empty without a ledger."""
    if not ledgers:
        return []
    rows = list(ledgers.values())
    drivers = [[size.driver_bytes for size in each.sizes if size.driver_bytes is not None] for each in rows]
    return [
        Column("mode", 0, list(ledgers), right=False),
        Column("hold", 3, [each.hold if each.sizes else "" for each in rows], right=False),
        Column("context", 4, [_mib(each.context_bytes) for each in rows]),
        Column("weights", 2, [_mib(each.weights_bytes) for each in rows]),
        Column("caches", 2, [_mib(each.caches_bytes) for each in rows]),
        Column("buffers", 5, [_mib(each.buffers_bytes) for each in rows]),
        Column("workspaces", 7, [_mib(each.workspace_bytes) for each in rows]),
        Column("slack", 6, [_mib(each.slack_bytes) for each in rows]),
        Column("graph pool", 0, [_mib(sum(size.pool_bytes for size in each.sizes)) for each in rows]),
        Column("graph driver", 1, [_mib(sum(sizes)) if sizes else "" for sizes in drivers]),
        Column("residual", 1, [_mib(each.residual_bytes) for each in rows]),
    ]


def capture_columns(ledgers: dict[str, Ledger]) -> list[Column]:
    """A row a captured size of each way, in the order of capture; empty without one. Milliseconds, MiB."""
    rows = [(way, size) for way, ledger in ledgers.items() for size in ledger.sizes]
    if not rows:
        return []
    return [
        Column("mode", 0, [way for way, _ in rows], right=False),
        Column("tokens", 0, [str(size.num_tokens) for _, size in rows]),
        Column("state", 0, [size.state.replace("_", " ") for _, size in rows], right=False),
        Column("kernels", 0, [str(size.nodes.kernel) for _, size in rows]),
        Column("other nodes", 0, [str(size.nodes.total - size.nodes.kernel) for _, size in rows]),
        Column("capture ms", 0, [significant(1e3 * size.capture_s) for _, size in rows]),
        Column("instantiate ms", 0, [significant(1e3 * size.instantiate_s) for _, size in rows]),
        Column("first replay ms", 0, [significant(1e3 * size.first_replay_s) for _, size in rows]),
        Column("pool MiB", 0, [_mib(size.pool_bytes) for _, size in rows]),
        Column("driver MiB", 1, [_mib(size.driver_bytes) for _, size in rows]),
        Column("transient MiB", 1, [_mib(size.transient_bytes) for _, size in rows]),
    ]


def _ratio(speedup: Estimate | None, floor: Floor | None = None) -> Text | str:
    return ratio_text(speedup, floor) if speedup else ""


def _interval(speedup: Estimate | None, sign: str) -> str:
    return plus_minus(speedup, sign) if speedup else ""


def _mib(value: int | None) -> str:
    return "" if value is None else MIB.text(value) if value else "0"
