"""docs/report.md and the committed report: its commands run, and its numbers are those of its run."""

from __future__ import annotations

import html
import json
import re
import shlex
import shutil
from pathlib import Path

import matplotlib
import pytest
from typer.testing import CliRunner

from mlaprof import store
from mlaprof.analysis.summary import summarize
from mlaprof.cli import door
from mlaprof.report.figures.canvas import RC
from mlaprof.report.figures.marks import marks
from mlaprof.report.figures.write import drawn
from mlaprof.report.page.layers import Subject, layer_page

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "report.md").read_text()
REFERENCE = ROOT / "results" / "reference"
SAMPLE = REFERENCE / "report-h100" / "report.html"
RUN = REFERENCE / "layer-h100" / "v3.2-tp8-prefill.mlaprof"


def test_the_commands_of_the_page_run_in_its_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results").mkdir()
    shutil.copy(REFERENCE / "layer-h100" / "v3.2-prefill.mlaprof", "results/decode.mlaprof")
    for name, source in (("base", "base"), ("tonight", "new")):
        shutil.copy(REFERENCE / "planted" / f"{source}.mlaprof", f"results/{name}.mlaprof")
    (block,) = re.findall(r"```console\n(.*?)```", PAGE, re.DOTALL)
    lines = [line.removeprefix("$ ") for line in block.splitlines()]
    assert len(lines) == 4
    for line in lines:
        done = CliRunner().invoke(door.app, shlex.split(line)[1:])
        assert done.exit_code == 0, (line, done.output)
    assert (tmp_path / "decode-report" / "report.html").is_file() and (tmp_path / "decode.zip").is_file()


def test_the_page_names_every_file_of_a_bundle_and_every_section(tmp_path: Path):
    import zipfile

    from mlaprof.report.bundle import write_bundle

    run = store.load(RUN)
    write_bundle(run, RUN, tmp_path / "b.zip")
    with zipfile.ZipFile(tmp_path / "b.zip") as opened:
        names = set(opened.namelist())
    for name in names:
        told = name.removeprefix("report/")
        assert f"`{told}`" in PAGE or (told.startswith("plots/") and f"`plots/*{Path(told).suffix}`" in PAGE), name
    titles = [section.title for section in layer_page(Subject(run, summarize(run), {})).sections]
    told = [row.split("|")[1].strip() for row in PAGE.splitlines() if row.startswith("| ")]
    for title in titles:
        assert (
            any(title.lower().startswith(each.split(",")[0].lower()) for each in told) or title == "The exact command"
        ), title


def test_the_committed_report_tells_what_its_run_says():
    """Texts and values; where they stand depends on the fonts of matplotlib."""
    text = SAMPLE.read_text()
    run = store.load(RUN)
    summary = summarize(run)
    page = layer_page(Subject(run, summary, {}))
    assert html.escape(page.verdict, quote=False) in text and len(text.encode()) < 1_000_000
    told = [
        [each[2] for each in json.loads(html.unescape(found))] for found in re.findall(r'data-marks="([^"]*)"', text)
    ]
    with matplotlib.rc_context(RC):
        drawings = {each.name: [mark.text for mark in marks(each.figure)] for each in drawn(summary)}
    assert told == [drawings[name] for name in ("budget", "counts", "latency", "speedup")]
    assert len(re.findall(r'class="strip"', text)) == len(summary.cells)


def test_the_readme_shows_a_picture_of_it():
    readme = (ROOT / "README.md").read_text()
    assert "(results/reference/report-h100/report.png)](results/reference/report-h100/report.html)" in readme
    assert (SAMPLE.with_suffix(".png")).read_bytes().startswith(b"\x89PNG")
