"""A figure as SVG to stand inside a page: no prologue, no comment, names of its own."""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Comments hold what texts say, which may be anything; metadata names addresses that no page needs.
_NOT_NEEDED = re.compile(r"<!--.*?-->|<metadata>.*?</metadata>|<\?xml.*?\?>|<!DOCTYPE.*?>", re.DOTALL)
_NAMES = re.compile(r'(\bid="|\bhref="#|url\(#)')
_BETWEEN = re.compile(r">\s+<")


def inline_svg(figure: Figure, name: str) -> str:
    """The figure as one `<svg>`; `name`, of letters, digits and dashes, goes before each of its ids."""
    if not re.fullmatch(r"[a-z0-9-]+", name):
        raise ValueError(f"name: expected letters, digits and dashes, got {name!r}")
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    bare = _BETWEEN.sub("><", _NOT_NEEDED.sub("", text.getvalue())).strip()
    return _NAMES.sub(rf"\g<1>{name}-", bare).replace("<svg ", '<svg aria-hidden="true" ', 1)
