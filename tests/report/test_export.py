from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from types import ModuleType

import pytest

from mlaprof.analysis.cells import Summary
from mlaprof.analysis.summary import summarize
from mlaprof.facts import Check, MemoryUse
from mlaprof.records import Run
from mlaprof.report.export import summary_json, to_csv, to_json, to_markdown
from mlaprof.report.objects import MEMORY


@pytest.fixture
def mixed(fake_runs: ModuleType) -> Summary:
    """Good, tiled, compiled, failed, incorrect and missing cells."""
    choice = fake_runs.tile(block_n=64, num_warps=4)
    wrong = fake_runs.ended(fake_runs.point("full", 8), "incorrect", 'a "b" | c, [3]\nd', stage="verify")
    rows = [
        fake_runs.timing(fake_runs.point("monolithic_eager", 64), 300e-6, 600e-6),
        fake_runs.timing(fake_runs.point("full", 64), 100e-6),
        fake_runs.memory(fake_runs.point("full", 64), 12.0),
        fake_runs.compiled(fake_runs.point("full", 64, tiles=(choice,))),
        fake_runs.ended(fake_runs.point("full", 1), "failed", "OOM", stage="capture"),
        wrong.model_copy(
            update={
                "timing": fake_runs.timing(wrong.point, 1e-4).timing,
                "checks": (Check(name="oracle", value=float("nan"), limit=float("inf")),),
            }
        ),
    ]
    planned = [f"{row.kind} {row.point.key}" for row in rows] + [f"timing {fake_runs.point('full', 9).key}"]
    return summarize(fake_runs.make_run(rows, planned=planned))


def test_json_is_one_object_a_cell_with_every_promised_field(mixed: Summary) -> None:
    cells = json.loads(to_json(mixed))
    assert [cell["outcome"] for cell in cells] == ["ok", "ok", "compiled", "failed", "incorrect", "missing"]
    for cell in cells:
        assert {"key", "preset", "phase", "num_tokens", "context_len", "mode", "tiles", "outcome", "reason"} <= set(
            cell
        )
        assert {"device_s", "submit_s", "memory", "emulated", "graph", "resources", "checks", "speedup"} <= set(cell)
        assert (cell["device_s"] is None) == (cell["outcome"] != "ok")
    full = cells[1]
    assert set(full["device_s"]) == {"median", "ci_low", "ci_high", "n"}
    assert full["device_s"]["median"] == pytest.approx(100e-6, rel=1e-6)
    assert full["device_s"]["ci_low"] <= full["device_s"]["median"] <= full["device_s"]["ci_high"]
    assert full["speedup"]["median"] == pytest.approx(3.0, rel=1e-6)
    assert full["submit_speedup"]["median"] == pytest.approx(30.0, rel=1e-6)
    assert [cell["bound"] for cell in cells] == ["host", "device", None, None, None, None]
    assert cells[0]["unfilled"] == 0
    assert full["memory"]["graph_pool_bytes"] == 12 * 2**20
    assert full["emulated"] is False
    assert full["graph"]["graph_nodes"] == 30
    assert cells[0]["memory"] is None
    assert cells[2]["resources"][0]["registers"] == 128
    assert cells[4]["checks"] == [{"name": "oracle", "value": None, "limit": None, "passed": False}]


def test_csv_is_a_row_a_cell_and_survives_hostile_reasons(mixed: Summary) -> None:
    rows = list(csv.DictReader(io.StringIO(to_csv(mixed))))
    assert len(rows) == len(mixed.cells)
    assert [row["key"] for row in rows] == [cell.key for cell in mixed.cells]
    assert float(rows[1]["device_s_median"]) == pytest.approx(100e-6, rel=1e-6)
    assert rows[1]["graph_pool_bytes"] == str(12 * 2**20)
    assert float(rows[1]["submit_speedup_median"]) == pytest.approx(30.0, rel=1e-6)
    assert [row["bound"] for row in rows] == ["host", "device", "", "", "", ""]
    assert rows[1]["checks_passed"] == "True" and rows[4]["checks_passed"] == "False"
    assert rows[4]["device_s_median"] == rows[5]["device_s_median"] == ""
    assert rows[4]["reason"] == 'a "b" | c, [3]\nd'
    assert None not in rows[4] and None not in rows[4].values()


def test_every_kind_of_memory_has_a_column(fake_runs: ModuleType) -> None:
    """The resident peak of a CPU worker too."""
    assert {*MEMORY, "ledger"} == set(MemoryUse.model_fields)
    run = fake_runs.make_run([fake_runs.memory(fake_runs.point(), 1.0, peak=False)], device="cpu")
    (row,) = csv.DictReader(io.StringIO(to_csv(summarize(run))))
    assert (row["host_peak_bytes"], row["allocator_peak_bytes"]) == (str(700 * 2**20), "")


