"""A report lands whole or not at all, and never over anything but a report."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from mlaprof import store
from mlaprof.errors import ConfigError
from mlaprof.report.folder import PAGE, replacing, write_report
from mlaprof.report.page.render import LIMIT_BYTES

REFERENCE = Path(__file__).parents[2] / "results" / "reference"


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report") / "out"
    write_report(store.load(REFERENCE / "layer-h100" / "v3.2-tp8-prefill.mlaprof"), folder)
    return folder


def test_a_report_holds_what_a_ticket_needs(written):
    names = {each.relative_to(written).as_posix() for each in written.rglob("*") if each.is_file()}
    plots = {
        f"plots/{name}-prefill-ctx0.{kind}"
        for name in ("budget", "counts", "latency", "speedup")
        for kind in ("png", "svg")
    }
    assert names == {PAGE, "summary.csv", "summary.md", "run.json", *plots}
    assert [each.name for each in written.parent.iterdir()] == ["out"]


def test_its_files_agree_on_the_numbers(written):
    told = json.loads((written / "run.json").read_text())
    rows = list(csv.DictReader((written / "summary.csv").open()))
    assert len(rows) == len(told["cells"]) == 30
    for row, cell in zip(rows, told["cells"], strict=True):
        assert row["key"] == cell["key"] and float(row["step_speedup_median"]) == cell["step_speedup"]["median"]
    mean = next(each for each in told["geomean_speedup"] if each["way"] == "split_piecewise")
    text = (written / "summary.md").read_text()
    assert text.startswith(f"**split_piecewise runs a prefill step (context 0) {mean['step']['median']:.2f}x faster")
    assert f"{mean['step']['median']:.2f}x faster" in (written / PAGE).read_text()


def test_the_page_is_below_its_limit(written):
    assert (written / PAGE).stat().st_size < LIMIT_BYTES


@pytest.mark.parametrize("name", ["capture-h100/v3.2-tp8-decode", "v3.2-tp8-tiles/run", "planted/new", "kernels-h100"])
def test_a_report_is_made_of_every_kind_of_run(tmp_path, name):
    write_report(store.load(REFERENCE / f"{name}.mlaprof"), tmp_path / "out")
    assert (tmp_path / "out" / PAGE).stat().st_size < LIMIT_BYTES
    assert any((tmp_path / "out" / "plots").iterdir())


def test_an_earlier_report_is_replaced_and_nothing_else_is(tmp_path):
    (tmp_path / "out").mkdir()
    for text in ("one", "two"):
        with replacing(tmp_path / "out") as folder:
            (folder / PAGE).write_text(text)
    assert (tmp_path / "out" / PAGE).read_text() == "two" and len(list(tmp_path.iterdir())) == 1
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years")
    with pytest.raises(ConfigError, match="holds no earlier report"), replacing(tmp_path / "mine"):
        pytest.fail("must not begin")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years"


def test_what_fails_half_way_leaves_the_earlier_report(tmp_path):
    with replacing(tmp_path / "out") as folder:
        (folder / PAGE).write_text("whole")
    with pytest.raises(ConfigError, match="cannot be written"), replacing(tmp_path / "out") as folder:
        (folder / PAGE).write_text("half")
        raise OSError(28, "No space left on device")
    assert (tmp_path / "out" / PAGE).read_text() == "whole" and len(list(tmp_path.iterdir())) == 1
