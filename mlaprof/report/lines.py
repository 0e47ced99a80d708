"""Lines of text in the terminal, and errors (Rich)."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console
from rich.text import Text

from mlaprof.errors import MlaprofError
from mlaprof.report.style import Look

SHOWN_KEYS = 3  # of many cells with one reason
SHOWN_NOTES = 10  # of many complaints about one study


def print_error(error: MlaprofError, console: Console) -> None:
    """One red line: where, what, remedy. Plain lines below it name what else is wrong, as the error's notes have it."""
    print_line(f"error: {error}", console, "bold red")
    notes: list[str] = getattr(error, "__notes__", [])
    if notes:
        print_line(f"and {len(notes)} more:", console)
    for note in notes[:SHOWN_NOTES]:
        print_line(f"  {note}", console)
    if len(notes) > SHOWN_NOTES:
        print_line("  ...", console)


def print_line(text: str, console: Console, style: str = "") -> None:
    """One line, however long and whatever is in it."""
    indent = " " * (len(text) - len(text.lstrip()))
    console.print(Text(indent + " ".join(text.split()), style=style), soft_wrap=True)


def print_wrapped(text: str, console: Console, style: str = "") -> None:
    """A sentence, wrapped at the width of the terminal; in ASCII where the terminal is."""
    # Text, not markup: a reason such as `shape [3, 5]` keeps its brackets.
    console.print(Text(text.replace("±", "+-") if console.options.ascii_only else text, style=style))


def styled(look: Look, console: Console) -> Text:
    """The symbol and word of a status or verdict, in its colour; in ASCII where the terminal is."""
    return Text(look.text(console.options.ascii_only), style=look.colour)


def keys_by_reason(pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Reason -> `key, key, key and 2 more`, from pairs of a reason and the key of a cell."""
    found: dict[str, list[str]] = {}
    for reason, key in pairs:
        found.setdefault(reason, []).append(key)
    return {reason: _listed(keys) for reason, keys in found.items()}


def _listed(keys: list[str]) -> str:
    more = len(keys) - SHOWN_KEYS
    return ", ".join(keys[:SHOWN_KEYS]) + (f" and {more} more" if more > 0 else "")
