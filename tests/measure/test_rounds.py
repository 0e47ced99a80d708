"""The order of samples: every arm once a round, enough rounds, and void ones measured again."""

from __future__ import annotations

import gc
import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest

from mlaprof.measure import rounds
from mlaprof.measure.clock import Burst, Sample
from mlaprof.measure.rounds import Limits, half_width_s, quiet_collector, sample_rounds


class ScriptedClock:
    """Calls the step and answers device times from `times_s`, the last one for ever; counts what it is asked."""

    name = "perf_counter"

    def __init__(self, *times_s: float) -> None:
        self.times_s = itertools.chain(times_s or (0.001,), itertools.repeat((times_s or (0.001,))[-1]))
        self.sampled = 0

    def sample(self, step):
        step()
        self.sampled += 1
        device_s = next(self.times_s)
        return Sample(device_s, device_s / 2, device_s / 4, 2 * device_s)

    def burst(self, step, steps):
        for _ in range(steps):
            step()
        return Burst(0.25, 0.125)

    def burst_steps(self, step_s):
        return 4

    def settle(self) -> None: ...


def sampled(arms, clock=None, *, seed=0, reading=lambda: None, bursts=False, valid=None, **changes):
    """sample_rounds with plain limits: three rounds, no warm-up time, no readings, no bursts."""
    wait = {"now": changes.pop("now", lambda: 0.0), "pause": changes.pop("pause", lambda seconds: None)}
    limits = Limits(**{"min_samples": 3, "max_samples": 3, "ci_half_width": 0.01, **changes})
    if valid is not None:
        wait["valid"] = valid
    return sample_rounds(arms, clock or ScriptedClock(), limits, seed=seed, reading=reading, bursts=bursts, **wait)


def nothing() -> None:
    return None


def noise(spread: float, seed: int = 0) -> list[float]:
    draw = np.random.default_rng(seed)
    return (1e-3 * (1 + spread * draw.standard_normal(5000))).tolist()


# Order


def test_every_arm_is_sampled_once_a_round() -> None:
    """A round holds each arm exactly once, so that entry i of all arms belongs together."""
    calls: list[str] = []
    arms = {name: lambda name=name: calls.append(name) for name in ("eager", "piecewise", "full")}
    sampled(arms, min_samples=20, max_samples=20)

    found = [calls[i : i + 3] for i in range(0, len(calls), 3)]
    assert {frozenset(each) for each in found} == {frozenset(arms)}
    assert len(found) == rounds.WARMUP_CALLS + 20


def test_the_order_within_a_round_is_random_and_belongs_to_the_seed() -> None:
    """No arm keeps a fixed neighbour; the same seed gives the same order again."""

    def orders(seed: int) -> list[tuple[str, ...]]:
        calls: list[str] = []
        arms = {name: lambda name=name: calls.append(name) for name in "abc"}
        sampled(arms, min_samples=60, max_samples=60, seed=seed)
        timed = calls[3 * rounds.WARMUP_CALLS :]
        return [tuple(timed[i : i + 3]) for i in range(0, len(timed), 3)]

    assert set(orders(7)) == set(itertools.permutations("abc"))
    assert orders(7) == orders(7)
    assert orders(7) != orders(8)


def test_each_sample_has_its_reading_beside_it() -> None:
    """Readings are taken after each sample, one for one, also where there is nothing to read."""
    count = itertools.count(-rounds.WARMUP_CALLS)  # each rotation of the warm-up has one, too
    clock = ScriptedClock()
    arms = sampled({"a": nothing, "b": nothing}, clock, reading=lambda: (next(count), clock.sampled)).arms
    taken = sorted(arms["a"].readings + arms["b"].readings)
    assert taken == [(i, 2 * rounds.WARMUP_CALLS + i + 1) for i in range(6)]

    assert sampled({"a": nothing}).arms["a"].readings == (None, None, None)


def test_bursts_come_every_tenth_round_for_all_arms_alike() -> None:
    calls: list[str] = []
    arms = {name: lambda name=name: calls.append(name) for name in "ab"}
    found = sampled(arms, min_samples=21, max_samples=21, bursts=True)

    counts = [(len(each.samples), len(each.bursts), each.burst_steps) for each in found.arms.values()]
    assert counts == [(21, 3, 4)] * 2
    assert found.arms["a"].bursts[0] == Burst(0.25, 0.125)
    assert {name: calls.count(name) for name in "ab"} == dict.fromkeys("ab", rounds.WARMUP_CALLS + 21 + 3 * 4)


