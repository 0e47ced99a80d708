"""By what a field of a table sorts: the number that its text tells."""

from __future__ import annotations

import re

_NUMBER = re.compile(r"[<>~≥±]*=?\s*([+-]?\d+(?:\.\d+)?)(.*)", re.DOTALL)


def sort_key(text: str) -> float | None:
    """`~1.05x` sorts as 1.05, `1.25x slower` as 0.8, `baseline` and `same` as 1, `<1%` below `1%`; None without one."""
    words = text.strip()
    if words in ("baseline", "same"):
        return 1.0
    if words.startswith(("host ", "host\u00a0")):  # `host 7.3x`, by whom the pace is set
        words = words[5:]
    found = _NUMBER.match(words)
    if not found:
        return None
    value = float(found[1])
    if found[2].strip() == "x slower" and value:
        return 1 / value
    return value - 1e-9 if words.startswith("<") else value + 1e-9 if words.startswith(">") else value
