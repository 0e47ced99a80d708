"""The command line: parse, call, print. A file a group of commands; door.py has the app and the exit policy."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from mlaprof.cli import (  # noqa: F401  each adds its commands to the app
    buckets,
    kernels,
    measure,
    merge,
    read,
    report,
    surroundings,
    trace,
    tune,
    tuned,
)
from mlaprof.cli.door import INTERRUPTED, app, err
from mlaprof.errors import MlaprofError
from mlaprof.report.lines import print_error


def main() -> NoReturn:
    """Run the command line; errors that a user can mend are one line."""
    try:
        with _ending_is_an_interrupt():
            app()
    except MlaprofError as error:
        print_error(error, err)
        raise SystemExit(error.exit_code) from None
    except KeyboardInterrupt:
        raise SystemExit(INTERRUPTED) from None
    raise SystemExit(0)


@contextmanager
def _ending_is_an_interrupt() -> Iterator[None]:
    """A batch system's SIGTERM and a lost terminal's SIGHUP end a command as Ctrl-C does: in order, with exit code 130.

    Where they are ignored, as under nohup, they stay so.
    """
    caught = [each for each in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(each) is signal.SIG_DFL]
    for each in caught:
        signal.signal(each, signal.default_int_handler)
    try:
        yield
    finally:
        for each in caught:
            signal.signal(each, signal.SIG_DFL)