# How many


def test_rounds_end_when_every_arm_is_known_well_enough() -> None:
    """The noisiest decides: 4 % of noise need about 1.57 x (1.96 x 4 % / 0.8 %)^2 = 151 rounds for +-0.8 %."""
    quiet, loud = ScriptedClock(0.001), ScriptedClock(*noise(0.04))
    limits = {"min_samples": 10, "max_samples": 2000, "ci_half_width": 0.008}

    assert len(sampled({"a": nothing}, quiet, **limits).arms["a"].samples) == 10
    found = sampled({"a": nothing}, loud, **limits)
    assert found.stop == "interval" and 80 < len(found.arms["a"].samples) < 300
    times_s = found.arms["a"].device_s
    assert half_width_s(times_s) <= 0.008 * sorted(times_s)[len(times_s) // 2 + 1]


def test_nothing_narrower_than_the_clock_resolves_is_asked() -> None:
    """A step of 10 us whose events jump between two ticks of half a microsecond."""
    jumping = ScriptedClock(*[10e-6, 10.5e-6] * 500)
    found = sampled({"a": nothing}, jumping, min_samples=10, max_samples=900, ci_half_width=0.005)
    assert (found.stop, len(found.arms["a"].samples)) == ("interval", 10)


def test_rounds_end_at_max_samples() -> None:
    found = sampled({"a": nothing}, ScriptedClock(*noise(0.2)), min_samples=5, max_samples=50)
    assert (found.stop, len(found.arms["a"].samples)) == ("samples", 50)


def test_out_of_time_leaves_one_round() -> None:
    """One warm-up rotation, one round, no endless loop and no empty arm."""
    clock, now = ScriptedClock(), itertools.count().__next__
    limits = {"min_samples": 40, "max_samples": 50, "time_s": 0.5}
    found = sampled({"a": nothing, "b": nothing}, clock, now=now, **limits)
    assert found.stop == "time"
    assert [len(each.samples) for each in found.arms.values()] == [1, 1]
    assert clock.sampled == 4


@pytest.mark.parametrize("n", [1, 2, 5, 9, 20, 100, 999])
def test_the_half_width_is_that_of_a_95_per_cent_interval_of_the_median(n: int) -> None:
    """The interval between the two order statistics holds the true median in 95 % of a thousand series."""
    draw = np.random.default_rng(n)
    held = 0
    for _ in range(1000):
        ordered = sorted(draw.standard_normal(n).tolist())
        rank = max(0, math.floor(n / 2 - 0.98 * math.sqrt(n)) - 1)
        assert half_width_s(ordered) == pytest.approx((ordered[-1 - rank] - ordered[rank]) / 2)
        held += ordered[rank] <= 0 <= ordered[-1 - rank]
    assert held >= 930 or n < 6  # of fewer samples not even their range reaches it


@pytest.mark.parametrize(
    ("arms", "changes", "complaint"),
    [
        ({}, {}, "expected at least one"),
        ({"a": nothing}, {"min_samples": 0}, "1 <= min_samples"),
        ({"a": nothing}, {"min_samples": 4, "max_samples": 3}, "got 4 and 3"),
    ],
    ids=["no arms", "no samples", "bounds crossed"],
)
def test_contradicting_bounds_are_refused(arms, changes, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        sampled(arms, **changes)


# Void rounds


class Throttle:
    """Says which rounds are void, by number; and what was paused between them."""

    def __init__(self, void: Callable[[int], bool]) -> None:
        self.void = void
        self.asked = 0
        self.pauses_s: list[float] = []

    def valid(self, warm, found) -> bool:
        self.asked += 1
        return not self.void(self.asked - 1)


def throttled_run(void: Callable[[int], bool], **changes):
    throttle = Throttle(void)
    limits = {"min_samples": 20, "max_samples": 20, **changes}
    return throttle, sampled(
        {"a": nothing, "b": nothing}, valid=throttle.valid, pause=throttle.pauses_s.append, **limits
    )


def test_a_void_round_is_dropped_in_every_arm_and_measured_again_behind_growing_pauses() -> None:
    throttle, found = throttled_run(lambda number: number in (2, 3, 4, 9))
    assert (found.dropped, found.throttled, found.stop) == (4, False, "interval")
    assert [len(each.samples) for each in found.arms.values()] == [20, 20]
    assert throttle.pauses_s == pytest.approx([0.05, 0.075, 0.1125, 0.05])
    assert found.cooling_s == pytest.approx(sum(throttle.pauses_s))


def test_a_chip_that_stays_throttled_is_measured_as_it_is_and_labelled() -> None:
    """After a quarter of the rounds: pausing does not help, and the data are kept."""
    throttle, found = throttled_run(lambda number: True)
    assert (found.dropped, found.throttled) == (5, True)
    assert [len(each.samples) for each in found.arms.values()] == [20, 20]
    assert len(throttle.pauses_s) == 5 and max(throttle.pauses_s) <= rounds.LONGEST_PAUSE_S


def test_cooling_has_an_end() -> None:
    """Of many rounds a quarter may be void, but no more than ten seconds go to pauses."""
    throttle, found = throttled_run(lambda number: True, min_samples=400, max_samples=400)
    assert found.throttled
    assert rounds.MAX_COOLING_S <= found.cooling_s < rounds.MAX_COOLING_S + rounds.LONGEST_PAUSE_S
    assert found.dropped == len(throttle.pauses_s) < 100


def test_out_of_time_while_cooling_keeps_a_round() -> None:
    found = sampled({"a": nothing}, valid=lambda warm, found: False, now=itertools.count().__next__, time_s=4.5)
    assert (found.stop, found.throttled, len(found.arms["a"].samples)) == ("time", True, 1)


def test_a_round_is_judged_by_its_own_readings_and_those_of_the_warm_chip() -> None:
    """The second half of the warm-up; the cold start is none of it."""
    asked = []
    count = itertools.count()

    def valid(warm, found) -> bool:
        asked.append((tuple(warm), tuple(found)))
        return True

    sampled({"a": nothing, "b": nothing}, reading=lambda: next(count), valid=valid, min_samples=2, max_samples=2)
    assert asked == [((1, 2), (3, 4)), ((1, 2), (5, 6))]


# Warm-up


def test_the_warm_up_samples_every_arm_at_least_three_times() -> None:
    """Even a warm-up of no time runs each arm, at the load of the rounds and in rotation; none of it is kept."""
    calls: list[str] = []
    clock = ScriptedClock()
    found = sampled({name: lambda name=name: calls.append(name) for name in "ab"}, clock, max_samples=3)
    assert "".join(calls[:6]) == "ababab"
    assert clock.sampled == 2 * (rounds.WARMUP_CALLS + 3)
    assert [len(each.samples) for each in found.arms.values()] == [3, 3]


def test_the_warm_up_lasts_as_long_as_asked() -> None:
    """Wall time counts, by the host's clock."""
    calls: list[int] = []
    arms = {"a": lambda: calls.append(1)}
    sampled(arms, warmup_s=1.0, min_samples=1, max_samples=1, now=lambda: 0.125 * len(calls))
    assert len(calls) == 8 + 1


# Garbage collector


def test_the_collector_is_off_while_sampling() -> None:
    """And what lives already is frozen, so that no later collection has to walk it."""
    states: list[tuple[bool, bool]] = []
    sampled({"a": lambda: states.append((gc.isenabled(), gc.get_freeze_count() > 0))})
    assert set(states) == {(False, True)}
    assert gc.isenabled()


def test_the_collector_comes_back_when_a_step_raises() -> None:
    """An error in the timed region leaves the process as it was."""

    def broken() -> None:
        raise RuntimeError("device lost")

    frozen = gc.get_freeze_count()
    with pytest.raises(RuntimeError, match="device lost"):
        sampled({"a": broken})
    assert gc.isenabled()
    assert gc.get_freeze_count() == frozen


def test_a_collector_that_was_off_stays_off() -> None:
    gc.disable()
    try:
        with quiet_collector():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_objects_frozen_by_someone_else_stay_frozen() -> None:
    gc.freeze()
    try:
        with quiet_collector():
            pass
        assert gc.get_freeze_count() > 0
    finally:
        gc.unfreeze()