def test_markdown_tables_keep_their_columns(mixed: Summary) -> None:
    """A bar or a line break in a reason splits no row."""
    text = to_markdown(mixed)
    rows = [line.replace("\\|", "") for line in text.splitlines() if line.startswith("|")]
    assert len({row.count("|") for row in rows}) == 1
    assert rows[0].startswith(
        "| tokens | mode | sparse_attn | status | device us | ±CI | speed-up | submit us | bound |"
    )
    assert "| 64 | full | default | ✓ ok | 100.0 |" in text and "| 3.00x faster | 20.00 | device |" in text
    assert "| baseline | 600.0 | host 2.0x |" in text and "| geomean | full |" in text
    assert '- INCORRECT at verify: a "b" | c, [3] d [oracle nan > inf] (v3.2-tp8/prefill/t8/ctx0/full)' in text
    assert "NVIDIA H100 80GB HBM3" in text and "`mlaprof sweep configs/fake.yaml`" in text
    assert "--resume RUN" in text


def test_markdown_of_an_emulated_run_says_so(fake_runs: ModuleType) -> None:
    run = fake_runs.make_run(fake_runs.sweep(fake_runs.laptop()), device="cpu")
    assert "### EMULATED v3.2-tp8 prefill, context 0" in to_markdown(summarize(run))


def test_a_summary_file_names_its_origin(fake_runs: ModuleType) -> None:
    run = fake_runs.make_run(fake_runs.sweep(fake_runs.h100(sizes=(1, 64))))
    summary = summarize(run)
    written = json.loads(summary_json(run, summary))
    assert written["run_id"] == run.manifest.run_id
    assert written["processor"] == written["environment"]["gpus"][0]["name"] == "NVIDIA H100 80GB HBM3"
    assert written["created_at"] == "2026-01-02T03:04:05Z"
    assert written["command"] == ["mlaprof", "sweep", "configs/fake.yaml"]
    assert written["environment"]["packages"]["torch"] == "2.11.0"
    assert written["cells"] == json.loads(to_json(summary))
    assert {mean["mode"] for mean in written["geomean_speedup"]} == {
        "monolithic_piecewise",
        "split_eager",
        "split_piecewise",
        "breakable",
        "full",
    }


def test_the_floor_is_exported_and_the_twins_are_not(fake_runs: ModuleType) -> None:
    """At the top of summary.json, in the conditions of the Markdown; no row anywhere."""
    rows = [
        fake_runs.timing(fake_runs.point("monolithic_eager"), 100e-6),
        fake_runs.timing(fake_runs.point("monolithic_eager", twin=True), 102e-6),
        fake_runs.timing(fake_runs.point("full"), 99e-6),
    ]
    run = fake_runs.make_run(rows)
    summary = summarize(run)
    found = json.loads(summary_json(run, summary))
    assert found["floor"] == {"ratio": pytest.approx(0.0198026, rel=1e-5), "cells": 1, "between": None}
    exported = (json.dumps(found["cells"]), to_json(summary), to_csv(summary), to_markdown(summary))
    assert not any("/aa" in text for text in exported)
    assert len(json.loads(to_json(summary))) == len(list(csv.DictReader(io.StringIO(to_csv(summary))))) == 2
    assert "95% CI, A/A floor 2.0% (n=1)" in to_markdown(summary)
    assert "~1.01x" in to_markdown(summary) and "\n\n~ the interval of the speed-up" in to_markdown(summary)
    without = fake_runs.make_run(rows[:1])
    assert json.loads(summary_json(without, summarize(without)))["floor"] is None


def test_an_empty_run_exports_empty(fake_runs: ModuleType) -> None:
    summary = summarize(fake_runs.make_run([]))
    assert json.loads(to_json(summary)) == []
    assert len(to_csv(summary).splitlines()) == 1
    assert to_markdown(summary).startswith("## 20260102-030405-fake")


def test_the_four_clocks_and_what_happened_to_the_rounds_are_exported(served: Callable[..., Summary]) -> None:
    """Seconds; the parts of the step sum to its sustained time."""
    rounds = {"power_capped": 0.25, "dropped_rounds": 7, "other_processes": 2, "throttled": True}
    summary = served(full=rounds)
    host, _, full = json.loads(to_json(summary))
    medians = {"device_s": 110e-6, "latency_s": 700e-6, "sustained_s": 630e-6, "warm_device_s": 100e-6}
    assert {name: host[name]["median"] for name in medians} == pytest.approx(medians, rel=1e-6)
    assert host["margin_s"] == pytest.approx(-490e-6, rel=1e-5)
    parts = {"busy_s": 100e-6, "launch_gap_s": 467e-6, "host_stall_s": 0.0, "sync_wait_s": 63e-6}
    assert host["budget"] == pytest.approx(parts, rel=1e-6)
    assert {name: full[name] for name in rounds} == rounds and full["processes"] == 3

    row, _, last = csv.DictReader(io.StringIO(to_csv(summary)))
    assert float(row["sustained_s_median"]) == pytest.approx(630e-6) and row["latency_s_n"] == "60"
    assert {name: float(row[f"budget_{name}"]) for name in parts} == pytest.approx(parts)
    assert float(row["margin_s"]) == host["margin_s"]
    assert {name: last[name] for name in rounds} == {name: str(value) for name, value in rounds.items()}


