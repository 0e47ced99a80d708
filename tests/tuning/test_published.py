"""results/reference/tuning-h100, configs/tuned and the table of docs/tuning.md: held to the runs behind them."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from mlaprof import store
from mlaprof.tuning import library
from mlaprof.tuning.conditions import source_sha256
from mlaprof.tuning.summary import summarize_tuning

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import tuning_replay  # noqa: E402
import tuning_space  # noqa: E402
import tuning_summary  # noqa: E402

FOLDER = ROOT / "results" / "reference" / "tuning-h100"
RUNS = sorted(FOLDER.glob("*.mlaprof"))
SPACES = sorted(FOLDER.glob("space-*.json"))
REPLAY = json.loads((FOLDER / "replay.json").read_text())
OURS = f"mlaprof, {tuning_replay.AHEAD} under way"


def test_both_spaces_hold_every_evaluation_of_their_run():
    made = tuning_space.spaces(store.load(FOLDER / "exhaust.mlaprof"))
    assert [json.loads(path.read_text()) for path in SPACES] == sorted(made, key=lambda each: each["kernel"])
    for each in made:
        assert each["complete"] and not each["emulated"] and len(each["rows"]) == each["legal"] >= 400


@pytest.mark.parametrize("path", SPACES, ids=lambda path: path.stem)
def test_the_replay_is_that_of_its_space(path):
    """One seed of the two searches that are quick; all fifty take a quarter of an hour."""
    whole, told = tuning_replay.read(path), REPLAY["spaces"][path.stem]
    assert (REPLAY["seeds"], told["optimum_s"]) == (50, whole.optimum_s)
    for name in ("random", OURS):
        again = tuning_replay.fractions(whole, tuning_replay.searches()[name], 0)
        for at, fraction in enumerate(again):
            assert told["fraction_of_optimum"][name]["least"][at] <= fraction <= 1.0


def test_the_goal_of_the_search_is_reached_in_every_one_of_fifty_seeds():
    """At least 0.99 of the optimum within 64 launches."""
    at = REPLAY["budgets"].index(64)
    for told in REPLAY["spaces"].values():
        for name in ("mlaprof", OURS):
            assert told["fraction_of_optimum"][name]["least"][at] >= 0.99


def test_the_summary_is_of_the_runs_and_no_target_took_more_than_a_minute():
    told = json.loads((FOLDER / "summary.json").read_text())
    assert told == json.loads(json.dumps(tuning_summary.document(FOLDER, RUNS)))
    for target in told["targets"]:
        if target["run"] != "exhaust.mlaprof":
            assert target["wall_s"] <= 60


def test_what_ships_is_what_the_runs_decided_for_these_very_sources():
    shipped = {
        (entry.conditions.kernel, tuple(entry.shape.items())): entry
        for path in library.shipped().glob("*/*.json")
        for entry in library.load(path)
    }
    decided = [each for path in RUNS for each in summarize_tuning(store.load(path))]
    assert len(shipped) == len(decided) == 7
    for each in decided:
        target, decision = each.search.target, each.decision
        entry = shipped[target.kernel, tuple(target.shape.items())]
        assert (entry.decision, entry.conditions.launch) == (decision.verdict, target.launch)
        assert entry.values == (dict(decision.chosen.values) if decision.verdict == "tuned" else None)
        assert entry.conditions.source == source_sha256(target.kernel), "kernels/ changed: tune and ship again"


def test_the_page_prints_the_tables_of_the_summary_and_of_the_replay():
    page = (ROOT / "docs" / "tuning.md").read_text()
    assert tuning_summary.table(json.loads((FOLDER / "summary.json").read_text())) in page
    assert tuning_replay.table(REPLAY) in page
