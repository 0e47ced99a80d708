"""Events of a sweep: every line is of the documented schema, and nothing that befalls the file befalls the sweep."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from mlaprof.analysis.running import Running
from mlaprof.errors import ConfigError
from mlaprof.records import Started
from mlaprof.report.events import EVENTS_VERSION, Began, Ended, EventLog, Measured, StageBegan

RECORDS = {"began": Began, "stage": StageBegan, "measured": Measured, "ended": Ended}


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def written(fake_runs: ModuleType, tmp_path: Path) -> list[dict[str, Any]]:
    """The events of a sweep of two modes, one of which failed."""
    base, full, broken = (fake_runs.point(mode) for mode in ("monolithic_eager", "full", "breakable"))
    rows = [
        fake_runs.timing(base, 2e-4),
        fake_runs.timing(full, 1e-4),
        fake_runs.ended(broken, "failed", "IMA", stage="capture"),
    ]
    run = fake_runs.make_run(rows)
    running = Running([("timing", each.point.key, 0) for each in rows], begin_s=0.0)
    with EventLog(tmp_path / "events.jsonl") as log:
        log.begin(run.manifest, tmp_path / "run.mlaprof", 3)
        log.tell(Started(kind="timing", key=base.key, stage="capture"))
        for second, row in enumerate(rows):
            log.tell(row, running.take(row, second + 1.0))
    return lines(tmp_path / "events.jsonl")


def test_a_sweep_is_a_beginning_its_stages_and_measurements_and_an_end(written) -> None:
    assert [line["event"] for line in written] == ["began", "stage", "measured", "measured", "measured", "ended"]
    assert {line["v"] for line in written} == {EVENTS_VERSION}
    base, full, broken = written[2:5]
    assert (base["speedup"], base["verdict"], base["done"], base["total"]) == (None, None, 1, 3)
    assert full["speedup"]["median"] == pytest.approx(2.0, rel=0.01) and full["verdict"] == "FASTER"
    assert full["device_s"].keys() == {"median", "ci_low", "ci_high", "n"} and full["left_s"] == 0.0
    assert (broken["status"], broken["reason"], broken["device_s"], broken["verdict"]) == (
        "failed",
        "IMA",
        None,
        "FAILED",
    )
    assert written[-1]["statuses"] == {"ok": 2, "failed": 1} and written[-1]["how"] == "finished"


def test_every_line_is_read_back_by_its_record(written) -> None:
    for line in written:
        assert RECORDS[line["event"]].model_validate(line).model_dump(mode="json") == line


def test_every_field_is_documented_and_no_other(checkout: Path) -> None:
    """docs/events.md has a table an event, its fields in the order of the record."""
    text = (checkout / "docs/events.md").read_text()
    assert f"version {EVENTS_VERSION}" in text
    for name, record in RECORDS.items():
        section = text.split(f"## `{name}`")[1].split("\n## ")[0]
        told = [
            field
            for row in re.findall(r"^\| (`.*?`) \|", section, re.MULTILINE)
            for field in re.findall(r"`(\w+)`", row)
        ]
        assert told == [field for field in record.model_fields if field not in ("v", "at", "event")], name


def test_an_interrupted_sweep_says_so(fake_runs: ModuleType, tmp_path: Path) -> None:
    for error, how in ((KeyboardInterrupt, "interrupted"), (RuntimeError, "broken")):
        with pytest.raises(error), EventLog(tmp_path / how) as log:
            log.begin(fake_runs.make_run([]).manifest, tmp_path / "run.mlaprof", 3)
            raise error
        assert [(line["event"], line.get("how")) for line in lines(tmp_path / how)] == [("began", None), ("ended", how)]


def test_what_is_measured_again_counts_once(fake_runs: ModuleType, tmp_path: Path) -> None:
    """As after a lost host; it is told of again."""
    at = fake_runs.point("full", 64)
    with EventLog(tmp_path / "events") as log:
        log.begin(fake_runs.make_run([]).manifest, tmp_path / "run.mlaprof", 1)
        log.tell(fake_runs.ended(at, "failed", "IMA", stage="capture"))
        log.tell(fake_runs.timing(at, 1e-4))
    _, failed, measured, ended = lines(tmp_path / "events")
    assert (failed["done"], measured["done"]) == (1, 1)
    assert (ended["done"], ended["statuses"]) == (1, {"ok": 1})


def test_a_reader_that_leaves_costs_the_events_alone(fake_runs: ModuleType) -> None:
    """Through a descriptor; the trouble is told once, behind the sweep."""
    reader, writer = os.pipe()
    with EventLog(Path(f"/dev/fd/{writer}")) as log:
        os.close(writer)
        os.close(reader)
        for _ in range(3):
            log.tell(fake_runs.timing(fake_runs.point(), 1e-4))
    assert log.trouble == "events are not written any more: Broken pipe"


def test_a_second_sweep_appends_and_no_other_file_is_touched(fake_runs: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    for _ in range(2):
        with EventLog(path) as log:
            log.begin(fake_runs.make_run([]).manifest, tmp_path / "run.mlaprof", 0)
    assert [line["event"] for line in lines(path)] == ["began", "ended"] * 2
    (tmp_path / "run.mlaprof").write_bytes(b"SQLite format 3\0")
    with pytest.raises(ConfigError, match="holds something else"):
        EventLog(tmp_path / "run.mlaprof")
    with pytest.raises(ConfigError, match="cannot be written: No such file or directory; name another"):
        EventLog(tmp_path / "gone" / "events.jsonl")
    assert (tmp_path / "run.mlaprof").read_bytes() == b"SQLite format 3\0"
