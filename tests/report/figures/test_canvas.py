"""What stands on every figure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from matplotlib.figure import Figure

from mlaprof.report.figures.curves import latency, speedup
from mlaprof.report.figures.memory import memory
from mlaprof.report.figures.tiles import tiles

Texts = Callable[[Figure | None], str]


def test_every_figure_is_captioned(h100: Any, texts: Texts) -> None:
    """GPU, preset, modes, cache state, n and run id."""
    _, summary, group = h100
    for draw in (latency, speedup, tiles):
        text = texts(draw(summary, group))
        for fact in (
            "NVIDIA H100 80GB HBM3",
            "v3.2-tp8",
            "cold L2",
            "n=50",
            "20260102-030405-fake",
            "prefill, context 0",
        ):
            assert fact in text
        assert "full" in text and "emulated" not in text
    text = texts(memory(summary, group))
    assert "not a measured peak" in text  # the pool of all sizes stands beside the rest at the largest
    assert "NVIDIA H100 80GB HBM3" in text and "20260102-030405-fake" in text
