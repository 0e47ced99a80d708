from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from mlaprof.analysis.compare import Comparison, compare, verdict
from mlaprof.analysis.stats import Estimate
from mlaprof.config.load import load_study, resolved_yaml


def pair(fake_runs: ModuleType, base_s: float, new_s: float, **changes: Any) -> Comparison:
    at = fake_runs.point()
    base = fake_runs.make_run([fake_runs.timing(at, base_s)])
    new = fake_runs.make_run([fake_runs.timing(at, new_s, **changes)])
    return compare(base, new)


@pytest.mark.parametrize(
    ("low", "high", "n", "expected"),
    [
        (1.02, 1.05, 50, "SLOWER"),
        (0.95, 0.98, 50, "FASTER"),
        (0.995, 1.005, 50, "SAME"),
        (0.99, 1.01, 50, "SAME"),
        (1.005, 1.05, 50, "AMBIGUOUS"),
        (0.95, 0.995, 50, "AMBIGUOUS"),
        (0.95, 1.05, 50, "AMBIGUOUS"),
        (1.2, 1.2, 5, "AMBIGUOUS"),
        (1.2, 1.2, 6, "SLOWER"),
    ],
)
def test_the_verdict_follows_the_whole_interval(low: float, high: float, n: int, expected: str) -> None:
    assert verdict(Estimate((low + high) / 2, low, high, n), 0.01) == expected


@pytest.mark.parametrize(("factor", "expected", "worst"), [(1.05, "SLOWER", 1), (0.9, "FASTER", 0), (1.0, "SAME", 0)])
def test_planted_changes_are_found(fake_runs: ModuleType, factor: float, expected: str, worst: int) -> None:
    result = pair(fake_runs, 1e-4, 1e-4 * factor)
    (delta,) = result.deltas
    assert delta.verdict == expected
    assert delta.ratio and delta.ratio.median == pytest.approx(factor, rel=1e-6)
    assert result.worst == worst
    assert not result.mismatches


def test_noise_over_the_threshold_is_ambiguous(fake_runs: ModuleType) -> None:
    noisy = fake_runs.samples(1e-4, n=30, spread=0.2)
    result = pair(fake_runs, 1e-4, 1e-4, device_s=noisy)
    assert result.deltas[0].verdict == "AMBIGUOUS"
    assert result.worst == 3


OUTCOMES = {
    # (base, new) -> verdict, regression; None: left out
    ("ok", "incorrect"): ("INCORRECT", True),
    ("incorrect", "incorrect"): ("INCORRECT", True),
    ("ok", "failed"): ("FAILED", True),
    ("failed", "failed"): ("FAILED", False),
    ("absent", "failed"): ("FAILED", False),
    ("ok", "absent"): ("MISSING", True),
    ("ok", "missing"): ("MISSING", True),
    ("ok", "skipped"): ("MISSING", True),
    ("absent", "ok"): ("NEW", False),
    ("failed", "ok"): ("NEW", False),
    ("skipped", "ok"): ("NEW", False),
    ("skipped", "skipped"): None,
    ("skipped", "absent"): None,
    ("compiled", "compiled"): None,
    ("missing", "missing"): None,
    ("absent", "skipped"): None,
}


@pytest.mark.parametrize(("base", "new"), OUTCOMES, ids=" then ".join)
def test_what_is_not_timed_twice_has_its_own_verdict(fake_runs: ModuleType, base: str, new: str) -> None:
    """A failure is never SAME, and what was already broken is no regression."""
    at = fake_runs.point()

    def run(outcome: str) -> Any:
        if outcome == "absent":
            return fake_runs.make_run([])
        if outcome == "missing":
            return fake_runs.make_run([], planned=[f"timing {at.key}"])
        row = fake_runs.timing(at, 1e-4) if outcome == "ok" else fake_runs.ended(at, outcome, "why")
        return fake_runs.make_run([row])

    result = compare(run(base), run(new))
    expected = OUTCOMES[base, new]
    assert [(delta.verdict, delta.regression) for delta in result.deltas] == ([expected] if expected else [])
    assert result.worst == (1 if expected and expected[1] else 0)


def test_cells_are_joined_by_key_and_averaged_by_mode(fake_runs: ModuleType) -> None:
    def run(factor: float) -> Any:
        return fake_runs.make_run(
            [
                fake_runs.timing(fake_runs.point("full", 1), 1e-4),
                fake_runs.timing(fake_runs.point("full", 8), 1e-4 * factor),
                fake_runs.timing(fake_runs.point("split_eager", 8), 3e-4),
            ]
        )

    result = compare(run(1.0), run(1.21))
    assert [delta.verdict for delta in result.deltas] == ["SAME", "SLOWER", "SAME"]
    assert result.means["full"].median == pytest.approx(1.1, rel=1e-6)
    assert result.means["full"].n == 2
    assert result.means["split_eager"].median == pytest.approx(1.0, rel=1e-6)


