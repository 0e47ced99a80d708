"""`mlaprof merge`: one run of several that were swept apart."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from mlaprof import store
from mlaprof.cli.door import RESULTS, ResultsDir, app, err, out
from mlaprof.merge import merged
from mlaprof.report.lines import print_line


@app.command()
def merge(
    runs: Annotated[list[str], typer.Argument(help="Parts of one run, as `mlaprof sweep --part` makes them.")],
    out_file: Annotated[
        Path | None, typer.Option("--out", help="Run file; by default results/<run id>.mlaprof.")
    ] = None,
    results: ResultsDir = RESULTS,
) -> None:
    """Join runs of one study, made by hand or by a batch system, to one run; nothing of them is changed."""
    paths = list(dict.fromkeys(store.resolve(run, results) for run in runs))
    joined = merged(paths, command=("mlaprof", *sys.argv[1:]))
    path = out_file or store.default_path(results, joined.manifest.run_id)
    store.write_whole(path, joined.manifest, joined.measurements)
    out.print(f"run   {path}", soft_wrap=True, highlight=False)
    if joined.missing:
        print_line(f"{joined.missing} measurements are in none of them; go on with: mlaprof sweep --resume {path}", err)
