from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlaprof.analysis.cells import Floor
from mlaprof.analysis.compare import Comparison, FailOn, compare
from mlaprof.analysis.differences import refusal
from mlaprof.analysis.summary import summarize
from mlaprof.config.load import load_study, resolved_yaml
from mlaprof.store import load


def pair(fake_runs: ModuleType, base_s: float, new_s: float, **changes: Any) -> Comparison:
    at = fake_runs.point()
    base = fake_runs.make_run([fake_runs.timing(at, base_s)])
    new = fake_runs.make_run([fake_runs.timing(at, new_s, **changes)])
    return compare(base, new)


@pytest.mark.parametrize(("factor", "expected", "code"), [(1.05, "SLOWER", 1), (0.9, "FASTER", 0), (1.0, "SAME", 0)])
def test_planted_changes_are_found(fake_runs: ModuleType, factor: float, expected: str, code: int) -> None:
    result = pair(fake_runs, 1e-4, 1e-4 * factor)
    (delta,) = result.deltas
    assert delta.verdict == expected
    assert delta.ratio and delta.ratio.median == pytest.approx(factor, rel=1e-6)
    assert result.exit_code() == code
    assert not result.mismatches


def test_noise_over_the_threshold_is_ambiguous(fake_runs: ModuleType) -> None:
    noisy = fake_runs.samples(1e-4, n=30, spread=0.2)
    result = pair(fake_runs, 1e-4, 1e-4, device_s=noisy)
    (delta,) = result.deltas
    assert delta.verdict == "AMBIGUOUS" and not delta.reason
    assert delta.rounds and delta.rounds > 30
    assert [result.exit_code(each) for each in FailOn] == [0, 3, 0]


