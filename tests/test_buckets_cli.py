"""`mlaprof buckets` at the door: JSON, table, plot, one line for what is wrong, and --measure on the emulation."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest

from mlaprof import cli, store
from mlaprof.cli import door
from mlaprof.config.load import load_study, resolved_yaml
from mlaprof.opening import manifest_of

TINY = """\
name: tiny
preset: tiny
sweep:
  num_tokens: [2, 8]
  mode: [split_eager, breakable]
measure: {cache: warm, processes: 1, min_samples: 6, max_samples: 6, warmup_s: 0, counts: false}
"""
H100 = "results/reference/capture-h100/v3.2-tp8-prefill.mlaprof"


@dataclass(frozen=True)
class Answer:
    code: int
    out: str
    err: str


Mlaprof = Callable[..., Answer]


@pytest.fixture
def mlaprof(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Mlaprof:
    """Run a command line in this process, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    screens = {"out": door.Screen(width=160), "err": door.Screen(width=160, stderr=True)}
    for module in (cli, cli.measure, cli.buckets):
        for name in screens.keys() & vars(module).keys():
            monkeypatch.setattr(module, name, screens[name])

    def run(*arguments: object) -> Answer:
        monkeypatch.setattr(sys, "argv", ["mlaprof", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        printed = capsys.readouterr()
        return Answer(int(ended.value.code or 0), printed.out, printed.err)

    return run


@pytest.fixture
def h100(checkout: Path, tmp_path: Path) -> Path:
    """The committed run of an H100, where plots may be written beside it."""
    return Path(shutil.copy(checkout / H100, tmp_path / "h100.mlaprof"))


def test_json_holds_the_list_and_what_it_is_worth(mlaprof: Mlaprof, h100: Path, tmp_path: Path) -> None:
    answer = mlaprof("buckets", h100, "--trace", "chat", "--memory", "600MiB", "--max-sizes", 20, "--format", "json")
    found = json.loads(answer.out)

    assert answer.code == 0
    assert found["sizes"] == sorted(set(found["sizes"])) and 0 < len(found["sizes"]) <= 20
    assert found["fallback"] == found["sizes"][-1]
    assert 0 < found["memory_bytes"] <= 600 * 2**20 and 0 < found["capture_s"] < 10
    assert found["expected_step_low_s"] <= found["expected_step_s"] <= found["expected_step_high_s"]
    assert {"tensorrt-llm", "vllm", "sglang", "powers of two", "every 256"} <= found["baselines"].keys()
    assert found["measured"] is None and found["trace"]["decode_only_steps"] > 0
    assert not list(tmp_path.glob("**/*.png"))


@pytest.mark.parametrize("trace", ["chat", "long-cached", "agentic"])
@pytest.mark.parametrize("clock", ["step", "device"])
def test_the_best_list_at_the_memory_of_an_engines_default_is_predicted_to_be_faster(
    mlaprof: Mlaprof, h100: Path, trace: str, clock: str
) -> None:
    """A prediction from the committed run, no measurement: that is results/reference/buckets-h100.json."""
    found = json.loads(mlaprof("buckets", h100, "--trace", trace, "--clock", clock, "--format", "json").out)

    for engine in ("tensorrt-llm", "vllm", "sglang"):
        default = found["baselines"][engine]
        best = default["at_equal_memory"]
        assert best["memory_bytes"] <= default["memory_bytes"]
        assert best["expected_step_s"] < default["expected_step_s"]


def test_the_table_has_lines_to_paste_and_a_plot(mlaprof: Mlaprof, h100: Path, tmp_path: Path) -> None:
    (tmp_path / "steps.csv").write_text("num_tokens,weight\n100,3\n700,1\n9,2\n")
    answer = mlaprof(
        "buckets", h100, "--trace", "steps.csv", "--engine", "vllm", "--layers", 61, "--capture-time", "30s"
    )

    assert answer.code == 0
    assert '--compilation-config \'{"cudagraph_capture_sizes": [' in answer.out
    assert "prefill_capture_num_tokens" not in answer.out
    assert "61 layers scaled from 2" in answer.out and "a step predicted" in answer.out
    assert "tokens a step runs eagerly: none of the steps" in answer.out
    assert (tmp_path / "h100" / "buckets-steps-csv.png").stat().st_size > 10_000
    assert (tmp_path / "h100" / "buckets-steps-csv.svg").is_file()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--trace", "gone.csv"), "gone.csv: no such file, and no trace of that name; the names are chat"),
        (("--trace", "x" * 5000), "no such file, and no trace of that name"),
        (("--trace", "chat", "--measure", "--device", "cpu"), "--measure: run "),
        (("--trace", "empty.csv"), "empty.csv: an empty trace; one token count a line"),
        (("--trace", "long.csv"), "a step of 9000 tokens, but the run measured up to 8192; sweep up to 9000 tokens"),
        (("--trace", "bad.csv"), "bad.csv:2: num_tokens: 'x' is not a whole number"),
        (("--trace", "chat", "--memory", "2 gigs"), "--memory: '2 gigs' is not a budget; write e.g. 2GiB"),
        (
            ("--trace", "chat", "--memory", "1KiB"),
            "no capture size fits into 1024 bytes; the smallest budget that holds",
        ),
        (("--trace", "chat", "--capture-time", "1ms"), "no capture size fits into 0.001 s; the smallest budget"),
        (("--trace", "chat", "--memory", "0"), "--memory: '0' is not a budget"),
        (("--trace", "chat", "--capture-time", "nan"), "--capture-time: 'nan' is not a budget"),
        (("--trace", "chat", "--max-num-tokens", "9000"), "9000: the run measured up to 8192 tokens"),
        (("--trace", "chat", "--way", "full"), "full pads to no capture size"),
        (("--trace", "chat", "--context", "5"), "no prefill or mixed cell"),
    ],
)
def test_what_is_wrong_is_one_line_and_exit_2(
    mlaprof: Mlaprof, h100: Path, tmp_path: Path, arguments: tuple[str, ...], words: str
) -> None:
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "long.csv").write_text("8\n9000\n")
    (tmp_path / "bad.csv").write_text("8\nx\n")
    answer = mlaprof("buckets", h100, *arguments)

    assert answer.code == (4 if "--measure" in arguments else 2)
    assert words in answer.err and answer.err.count("\n") == 1 and answer.out == ""


