"""The replay of searches: what it counts, what it refuses, and that a space file says all that was measured."""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "benchmarks"), str(Path(__file__).parent)]

import tuning_replay  # noqa: E402
import tuning_space  # noqa: E402
from tuning_rows import TARGET, searched, tiles  # noqa: E402

from mlaprof.tuning.plan import plan_search  # noqa: E402

VALUES = list(itertools.product((0,), (16, 32, 64, 128), (16, 32, 64, 128), (1, 2, 4, 8), (1, 2, 3, 4)))


def document(**changed):
    """256 configurations; the slowest quarter spills, and the first look at each is 1 % off."""
    rows = []
    for number, values in enumerate(VALUES):
        seconds = 1e-6 * (1 + abs(values[1] - 64) / 64 + abs(values[2] - 32) / 64 + values[3] / 8 + values[4] / 9)
        row = {"values": values, "status": "ok", "seen_s": seconds * (1 + 0.01 * (number % 3)), "device_s": seconds}
        spilt = {"values": values, "status": "skipped", "stage": "compile", "reason": "spills"}
        rows.append(spilt if values[4] == 4 else row)
    return {
        "kernel": "sparse_attn", "shape": {"num_tokens": 8}, "launch": "eager", "processor": "planted",
        "emulated": True, "legal": len(rows), "complete": True, "seeds": [VALUES[-2]], "rows": rows,
    } | changed  # fmt: skip


@pytest.fixture
def whole(tmp_path):
    (tmp_path / "space-a.json").write_text(json.dumps(document()))
    return tuning_replay.read(tmp_path / "space-a.json")


def test_what_the_compiler_rules_out_is_no_evaluation(whole):
    assert len(whole.launches) == len(VALUES) * 3 // 4
    everything = tuning_replay.fractions(whole, tuning_replay.at_random, 0, budgets=(len(whole.launches),))
    assert everything == [1.0]  # after every launch the optimum is known


@pytest.mark.parametrize("ahead", [1, 8])
def test_ours_never_asks_twice_and_is_nearer_than_chance(whole, ahead):
    asked = list(itertools.islice(tuning_replay.ours(ahead)(whole, 0), 60))
    assert len(set(asked)) == 60 and asked[0] == whole.seeds[0]
    mine, chance = (
        sum(tuning_replay.fractions(whole, replay, seed, budgets=(32,))[0] for seed in range(6)) / 6
        for replay in (tuning_replay.ours(ahead), tuning_replay.at_random)
    )
    assert mine > chance and mine > 0.97


def test_an_unfinished_space_is_refused(tmp_path):
    (tmp_path / "space-a.json").write_text(json.dumps(document(complete=False, legal=300)))
    with pytest.raises(ValueError, match="expected every configuration, got 256 of 300"):
        tuning_replay.read(tmp_path / "space-a.json")


def test_the_table_has_a_row_a_search_and_says_emulated(whole, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tuning_replay, "searches", lambda: {"random": tuning_replay.at_random})
    monkeypatch.setattr(sys, "argv", ["tuning_replay.py", str(tmp_path), "--seeds", "3"])
    assert tuning_replay.main() == 0
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 3 and said[2].startswith("| EMULATED sparse_attn (num_tokens 8), 256 legal | random |")
    found = json.loads((tmp_path / "replay.json").read_text())["spaces"]["space-a"]
    assert found["optimum_s"] == pytest.approx(whole.optimum_s) and (tmp_path / "replay.png").stat().st_size > 1000


def test_a_space_file_keeps_first_and_later_times_apart():
    search = plan_search(TARGET, hopper=False)
    row = searched(tiles(num_warps=8), 9e-6)
    later = row.model_copy(update={"timing": row.timing.model_copy(update={"device_s": (8e-6,) * 9})})
    found = tuning_space._row(search, later)
    assert found == {
        "values": [0, 4096, 8, 1, 64, 0], "status": "ok", "seen_s": 9e-6, "device_s": 8e-6, "samples": 9,
    }  # fmt: skip
    failed = tuning_space._row(search, searched(tiles(), None, status="failed", stage="verify", reason="no"))
    assert tuning_space.launched(failed) and not tuning_space.launched({"status": "skipped", "stage": "compile"})
