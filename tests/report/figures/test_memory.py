"""The bytes that the bars draw."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest
from matplotlib.axes import Axes

from mlaprof.analysis.groups import groups
from mlaprof.analysis.summary import summarize
from mlaprof.report.figures.memory import MEASURED, memory
from mlaprof.study import MODES


def widths(axes: Axes) -> dict[str, list[float]]:
    return {str(container.get_label()): [bar.get_width() for bar in container] for container in axes.containers}  # type: ignore[attr-defined]


def drawn(fake_runs: ModuleType, *rows: Any, **changes: Any) -> Any:
    summary = summarize(fake_runs.make_run(rows, **changes))
    return memory(summary, groups(summary)[0])


def test_memory_stacks_add_up(h100: Any) -> None:
    """Weights, caches, buffers, the pool of all sizes, and what else the allocator's peak held."""
    _, summary, group = h100
    figure = memory(summary, group)
    whole, rest = figure.axes
    bars = {container.get_label(): [bar.get_width() for bar in container] for container in whole.containers}
    assert list(bars) == [
        "weights",
        "caches",
        "inputs and metadata",
        "graph pool, all sizes",
        "rest of the allocator's peak",
    ]
    assert bars["weights"] == [150.0] * len(MODES) and bars["caches"] == [80.0] * len(MODES)
    assert bars["inputs and metadata"] == [1.0] * len(MODES)
    pools = [cell.memory.graph_pool_bytes for cell in group.cells if cell.mode == "full" and cell.memory]
    assert bars["graph pool, all sizes"][-1] == pytest.approx(max(pools) / 2**20)
    assert bars["graph pool, all sizes"][0] == 0
    assert bars["rest of the allocator's peak"] == pytest.approx([256 * 9000 / 2**20] * len(MODES), abs=1e-6)
    assert "weights" not in {container.get_label() for container in rest.containers}


def test_a_ledger_is_drawn_with_the_devices_own_count(fake_runs: ModuleType) -> None:
    """Two sizes of 3 MiB pool and 1 MiB driver each; the mark misses the bar by the residual, which is told."""
    at = fake_runs.point("breakable", 64)
    row = fake_runs.with_ledger(fake_runs.memory(at, 6.0), fake_runs.ledger((64, 8), residual_mib=6.5))
    figure = drawn(fake_runs, row)
    whole, rest = figure.axes
    assert widths(whole) == {
        "weights": [150.0],
        "caches": [80.0],
        "context and libraries": [520.0],
        "inputs and metadata": [2.0],
        "workspaces, tables, spare inputs": [32.0],
        "allocator's slack": [5.0],
        "graph pool, all sizes": [6.0],
        "graphs' driver memory": [2.0],
    }
    assert list(widths(rest)) == list(widths(whole))[3:]
    ends = [next(each for each in axes.get_lines() if each.get_label() == MEASURED) for axes in (whole, rest)]
    assert [end.get_xdata()[0] for end in ends] == pytest.approx([797.0 + 6.5, 47.0 + 6.5])
    assert [text.get_text() for text in rest.texts] == ["47.00 (residual 6.500)"]
    assert "held: strong" in figure.get_supxlabel()


def test_a_small_residual_is_a_mark_alone(fake_runs: ModuleType) -> None:
    row = fake_runs.with_ledger(fake_runs.memory(fake_runs.point(), 6.0), fake_runs.ledger(residual_mib=-3.9))
    whole, _ = drawn(fake_runs, row).axes
    assert [text.get_text() for text in whole.texts] == ["797.0"]


def test_a_ledger_without_a_device_has_no_mark(fake_runs: ModuleType) -> None:
    """On a CPU nothing but the tensors and the pool is known."""
    unknown = dict.fromkeys(("context_bytes", "workspace_bytes", "slack_bytes", "device_bytes"))
    row = fake_runs.with_ledger(fake_runs.memory(fake_runs.point(), 6.0, peak=False), fake_runs.ledger(**unknown))
    whole, _ = drawn(fake_runs, row, device="cpu").axes
    assert not whole.get_lines() and "context and libraries" not in widths(whole)


def test_each_boundary_has_a_bar(fake_runs: ModuleType) -> None:
    rows = fake_runs.complete(fake_runs.h100(sizes=(64, 8)), ("index_quant", "logits"))
    whole, _ = drawn(fake_runs, *rows).axes
    names = [label.get_text() for label in whole.get_yticklabels()]
    assert len(names) == 8 and names[3:5] == ["split_piecewise", "split_piecewise@logits"]
