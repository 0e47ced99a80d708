"""`mlaprof list` and `doctor`: what there is, and what this machine is."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from mlaprof import store
from mlaprof.cli.door import RESULTS, ResultsDir, app, out
from mlaprof.machine import checks, environment
from mlaprof.opening import DeviceChoice, device_of
from mlaprof.report import listing


class Listing(StrEnum):
    presets = "presets"
    modes = "modes"
    boundaries = "boundaries"
    kernels = "kernels"
    runs = "runs"


@app.command("list")
def list_(what: Annotated[Listing, typer.Argument(help="What to list.")], results: ResultsDir = RESULTS) -> None:
    """List presets, capture modes, their boundaries, kernels with their tiles, or the runs there are."""
    match what:
        case Listing.presets:
            listing.print_presets(out)
        case Listing.modes:
            listing.print_modes(out)
        case Listing.boundaries:
            listing.print_boundaries(out)
        case Listing.kernels:
            listing.print_kernels(out)
        case Listing.runs:
            listing.print_runs(store.list_runs(results), out)


@app.command()
def doctor() -> None:
    """Print what this machine is and what on it speaks against a number. Changes nothing."""
    found = environment.snapshot()
    listing.print_environment(found, checks.warnings(found, device_of(DeviceChoice.auto)), out)