def test_clocks_that_were_not_taken_are_null_and_empty(mixed: Summary) -> None:
    names = ("latency_s", "sustained_s", "warm_device_s", "budget")
    assert all(cell[name] is None for cell in json.loads(to_json(mixed)) for name in names)
    rows = csv.DictReader(io.StringIO(to_csv(mixed)))
    assert {row[name] for row in rows for name in ("latency_s_median", "sustained_s_n", "budget_busy_s")} == {""}


FLAT = {
    "graph_nodes": 44,
    "graph_launches": 1,
    "kernel_launches": 16,
    "syncs": 2,
    "d2h_copies": 1,
    "capture_s": 0.05,
    "instantiate_s": 0.03,
    "first_replay_s": 0.02,
    "state": "captured",
    "hold": "strong",
    "multi_stream": False,
    "boundary": "logits",
    "way": "breakable@logits",
    "break_even_over": "split_eager",
}


@pytest.fixture
def captured(fake_runs: ModuleType) -> Run:
    """One captured cell of every kind of measurement beside the eager form, over a budget."""
    at = fake_runs.point("breakable", boundary="logits")
    rows = [
        fake_runs.timing(fake_runs.point("split_eager"), 100e-6, 400e-6),
        fake_runs.captured(fake_runs.timing(at, 90e-6, 300e-6), graph_nodes=44),
        fake_runs.with_ledger(fake_runs.memory(at, 3.0), fake_runs.ledger(sizes=(128, 64))),
        fake_runs.counts(at, 16, 40, stream_syncs=1, event_syncs=1, d2h_copies=1),
    ]
    return fake_runs.make_run(rows, study_yaml="budget: {syncs: 1, d2h: 0}\n")


def test_what_is_asked_of_a_captured_cell_stands_flat_in_json_and_csv(captured: Run) -> None:
    summary = summarize(captured)
    eager, cell = json.loads(to_json(summary))
    assert {name: cell[name] for name in FLAT} == FLAT
    assert cell["break_even_replays"] == pytest.approx(1000, rel=1e-5)
    assert cell["coverage"] == pytest.approx(40 / 56)
    assert cell["counts"]["segments"] == [] and cell["counts"]["complete"] is True
    assert [each["name"] for each in cell["budget_breaches"]] == ["syncs", "d2h"]
    assert cell["gate"] == {
        "passed": True,
        "sets": ["other pages", "other lengths", "fewer tokens"],
        "replays": 12,
        "interleaved": [8],
        "after_timing": True,
    }
    assert cell["ledger"]["residual_bytes"] == 2**20
    assert cell["ledger"]["size"]["num_tokens"] == 64 and cell["ledger"]["size"]["pool_bytes"] == 3 * 2**20
    assert "ledger" not in cell["memory"] and "sizes" not in cell["ledger"]
    assert eager["boundary"] is eager["gate"] is eager["counts"] is eager["break_even_replays"] is None

    _, row = csv.DictReader(io.StringIO(to_csv(summary)))
    assert {name: row[name] for name in FLAT} == {name: str(value) for name, value in FLAT.items()}
    assert (row["over_budget"], row["counts_complete"], row["gate_passed"]) == ("syncs+d2h", "True", "True")
    assert (row["ledger_residual_bytes"], row["size_pool_bytes"]) == (str(2**20), str(3 * 2**20))


def test_a_gate_that_found_a_difference_did_not_pass(fake_runs: ModuleType) -> None:
    at = fake_runs.point()
    gate = fake_runs.captured(fake_runs.timing(at, 1e-4)).gate
    wrong = fake_runs.ended(at, "incorrect", "differs", stage="verify").model_copy(update={"gate": gate})
    (cell,) = json.loads(to_json(summarize(fake_runs.make_run([wrong]))))
    assert cell["gate"]["passed"] is False


def test_a_summary_file_holds_ledgers_prices_and_pairs(fake_runs: ModuleType, captured: Run) -> None:
    written = json.loads(summary_json(captured, summarize(captured)))
    assert written["over_budget"] is True
    (ledger,) = written["ledgers"]
    assert (ledger["way"], ledger["phase"], ledger["context_len"]) == ("breakable@logits", "prefill", 0)
    assert [size["num_tokens"] for size in ledger["sizes"]] == [128, 64]
    machine = fake_runs.h100(sizes=(64,), modes=("split_piecewise", "breakable"))
    run = fake_runs.make_run(fake_runs.complete(machine, ("index_quant", "logits")))
    written = json.loads(summary_json(run, summarize(run)))
    assert written["over_budget"] is False
    assert [each["boundary"] for each in written["piecewise_vs_breakable"]] == ["index_quant", "logits"]
    assert [(each["mode"], each["start"], each["end"]) for each in written["boundary_prices"]] == [
        ("split_piecewise", "index_quant", "logits"),
        ("breakable", "index_quant", "logits"),
    ]
