"""A stored run in Python: its summary, its cells and samples as tables, verdicts against another, and its figures.

The functions behind are those of `mlaprof show`, `compare` and `plot`, so a notebook and the command line say the same.
Seconds, bytes, hertz, watts; a column's name ends in its unit.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mlaprof import store
from mlaprof.analysis.cells import Cell, Summary
from mlaprof.analysis.compare import Comparison
from mlaprof.analysis.compare import compare as compare_runs
from mlaprof.analysis.differences import refusal
from mlaprof.analysis.summary import summarize
from mlaprof.records import Manifest, Measurement, Run
from mlaprof.report.figures.canvas import RC
from mlaprof.report.figures.write import Drawn, drawn
from mlaprof.report.objects import CSV_HEADER, flat

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

Rows = Literal["cells", "samples"]

# Of a Timing: what every round has one of. A series that was not taken is empty.
SERIES = (
    *("device_s", "submit_s", "submit_cpu_s", "latency_s"),
    *("sm_clock_hz", "power_w", "temperature_c", "clock_event_reasons"),
)


def load_run(run: str | Path, results: str | Path = "results") -> LoadedRun:
    """Open a run of the layer.

    run      a run file; or a run id, the beginning of one, or `latest`, of the folder `results`

    Raises mlaprof.errors.RunFileError where there is none, and on a run of single kernels or of tuning.
    """
    path = store.resolve(str(run), Path(results))
    return LoadedRun(path, store.load_layers(path))


class LoadedRun:
    """A run of the layer, read from its file. It is never written."""

    def __init__(self, path: Path, run: Run) -> None:
        self.path = path
        self.run = run

    def __repr__(self) -> str:
        stamp = " EMULATED" if self.summary.emulated else ""
        return f"<mlaprof run {self.run_id}: {len(self.cells)} cells on {self.summary.processor}{stamp}>"

    @property
    def run_id(self) -> str:
        return self.manifest.run_id

    @property
    def manifest(self) -> Manifest:
        """Where the run comes from: command, study, environment, tuned tiles."""
        return self.run.manifest

    @property
    def measurements(self) -> tuple[Measurement, ...]:
        """Everything that was recorded, raw samples included, failures too."""
        return self.run.measurements

    @cached_property
    def summary(self) -> Summary:
        """What `mlaprof show` prints: cells, findings, geometric means, the noise floor."""
        return summarize(self.run)

    @property
    def cells(self) -> tuple[Cell, ...]:
        """A Cell a Point, in plan order. What has no time says why in `outcome` and `reason`."""
        return self.summary.cells

    def to_pandas(self, rows: Rows = "cells") -> DataFrame:
        """The run as a pandas DataFrame.

        cells    a row a cell, with the columns of `mlaprof show --format csv`; what is not known is missing
        samples  a row a round of each process of each cell that may be shown, with what was sampled in it; the A/A
                 twins of baselines are rows with `twin` true

        Raises ImportError without pandas, ValueError on other rows.
        """
        if rows not in ("cells", "samples"):
            raise ValueError(f"rows: expected 'cells' or 'samples', got {rows!r}")
        pandas = _pandas()
        if rows == "cells":
            frame = pandas.DataFrame([flat(cell) for cell in self.cells], columns=list(CSV_HEADER))
        else:
            columns = ["key", "way", "num_tokens", "twin", "process", "round", *SERIES, "emulated"]
            frame = pandas.DataFrame(list(_samples(self.measurements)), columns=columns)
        return frame

    def compare(
        self,
        new: LoadedRun,
        *,
        base_way: str | None = None,
        new_way: str | None = None,
        threshold: float = 0.01,
        cross_machine: bool = False,
    ) -> Comparison:
        """Judge `new` against this run, the reference, cell by cell, as `mlaprof compare` does.

        base_way, new_way  one way of each, e.g. "split_piecewise"; both or neither
        threshold          the smallest change that counts, 0.01 is 1 %; the noise floor where that is larger

        Raises mlaprof.errors.MachineError on runs that do not compare, unless it is for the machine and `cross_machine`
        says so; RunFileError on a way that a run lacks, ValueError on a threshold that is no ratio.
        """
        found = compare_runs(
            self.run, new.run, base_way=base_way, new_way=new_way, threshold=threshold, cross_machine=cross_machine
        )
        if found.mismatches:
            raise refusal(found.mismatches)
        return found

    @cached_property
    def figure_names(self) -> tuple[str, ...]:
        """The figures that this run has data for, e.g. `speedup-decode-ctx1024`: as `mlaprof plot` names its files."""
        return tuple(each.stem for each in self._drawn())

    def figure(self, name: str) -> Figure:
        """A figure as a matplotlib object of its own, without pyplot, to show, change or save.

        name   one of `figure_names`, or its kind alone (`speedup`) where the run has one of that kind

        Raises ValueError on any other name, and says which there are.
        """
        found = [each.figure for each in self._drawn() if name in (each.stem, each.name)]
        if len(found) == 1:
            return found[0]
        what = "is of several" if found else "is none that this run has data for"
        raise ValueError(f"name: {name!r} {what}; there are {', '.join(self.figure_names) or 'no figures'}")

    def _drawn(self) -> list[Drawn]:
        import matplotlib

        with matplotlib.rc_context(RC):
            return list(drawn(self.summary))


def _pandas() -> Any:
    try:
        import pandas
    except ImportError as error:
        message = "mlaprof needs pandas for tables: pip install pandas (or mlaprof with its extra, mlaprof[notebook])"
        raise ImportError(message, name="pandas") from error
    return pandas


def _samples(measurements: tuple[Measurement, ...]) -> Iterator[dict[str, Any]]:
    timings = [each for each in measurements if each.kind == "timing"]
    hidden = {each.point.key for each in timings if not each.outcome.usable}  # in one process is in all
    for each in timings:
        if each.timing is None or each.point.key in hidden:
            continue
        series = {name: getattr(each.timing, name) for name in SERIES}
        for number in range(len(each.timing.device_s)):
            yield {
                "key": each.point.key,
                "way": each.point.way,
                "num_tokens": each.point.num_tokens,
                "twin": each.point.twin,
                "process": each.process,
                "round": number,
                **{name: values[number] if number < len(values) else None for name, values in series.items()},
                "emulated": each.emulated,
            }
