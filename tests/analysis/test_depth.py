"""From a few layers to the model's: one factor, and a saving by the paired ratio."""

from __future__ import annotations

import pytest

from mlaprof.analysis.depth import full_depth, measured_layers
from mlaprof.analysis.summary import summarize
from mlaprof.shapes import MODEL_LAYERS, PRESETS


@pytest.fixture
def summary(fake_runs):
    rows = [
        fake_runs.timing(fake_runs.point("monolithic_eager", 1), 1e-4, 8e-4),
        fake_runs.timing(fake_runs.point("split_piecewise", 1), 8e-5, 2e-4),
    ]
    return summarize(fake_runs.make_run(rows))


def test_a_step_grows_with_the_layers_and_so_does_what_is_saved(summary):
    eager, split = full_depth(summary, measured=2, layers=61)
    assert eager.step_s.median == pytest.approx(30.5 * 8e-4, rel=0.01)
    assert split.step_s.median == pytest.approx(30.5 * 2e-4, rel=0.01)
    assert eager.saved_s is None
    assert split.saved_s.median == pytest.approx(30.5 * 6e-4, rel=0.01)
    assert split.saved_s.ci_low <= split.saved_s.median <= split.saved_s.ci_high


def test_nothing_is_extrapolated_from_an_emulation(fake_runs):
    run = fake_runs.make_run(fake_runs.sweep(fake_runs.laptop(sizes=(1,))), device="cpu")
    assert full_depth(summarize(run), measured=1, layers=61) == ()


@pytest.mark.parametrize(
    ("study", "layers"),
    [
        ("num_layers: 2\nlayer:\n  linear: bf16\n", 2),
        ("layer:\n  num_layers: 3\n", 3),
        ("layer: {}\n", None),
        ("num_layers: two\n", None),
        ("num_layers: 0\n", None),
        ("::: not yaml", None),
    ],
)
def test_the_number_of_measured_layers_is_the_study_s(study, layers):
    assert measured_layers(study) == layers


def test_depths_are_of_presets_that_there_are():
    assert MODEL_LAYERS.keys() == PRESETS.keys() - {"tiny"}
