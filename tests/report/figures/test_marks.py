"""What a figure tells on hover is what it draws: golden values of planted runs, at the places where they stand."""

from __future__ import annotations

import math
from dataclasses import replace

import matplotlib
import pytest
from matplotlib.figure import Figure

from mlaprof.analysis.cells import Floor
from mlaprof.report.figures.canvas import RC
from mlaprof.report.figures.curves import latency, speedup
from mlaprof.report.figures.inline import inline_svg
from mlaprof.report.figures.marks import marks
from mlaprof.report.figures.tiles import tiles
from mlaprof.report.figures.write import drawn
from mlaprof.report.units import time_unit


@pytest.fixture(autouse=True)
def style():
    with matplotlib.rc_context(RC):
        yield


def test_a_point_is_told_with_the_median_and_the_interval_of_its_cell(h100):
    _, summary, group = h100
    found = [mark.text for mark in marks(latency(summary, group))]
    for cell in group.cells:
        if cell.tiles or not cell.device_s:
            continue
        unit = time_unit(
            each.median for other in group.cells if not other.tiles for each in (other.device_s, other.submit_s) if each
        )
        told = next(text for text in found if text.startswith(f"{cell.way}, tokens per step {cell.num_tokens}:"))
        median, low, high = (value / unit.scale for value in (cell.device_s.median, *ends(cell.device_s)))
        numbers = [
            float(each) for each in told.split(": ")[1].replace("[", "").replace("]", "").replace(",", "").split()[:3]
        ]
        assert numbers == pytest.approx([median, low, high], rel=2e-3)


def ends(estimate):
    return estimate.ci_low, estimate.ci_high


def test_every_ratio_of_the_speed_up_figure_is_told(h100):
    _, summary, group = h100
    found = [mark.text for mark in marks(speedup(summary, group))]
    compared = [cell for cell in group.cells if not cell.tiles and cell.mode != "monolithic_eager"]
    assert len(found) == 2 * len(compared)  # device and submit
    for cell in compared:
        assert any(
            f"{cell.way}, tokens per step {cell.num_tokens}: {cell.speedup.median:.4g}" in text for text in found
        )


def test_a_field_of_a_heat_map_is_told_with_its_row_and_column(h100):
    _, summary, group = h100
    found = {mark.text for mark in marks(tiles(summary, group))}
    timed = [cell for cell in group.cells if cell.tiles_speedup]
    assert timed
    for cell in timed:
        assert f"{cell.tiles}, {cell.num_tokens}: {cell.tiles_speedup.median:.2f}" in found


def test_a_mark_lies_where_its_value_is_drawn():
    figure = Figure(figsize=(4, 2))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.plot([0.0, 1.0], [0.0, 4.0], marker="o", label="way")
    axes.set_xlim(-1, 3)
    axes.set_ylim(-4, 4)
    axes.set_xlabel("tokens")
    axes.set_ylabel("us")
    assert [(mark.x, mark.y, mark.text) for mark in marks(figure)] == [
        (0.25, 0.5, "way, tokens 0: 0 us"),
        (0.5, 0.0, "way, tokens 1: 4 us"),
    ]


def test_a_part_of_a_bar_is_told_with_its_own_width():
    figure = Figure()
    axes = figure.subplots()
    axes.barh(["eager", "full"], [2.0, 1.0], label="busy")
    axes.barh(["eager", "full"], [3.0, 0.0], left=[2.0, 1.0], label="gaps")
    axes.set_xlabel("ms")
    assert [mark.text for mark in marks(figure)] == ["eager: busy 2 ms", "full: busy 1 ms", "eager: gaps 3 ms"]


def test_the_floor_is_drawn_behind_the_speed_ups_of_device_time(h100, texts):
    _, summary, group = h100
    assert "grey band" not in texts(speedup(summary, group))
    figure = speedup(replace(summary, floor=Floor(0.02, 3)), group)
    assert texts(figure).count("grey band: A/A floor 2.0%") == 1
    (band,) = figure.axes[0].patches
    assert (band.get_y(), band.get_y() + band.get_height()) == pytest.approx((math.exp(-0.02), math.exp(0.02)))


def test_an_inline_figure_has_names_of_its_own_and_nothing_that_a_run_wrote(h100):
    _, summary, _ = h100
    each = next(drawn(summary))
    svg = inline_svg(each.figure, each.stem)
    assert svg.startswith("<svg ") and svg.endswith("</svg>")
    assert "<!--" not in svg and "<metadata" not in svg and "<?xml" not in svg
    assert 'id="' in svg and svg.count('id="') == svg.count(f'id="{each.stem}-')
    assert svg.count('href="#') == svg.count(f'href="#{each.stem}-')
    with pytest.raises(ValueError, match="name"):
        inline_svg(each.figure, '"><script>')
