"""Noise jobs on a CPU: one proven step as several arms, and what goes wrong as a row."""

from __future__ import annotations

from statistics import median

import pytest

from mlaprof.facts import Check
from mlaprof.measure.clock import CpuClock, Sample
from mlaprof.measure.rounds import sample_rounds
from mlaprof.noise_plan import noise_plan
from mlaprof.records import Job
from mlaprof.wire import decode, encode
from mlaprof.worker import noise
from mlaprof.worker.gate import Gate, Verdict


@pytest.fixture
def job() -> Job:
    """The second process of a short self-test, of one step in either mode."""
    whole = noise_plan("cpu", processes=2, rounds=7).jobs[1]
    return whole.model_copy(update={"points": tuple({point.mode: point for point in whole.points}.values())})


def test_every_arm_has_a_sample_of_every_round_and_the_step_is_proven(job: Job, measured) -> None:
    found = measured(job)

    assert set(found) == {"monolithic_eager", "full"}
    for each in found.values():
        assert (each.outcome.status, each.outcome.reason, each.emulated, each.process) == ("ok", "", True, 1)
        assert each.checks and all(check.passed for check in each.checks)
        rounds = each.noise
        assert rounds is not None and set(rounds.slowed_s) == set(rounds.added_s) == {"0.01", "0.02"}
        series = (rounds.device_s, rounds.twin_s, *rounds.slowed_s.values())
        assert [len(one) for one in series] == [7] * 4
        assert min(min(one) for one in series) > 0
        stored = decode(encode(each))  # samples as float32
        assert decode(encode(stored)) == stored
    assert found["full"].gate is not None and found["full"].gate.after_timing


class Steady(CpuClock):
    """Every call of a step lasts a millisecond, however long it takes; a spin behind it lasts what was asked."""

    spun_s = 0.0

    def __init__(self) -> None:
        super().__init__(cold=False)

    def sample(self, step) -> Sample:
        Steady.spun_s = 0.0
        step()
        device_s = 1e-3 + Steady.spun_s
        return Sample(device_s, device_s, device_s, device_s)


class Spun:
    """Adds exactly what was asked to the clock Steady."""

    def behind(self, step, added_s: float):
        def slowed() -> object:
            result = step()
            Steady.spun_s += added_s
            return result

        return slowed

    def measured_s(self, added_s: float) -> float:
        return added_s


def test_the_arms_are_the_step_the_step_again_and_the_step_slowed_by_the_shares(
    job: Job, measured, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By an exact clock: the twin is the step, and 1 % and 2 % of its time are behind the others."""
    monkeypatch.setattr(noise, "clock_of", lambda job: Steady())
    monkeypatch.setattr(noise, "CpuSpin", Spun)
    for each in measured(job).values():
        rounds = each.noise
        assert rounds is not None
        assert rounds.added_s == {"0.01": pytest.approx(1e-5), "0.02": pytest.approx(2e-5)}
        assert median(rounds.device_s) == median(rounds.twin_s) == pytest.approx(1e-3)
        assert {share: median(one) for share, one in rounds.slowed_s.items()} == {
            "0.01": pytest.approx(1.01e-3),
            "0.02": pytest.approx(1.02e-3),
        }


def test_a_step_that_turns_out_wrong_behind_its_rounds_shows_none(
    job: Job, measured, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The self-test shows no time of what is not proven, as a sweep shows none."""
    broken = Check(name="planted", value=2.0, limit=1.0)
    monkeypatch.setattr(Gate, "recheck", lambda self, arm, verdict: Verdict((broken,), verdict.facts))

    for each in measured(job).values():
        assert (each.outcome.status, each.noise) == ("incorrect", None)
        assert "planted" in each.outcome.reason


def test_a_step_that_stayed_throttled_is_no_measure_of_noise(
    job: Job, measured, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clocks that are held down wander; a floor taken then would excuse real changes later."""

    def held_down(*arguments, **named):
        return sample_rounds(*arguments, **{**named, "valid": lambda warm, found: False, "pause": lambda pause_s: None})

    monkeypatch.setattr(noise, "sample_rounds", held_down)
    for each in measured(job).values():
        assert (each.outcome.status, each.noise) == ("failed", None)
        assert each.outcome.reason.startswith("throttled")


def test_a_spin_that_cannot_be_that_short_costs_the_point_alone(
    job: Job, measured, monkeypatch: pytest.MonkeyPatch
) -> None:
    class TooLong(Spun):
        def behind(self, step, added_s: float):
            raise ValueError("added_s: expected at least 1e-3")

    monkeypatch.setattr(noise, "CpuSpin", TooLong)
    assert {each.outcome.reason for each in measured(job).values()} == {"ValueError: added_s: expected at least 1e-3"}
