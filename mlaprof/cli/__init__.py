"""The command line: parse, call, print. A file a group of commands; door.py has the app and the exit policy."""

from __future__ import annotations

from typing import NoReturn

from mlaprof.cli import (  # noqa: F401  each adds its commands to the app
    buckets,
    kernels,
    measure,
    read,
    surroundings,
    tune,
    tuned,
)
from mlaprof.cli.door import INTERRUPTED, app, err
from mlaprof.errors import MlaprofError
from mlaprof.report.lines import print_error


def main() -> NoReturn:
    """Run the command line; errors that a user can mend are one line."""
    try:
        app()
    except MlaprofError as error:
        print_error(error, err)
        raise SystemExit(error.exit_code) from None
    except KeyboardInterrupt:
        raise SystemExit(INTERRUPTED) from None
    raise SystemExit(0)
