"""An A/A self-test on the screen and as JSON."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from mlaprof.analysis.cells import Floor
from mlaprof.analysis.noise import Added, Noise, Step
from mlaprof.analysis.stats import Estimate
from mlaprof.analysis.trials import Injection, Kind, Rate, Trials
from mlaprof.facts import NoiseRounds
from mlaprof.records import Environment, Measurement, Outcome, Point
from mlaprof.report.noise import Made, noise_json, print_noise
from mlaprof.wire import decode


@pytest.fixture
def made(fake_runs) -> Made:
    """On a GPU."""
    environment: Environment = fake_runs.make_run([]).manifest.environment
    return Made(("mlaprof", "doctor", "--noise"), "2026-11-23T12:00:00+00:00", "cuda", environment)


def trials(kind: Kind, *, wrong: int = 0, found: int = 950, limit: float = 0.01) -> Trials:
    return Trials(
        kind=kind,
        processes=3,
        rounds=20,
        limit=limit,
        false=Rate(wrong, 1000),
        verdicts={"SAME": 1000 - wrong, "SLOWER": wrong},
        smallest_change=0.0143,
        injections=(
            Injection("0.01", 0.005, max(0.005, limit / 2), Rate(found, 1000)),
            Injection("0.02", 0.01, limit, Rate(995, 1000)),
        ),
    )


def noise(across: Trials | None, within: Trials | None = None) -> Noise:
    step = Step(
        point=Point(preset="v3.2-tp8", phase="prefill", num_tokens=64, context_len=0, mode="full"),
        device_s=663e-6,
        processes=12,
        rounds=40,
        twin=Estimate(1.0002, 0.9999, 1.0005, 480),
        added={
            "0.01": Added(6.6e-6, Estimate(1.0112, 1.0109, 1.0115, 480)),
            "0.02": Added(13.2e-6, Estimate(1.0212, 1.0209, 1.0215, 480)),
        },
    )
    return Noise((step,), Floor(0.005, 5, between=0.0031), within or trials("within"), across)


HELD = noise(trials("across"))
SEEN = Measurement(
    point=HELD.steps[0].point,
    kind="noise",
    process=2,
    outcome=Outcome(status="ok"),
    emulated=False,
    recorded_at="2026-11-23T12:00:00",
    noise=NoiseRounds(device_s=(0.5, 0.25), twin_s=(0.5, 0.5), slowed_s={"0.01": (0.75, 0.5)}, added_s={"0.01": 0.25}),
)


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_a_promise_that_holds_is_said_to_hold(made, printed, width: int, encoding: str) -> None:
    console, text = printed(width, encoding=encoding)
    print_noise(HELD, made, console)
    said = " ".join(text().split())

    assert "0 of 1000" in said and "95%" in said and "99.5%" in said
    assert "floor 0.50% in a run (n=5), 0.31% between processes" in said
    assert "held: all that is promised" in said
    assert "NOT held" not in said and "next:" not in said and "emulated" not in said.lower()
    assert max(map(len, text().splitlines())) <= width


def test_what_was_really_added_stands_beside_what_was_asked(made, printed) -> None:
    console, text = printed(100)
    print_noise(HELD, made, console)

    assert "+1% is" in text() and "+1.12% ±0.03" in text()
    assert "+0.02% ±0.03" in text()


def test_a_promise_that_does_not_hold_says_which_and_what_to_do(made, printed) -> None:
    console, text = printed(120)
    print_noise(noise(trials("across", wrong=25, found=400)), made, console)
    said = " ".join(text().split())

    assert "NOT held across runs: 2.5% of the verdicts on an unchanged step are wrong, 1% at most is promised" in said
    assert "NOT held across runs: +1% was found in 40%, 90% is promised" in said
    assert "NOT held within a run" not in said and "held: all" not in said
    assert "next: do not gate on this machine as it is" in said and "nvidia-smi" in said


def test_a_floor_that_hides_the_change_is_named(made, printed) -> None:
    console, text = printed(120)
    print_noise(noise(trials("across", limit=0.03, found=0)), made, console)

    assert "the floor hides what is smaller than 3.00% across runs" in " ".join(text().split())


def test_what_was_not_tried_is_said(made, printed) -> None:
    """Fewer than six processes: the figures are of comparisons within a run, and nobody is told otherwise."""
    found = noise(None)
    few = replace(found, steps=(replace(found.steps[0], processes=4),))
    console, text = printed(120)
    print_noise(few, made, console)

    assert "across runs was not tried: it needs 6 processes, and there are 4" in " ".join(text().split())
    answer = json.loads(noise_json(few, made, ()))
    assert (answer["comparison"], answer["across"]) == ("within", None)


def test_emulated_noise_is_labelled_and_promises_nothing_of_a_gpu(made, printed) -> None:
    on_cpu = replace(made, device="cpu")
    console, text = printed(120)
    print_noise(HELD, on_cpu, console)

    assert text().startswith("EMULATED A/A self-test")
    assert "says nothing of a GPU" in text()
    assert json.loads(noise_json(HELD, on_cpu, ()))["emulated"] is True


def test_the_json_holds_what_others_read(made) -> None:
    """Percents by name, the comparison that gates on top, and where the figures come from."""
    found = noise(trials("across", wrong=4), trials("within", wrong=9))
    answer = json.loads(noise_json(found, made, (SEEN,)))

    assert [decode(json.dumps(each)) for each in answer["measurements"]] == [SEEN]

    assert answer["floor_pct"] == 0.5 and answer["floor_between_pct"] == pytest.approx(0.31)
    assert (answer["comparison"], answer["false_verdicts"], answer["n"]) == ("across", 4, 1000)
    assert answer["false_verdict_rate"] == 0.004 < answer["false_verdict_rate_upper"] < 0.01
    assert (answer["detect_1pct"], answer["detect_2pct"]) == (0.95, 0.995)
    assert answer["smallest_change_pct"] == pytest.approx(1.43)
    assert answer["within"]["false_verdicts"] == 9 and answer["holds"] is True
    assert set(answer["presets"]) == {"quick", "standard", "rigorous"}
    assert answer["presets"]["standard"]["processes"] == 3
    assert answer["command"] == ["mlaprof", "doctor", "--noise"] and answer["date"].startswith("2026")
    assert answer["environment"]["packages"] and answer["processor"]
    (point,) = answer["points"]
    assert point["key"] == "v3.2-tp8/prefill/t64/ctx0/full"
    assert point["added"]["0.02"]["ratio"]["median"] == 1.0212