OUTCOMES = {
    # (base, new) -> verdict, regression; None: left out
    ("ok", "incorrect"): ("INCORRECT", True),
    ("incorrect", "incorrect"): ("INCORRECT", True),
    ("ok", "failed"): ("FAILED", True),
    ("failed", "failed"): ("FAILED", False),
    ("absent", "failed"): ("FAILED", False),
    ("ok", "absent"): ("MISSING", False),
    ("ok", "missing"): ("MISSING", False),
    ("ok", "skipped"): ("MISSING", False),
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
    regression = bool(expected and expected[1])
    missing = bool(expected and expected[0] == "MISSING")
    assert result.exit_code(FailOn.slower) == int(regression)
    assert result.exit_code(FailOn.ambiguous) == int(regression or missing)
    assert result.exit_code(FailOn.never) == 0
    assert result.judged == regression


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
    assert [result.exit_code(each) for each in FailOn] == [4, 4, 4]


def test_emulated_and_real_and_cold_and_warm_never_compare(fake_runs: ModuleType) -> None:
    at = fake_runs.point()
    real = fake_runs.make_run([fake_runs.timing(at, 1e-4)])
    emulated = fake_runs.make_run([fake_runs.timing(at, 1e-4, emulated=True)], device="cpu")
    warm = fake_runs.make_run([fake_runs.timing(at, 1e-4, cache="warm")])
    assert {d.name for d in compare(real, emulated).mismatches} == {"device", "processor", "capture"}
    assert [d.name for d in compare(real, warm).mismatches] == ["cache state"]
    assert compare(real, emulated).exit_code() == compare(real, warm).exit_code() == 4


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
    assert result.deltas[0].ratio is None and result.judged


@pytest.mark.parametrize("threshold", [0.0, -0.1, 1.0, float("nan")])
def test_a_threshold_outside_its_range_is_refused(fake_runs: ModuleType, threshold: float) -> None:
    run = fake_runs.make_run([])
    with pytest.raises(ValueError, match="threshold"):
        compare(run, run, threshold=threshold)


def test_another_machine_passes_where_it_is_asked_for_and_another_cache_state_never(fake_runs: ModuleType) -> None:
    """The remedy is named only where it helps."""
    at = fake_runs.point()
    real = fake_runs.make_run([fake_runs.timing(at, 1e-4)])
    other = fake_runs.make_run(
        [fake_runs.timing(at, 2e-4)], gpus=(fake_runs.H100.model_copy(update={"name": "NVIDIA H200"}),)
    )
    warm = fake_runs.make_run([fake_runs.timing(at, 1e-4, cache="warm")])
    emulated = fake_runs.make_run([fake_runs.timing(at, 1e-4, emulated=True)], device="cpu")

    crossed = compare(real, other, cross_machine=True)
    assert ([d.name for d in crossed.crossed], crossed.mismatches, crossed.exit_code()) == (["processor"], (), 1)
    assert {d.name for d in compare(real, emulated, cross_machine=True).crossed} == {"device", "processor", "capture"}
    assert compare(real, warm, cross_machine=True).exit_code() == 4

    assert "--cross-machine" in str(refusal(compare(real, other).mismatches))
    assert "--cross-machine" not in str(refusal(compare(real, warm).mismatches))
    assert "cache state" in str(refusal(compare(real, warm).mismatches))


def test_a_run_against_itself_is_the_same_everywhere_and_exactly(fake_runs: ModuleType) -> None:
    """However noisy: a measurement is no second sample of itself."""
    noisy = fake_runs.samples(1e-4, n=30, spread=0.5)
    rows = [fake_runs.timing(fake_runs.point("full", tokens), 1e-4, device_s=noisy) for tokens in (1, 8)]
    run = fake_runs.make_run(rows)
    result = compare(run, run)
    assert [(delta.verdict, delta.p_holm) for delta in result.deltas] == [("SAME", 1.0)] * 2
    for ratio in (*(delta.ratio for delta in result.deltas), result.means["full"]):
        assert ratio and (ratio.median, ratio.ci_low, ratio.ci_high) == (1.0, 1.0, 1.0)


def test_p_values_are_adjusted_over_the_grid(fake_runs: ModuleType) -> None:
    """Six rounds cannot tell 40 cells apart with 5 % of a chance of one false verdict, but they can tell one."""

    def run(factor: float, cells: int) -> Any:
        rows = [fake_runs.timing(fake_runs.point("full", 1 + place), 1e-4 * factor, n=6) for place in range(cells)]
        return fake_runs.make_run(rows)

    (alone,) = compare(run(1.0, 1), run(1.1, 1)).deltas
    assert alone.verdict == "SLOWER" and alone.p == alone.p_holm == alone.p_bh == pytest.approx(2 / 924)
    many = compare(run(1.0, 40), run(1.1, 40)).deltas
    assert {delta.verdict for delta in many} == {"AMBIGUOUS"}
    assert many[0].reason == "p = 0.09 when adjusted over all cells" and many[0].rounds is None
    assert many[0].p_holm == pytest.approx(40 * 2 / 924) and many[0].p_bh == pytest.approx(2 / 924)


def test_a_throttled_cell_is_neither_slower_nor_faster_nor_in_a_mean(fake_runs: ModuleType) -> None:
    at, well = fake_runs.point("full", 1), fake_runs.point("full", 8)
    hot = {"clock_event_reasons": (0x40,) + (0,) * 49}
    base = fake_runs.make_run([fake_runs.timing(at, 1e-4), fake_runs.timing(well, 1e-4)])
    new = fake_runs.make_run([fake_runs.timing(at, 2e-4, **hot), fake_runs.timing(well, 1e-4)])
    for pair_of_runs, where in (((base, new), "new"), ((new, base), "base"), ((new, new), "base and new")):
        result = compare(*pair_of_runs)
        assert result.deltas[0].verdict == "THROTTLED"
        assert result.deltas[0].reason == f"the clocks stayed down in {where}"
        assert [result.exit_code(each) for each in FailOn] == [0, 3, 0] and result.judged
        assert result.deltas[0].p_holm is result.deltas[0].p_bh is None and result.deltas[0].ratio
        assert result.means["full"].n == 1 and result.means["full"].median == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("factor", "clock_hz", "expected"),
    [
        (1.05, 1.95e9, "SLOWER"),
        (1.05, 1.95e9 / 1.05, "AMBIGUOUS"),
        (1.05, 1.95e9 * 1.05, "SLOWER"),
        (1 / 1.05, 1.95e9 * 1.05, "AMBIGUOUS"),
        (1 / 1.05, 1.95e9 / 1.05, "FASTER"),
        (1.05, 1.95e9 / 1.02, "SLOWER"),
    ],
)
def test_a_change_that_the_clock_explains_is_ambiguous(
    fake_runs: ModuleType, factor: float, clock_hz: float, expected: str
) -> None:
    result = pair(fake_runs, 1e-4, 1e-4 * factor, sm_clock_hz=(clock_hz,) * 50)
    assert result.deltas[0].verdict == expected
    assert ("SM clocks" in result.deltas[0].reason) == (expected == "AMBIGUOUS")


