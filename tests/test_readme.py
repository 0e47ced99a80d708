"""The README: what it tells a reader to type works, and what it says is there is there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

from mlaprof.cli import door
from mlaprof.config.load import load_study
from mlaprof.errors import ConfigError, MachineError, RunFileError
from mlaprof.study import MODE_SUMMARY

README = (Path(__file__).parents[1] / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
TYPED = [line[2:].split("  #")[0] for kind, block in BLOCKS if kind == "console" for line in block.splitlines()]
QUOTED = [each for each in re.findall(r"`([^`]+)`", README) if each.startswith(("mlaprof ", "make "))]
COMMANDS: dict[str, Any] = typer.main.get_command(door.app).commands  # type: ignore[attr-defined]


def table(header: str) -> list[list[str]]:
    """The rows of the table whose header line begins so."""
    lines = README[README.index(f"| {header}") :].splitlines()
    rows = []
    for line in lines[2:]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def problem(line: str, checkout: Path) -> str | None:
    """Why a command line of the README would not be understood."""
    program, *words = shlex.split(line)
    if program == "make":
        targets = re.findall(r"^([\w-]+):", (checkout / "Makefile").read_text(), re.MULTILINE)
        missing = [word for word in words if "=" not in word and word not in targets]
        return f"no target {missing}" if missing else None
    if program != "mlaprof" or words[0] not in COMMANDS:
        return f"no command {program} {words[0]}"
    known = {option for parameter in COMMANDS[words[0]].params for option in parameter.opts}
    for word in words[1:]:
        if word.startswith("-") and word.partition("=")[0] not in known:
            return f"{words[0]} has no option {word}"
        if word.endswith(".yaml") and not (checkout / word).is_file():
            return f"no file {word}"
    return None


@pytest.mark.parametrize("line", [*TYPED, *QUOTED])
def test_what_the_readme_tells_to_type_is_understood(checkout: Path, line: str) -> None:
    assert problem(line, checkout) is None


@pytest.mark.parametrize(
    "line",
    ["make coffee", "mlaprof swep x", "mlaprof sweep --fast", "mlaprof sweep configs/gone.yaml", "python x.py"],
)
def test_a_line_that_is_not_understood_is_found(checkout: Path, line: str) -> None:
    """The check above can fail."""
    assert problem(line, checkout) is not None


def test_the_readme_shows_a_sweep_that_plans(checkout: Path) -> None:
    """Its axes, too, are known to the study."""
    sweeps = [shlex.split(line) for line in TYPED if line.startswith("mlaprof sweep")]

    assert sweeps
    for words in sweeps:
        axes = dict(words[place + 1].split("=", 1) for place, word in enumerate(words) if word == "-a")
        load_study(checkout / words[2], axes=axes)


def test_every_command_is_in_the_readme() -> None:
    named = {row[0].strip("`").split()[1] for row in table("command")}

    assert named == set(COMMANDS)


def test_every_mode_is_in_the_readme() -> None:
    assert {row[0].strip("`") for row in table("mode")} == set(MODE_SUMMARY)


def test_every_room_of_the_house_is_there(checkout: Path) -> None:
    """Folders end with a slash; what is indented lies in mlaprof/. And no room of mlaprof/ is left out."""
    house = next(block for _, block in BLOCKS if block.startswith("configs/"))
    rooms = [line.split("  ", 1)[0] if line[0] != " " else f"mlaprof/{line.split()[0]}" for line in house.splitlines()]
    for room in rooms:
        path = checkout / room
        assert path.is_dir() if room.endswith("/") else path.is_file(), room
    folders = {f"mlaprof/{path.name}/" for path in (checkout / "mlaprof").iterdir() if (path / "__init__.py").exists()}
    assert folders - set(rooms) <= {"mlaprof/kernels/"}


def test_files_that_the_readme_names_are_there(checkout: Path) -> None:
    steps = re.findall(r"`(\w+\.py|\w+/)`", README)

    assert steps
    for name in steps:
        assert (checkout / name).exists() or (checkout / "mlaprof" / name).exists(), name


def told(text: str) -> dict[int, set[str]]:
    """`0 ok, 1 regression, ...` -> code to its words."""
    found = re.findall(r"\b(\d{1,3}) ([a-z ]+)", text)
    return {int(code): set(words.split()) - {"or"} for code, words in found}


def test_the_exit_codes_of_the_readme_are_those_of_the_door() -> None:
    """One table in three places: README, docstring, `--help`."""
    readme = {int(code): meaning for code, meaning in table("exit code")}
    codes = told(door.__doc__ or "")

    assert set(readme) == set(codes) == {0, 1, 2, 3, 4, 5, 130}
    assert told((door.app.info.help or "").split("Exit codes:")[1]) == codes
    assert {code for code, words in codes.items() if not any(word[:5] in readme[code] for word in words)} == set()
    assert (door.SOME_FAILED, door.INTERRUPTED) == (5, 130)
    assert (ConfigError.exit_code, RunFileError.exit_code, MachineError.exit_code) == (2, 2, 4)
