"""The bytes that the bars draw."""

from __future__ import annotations

from typing import Any

import pytest

from mlaprof.report.figures.memory import memory


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
    assert bars["weights"] == [150.0] * 5 and bars["caches"] == [80.0] * 5
    assert bars["inputs and metadata"] == [1.0] * 5
    pools = [cell.memory.graph_pool_bytes for cell in group.cells if cell.mode == "full" and cell.memory]
    assert bars["graph pool, all sizes"][-1] == pytest.approx(max(pools) / 2**20)
    assert bars["graph pool, all sizes"][0] == 0
    assert bars["rest of the allocator's peak"] == pytest.approx([256 * 9000 / 2**20] * 5, abs=1e-6)
    assert "weights" not in {container.get_label() for container in rest.containers}