def test_a_floor_above_the_threshold_takes_its_place(fake_runs: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """The larger one of the two runs; a run that timed nothing twice is taken to have 0.5 %."""
    floors = {"base": Floor(0.03, 4), "new": None}

    def with_floor(run: Any) -> Any:
        return replace(summarize(run), floor=floors[run.manifest.run_id])

    monkeypatch.setattr("mlaprof.analysis.sides.summarize", with_floor)
    at = fake_runs.point()
    base = fake_runs.make_run([fake_runs.timing(at, 1e-4)], run_id="base")
    new = fake_runs.make_run([fake_runs.timing(at, 1.02e-4)], run_id="new")
    for runs in ((base, new), (new, base)):
        result = compare(*runs)
        assert (result.threshold, result.limit) == (0.01, 0.03)
        assert result.deltas[0].verdict == "SAME"
    floors["base"] = None
    assert compare(base, new).limit == 0.01 and compare(base, new).deltas[0].verdict == "SLOWER"
    assert compare(base, new, threshold=0.001).limit == 0.005


def test_twins_are_no_cells_but_the_floor_of_their_run(fake_runs: ModuleType) -> None:
    """A twin that lies 3 % off its baseline in either run leaves a change of 2 % unseen."""
    at = fake_runs.point("monolithic_eager")
    rows = [fake_runs.timing(at, 1e-4), fake_runs.timing(fake_runs.point("full"), 1e-4)]
    twin = fake_runs.timing(at.model_copy(update={"twin": True}), 1.03e-4)
    noisy = fake_runs.make_run([*rows, twin])
    new = fake_runs.make_run([rows[0], fake_runs.timing(fake_runs.point("full"), 1.02e-4), twin])
    result = compare(noisy, new)
    assert [delta.key for delta in result.deltas] == [row.point.key for row in rows]
    assert [delta.verdict for delta in result.deltas] == ["SAME", "SAME"]
    assert result.limit == pytest.approx(0.0296, abs=1e-4)


@settings(max_examples=40, deadline=None)
@given(
    factor=st.floats(0.9, 1.1),
    spread=st.floats(0.0005, 0.05),
    rounds=st.integers(6, 60),
    thresholds=st.tuples(st.floats(0.001, 0.1), st.floats(0.001, 0.1)),
    seed=st.integers(0, 99),
)
def test_exchanging_the_runs_inverts_and_a_larger_threshold_calms(
    fake_runs: ModuleType, factor: float, spread: float, rounds: int, thresholds: tuple[float, float], seed: int
) -> None:
    """FASTER and SLOWER change places; what is SAME stays so, and no larger threshold finds a change."""
    rng = np.random.default_rng(seed)
    base, new = (
        fake_runs.make_run(
            [fake_runs.timing(fake_runs.point(), 1e-4, device_s=tuple(scale * rng.lognormal(0, spread, rounds)))]
        )
        for scale in (1e-4, 1e-4 * factor)
    )
    low, high = sorted(thresholds)
    there, back = (compare(*runs, threshold=low).deltas[0] for runs in ((base, new), (new, base)))
    other = {"SLOWER": "FASTER", "FASTER": "SLOWER"}
    assert back.verdict == other.get(there.verdict, there.verdict)
    assert there.ratio and back.ratio and there.ratio.median == pytest.approx(1 / back.ratio.median)
    assert (there.p_holm, there.rounds is None) == (pytest.approx(back.p_holm), back.rounds is None)
    calmer = compare(base, new, threshold=high).deltas[0]
    assert calmer.verdict != other.get(there.verdict)
    if there.verdict == "SAME":
        assert calmer.verdict == "SAME"
    if calmer.verdict in other:
        assert there.verdict == calmer.verdict


@pytest.mark.parametrize("name", ["v3.2-tp8-prefill/run", "capture-h100/v3.2-tp8-prefill"])
def test_a_committed_run_is_the_same_as_itself(checkout: Path, name: str) -> None:
    run = load(checkout / "results" / "reference" / f"{name}.mlaprof")
    result = compare(run, run)
    assert {delta.verdict for delta in result.deltas} == {"SAME"} and result.exit_code(FailOn.ambiguous) == 0


def test_two_committed_runs_of_one_study_are_mostly_the_same(checkout: Path) -> None:
    """Another H100, other code around the kernels, fewer rounds: noted, and at 5 % nothing is to be seen. One process
    of each is too little to call short eager steps the same."""
    folder = checkout / "results" / "reference"
    runs = [load(folder / f"{name}.mlaprof") for name in ("v3.2-tp8-prefill/run", "capture-h100/v3.2-tp8-prefill")]
    result = compare(*runs, threshold=0.05)
    assert "GPU uuid" in {note.name for note in result.notes} and not result.mismatches
    assert {delta.verdict for delta in result.deltas} == {"SAME", "NEW", "AMBIGUOUS"} and result.judged
    assert {delta.verdict for delta in result.deltas if delta.way == "full"} == {"SAME"}
    assert all(delta.base.num_tokens <= 256 for delta in result.deltas if delta.verdict == "AMBIGUOUS")
