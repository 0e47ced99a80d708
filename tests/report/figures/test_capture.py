"""The kernels and the costs that the figures of capture draw."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mlaprof.analysis.groups import groups
from mlaprof.analysis.summary import summarize
from mlaprof.facts import Ledger, SizeFacts
from mlaprof.records import Measurement
from mlaprof.report.figures.capture import capture_cost, counts

Texts = Callable[[Figure | None], str]


def drawn(draw: Callable[..., Figure | None], fake_runs: ModuleType, *rows: Measurement, **changes: Any) -> Any:
    summary = summarize(fake_runs.make_run(rows, **changes))
    return draw(summary, groups(summary)[0])


def made_of(fake_runs: ModuleType, sizes: tuple[SizeFacts, ...]) -> Ledger:
    kept: Ledger = fake_runs.ledger().model_copy(update={"sizes": sizes})
    return kept


def widths(axes: Axes) -> list[list[float]]:
    return [[bar.get_width() for bar in container] for container in axes.containers]  # type: ignore[attr-defined]


def test_kernels_in_graphs_and_outside_are_stacked_by_way(fake_runs: ModuleType) -> None:
    """Sizes that count the same share a panel, and a middle size is not drawn."""
    rows = [
        each
        for tokens in (1, 16, 64)
        for each in (
            fake_runs.counts(fake_runs.point("split_eager", tokens)),
            fake_runs.counts(fake_runs.point("breakable", tokens, boundary="logits"), 8, 48),
        )
    ]
    (axes,) = drawn(counts, fake_runs, *rows).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["split_eager", "breakable@logits"]
    assert widths(axes) == [[0, 48], [56, 8]]
    assert [text.get_text() for text in axes.texts] == ["56 launches", "2 graphs + 8 launches (86%)"]
    assert axes.get_xlabel() == "kernels per step of 1 and 64 tokens"


def test_sizes_that_count_otherwise_have_panels_of_their_own(fake_runs: ModuleType) -> None:
    """A wait, a copy and an incomplete count are said beside the bar."""
    small = fake_runs.counts(fake_runs.point("full", 1), 0, 56, graph_launches=1)
    large = fake_runs.counts(fake_runs.point("full", 64), 1, 56, stream_syncs=1, d2h_copies=2, complete=False)
    first, second = drawn(counts, fake_runs, small, large).axes
    assert [text.get_text() for text in first.texts] == ["1 graph + 0 launches (100%)"]
    assert [text.get_text() for text in second.texts] == ["2 graphs + 1 launches (98%), 1 sync, 2 D2H, incomplete"]


def test_emulated_counts_say_what_they_are(fake_runs: ModuleType, texts: Texts) -> None:
    row = fake_runs.counts(fake_runs.point("full", 8)).model_copy(update={"emulated": True})
    assert "operators, emulated on a CPU" in texts(drawn(counts, fake_runs, row, device="cpu"))


def test_a_step_without_kernels_is_drawn(fake_runs: ModuleType) -> None:
    (axes,) = drawn(counts, fake_runs, fake_runs.counts(fake_runs.point("full"), 0, 0)).axes
    assert widths(axes) == [[0], [0]] and axes.get_xlim()[1] > 0


def test_runs_without_counts_and_ledgers_draw_neither(h100: Any) -> None:
    _, summary, group = h100
    assert counts(summary, group) is None and capture_cost(summary, group) is None


def test_eager_processes_have_no_cost_of_capture(fake_runs: ModuleType) -> None:
    row = fake_runs.with_ledger(fake_runs.memory(fake_runs.point("split_eager"), 0.0), fake_runs.ledger(()))
    assert drawn(capture_cost, fake_runs, row) is None


def test_the_cost_of_each_size_is_drawn_and_a_size_not_captured_breaks_the_line(fake_runs: ModuleType) -> None:
    sizes = (
        SizeFacts(
            num_tokens=256,
            state="captured",
            capture_s=0.05,
            instantiate_s=0.03,
            first_replay_s=0.02,
            pool_bytes=6 * 2**20,
            driver_bytes=2**20,
        ),
        SizeFacts(num_tokens=16, state="not_captured", reason="out of memory"),
        SizeFacts(num_tokens=1, state="captured", capture_s=0.004),
    )
    row = fake_runs.memory(fake_runs.point("breakable", 256), 6.0)
    figure = drawn(capture_cost, fake_runs, fake_runs.with_ledger(row, made_of(fake_runs, sizes)))
    seconds, added = (axes.get_lines()[0] for axes in figure.axes)
    assert list(seconds.get_xdata()) == list(added.get_xdata()) == [1, 16, 256]
    assert np.asarray(seconds.get_ydata()) == pytest.approx([4.0, np.nan, 100.0], nan_ok=True)
    assert np.asarray(added.get_ydata()) == pytest.approx([0.0, np.nan, 7.0], nan_ok=True)
    assert figure.axes[0].get_ylabel().endswith("(ms)") and figure.axes[1].get_ylabel().endswith("(MiB)")
    assert "not captured in every mode: 16 tokens" in figure.get_supxlabel()


def test_graphs_that_cost_nothing_are_drawn(fake_runs: ModuleType) -> None:
    """An emulation may report no seconds and no bytes."""
    sizes = (SizeFacts(num_tokens=8, state="captured"), SizeFacts(num_tokens=1, state="captured"))
    row = fake_runs.with_ledger(fake_runs.memory(fake_runs.point(), 0.0, peak=False), made_of(fake_runs, sizes))
    figure = drawn(capture_cost, fake_runs, row, device="cpu")
    figure.draw_without_rendering()
    assert "emulated on a CPU" in figure.get_supxlabel()
