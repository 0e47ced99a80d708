"""Golden data: the numbers that a curve draws, read back from it. Looks are judged by eye, not here."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure

from mlaprof.analysis.groups import groups
from mlaprof.analysis.summary import summarize
from mlaprof.report.figures.curves import latency, speedup
from mlaprof.report.style import BOUNDARY, MODE
from mlaprof.study import BOUNDARIES, MODES

Texts = Callable[[Figure | None], str]


def line(figure: Figure | None, label: str, panel: int = 0) -> Any:
    assert figure
    return next(each for each in figure.axes[panel].get_lines() if each.get_label() == label)


def test_latency_draws_the_medians_of_every_mode(h100: Any, fake_runs: ModuleType, texts: Texts) -> None:
    _, summary, group = h100
    figure = latency(summary, group)
    for mode in MODES:
        drawn = line(figure, mode)
        assert list(drawn.get_xdata()) == [1, 16, 256]
        expected = [fake_runs.h100().device_s(mode, tokens) * 1e6 for tokens in (1, 16, 256)]
        assert np.asarray(drawn.get_ydata()) == pytest.approx(expected, rel=1e-6)
        assert drawn.get_color() == MODE[mode].colour
    axes = figure.axes[0]
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    assert axes.get_ylabel() == "device time per step (us)"


def test_below_them_stands_the_submit_time_on_the_same_scale(h100: Any, fake_runs: ModuleType) -> None:
    _, summary, group = h100
    figure = latency(summary, group)
    device, submit = figure.axes
    for mode in MODES:
        expected = [fake_runs.h100().submit_s(mode, tokens) * 1e6 for tokens in (1, 16, 256)]
        assert np.asarray(line(figure, mode, 1).get_ydata()) == pytest.approx(expected, rel=1e-3)
    assert device.get_ylim() == submit.get_ylim() and submit.get_yscale() == "log"
    assert submit.get_ylabel() == "host submit time per step (us)"
    assert device.get_legend() and submit.get_legend() is None


def test_the_band_is_the_interval(h100: Any) -> None:
    _, summary, group = h100
    figure = latency(summary, group)
    band = next(each for each in figure.axes[0].collections if isinstance(each, PolyCollection))
    ends = sorted(set(band.get_paths()[0].vertices[:, 1]))
    cells = [cell for cell in group.cells if cell.mode == MODES[0] and not cell.tiles]
    expected = sorted(1e6 * value for cell in cells for value in (cell.device_s.ci_low, cell.device_s.ci_high))
    assert ends == pytest.approx(expected)


def test_speed_up_has_a_line_at_one_and_leaves_the_baseline_out(h100: Any, fake_runs: ModuleType) -> None:
    _, summary, group = h100
    figure = speedup(summary, group)
    machine = fake_runs.h100()
    drawn = line(figure, "full").get_ydata()
    expected = [machine.device_s("monolithic_eager", n) / machine.device_s("full", n) for n in (1, 16, 256)]
    assert np.asarray(drawn) == pytest.approx(expected, rel=1e-5)
    assert list(line(figure, "monolithic_eager").get_ydata()) == [1.0, 1.0]
    bottom, top = figure.axes[0].get_ylim()
    assert bottom <= 0.9 and top >= 1.1
    assert figure.axes[0].get_yscale() == "linear"


def test_below_it_stands_the_speed_up_of_submit_time(h100: Any, fake_runs: ModuleType) -> None:
    """On a log axis, as `full` submits 29 times as fast as the baseline and split_eager slower than it."""
    _, summary, group = h100
    figure = speedup(summary, group)
    machine = fake_runs.h100()
    for mode in MODES[1:]:
        expected = [machine.submit_s("monolithic_eager", n) / machine.submit_s(mode, n) for n in (1, 16, 256)]
        assert np.asarray(line(figure, mode, 1).get_ydata()) == pytest.approx(expected, rel=1e-5)
    assert list(line(figure, "monolithic_eager", 1).get_ydata()) == [1.0, 1.0]
    device, submit = figure.axes
    assert submit.get_yscale() == "log"
    bottom, top = submit.get_ylim()
    assert bottom <= 0.9 and top >= 29
    assert "device time" in device.get_ylabel() and "host submit time" in submit.get_ylabel()


def test_two_panels_share_one_legend_and_one_caption(h100: Any, texts: Texts) -> None:
    _, summary, group = h100
    figure = speedup(summary, group)
    device, submit = figure.axes
    assert device.get_legend() and submit.get_legend() is None
    assert (device.get_xlabel(), submit.get_xlabel()) == ("", "tokens per step")
    assert texts(figure).count("NVIDIA H100") == 1


def test_submit_times_near_the_baseline_stay_on_a_linear_axis(fake_runs: ModuleType) -> None:
    rows = [
        fake_runs.timing(fake_runs.point(mode, tokens), 1e-4, submit_s)
        for tokens in (1, 64)
        for mode, submit_s in (("monolithic_eager", 6e-4), ("full", 1e-4))
    ]
    summary = summarize(fake_runs.make_run(rows))
    figure = speedup(summary, groups(summary)[0])
    assert list(line(figure, "full", 1).get_ydata()) == pytest.approx([6.0, 6.0], rel=1e-6)
    assert figure.axes[1].get_yscale() == "linear"


def test_an_emulated_speed_up_has_one_panel(fake_runs: ModuleType) -> None:
    summary = summarize(fake_runs.make_run(fake_runs.sweep(fake_runs.laptop()), device="cpu"))
    figure = speedup(summary, groups(summary)[0])
    (axes,) = figure.axes
    assert "wall time" in axes.get_ylabel() and axes.get_xlabel() == "tokens per step"


def test_a_cell_without_a_time_breaks_its_line_and_is_counted(fake_runs: ModuleType, texts: Texts) -> None:
    rows = fake_runs.sweep(fake_runs.h100(sizes=(1, 16, 256)))
    at = fake_runs.point("full", 16).key
    rows = [
        fake_runs.ended(row.point, "incorrect", "differs") if (row.kind, row.point.key) == ("timing", at) else row
        for row in rows
    ]
    summary = summarize(fake_runs.make_run(rows))
    figure = latency(summary, groups(summary)[0])
    assert list(np.isnan(line(figure, "full").get_ydata())) == [False, True, False]
    assert "not shown: 1 INCORRECT" in texts(figure)


@pytest.mark.parametrize("draw", [latency, speedup])
def test_each_boundary_is_a_line_of_its_modes_colour(fake_runs: ModuleType, draw: Any) -> None:
    """Named by its way in the legend; told from the PR's by style and fill."""
    summary = summarize(fake_runs.make_run(fake_runs.complete(fake_runs.h100(sizes=(1, 16)))))
    figure = draw(summary, groups(summary)[0])
    for mode in ("split_piecewise", "breakable"):
        for boundary in BOUNDARIES:
            drawn = line(figure, mode if boundary == "index_quant" else f"{mode}@{boundary}")
            assert (drawn.get_color(), drawn.get_marker()) == (MODE[mode].colour, MODE[mode].marker)
            assert drawn.get_linestyle() == BOUNDARY[boundary].line
    hollow = line(figure, "breakable@proj")
    assert (hollow.get_markerfacecolor(), hollow.get_markeredgecolor()) == ("white", MODE["breakable"].colour)
    legend = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert len(legend) == 12 and legend.index("split_piecewise@proj") < legend.index("split_piecewise")


def test_one_token_count_puts_every_boundary_side_by_side(fake_runs: ModuleType) -> None:
    summary = summarize(fake_runs.make_run(fake_runs.complete(fake_runs.h100(sizes=(64,)))))
    figure = latency(summary, groups(summary)[0])
    names = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert len(names) == 12 and "split\npiecewise\n@cache\nupdate" in names
    assert figure.axes[0].get_legend() is None


def test_one_token_count_puts_the_modes_side_by_side(fake_runs: ModuleType) -> None:
    summary = summarize(fake_runs.make_run(fake_runs.sweep(fake_runs.h100(sizes=(64,)), "decode", 8192)))
    figure = latency(summary, groups(summary)[0])
    axes = figure.axes[0]
    assert [label.get_text().replace("\n", "_") for label in axes.get_xticklabels()] == list(MODES)
    assert [float(line(figure, mode).get_xdata()[0]) for mode in MODES] == list(range(len(MODES)))
    assert (axes.get_xlabel(), figure.axes[1].get_xlabel()) == ("", "64 tokens per step")
