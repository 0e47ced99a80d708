"""A report as a folder: report.html, plots, summary.csv, summary.md and the numbers as run.json."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from mlaprof.analysis.compare import Comparison
from mlaprof.analysis.kernels import summarize_kernels
from mlaprof.analysis.summary import summarize
from mlaprof.errors import ConfigError
from mlaprof.records import Run
from mlaprof.report import export
from mlaprof.report.figures.canvas import RC, save
from mlaprof.report.figures.inline import inline_svg
from mlaprof.report.figures.marks import marks
from mlaprof.report.figures.roofline import roofline
from mlaprof.report.figures.tuning import course, course_stem
from mlaprof.report.figures.write import TITLES, drawn
from mlaprof.report.kernels import kernels_csv, kernels_json, kernels_markdown
from mlaprof.report.page.kernels import kernels_page, kernels_verdict
from mlaprof.report.page.layers import Subject, layer_page
from mlaprof.report.page.parts import Page, Picture
from mlaprof.report.page.render import render
from mlaprof.report.page.tuning import tuning_page, tuning_verdict
from mlaprof.report.page.verdict import verdict
from mlaprof.report.tuning import evaluations_csv, tuning_json, tuning_markdown
from mlaprof.tuning.summary import summarize_tuning

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAGE = "report.html"


def write_report(run: Run, folder: Path, *, comparison: Comparison | None = None, layers: int | None = None) -> None:
    """Write the report of a run into a folder that appears whole or not at all, in place of an earlier report.

    comparison   of the run with a base run
    layers       of the whole model, where its preset does not say

    Raises ConfigError where the folder holds something else, or cannot be written.
    """
    with replacing(folder) as unfinished:
        fill(run, unfinished, comparison=comparison, layers=layers)


def fill(run: Run, folder: Path, *, comparison: Comparison | None = None, layers: int | None = None) -> None:
    """Write the files of a report into an existing folder. Raises OSError."""
    plots = folder / "plots"
    plots.mkdir()
    if run.is_of_kernels:
        page, csv, markdown, json = _of_kernels(run, plots)
    elif run.is_of_tuning:
        page, csv, markdown, json = _of_tuning(run, plots)
    else:
        page, csv, markdown, json = _of_layers(run, plots, comparison, layers)
    for name, text in (("summary.csv", csv), ("summary.md", markdown), ("run.json", json), (PAGE, render(page))):
        (folder / name).write_text(text if text.endswith("\n") else f"{text}\n", encoding="utf-8")


@contextlib.contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """An empty folder beside `folder`, that takes its place at the end, or goes where something fails.

    Raises ConfigError where `folder` holds anything but an earlier report, or cannot be written.
    """
    if folder.exists() and not (folder / PAGE).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        hint = "name another folder with --out"
        raise ConfigError("holds no earlier report, and is not overwritten", where=str(folder), hint=hint)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        try:
            unfinished.chmod(0o755)
            yield unfinished
            _exchange(unfinished, folder)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    except OSError as error:
        raise ConfigError(
            f"cannot be written: {error.strerror}", where=str(folder), hint="name another folder with --out"
        ) from error


def _exchange(unfinished: Path, folder: Path) -> None:
    if folder.exists():
        earlier = unfinished.with_name(f"{unfinished.name}.earlier")
        os.replace(folder, earlier)
        os.replace(unfinished, folder)
        shutil.rmtree(earlier, ignore_errors=True)
    else:
        os.replace(unfinished, folder)


Told = tuple[Page, str, str, str]  # the page, summary.csv, summary.md, run.json


def _of_layers(run: Run, plots: Path, comparison: Comparison | None, layers: int | None) -> Told:
    import matplotlib

    summary = summarize(run)
    pictures: dict[str, Picture] = {}
    with matplotlib.rc_context(RC):
        for each in drawn(summary):
            place = f"{each.group.preset} {each.group.phase}, context {each.group.context_len}"
            pictures[each.stem] = _picture(each.figure, plots, each.stem, f"{TITLES[each.name]}: {place}")
    page = layer_page(Subject(run, summary, pictures, comparison, layers))
    markdown = f"**{verdict(summary, comparison)}**\n\n{export.to_markdown(summary)}"
    return page, export.to_csv(summary), markdown, export.summary_json(run, summary)


def _of_kernels(run: Run, plots: Path) -> Told:
    import matplotlib

    summary, manifest = summarize_kernels(run), run.manifest
    pictures: dict[str, Picture] = {}
    with matplotlib.rc_context(RC):
        figure = roofline(summary, manifest)
        if figure is not None:
            pictures["roofline"] = _picture(figure, plots, "roofline", "Roofline of single kernels")
    return (
        kernels_page(summary, manifest, pictures),
        kernels_csv(summary),
        f"**{kernels_verdict(summary)}**\n\n{kernels_markdown(summary, manifest)}",
        kernels_json(summary, manifest),
    )


def _of_tuning(run: Run, plots: Path) -> Told:
    import matplotlib

    summaries, manifest = summarize_tuning(run), run.manifest
    pictures: dict[str, Picture] = {}
    with matplotlib.rc_context(RC):
        for number, summary in enumerate(summaries):
            if summary.course:
                stem = course_stem(number, summary)
                title = f"Course of the search for {summary.search.label}"
                pictures[stem] = _picture(course(summary, manifest), plots, stem, title)
    return (
        tuning_page(summaries, manifest, pictures),
        evaluations_csv(run.kernels),
        f"**{tuning_verdict(summaries)}**\n\n{tuning_markdown(summaries, manifest)}",
        tuning_json(summaries, manifest),
    )


def _picture(figure: Figure, plots: Path, stem: str, title: str) -> Picture:
    """The figure, written as files and ready for the page."""
    save(figure, plots, stem)
    return Picture(stem, title, inline_svg(figure, stem), marks(figure))
