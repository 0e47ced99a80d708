"""The documents that tell what to type: every command and code block is run, every file and name they give exists.

Commands run on a CPU at the sizes that the documents show, one after the other in a folder of their own.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"
TYPED = ("tutorial", "extending", "python", "cluster")  # documents whose commands and code are run
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)
SET_UP = ("make", "source")  # looked at, not run: they would build an environment around this one


def blocks(name: str) -> list[tuple[str, str]]:
    """(language, text) of every block of a document, in order."""
    return [(found[1], found[2]) for found in BLOCK.finditer((DOCS / f"{name}.md").read_text())]


def commands(name: str) -> list[str]:
    return [line[2:] for kind, text in blocks(name) if kind == "console" for line in text.splitlines()]


@pytest.fixture
def folder(checkout: Path, tmp_path: Path) -> Path:
    """Where a reader types: the configurations and the reference runs are there, and `mlaprof` is this checkout's."""
    (tmp_path / "configs").symlink_to(checkout / "configs")
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "reference").symlink_to(checkout / "results" / "reference")
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "mlaprof"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m mlaprof "$@"\n')
    program.chmod(0o755)
    return tmp_path


def typed(line: str, folder: Path, checkout: Path) -> subprocess.CompletedProcess[str]:
    found = os.environ.get("PYTHONPATH")
    path = os.pathsep.join([str(checkout), *([found] if found else [])])
    surroundings = {**os.environ, "PYTHONPATH": path, "PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    return subprocess.run(
        ["bash", "-euc", line], cwd=folder, env=surroundings, capture_output=True, encoding="utf-8", timeout=280
    )


@pytest.mark.timeout(900)  # ten commands, each a process that imports torch
@pytest.mark.parametrize("name", [name for name in TYPED if commands(name)])
def test_what_a_document_tells_to_type_works(checkout: Path, folder: Path, name: str) -> None:
    """In the document's order, with the files that it shows: a YAML block's first line is its name."""
    for kind, text in blocks(name):
        if kind == "yaml":
            (folder / text.splitlines()[0].removeprefix("# ")).write_text(text)
            continue
        for line in text.splitlines() if kind == "console" else ():
            assert line.startswith("$ "), line
            if line[2:].split()[0] in SET_UP:
                continue
            done = typed(line[2:], folder, checkout)
            assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"


def test_the_tutorial_leaves_what_the_ticket_needs(checkout: Path) -> None:
    """Each file that is to be attached is made by a command of it."""
    text, made = (DOCS / "tutorial.md").read_text(), " ".join(commands("tutorial"))
    assert "- `ticket.md`" in text and "> ticket.md" in made
    assert "- `trace.json`" in text and "--out trace.json" in made
    assert made.count("--out results/") == 2


def test_set_up_commands_are_those_of_the_makefile(checkout: Path) -> None:
    makefile = (checkout / "Makefile").read_text()
    for name in TYPED:
        for line in commands(name):
            program, *words = line.split()
            if program == "make":
                assert all(re.search(rf"^{word}:", makefile, re.MULTILINE) for word in words), line
            elif program == "source":
                assert words == [".venv/bin/activate"] and "-m venv .venv" in makefile


def test_the_code_of_the_python_page_runs(checkout: Path, folder: Path) -> None:
    """As one session; where pandas is not installed, without the block that says it needs it."""
    parts = [text for kind, text in blocks("python") if kind == "python"]
    if importlib.util.find_spec("pandas") is None:
        parts = [text for text in parts if not text.startswith("# needs pandas")]
    (folder / "session.py").write_text("\n".join(parts))
    done = typed(f'"{sys.executable}" session.py', folder, checkout)
    assert done.returncode == 0, done.stderr
    assert "<mlaprof run 20261123-" in done.stdout and "('latency-prefill-ctx0'" in done.stdout
    assert (folder / "speedup.png").stat().st_size > 10_000


def test_the_python_page_names_every_public_member() -> None:
    from mlaprof import LoadedRun

    members = {name for name in vars(LoadedRun) if not name.startswith("_")}
    page = (DOCS / "python.md").read_text()
    table = set(re.findall(r"`(\w+)(?:\([^`]*\))?`", page[page.index("| member |") : page.index("Seconds, bytes")]))
    assert members | {"path"} <= table


NAMED = re.compile(r"`([\w./-]+\.(?:py|yaml|md))`(?:\s+\(((?:`\w+`(?:,\s+)?)+)\))?")


def named(text: str) -> list[tuple[str, list[str]]]:
    """Every file that a text names, and the names behind it in brackets."""
    return [(found[1], re.findall(r"`(\w+)`", found[2] or "")) for found in NAMED.finditer(text)]


def test_files_and_names_of_extending_are_there(checkout: Path) -> None:
    """A name is looked for as a definition, so that one in passing does not count."""
    found = named((DOCS / "extending.md").read_text())
    assert len(found) > 40 and sum(len(names) for _, names in found) > 25
    for file, names in found:
        assert (checkout / file).is_file(), file
        source = (checkout / file).read_text()
        for name in names:
            defined = rf"^\s*(?:def|class) {name}\b|^{name}\b[^=\n]*=|\bimport .*\b{name}\b"
            assert re.search(defined, source, re.MULTILINE), f"{file}: {name}"


def test_folders_of_extending_are_there(checkout: Path) -> None:
    for name in re.findall(r"`([\w/]+/)`", (DOCS / "extending.md").read_text()):
        assert (checkout / name).is_dir(), name


def test_a_file_or_name_that_is_gone_is_found() -> None:
    """The checks above can fail."""
    assert named("`mlaprof/gone.py` (`A`,\n   `b`) and `x.md`") == [("mlaprof/gone.py", ["A", "b"]), ("x.md", [])]


@pytest.mark.parametrize("name", ["tutorial", "python", "extending", "events", "cluster"])
def test_links_between_documents_hold(name: str) -> None:
    for link in re.findall(r"\]\(([^)#]+)", (DOCS / f"{name}.md").read_text()):
        assert link.startswith("https://") or (DOCS / link).exists(), link
