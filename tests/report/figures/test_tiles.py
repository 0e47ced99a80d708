"""The numbers in the fields of the heat maps."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from mlaprof.analysis.groups import groups
from mlaprof.analysis.summary import summarize
from mlaprof.report.figures.curves import latency
from mlaprof.report.figures.tiles import tiles

Texts = Callable[[Figure | None], str]


def test_the_heat_map_shows_ratios_to_the_default_in_the_order_of_the_study(h100: Any) -> None:
    _, summary, group = h100
    figure = tiles(summary, group)
    (axes,) = figure.axes
    rows = [label.get_text() for label in axes.get_yticklabels()]
    assert rows == ["default (us)", "sparse_attn=n128.w8", "sparse_attn=n64.w4"]
    colours = np.asarray(axes.images[0].get_array())
    assert colours == pytest.approx(np.array([[0.0] * 3, [-1.0] * 3, [1.0] * 3]), abs=1e-5)
    assert [text.get_text() for text in axes.texts[3:]] == ["0.50"] * 3 + ["2.00"] * 3


def test_compile_facts_are_drawn_where_nothing_was_timed(fake_runs: ModuleType, texts: Texts) -> None:
    choices = (fake_runs.tile(block_n=128), fake_runs.tile(block_n=64))
    run = fake_runs.make_run(fake_runs.sweep(fake_runs.laptop(tiles=choices)), device="cpu")
    summary = summarize(run)
    figure = tiles(summary, groups(summary)[0])
    assert "compiled for sm_90, not timed" in texts(figure)
    assert [text.get_text() for text in figure.axes[0].texts] == ["128", "96.00", "0"] * 2
    assert "emulated on a CPU" in texts(latency(summary, groups(summary)[0]))


def test_each_boundary_has_a_panel_of_its_own_times(fake_runs: ModuleType) -> None:
    """Of the ratios to the default tiles at the same boundary."""
    choice = fake_runs.tile(block_n=64)
    rows = [
        fake_runs.timing(fake_runs.point("breakable", 64, boundary=boundary, tiles=tiles_of), device_s)
        for boundary, default_s in (("logits", 1e-4), ("index_quant", 3e-4))
        for tiles_of, device_s in (((), default_s), ((choice,), default_s / (2 if boundary == "logits" else 3)))
    ]
    summary = summarize(fake_runs.make_run(rows))
    panels = tiles(summary, groups(summary)[0]).axes
    assert [axes.get_title(loc="left").partition(":")[0] for axes in panels] == ["breakable", "breakable@logits"]
    assert [[text.get_text() for text in axes.texts] for axes in panels] == [["300.0", "3.00"], ["100.0", "2.00"]]