def test_the_budget_that_is_named_is_enough(mlaprof: Mlaprof, h100: Path) -> None:
    """What the error says is taken at its word."""
    refused = mlaprof("buckets", h100, "--trace", "chat", "--memory", "1KiB").err
    smallest = refused.split("holds one is ")[1].split(" bytes")[0]

    assert mlaprof("buckets", h100, "--trace", "chat", "--memory", smallest, "--format", "json").code == 0
    assert mlaprof("buckets", h100, "--trace", "chat", "--memory", int(smallest) - 1, "--format", "json").code == 2


def test_a_run_without_a_ledger_answers_without_memory(mlaprof: Mlaprof, checkout: Path, tmp_path: Path) -> None:
    run = shutil.copy(checkout / "results/reference/layer-h100/v3.2-tp8-prefill.mlaprof", tmp_path / "r.mlaprof")

    assert json.loads(mlaprof("buckets", run, "--trace", "chat", "--format", "json").out)["memory_bytes"] is None
    answer = mlaprof("buckets", run, "--trace", "chat", "--memory", "1GiB")
    assert answer.code == 2 and "no memory ledger of split_piecewise; sweep with" in answer.err


def test_measure_runs_the_list_and_says_how_far_the_prediction_was_off(
    mlaprof: Mlaprof, tmp_path: Path, fake_runs: ModuleType
) -> None:
    """A run of this machine with planted times, eager twice as slow, so that something is captured for certain."""
    (tmp_path / "tiny.yaml").write_text(TINY)
    study = load_study(tmp_path / "tiny.yaml")
    kept = fake_runs.ledger((8, 2))
    planted = []
    for mode, factor in (("split_eager", 2.0), ("breakable", 1.0)):
        for tokens in (8, 2):
            at = fake_runs.point(mode, tokens, preset="tiny")
            planted.append(fake_runs.timing(at, factor * 1e-3 * tokens, factor * 1e-3 * tokens, emulated=True))
            if mode == "breakable":
                planted.append(fake_runs.with_ledger(fake_runs.memory(at, 2.0, peak=False), kept))
    manifest = manifest_of("tiny", "cpu", resolved_yaml(study), (), command=("mlaprof", "sweep"))
    with store.create(tmp_path / "tiny.mlaprof", manifest) as writer:
        for each in planted:
            writer.append(each)
    (tmp_path / "t.csv").write_text("3\n3\n5\n")
    answer = mlaprof("buckets", "tiny.mlaprof", "--trace", "t.csv", "--measure", "--device", "cpu", "--format", "json")
    found = json.loads(answer.out)
    measured = found["measured"]

    assert (answer.code, found["sizes"], measured["emulated"]) == (0, [3, 5], True)
    assert [(row["num_tokens"], row["padded"]) for row in measured["rows"]] == [(3, 3), (5, 5)]
    assert [row["share"] for row in measured["rows"]] == pytest.approx([2 / 3, 1 / 3], abs=0.05)
    shares = [row["share"] * row["measured_s"] for row in measured["rows"]]
    assert measured["measured_s"] == pytest.approx(sum(shares))
    assert measured["predicted_s"] == pytest.approx(found["expected_step_s"], rel=0.05)
    assert measured["measured_bytes"] > 0 and measured["measured_capture_s"] > 0
    assert mlaprof("show", next((tmp_path / "results").glob("*.mlaprof")), "--format", "csv").code == 0
