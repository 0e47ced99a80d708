"""`mlaprof doctor --noise`: real workers, what is printed and written, and every exit code."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from mlaprof.analysis.noise import noise_of
from mlaprof.cli import app, surroundings
from mlaprof.errors import ConfigError, MachineError
from mlaprof.facts import NoiseRounds
from mlaprof.records import Measurement, Outcome

FEW_TRIALS = 20


@pytest.fixture(autouse=True)
def few_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surroundings, "noise_of", lambda measured: noise_of(measured, trials=FEW_TRIALS))


def doctor(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["doctor", *map(str, arguments)])


def swept(rounds: NoiseRounds | None):
    """A sweep that measures nothing: every Point of every process has these rounds, or failed."""

    def sweep(plan, *, keep):
        for job in plan.jobs:
            for point in job.points:
                ended = Outcome(status="ok") if rounds else Outcome(status="failed", stage="measure", reason="planted")
                found = Measurement(
                    point=point,
                    kind=job.kind,
                    process=job.process,
                    outcome=ended,
                    emulated=job.device == "cpu",
                    recorded_at="",
                    noise=rounds,
                )
                keep(found)
                yield found

    return sweep


def exact(twin: float = 1.0) -> NoiseRounds:
    """Rounds of a perfect clock."""
    return NoiseRounds(
        device_s=(1e-3,) * 20,
        twin_s=(1e-3 * twin,) * 20,
        slowed_s={"0.01": (1.01e-3,) * 20, "0.02": (1.02e-3,) * 20},
        added_s={"0.01": 1e-5, "0.02": 2e-5},
    )


def test_a_short_self_test_of_real_processes_is_printed_and_written(tmp_path: Path) -> None:
    """The emulation keeps no promise, so it exits 0 whatever its noise."""
    path = tmp_path / "noise.json"
    answer = doctor("--noise", "--device", "cpu", "--processes", 2, "--rounds", 6, "--out", path)

    assert answer.exit_code == 0, answer.output
    assert "EMULATED A/A self-test" in answer.stdout and "within a run" in answer.stdout
    assert "across runs was not tried" in " ".join(answer.stdout.split())
    assert "noise#2" in answer.stderr
    written = json.loads(path.read_text())
    assert (written["emulated"], written["comparison"], written["holds"]) == (
        True,
        "within",
        written["within"]["holds"],
    )
    assert {point["processes"] for point in written["points"]} == {2}
    assert all(abs(point["twin"]["median"] - 1) < 0.5 for point in written["points"])


def test_json_goes_to_stdout_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surroundings, "sweep", swept(exact()))
    answer = doctor("--noise", "--device", "cpu", "--format", "json")

    assert answer.exit_code == 0
    found = json.loads(answer.stdout)
    assert (found["comparison"], found["false_verdicts"], found["n"]) == ("across", 0, 2 * -(-FEW_TRIALS // 2))
    assert found["detect_1pct"] == found["detect_2pct"] == 1.0


def on_a_gpu(monkeypatch: pytest.MonkeyPatch, rounds: NoiseRounds | None) -> None:
    monkeypatch.setattr(surroundings, "device_of", lambda choice: "cuda")
    monkeypatch.setattr(surroundings, "require_gpu_alone", lambda device: None)
    monkeypatch.setattr(surroundings, "sweep", swept(rounds))


def test_a_gpu_that_holds_the_promise_is_exit_code_0(monkeypatch: pytest.MonkeyPatch) -> None:
    on_a_gpu(monkeypatch, exact())
    answer = doctor("--noise")

    assert answer.exit_code == 0 and "held: all that is promised" in answer.stdout
    assert "12 processes" in answer.stdout and "emulat" not in answer.stdout.lower()


def test_a_gpu_that_does_not_is_exit_code_1(monkeypatch: pytest.MonkeyPatch) -> None:
    """A twin that is 3 % slower: the floor hides 1 % and 2 %."""
    on_a_gpu(monkeypatch, exact(twin=1.03))
    answer = doctor("--noise")

    assert answer.exit_code == 1 and "NOT held" in answer.stdout


def test_processes_that_failed_are_exit_code_5(monkeypatch: pytest.MonkeyPatch) -> None:
    on_a_gpu(monkeypatch, None)
    answer = doctor("--noise")

    assert answer.exit_code == 5 and answer.stdout == ""
    assert "planted" in answer.stderr


def test_a_gpu_that_others_use_is_refused_before_anything_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(device: str) -> None:
        raise MachineError("also used by process 7", where="H100")

    on_a_gpu(monkeypatch, exact())
    monkeypatch.setattr(surroundings, "require_gpu_alone", refused)

    assert isinstance(doctor("--noise").exception, MachineError)
    assert doctor("--noise", "--shared-gpu").exit_code == 0


@pytest.mark.parametrize(
    "arguments", [["--processes", "3"], ["--rounds", "9"], ["--out", "x.json"], ["--format", "json"]], ids="=".join
)
def test_options_of_the_self_test_need_it(arguments: list[str]) -> None:
    error = doctor(*arguments).exception

    assert isinstance(error, ConfigError)
    assert (error.where, error.hint) == (arguments[0], "add --noise")


@pytest.mark.parametrize("arguments", [["--processes", "0"], ["--rounds", "5"]], ids="=".join)
def test_too_few_are_a_usage_error(arguments: list[str]) -> None:
    assert doctor("--noise", *arguments).exit_code == 2


def test_a_folder_that_is_not_there_is_told_before_minutes_are_spent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_a_gpu(monkeypatch, exact())
    monkeypatch.setattr(surroundings, "sweep", None)
    error = doctor("--noise", "--out", tmp_path / "none" / "noise.json").exception

    assert isinstance(error, ConfigError) and "no such folder" in str(error)


def test_a_file_that_cannot_be_written_is_one_line_behind_the_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_a_gpu(monkeypatch, exact())
    answer = doctor("--noise", "--out", tmp_path)

    assert isinstance(answer.exception, ConfigError) and "cannot write" in str(answer.exception)
    assert "held" in answer.stdout
