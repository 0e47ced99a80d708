"""The run that a user means by a name: a run file, an id, `latest`, or a bundle out of a ticket."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from mlaprof import store
from mlaprof.archive import is_archive, read_archive
from mlaprof.errors import RunFileError
from mlaprof.records import Run

RUN_FILE = "run.mlaprof"  # inside a bundle


def found_run(name: str, results: Path) -> Run:
    """The run by this name. Raises RunFileError when there is none, or on a file that is neither run nor bundle."""
    with run_file(name, results) as path:
        return store.load(path)


def found_layers(name: str, results: Path) -> Run:
    """As found_run, of a run of the layer. Raises RunFileError on one of single kernels or of tuning, too."""
    with run_file(name, results) as path:
        return store.load_layers(path)


@contextlib.contextmanager
def run_file(name: str, results: Path) -> Iterator[Path]:
    """The run file by this name, for as long as it is needed: that of a bundle is unpacked, and goes afterwards.

    Raises RunFileError when there is none, and on a bundle that is not what its checksums say.
    """
    path = store.resolve(name, results)
    if not is_archive(path):
        yield path
        return
    content = read_archive(path).get(RUN_FILE)
    if content is None:
        raise RunFileError(f"no {RUN_FILE} in it", where=str(path), hint="give a zip that `mlaprof bundle` wrote")
    with tempfile.TemporaryDirectory(prefix="mlaprof-") as folder:
        copy = Path(folder) / RUN_FILE
        copy.write_bytes(content)
        yield copy