def test_another_gpu_is_a_mismatch_before_anything_else(fake_runs: ModuleType) -> None:
    at = fake_runs.point()
    other = fake_runs.H100.model_copy(update={"name": "NVIDIA H200"})
    base = fake_runs.make_run([fake_runs.timing(at, 1e-4)])
    new = fake_runs.make_run([fake_runs.timing(at, 2e-4)], gpus=(other,))
    result = compare(base, new)
    assert [(d.name, d.base, d.new) for d in result.mismatches] == [
        ("processor", "NVIDIA H100 80GB HBM3", "NVIDIA H200")
    ]
    assert result.worst == 4


def test_emulated_and_real_and_cold_and_warm_never_compare(fake_runs: ModuleType) -> None:
    at = fake_runs.point()
    real = fake_runs.make_run([fake_runs.timing(at, 1e-4)])
    emulated = fake_runs.make_run([fake_runs.timing(at, 1e-4, emulated=True)], device="cpu")
    warm = fake_runs.make_run([fake_runs.timing(at, 1e-4, cache="warm")])
    assert {d.name for d in compare(real, emulated).mismatches} == {"device", "processor", "capture"}
    assert [d.name for d in compare(real, warm).mismatches] == ["cache state"]
    assert compare(real, emulated).worst == compare(real, warm).worst == 4


def test_what_may_explain_a_difference_is_noted(fake_runs: ModuleType) -> None:
    at = fake_runs.point()
    base = fake_runs.make_run([fake_runs.timing(at, 1e-4)])
    new = fake_runs.make_run(
        [fake_runs.timing(at, 1e-4)],
        packages={"torch": "2.12.0", "triton": "3.6.0"},
        gpus=(fake_runs.H100.model_copy(update={"driver": "590.0"}),),
        kernel_source_sha256="cd" * 32,
        study_yaml=fake_runs.STUDY_YAML.replace("num_layers: 1", "num_layers: 2"),
    )
    notes = {note.name: (note.base, note.new) for note in compare(base, new).notes}
    assert notes == {
        "driver": ("580.1", "590.0"),
        "torch": ("2.11.0", "2.12.0"),
        "kernel source": ("ab" * 6, "cd" * 6),
        "layer.num_layers": ("1", "2"),
    }
    assert compare(base, base).notes == ()


@pytest.mark.parametrize(
    "setting,name,values",
    [
        ("num_layers=3", "num_layers", ("2", "3")),
        ("mlp=dense", "mlp", ("none", "dense")),
        ("weights.seed=5", "weights.seed", ("0", "5")),
        ("layer.indexer_max_chunk_size=64", "layer.indexer_max_chunk_size", ("32768", "64")),
        ("batch.next_n=2", "batch.next_n", ("1", "2")),
    ],
)
def test_a_study_as_it_is_stored_tells_what_changed_of_the_layer(
    fake_runs: ModuleType, checkout: Path, setting: str, name: str, values: tuple[str, str]
) -> None:
    """Keys join by the preset's name, so depth, MLP, weights and switches must be told; axes are in the key."""
    at, study = fake_runs.point(), checkout / "configs" / "quickstart.yaml"
    base, new = (
        fake_runs.make_run([fake_runs.timing(at, 1e-4)], study_yaml=resolved_yaml(load_study(study, settings=changes)))
        for changes in ((), (setting, "name=other", "sweep.num_tokens=[1]"))
    )
    assert {note.name: (note.base, note.new) for note in compare(base, new).notes} == {name: values}


def test_a_shape_of_the_same_name_is_told_by_its_dimensions(fake_runs: ModuleType, checkout: Path) -> None:
    at, text = fake_runs.point(), resolved_yaml(load_study(checkout / "configs" / "quickstart.yaml"))
    base, new = (
        fake_runs.make_run([fake_runs.timing(at, 1e-4)], study_yaml=each)
        for each in (text, text.replace("q_lora_rank: 256", "q_lora_rank: 128"))
    )
    assert [note.name for note in compare(base, new).notes] == ["shape.q_lora_rank"]


@pytest.mark.parametrize("text", ["", "- a\n- b\n", "{", "just text"])
def test_a_study_that_is_no_mapping_is_compared_as_text(fake_runs: ModuleType, text: str) -> None:
    at = fake_runs.point()
    base = fake_runs.make_run([fake_runs.timing(at, 1e-4)], study_yaml="other: [")
    new = fake_runs.make_run([fake_runs.timing(at, 1e-4)], study_yaml=text)
    assert [note.name for note in compare(base, new).notes] == ["study"]


def test_samples_of_zero_are_ambiguous_not_infinite(fake_runs: ModuleType) -> None:
    result = pair(fake_runs, 1e-4, 1e-4, device_s=(0.0,) * 50)
    assert result.deltas[0].verdict == "AMBIGUOUS"
    assert result.deltas[0].ratio is None


@pytest.mark.parametrize("threshold", [0.0, -0.1, 1.0, float("nan")])
def test_a_threshold_outside_its_range_is_refused(fake_runs: ModuleType, threshold: float) -> None:
    run = fake_runs.make_run([])
    with pytest.raises(ValueError, match="threshold"):
        compare(run, run, threshold=threshold)
