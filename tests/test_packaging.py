"""The forms in which mlaprof travels: a checkout, and a wheel. One import name, mlaprof.kernels, in both."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest


def run_python(*arguments: str, cwd: Path, path: str = "") -> subprocess.CompletedProcess[str]:
    """A fresh interpreter in cwd; PYTHONPATH is path and nothing else."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    if path:
        environment["PYTHONPATH"] = path
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, timeout=240
    )


@pytest.fixture(scope="module")
def plain_checkout(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what a clone holds, so that building leaves nothing in the checkout itself."""
    copy = tmp_path_factory.mktemp("clone") / "mlaprof"
    copy.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(checkout / name, copy / name)
    for name in ("mlaprof", "kernels"):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(checkout / name, copy / name, symlinks=True, ignore=ignore)
    return copy


@pytest.fixture(scope="module")
def wheel(plain_checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = ("-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder))
    done = run_python(*build, str(plain_checkout), cwd=folder)
    assert done.returncode == 0, done.stderr
    (built,) = folder.glob("*.whl")
    return built


def test_the_kernels_of_a_checkout_are_a_relative_link(checkout: Path):
    """A clone works wherever it lies; an absolute link would point at the author's disk."""
    link = checkout / "mlaprof" / "kernels"
    assert link.is_symlink()
    assert os.readlink(link) == "../kernels"


def test_a_wheel_holds_the_kernels_as_files_under_their_import_name(checkout: Path, wheel: Path):
    """Triton reads a kernel's source from its file; the bare name `kernels` belongs to another package."""
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        files = (checkout / "kernels").rglob("*.py")
        sources = {path.relative_to(checkout / "kernels").as_posix(): path.read_bytes() for path in files}
        assert sources
        for name, source in sources.items():
            assert archive.read(f"mlaprof/kernels/{name}") == source
    assert "mlaprof/py.typed" in names
    assert {name.split("/")[0].split("-")[0] for name in names} == {"mlaprof"}


def test_a_wheel_holds_every_module_of_the_checkout(checkout: Path, wheel: Path):
    """All but mlaprof/drill: no release injects faults."""
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if name.endswith(".py")}
    package = checkout / "mlaprof"
    files = {*package.rglob("*.py"), *(package / "kernels").rglob("*.py")}
    names = {file.relative_to(checkout).as_posix() for file in files}
    assert packed == {name for name in names if not name.startswith("mlaprof/drill/")} < names


def test_kernels_import_from_a_wheel(wheel: Path, tmp_path: Path):
    done = run_python(
        "-c", "import mlaprof.kernels.tiles as tiles; print(tiles.__file__)", cwd=tmp_path, path=str(wheel)
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"{wheel}/mlaprof/kernels/tiles/__init__.py"


def test_kernels_import_from_a_plain_checkout(plain_checkout: Path):
    done = run_python("-c", "import mlaprof.kernels.tiles as tiles; print(tiles.__file__)", cwd=plain_checkout)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()) == plain_checkout / "mlaprof" / "kernels" / "tiles" / "__init__.py"


def test_the_command_line_runs_from_a_plain_checkout(plain_checkout: Path):
    """`python -m mlaprof` needs the dependencies and nothing of mlaprof's own installed."""
    done = run_python("-m", "mlaprof", "--help", cwd=plain_checkout)
    assert done.returncode == 0, done.stderr
    assert "sweep" in done.stdout
