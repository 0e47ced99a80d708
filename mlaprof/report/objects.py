"""A cell and a ledger as plain JSON values, and a cell as a flat row."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

from mlaprof.analysis.cells import Cell
from mlaprof.analysis.stats import Estimate
from mlaprof.facts import Ledger, Record, SizeFacts
from mlaprof.study import BOUNDED_MODES

CLOCKS = ("device_s", "submit_s", "latency_s", "sustained_s", "warm_device_s")
ESTIMATES = (*CLOCKS, "speedup", "submit_speedup", "step_speedup", "tiles_speedup")
PARTS = ("median", "ci_low", "ci_high", "n")  # of an Estimate
BUDGET = ("busy_s", "launch_gap_s", "host_stall_s", "sync_wait_s")
HARDSHIPS = ("power_capped", "dropped_rounds", "other_processes", "cpu_wait")  # of the rounds; of no error
MEMORY = (
    "weights_bytes",
    "caches_bytes",
    "buffers_bytes",
    "graph_pool_bytes",
    "allocator_peak_bytes",
    "host_peak_bytes",
    "nvml_process_bytes",
)
LEDGER = ("context_bytes", "workspace_bytes", "slack_bytes", "device_bytes", "residual_bytes")
SIZE = ("pool_bytes", "driver_bytes", "transient_bytes")  # of the cell's own size
GRAPH = (
    "state",
    "captured_segments",
    "eager_segments",
    "graph_launches",
    "graph_nodes",
    "prepare_s",
    "capture_s",
    "instantiate_s",
    "first_replay_s",
    "padded_tokens",
    "hold",
    "multi_stream",
)
COUNTS = (
    "kernels",
    "kernel_launches",
    "stream_syncs",
    "device_syncs",
    "event_syncs",
    "syncs",
    "d2h_copies",
    "h2d_copies",
    "allocations",
    "driver_allocations",
)


def cell_object(cell: Cell) -> dict[str, Any]:
    """One cell as plain JSON values."""
    return {
        "key": cell.key,
        "preset": cell.preset,
        "phase": cell.phase,
        "num_tokens": cell.num_tokens,
        "context_len": cell.context_len,
        "mode": cell.mode,
        "boundary": cell.boundary if cell.mode in BOUNDED_MODES else None,
        "way": cell.way,
        "tiles": cell.tiles,
        "outcome": cell.outcome,
        "stage": cell.stage,
        "reason": cell.reason,
        "fault": cell.fault,
        "notes": list(cell.notes),
        "emulated": cell.emulated,
        **{name: _estimate(getattr(cell, name)) for name in ESTIMATES},
        "margin_s": cell.margin_s,
        "bound": cell.bound,
        "budget": asdict(cell.budget) if cell.budget else None,
        "processes": cell.processes,
        "ranks": asdict(cell.ranks) if cell.ranks else None,
        "unfilled": cell.unfilled,
        "cache": cell.cache,
        "clock": cell.clock,
        "first_call_s": cell.first_call_s,
        "memory": cell.memory.model_dump(mode="json", exclude={"ledger"}) if cell.memory else None,
        "graph": _named(cell.graph),
        # What is asked of a table of graphs most often stands flat beside the records it comes from.
        **{name: getattr(cell.graph, name) if cell.graph else None for name in GRAPH},
        **{name: getattr(cell.counts, name) if cell.counts else None for name in COUNTS},
        "coverage": cell.coverage,
        "counts": _named(cell.counts),
        "budget_breaches": [asdict(each) for each in cell.breaches],
        "break_even_replays": cell.break_even.replays if cell.break_even else None,
        "break_even_over": cell.break_even.over if cell.break_even else None,
        "ledger": _ledger_of(cell),
        "gate": _gate(cell),
        "resources": [_named(each) for each in cell.resources],
        "checks": [
            {
                "name": check.name,
                "value": check.value,
                "limit": check.limit,
                "passed": check.passed,
            }
            for check in cell.checks
        ],
        "sm_clock_hz": cell.sm_clock_hz,
        "power_w": cell.power_w,
        "temperature_c": cell.temperature_c,
        "clock_events": list(cell.clock_events),
        "throttled": cell.throttled,
        **{name: getattr(cell, name) for name in HARDSHIPS},
        "gpus": list(cell.gpus),
    }


def flat(cell: Cell) -> dict[str, Any]:
    """CSV column -> value. The dictionary of the JSON object, with what it nests spread out."""
    row: dict[str, Any] = {name: getattr(cell, name) for name in _OWN}
    row["boundary"] = cell.boundary if cell.mode in BOUNDED_MODES else None
    row["break_even_replays"] = cell.break_even.replays if cell.break_even else None
    row["break_even_over"] = cell.break_even.over if cell.break_even else None
    for names, record in ((GRAPH, cell.graph), (COUNTS, cell.counts)):
        for name in names:
            row[name] = getattr(record, name) if record else None
    row["notes"] = "; ".join(cell.notes)
    row["clock_events"] = "+".join(cell.clock_events)
    row["gpus"] = "+".join(cell.gpus)
    row["checks_passed"] = all(check.passed for check in cell.checks) if cell.checks else None
    for name in ESTIMATES:
        estimate: Estimate | None = getattr(cell, name)
        for part in PARTS:
            row[f"{name}_{part}"] = getattr(estimate, part) if estimate else None
    row["tp_world"] = cell.ranks.world if cell.ranks else None
    row["rank_spread_s"] = cell.ranks.spread_s if cell.ranks else None
    for name in BUDGET:
        row[f"budget_{name}"] = getattr(cell.budget, name) if cell.budget else None
    for name in MEMORY:
        row[name] = getattr(cell.memory, name) if cell.memory else None
    own = _own_size(cell)
    for name in LEDGER:
        row[f"ledger_{name}"] = getattr(cell.memory.ledger, name) if cell.memory and cell.memory.ledger else None
    for name in SIZE:
        row[f"size_{name}"] = getattr(own, name) if own else None
    row["counts_complete"] = cell.counts.complete if cell.counts else None
    row["over_budget"] = "+".join(each.name for each in cell.breaches)
    row["gate_passed"] = _gate_passed(cell)
    return row


_OWN = (  # columns that the cell itself has
    *("key", "preset", "phase", "num_tokens", "context_len", "mode", "boundary", "way", "tiles"),
    *("outcome", "stage", "reason", "fault", "notes"),
    *("emulated", "margin_s", "bound", "processes", "unfilled", "cache", "clock", "first_call_s"),
    *("sm_clock_hz", "power_w", "temperature_c", "clock_events"),
    "throttled",
    *HARDSHIPS,
    "gpus",
    "coverage",
)
_PLAIN = (*_OWN[:-1], *GRAPH, *COUNTS, *("coverage", "break_even_replays", "break_even_over"))
CSV_HEADER: tuple[str, ...] = (
    *_PLAIN,
    "checks_passed",
    *(f"{name}_{part}" for name in ESTIMATES for part in PARTS),
    *(f"budget_{name}" for name in BUDGET),
    *MEMORY,
    *(f"ledger_{name}" for name in LEDGER),
    *(f"size_{name}" for name in SIZE),
    *("counts_complete", "over_budget", "gate_passed"),
    *("tp_world", "rank_spread_s"),
)


def ledger_object(ledger: Ledger) -> dict[str, Any]:
    """A ledger with its residual."""
    return {**ledger.model_dump(mode="json"), "residual_bytes": ledger.residual_bytes}


def _ledger_of(cell: Cell) -> dict[str, Any] | None:
    """The ledger of the cell's process; of its sizes the cell's own alone."""
    if cell.memory is None or cell.memory.ledger is None:
        return None
    ledger = ledger_object(cell.memory.ledger)
    del ledger["sizes"]
    return {**ledger, "size": _named(_own_size(cell))}


def _own_size(cell: Cell) -> SizeFacts | None:
    """What the size cost that the cell's step runs at: its own, or the one that it is padded to."""
    if cell.memory is None or cell.memory.ledger is None:
        return None
    wanted = (cell.num_tokens, cell.graph.padded_tokens if cell.graph else cell.num_tokens)
    sizes = {size.num_tokens: size for size in cell.memory.ledger.sizes}
    return next((sizes[tokens] for tokens in wanted if tokens in sizes), None)


def _gate(cell: Cell) -> dict[str, Any] | None:
    return {"passed": _gate_passed(cell), **cell.gate.model_dump(mode="json")} if cell.gate else None


def _gate_passed(cell: Cell) -> bool | None:
    if cell.gate is None:
        return None
    return cell.outcome != "incorrect" and all(check.passed for check in cell.checks)


def _estimate(value: Estimate | None) -> dict[str, float | int] | None:
    return {part: getattr(value, part) for part in PARTS} if value else None


def _named(record: Record | None) -> dict[str, Any] | None:
    return record.model_dump(mode="json") if record else None


def finite(value: Any) -> Any:
    """The value with None for NaN and infinity, which JSON lacks: a check with one has failed, a ratio of absurd times
    is unknown."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, list):
        return [finite(each) for each in value]
    if isinstance(value, dict):
        return {key: finite(each) for key, each in value.items()}
    return value
