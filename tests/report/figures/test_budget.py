"""Golden data: the widths of the bars, read back from them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import ModuleType

import pytest
from matplotlib.figure import Figure

from mlaprof.analysis.cells import Summary
from mlaprof.analysis.clocks import StepBudget
from mlaprof.analysis.groups import groups
from mlaprof.analysis.summary import summarize
from mlaprof.report.figures.budget import budget
from mlaprof.report.style import BUDGET_PARTS

Served = Callable[..., Summary]
Texts = Callable[[Figure | None], str]


def drawn(summary: Summary) -> Figure:
    figure = budget(summary, groups(summary)[0])
    assert figure
    return figure


def widths(figure: Figure, panel: int = 0) -> dict[str, list[float]]:
    """By label of the part: a width a way."""
    return {bars.get_label(): [bar.get_width() for bar in bars] for bars in figure.axes[panel].containers}


def test_a_bar_is_the_parts_of_a_step_in_order(served: Served) -> None:
    figure = drawn(served())
    assert list(widths(figure)) == [look.label for look in BUDGET_PARTS.values()]
    host, mixed, device = zip(*widths(figure).values(), strict=True)
    assert host == pytest.approx((100, 467, 0, 63))
    assert mixed == pytest.approx((100, 5, 1, 0))
    assert device == pytest.approx((70, 0.35, 0, 0))
    starts = [bars[0].get_x() for bars in figure.axes[0].containers]
    assert starts == pytest.approx([0, 100, 567, 567])


def test_every_part_has_a_hatch_of_its_own_for_grey_print(served: Served) -> None:
    hatches = [bars[0].get_hatch() for bars in drawn(served()).axes[0].containers]
    assert len(set(hatches)) == len(BUDGET_PARTS)


def test_each_size_has_an_axis_of_its_own_from_zero(served: Served, texts: Texts) -> None:
    """630 us and 64.5 ms would not share one."""
    figure = drawn(served((1, 1024)))
    small, large = figure.axes
    assert (small.get_xlabel(), large.get_xlabel()) == ("us a step of 1 token", "ms a step of 1024 tokens")
    assert small.get_xlim()[0] == large.get_xlim()[0] == 0
    assert small.get_xlim()[1] > 630 and large.get_xlim()[1] > 645.1
    assert "630.0, 16% busy" in texts(figure) and "70.35, >99% busy" in texts(figure)


@pytest.mark.parametrize("count", [1, 2, 3, 6, 9])
def test_six_sizes_at_most_with_both_ends(served: Served, count: int) -> None:
    sizes = tuple(2**power for power in range(count))
    figure = drawn(served(sizes))
    shown = [axes for axes in figure.axes if axes.get_visible()]
    assert len(shown) == min(count, 6)
    assert f" of {sizes[-1]} token" in shown[-1].get_xlabel() and " of 1 token" in shown[0].get_xlabel()


def test_names_stand_beside_the_left_panels_alone(served: Served) -> None:
    figure = drawn(served((1, 8)))
    left, right = ([label.get_visible() for label in axes.get_yticklabels()] for axes in figure.axes)
    assert all(left) and not any(right)
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == [
        "monolithic_eager",
        "split_eager",
        "full",
    ]


def test_a_way_without_a_time_leaves_its_row_empty(served: Served) -> None:
    summary = served((1, 8))
    cells = (
        replace(cell, budget=None) if cell.key.endswith("/t1/ctx0/split_eager") else cell for cell in summary.cells
    )
    figure = drawn(replace(summary, cells=tuple(cells)))
    assert [bar.get_y() > 0.5 for bar in figure.axes[0].containers[0]] == [False, True]
    assert len(figure.axes[1].containers[0]) == 3


def test_runs_without_a_budget_draw_none(fake_runs: ModuleType) -> None:
    """Of before sustained steps were timed, and emulated ones."""
    for run in (
        fake_runs.make_run(fake_runs.sweep(fake_runs.h100(sizes=(1, 64)))),
        fake_runs.make_run(fake_runs.sweep(fake_runs.laptop()), device="cpu"),
    ):
        summary = summarize(run)
        assert budget(summary, groups(summary)[0]) is None


def test_a_device_busier_than_its_step_is_one_bar(served: Served, texts: Texts) -> None:
    figure = drawn(served(full={"budget": StepBudget(72e-6, 0.0, 0.0, 0.0)}))
    assert "72.00, 100% busy" in texts(figure)
