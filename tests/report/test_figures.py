"""Golden data: the numbers that a figure draws, read back from it. Looks are judged by eye, not here."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure

from mlaprof.analysis.summary import Group, Summary, groups, summarize
from mlaprof.report.figures import DPI, WIDTH_IN, latency, memory, speedup, tiles, write_figures
from mlaprof.report.style import MODE
from mlaprof.study import MODES


@pytest.fixture(scope="module")
def h100(fake_runs: ModuleType) -> tuple[Any, Summary, Group]:
    choices = (fake_runs.tile(block_n=128, num_warps=8), fake_runs.tile(block_n=64, num_warps=4))
    machine = fake_runs.h100(
        sizes=(1, 16, 256), tiles=choices, tile_factor=lambda choice, _: 0.5 if choice.values["block_n"] == 64 else 2.0
    )
    run = fake_runs.make_run(fake_runs.sweep(machine))
    summary = summarize(run)
    return run, summary, groups(summary)[0]


def line(figure: Figure | None, label: str, panel: int = 0) -> Any:
    assert figure
    return next(each for each in figure.axes[panel].get_lines() if each.get_label() == label)


def texts(figure: Figure | None) -> str:
    assert figure
    return "\n".join(text.get_text() for text in figure.findobj(lambda artist: hasattr(artist, "get_text")))


def test_latency_draws_the_medians_of_every_mode(h100: Any, fake_runs: ModuleType) -> None:
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
    assert axes.get_ylabel() == "time per step (us)"
    assert "host submit (markers: device)" in texts(figure)
    dashed = [each for each in axes.get_lines() if each.get_marker() == "None"]
    assert len(dashed) == len(MODES)  # submit times
    assert sorted(each.get_ydata()[0] for each in dashed) == pytest.approx([21, 150, 330, 610, 640], rel=1e-3)


def test_the_band_is_the_interval(h100: Any) -> None:
    _, summary, group = h100
    figure = latency(summary, group)
    band = next(each for each in figure.axes[0].collections if isinstance(each, PolyCollection))
    ends = sorted(set(band.get_paths()[0].vertices[:, 1]))
    cells = [cell for cell in group.cells if cell.mode == MODES[0] and not cell.tiles]
    expected = sorted(1e6 * value for cell in cells for value in (cell.device_s.ci_low, cell.device_s.ci_high))
    assert ends == pytest.approx(expected)


def test_every_figure_is_captioned(h100: Any) -> None:
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


def test_two_panels_share_one_legend_and_one_caption(h100: Any) -> None:
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


def test_a_cell_without_a_time_breaks_its_line_and_is_counted(fake_runs: ModuleType) -> None:
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


def test_one_token_count_puts_the_modes_side_by_side(fake_runs: ModuleType) -> None:
    summary = summarize(fake_runs.make_run(fake_runs.sweep(fake_runs.h100(sizes=(64,)), "decode", 8192)))
    figure = latency(summary, groups(summary)[0])
    axes = figure.axes[0]
    assert [label.get_text().replace("\n", "_") for label in axes.get_xticklabels()] == list(MODES)
    assert [float(line(figure, mode).get_xdata()[0]) for mode in MODES] == [0, 1, 2, 3, 4]
    assert axes.get_xlabel() == "64 tokens per step"


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


def test_the_heat_map_shows_ratios_to_the_default_in_the_order_of_the_study(h100: Any) -> None:
    _, summary, group = h100
    figure = tiles(summary, group)
    (axes,) = figure.axes
    rows = [label.get_text() for label in axes.get_yticklabels()]
    assert rows == ["default (us)", "sparse_attn=n128.w8", "sparse_attn=n64.w4"]
    colours = np.asarray(axes.images[0].get_array())
    assert colours == pytest.approx(np.array([[0.0] * 3, [-1.0] * 3, [1.0] * 3]), abs=1e-5)
    assert [text.get_text() for text in axes.texts[3:]] == ["0.50"] * 3 + ["2.00"] * 3


def test_compile_facts_are_drawn_where_nothing_was_timed(fake_runs: ModuleType) -> None:
    choices = (fake_runs.tile(block_n=128), fake_runs.tile(block_n=64))
    run = fake_runs.make_run(fake_runs.sweep(fake_runs.laptop(tiles=choices)), device="cpu")
    summary = summarize(run)
    figure = tiles(summary, groups(summary)[0])
    assert "compiled for sm_90, not timed" in texts(figure)
    assert [text.get_text() for text in figure.axes[0].texts] == ["128", "96.00", "0"] * 2
    assert "emulated on a CPU" in texts(latency(summary, groups(summary)[0]))


def test_files_are_named_by_phase_and_context_and_wide_enough(fake_runs: ModuleType, tmp_path: Path) -> None:
    rows = [*fake_runs.sweep(fake_runs.laptop()), *fake_runs.sweep(fake_runs.laptop(), "decode", 4096)]
    run = fake_runs.make_run(rows, device="cpu")
    paths = write_figures(run, summarize(run), tmp_path / "new" / "plots")
    assert [path.name for path in paths if path.suffix == ".png"] == [
        f"{name}-{place}.png"
        for place in ("prefill-ctx0", "decode-ctx4096")
        for name in ("latency", "speedup", "memory")
    ]
    assert {path.with_suffix("") for path in paths if path.suffix == ".svg"} == {
        path.with_suffix("") for path in paths if path.suffix == ".png"
    }
    header = paths[0].read_bytes()[:24]
    assert int.from_bytes(header[16:20], "big") == WIDTH_IN * DPI == 1600


def test_the_same_run_draws_the_same_files(fake_runs: ModuleType, tmp_path: Path) -> None:
    run = fake_runs.make_run([fake_runs.timing(fake_runs.point(), 1e-4)])
    first, second = (write_figures(run, summarize(run), tmp_path / name) for name in ("a", "b"))
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_a_run_without_numbers_draws_nothing(fake_runs: ModuleType, tmp_path: Path) -> None:
    run = fake_runs.make_run([fake_runs.ended(fake_runs.point(), "failed", "OOM")])
    assert write_figures(run, summarize(run), tmp_path) == []


def test_names_with_dollars_and_underscores_are_drawn_as_they_are(fake_runs: ModuleType, tmp_path: Path) -> None:
    at = fake_runs.point(preset="my_$x^{$_shape")
    run = fake_runs.make_run([fake_runs.timing(at, 1e-4)], run_id="r_$1")
    assert write_figures(run, summarize(run), tmp_path)


def test_a_summary_of_another_run_is_refused(fake_runs: ModuleType, tmp_path: Path) -> None:
    run = fake_runs.make_run([])
    with pytest.raises(ValueError, match="expected the one of run other"):
        write_figures(fake_runs.make_run([], run_id="other"), summarize(run), tmp_path)


def test_tables_need_no_matplotlib_and_nothing_here_needs_torch() -> None:
    """`show` answers at once: importing the console must not pull in slow packages, nor figures pyplot."""
    code = (
        "import sys, mlaprof.report.console, mlaprof.report.export, mlaprof.report.progress, mlaprof.report.figures\n"
        "slow = {'torch', 'matplotlib', 'scipy.stats', 'triton'} & set(sys.modules)\n"
        "assert not slow, slow\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
