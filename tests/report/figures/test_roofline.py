"""The roofline of a committed run of kernels: each dot at the rates that the summary has."""

from __future__ import annotations

from pathlib import Path

import matplotlib
import pytest

from mlaprof import store
from mlaprof.analysis.kernels import KernelSummary, summarize_kernels
from mlaprof.report.figures.canvas import RC
from mlaprof.report.figures.roofline import roofline


@pytest.fixture(scope="module")
def measured(checkout: Path):
    run = store.load(checkout / "results" / "reference" / "kernels-h100.mlaprof")
    return summarize_kernels(run), run.manifest


def test_a_dot_stands_at_the_rates_of_the_fastest_own_form(measured):
    summary, manifest = measured
    with matplotlib.rc_context(RC):
        axes = roofline(summary, manifest).axes[0]
    lines = {line.get_label(): line for line in axes.get_lines()}
    own = [
        cell for cell in summary.cells if cell.own and cell.kernel == "block_gemm" and cell.flop_rate and cell.device_s
    ]
    fastest = {}
    for cell in own:
        if cell.shape not in fastest or cell.device_s.median < fastest[cell.shape].device_s.median:
            fastest[cell.shape] = cell
    assert sorted(lines["block_gemm"].get_ydata()) == pytest.approx(
        sorted(cell.flop_rate / 1e12 for cell in fastest.values())
    )
    assert sorted(lines["block_gemm"].get_xdata()) == pytest.approx(
        sorted(cell.flop_rate / cell.byte_rate for cell in fastest.values())
    )


def test_the_roofs_are_the_ceilings_of_the_run(measured):
    summary, manifest = measured
    with matplotlib.rc_context(RC):
        axes = roofline(summary, manifest).axes[0]
    roofs = {line.get_label()[1:]: line for line in axes.get_lines() if line.get_label().startswith("_")}
    assert roofs.keys() == summary.product_rates.keys()
    for precision, rate in summary.product_rates.items():
        xs, ys = roofs[precision].get_xdata(), roofs[precision].get_ydata()
        assert ys[1] == ys[2] == pytest.approx(rate / 1e12)
        assert ys[0] / xs[0] == ys[1] / xs[1] == pytest.approx(summary.copy_rate / 1e12)


def test_without_ceilings_there_is_no_roof(measured):
    summary, manifest = measured
    assert roofline(KernelSummary(summary.cells, (), None, {}), manifest) is None
    assert roofline(KernelSummary((), (), 1.0, {"bf16": 1.0}), manifest) is None
