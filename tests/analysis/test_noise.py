"""The self-test of the verdicts, on rounds whose noise, bias and injected changes are known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mlaprof.analysis.noise import Noise, noise_of
from mlaprof.analysis.trials import Rate
from mlaprof.facts import NoiseRounds
from mlaprof.records import Measurement, Outcome, Point

MODES = ("monolithic_eager", "full")


def rounds(rng: np.random.Generator, *, bias: float, sd: float, between: float, size: int, lost: float) -> NoiseRounds:
    """One process: a level of its own, a drift common to all arms, and a scatter of each sample."""
    level = 1e-3 * math.exp(rng.normal(0, between))
    drift = np.cumsum(rng.normal(0, 1e-4, size))

    def arm(factor: float) -> tuple[float, ...]:
        return tuple((level * factor * np.exp(drift + rng.normal(0, sd, size))).tolist())

    return NoiseRounds(
        device_s=arm(1.0),
        twin_s=arm(1 + bias),
        slowed_s={share: arm(1 + (1 - lost) * float(share)) for share in ("0.01", "0.02")},
        added_s={"0.01": 1e-5, "0.02": 2e-5},
    )


def measured(
    *,
    processes: int = 12,
    bias: float = 0.0,
    sd: float = 0.002,
    between: float = 0.001,
    size: int = 60,
    lost: float = 0.0,
    seed: int = 0,
) -> list[Measurement]:
    """Noise measurements of two steps.

    bias     of the twin, a ratio - 1
    sd       of each sample; between: of the levels of processes
    lost     share of the injected changes that never was added
    """
    rng = np.random.default_rng(seed)
    return [
        Measurement(
            point=Point(preset="tiny", phase="prefill", num_tokens=7, context_len=0, mode=mode),
            kind="noise",
            process=process,
            outcome=Outcome(status="ok"),
            emulated=True,
            recorded_at="",
            noise=rounds(rng, bias=bias, sd=sd, between=between, size=size, lost=lost),
        )
        for process in range(processes)
        for mode in MODES
    ]


def noise(measurements: list[Measurement], trials: int = 60) -> Noise:
    found = noise_of(measurements, trials=trials)
    assert found is not None
    return found


def test_a_quiet_machine_holds_the_promise() -> None:
    """0.2 % a sample and 0.1 % a process: nothing is told of no change, and 1 % and 2 % are found."""
    found = noise(measured())

    assert found.holds and found.across is not None
    for trials in (found.within, found.across):
        assert (trials.false, trials.verdicts) == (Rate(0, 60), {"SAME": 60})
        assert [each.share for each in trials.injections] == ["0.01", "0.02"]
        assert all(each.slower.share >= 0.98 for each in trials.injections)
        assert 0.01 < trials.smallest_change < 0.02


@pytest.mark.parametrize("bias", [0.03, -0.03], ids=["slower", "faster"])
def test_a_biased_twin_is_told_by_the_floor(bias: float) -> None:
    """A clock that favours one of two equal arms: the floor of the run knows, and forbids verdicts as small."""
    found = noise(measured(bias=bias))

    assert found.floor.ratio == pytest.approx(abs(math.log1p(bias)), rel=0.1)
    assert found.steps[0].twin.median == pytest.approx(1 + bias, rel=0.002)


def test_wrong_verdicts_break_the_promise(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check can fail: the same bias, where the floor is of a run that never saw it, is told as false verdicts."""
    floor = noise(measured()).floor
    monkeypatch.setattr("mlaprof.analysis.noise.noise_floor", lambda twins, arms: floor)
    found = noise(measured(bias=0.03))

    assert not found.holds and found.across is not None
    for trials in (found.within, found.across):
        assert trials.false.share > 0.9 and not trials.holds
        assert trials.verdicts.get("SLOWER", 0) == trials.false.found


def test_a_change_that_never_came_is_not_found() -> None:
    """Spins that add nothing: detection is of the change, not of the arm's name."""
    found = noise(measured(lost=1.0))

    for trials in (found.within, found.across):
        assert trials is not None and not trials.holds
        assert all(each.slower.found == 0 for each in trials.injections)
    for step in found.steps:
        assert all(added.ratio.ci_low < 1.0005 for added in step.added.values())


def test_processes_that_differ_hide_a_change_across_runs_but_not_within_one() -> None:
    """2 % a process: ambiguous across, never wrong; pairing cancels it."""
    found = noise(measured(between=0.02))

    assert found.across is not None and found.floor.between is not None and found.floor.between > 0.03
    assert found.across.false.found <= 1
    assert found.across.injections[0].slower.share < 0.2
    assert found.across.limit == 0.01 == found.within.limit
    assert found.within.holds
    assert not found.holds


def test_what_was_really_added_is_told_beside_what_was_asked() -> None:
    found = noise(measured(lost=0.25, sd=0.001))

    for step in found.steps:
        for share, added in step.added.items():
            assert added.spin_s == pytest.approx(1e-3 * float(share))
            assert added.ratio.ci_low <= 1 + 0.75 * float(share) <= added.ratio.ci_high
            assert added.ratio.half_width < 0.001


def test_a_change_of_one_per_cent_is_judged_at_half_of_it_and_two_at_the_default() -> None:
    """At a threshold of its own size a change is on the line, whatever the clock can do."""
    found = noise(measured()).within

    assert [(each.share, each.threshold, each.limit) for each in found.injections] == [
        ("0.01", 0.005, 0.005),
        ("0.02", 0.01, 0.01),
    ]


def test_the_two_sides_of_a_comparison_across_runs_share_no_process() -> None:
    """With six processes each trial needs them all; with five there are none for the second run."""
    assert noise(measured(processes=6), trials=4).across is not None
    assert noise(measured(processes=5), trials=4).across is None


def test_one_process_and_few_rounds_still_tell_something_within_a_run() -> None:
    found = noise(measured(processes=1, size=7), trials=4)

    assert (found.within.processes, found.within.rounds, found.across) == (1, 7, None)
    assert found.floor.between is None
    assert found.gating is found.within


def test_a_process_that_failed_at_one_step_is_left_out_of_the_trials() -> None:
    """A comparison is of all steps of a run: a process without one of them is none of a run."""
    every = measured(processes=6)
    lost = Outcome(status="failed", stage="measure", reason="throttled")
    broken = [every[0].model_copy(update={"outcome": lost, "noise": None}), *every[1:]]
    found = noise(broken, trials=4)

    assert found.across is None and found.within.processes == 3
    assert {step.point.mode: step.processes for step in found.steps} == {"monolithic_eager": 5, "full": 6}
    assert noise_of([each for each in broken if not each.outcome.usable]) is None
    assert noise_of([]) is None


def test_the_same_samples_give_the_same_answer() -> None:
    assert noise(measured(), trials=10) == noise(measured(), trials=10)


@pytest.mark.parametrize(("found", "n"), [(0, 1000), (10, 1000), (3, 7), (6, 7)])
def test_the_bound_of_a_rate_is_clopper_and_pearsons(found: int, n: int) -> None:
    """The share at which `found` or fewer of n has a chance of 5 %."""
    bound = Rate(found, n).upper
    chance = sum(math.comb(n, k) * bound**k * (1 - bound) ** (n - k) for k in range(found + 1))

    assert chance == pytest.approx(0.05, rel=1e-6)
    assert Rate(n, n).upper == 1.0
