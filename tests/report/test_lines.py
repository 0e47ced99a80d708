from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mlaprof.errors import ConfigError
from mlaprof.report.lines import print_error

Printed = Callable[..., Any]


def test_an_error_is_one_line_with_place_and_remedy(printed: Printed) -> None:
    console, text = printed(40)
    print_error(ConfigError("unknown key [mode]\nhere", where="a.yaml:3", hint="did you mean [modes]?"), console)
    assert text() == "error: a.yaml:3: unknown key [mode] here; did you mean [modes]?\n"


def test_what_else_is_wrong_follows_the_error(printed: Printed) -> None:
    """A line each, as far as they help."""
    console, text = printed(40)
    error = ConfigError("first", where="a.yaml:3", hint="mend it")
    for number in range(12):
        error.add_note(f"a.yaml:{number}: [wrong] in some long way or other; mend it")
    print_error(error, console)
    first, more, *others = text().splitlines()
    assert (first, more) == ("error: a.yaml:3: first; mend it", "and 12 more:")
    assert others[0] == "  a.yaml:0: [wrong] in some long way or other; mend it"
    assert len(others) == 11 and others[-1] == "  ..."
