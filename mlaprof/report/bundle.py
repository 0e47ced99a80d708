"""A run as one zip for a ticket: the report, every sample, and what it takes to measure it again."""

from __future__ import annotations

import csv
import io
import json
import shlex
import tempfile
from pathlib import Path

from mlaprof import store
from mlaprof.analysis.compare import Comparison
from mlaprof.archive import write_archive
from mlaprof.errors import ConfigError
from mlaprof.facts import Timing
from mlaprof.records import AnyMeasurement, Manifest, Run
from mlaprof.report.folder import fill
from mlaprof.runs import RUN_FILE

STUDY, ENVIRONMENT, SAMPLES, REPRODUCE = "study.yaml", "environment.json", "samples.csv", "reproduce.sh"
SERIES = ("device_s", "submit_s", "submit_cpu_s", "latency_s", "sustained_s", "warm_device_s", "sm_clock_hz", "power_w",
          "temperature_c")  # fmt: skip


def write_bundle(
    run: Run, run_file: Path, path: Path, *, comparison: Comparison | None = None, layers: int | None = None
) -> None:
    """Write the bundle of a run, whose file run_file is, to a zip that appears whole or not at all.

    docs/report.md says what it holds.

    Raises ConfigError where the zip cannot be written, or where the file there is none.
    """
    if path.exists() and path.suffix != ".zip":
        raise ConfigError(
            "exists, and is no zip to be replaced", where=str(path), hint="name a file that ends with .zip"
        )
    try:
        with tempfile.TemporaryDirectory(prefix="mlaprof-bundle-") as name:
            folder = Path(name)
            (folder / "report").mkdir()
            fill(run, folder / "report", comparison=comparison, layers=layers)
            store.copy(run_file, folder / RUN_FILE)
            for part, text in (
                (STUDY, run.manifest.study_yaml),
                (ENVIRONMENT, json.dumps(run.manifest.environment.model_dump(mode="json"), indent=2)),
                (SAMPLES, samples_csv(run)),
                (REPRODUCE, reproduce_script(run.manifest)),
            ):
                (folder / part).write_text(text if text.endswith("\n") else f"{text}\n", encoding="utf-8")
            write_archive(path, folder, executable=(REPRODUCE,))
    except OSError as error:
        raise ConfigError(
            f"cannot be written: {error.strerror}", where=str(path), hint="name another file with --out"
        ) from error


def samples_csv(run: Run) -> str:
    """Every raw sample in long form: key, process, series, number of the round or burst, value. Base units."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("key", "process", "kind", "series", "number", "value"))
    every: tuple[AnyMeasurement, ...] = (*run.measurements, *run.kernels)
    for each in every:
        if each.timing is not None:
            head = each.point.key, each.process, each.kind
            writer.writerows((*head, *row) for row in _rows(each.timing))
    return text.getvalue()


def _rows(timing: Timing) -> list[tuple[str, int, str]]:
    return [
        (series, number, f"{value:.7g}")  # what a 32-bit sample holds
        for series in SERIES
        for number, value in enumerate(getattr(timing, series))
    ]


def reproduce_script(manifest: Manifest) -> str:
    """A shell script that measures the study again with this code on this kind of machine, and compares."""
    environment, commit = manifest.environment, manifest.environment.git_commit
    verb = manifest.command[1] if manifest.command[1:2] in (("kernels",), ("tune",)) else "sweep"
    about = [
        f"Measures run {manifest.run_id} again: {environment.processor(manifest.device)}, {manifest.created_at}.",
        f"It was made by: {shlex.join(manifest.command)}",
        f"with mlaprof {manifest.mlaprof_version}, "
        + (f"commit {commit}{' with local changes' if environment.git_dirty else ''}" if commit else "commit unknown")
        + f", kernel sources SHA-256 {environment.kernel_source_sha256}",
        *(f"It was set then: {name}={value}" for name, value in environment.variables.items()),
        f"Python {environment.python}, " + ", ".join(f"{name} {of}" for name, of in environment.packages.items()),
    ]
    again = f"mlaprof {verb} {STUDY} --device {manifest.device} --out again{store.SUFFIX}"
    compared = (
        [f"mlaprof compare {RUN_FILE} again{store.SUFFIX}"]
        if verb == "sweep"
        else [f"mlaprof show again{store.SUFFIX}"]
    )
    lines = ["#!/bin/sh", *(f"# {_one_line(each)}" for each in about), "set -eu", 'cd "$(dirname "$0")"']
    return "\n".join([*lines, again, *compared]) + "\n"


def _one_line(text: str) -> str:
    """A comment ends with its line: a name with a line break must not begin a command."""
    return "".join(each if each.isprintable() else " " for each in text)
