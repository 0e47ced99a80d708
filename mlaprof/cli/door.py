"""The door itself: the app, its two screens, what commands share, and the one exit policy.

0 ok, 1 regression, broken budget or too noisy a GPU (doctor --noise), 2 usage or config error, 3 ambiguous (with
--fail-on ambiguous), 4 environment mismatch, 5 some cells failed or sizes were not captured, 130 interrupted.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from mlaprof.config.load import load_study
from mlaprof.config.ranks import require_gpus
from mlaprof.errors import ConfigError
from mlaprof.machine.environment import visible_gpus
from mlaprof.opening import DeviceChoice, Part, device_of
from mlaprof.study import Preset, Study
from mlaprof.version import __version__

OVER_BUDGET, NOT_HELD, SOME_FAILED, INTERRUPTED = 1, 1, 5, 130  # errors.py and Comparison.exit_code hold the others
READER_LEFT = 141  # what a shell reports for a program whose output nobody reads any more


class Screen(Console):
    def on_broken_pipe(self) -> None:
        try:
            super().on_broken_pipe()
        except SystemExit:
            raise SystemExit(READER_LEFT) from None  # Rich says 1, which means a regression here


app = typer.Typer(
    help="Profile the split MLA-DSA attention layer across CUDA-graph capture modes.\n\n"
    "Exit codes: 0 ok, 1 regression, broken budget or too noisy a GPU (doctor --noise), 2 usage or config error, "
    "3 ambiguous (with --fail-on ambiguous), 4 environment mismatch, 5 some cells failed or sizes were not captured, "
    "130 interrupted.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
out, err = Screen(), Screen(stderr=True)

ResultsDir = Annotated[Path, typer.Option("--results", help="Folder that runs land in.")]
RunArgument = Annotated[
    str, typer.Argument(help="A run file, a run id or the beginning of one, `latest`, or a bundle.")
]
AxisOption = Annotated[list[str] | None, typer.Option("-a", "--axis", help="Replace an axis: num_tokens=1,8,64.")]
SettingOption = Annotated[list[str] | None, typer.Option("--set", help="Change a key: measure.min_samples=100.")]
SharedGpuOption = Annotated[
    bool, typer.Option("--shared-gpu", help="Measure beside other processes on the GPU, too; their work distorts it.")
]
GpusOption = Annotated[
    str | None,
    typer.Option(
        "--gpus", help="Spread the jobs over these GPUs, a worker each: 0,1, or UUIDs; on a CPU so many emulated ones."
    ),
]
DeviceOption = Annotated[DeviceChoice, typer.Option(help="auto takes the GPU where there is one.")]
RESULTS = Path("results")


class TableOrJson(StrEnum):
    table = "table"
    json = "json"


def _print_version(wanted: bool) -> None:
    if wanted:
        out.print(f"mlaprof {__version__}", highlight=False)
        raise typer.Exit


@app.callback()
def mlaprof(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version and exit.")
    ] = False,
) -> None:
    """What every command shares."""


def study_of(
    config: Path | None, axis: Iterable[str] | None, setting: list[str] | None, preset: Preset = "standard"
) -> Study:
    if config is None:
        raise ConfigError("no study given", where="CONFIG", hint="name a YAML file, e.g. configs/quickstart.yaml")
    return load_study(config, axes=_axes(axis), settings=setting or (), preset=preset)


def require_ranks(study: Study, device: DeviceChoice, config: Path | None, setting: list[str] | None) -> None:
    """Raise ConfigError where the study's tensor parallel ranks have not a GPU each; a CPU emulates them all."""
    if config is not None and study.layer.tp.world > 1 and device_of(device) == "cuda":
        require_gpus(config, setting or (), study.layer.tp.world, visible_gpus())


def preset_of(quick: bool, rigorous: bool) -> Preset:
    """The preset that the two options name. Raises ConfigError on both."""
    if quick and rigorous:
        raise ConfigError("one of them is to be followed", where="--quick --rigorous", hint="leave one of them out")
    return "quick" if quick else "rigorous" if rigorous else "standard"


def part_of(text: str) -> Part:
    """The numbers of `2/8`. Raises ConfigError on anything else."""
    number, _, of = text.partition("/")
    if not (number.isdecimal() and of.isdecimal() and 1 <= int(number) <= int(of)):
        raise ConfigError(f"{text!r} is no part", where="--part", hint="the second of eight is 2/8")
    return int(number), int(of)


def _axes(given: Iterable[str] | None) -> dict[str, str]:
    axes: dict[str, str] = {}
    for text in given or ():
        name, equals, values = text.partition("=")
        if not equals:
            raise ConfigError(f"{text!r} is not axis=values", where="-a", hint="e.g. -a num_tokens=1,8,64")
        if name in axes:
            raise ConfigError(f"{name} is given twice", where="-a", hint="give all its values in one -a")
        axes[name] = values
    return axes
