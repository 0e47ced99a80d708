"""A page as one HTML file that asks for nothing: styles, script and figures inside, every text escaped."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.resources import files

from jinja2 import DictLoader, Environment, StrictUndefined
from markupsafe import Markup, escape
from rich.text import Text

from mlaprof.analysis.strips import Strip
from mlaprof.report.columns import Column
from mlaprof.report.page.parts import Page, Part, Picture, Sheet, Words
from mlaprof.report.page.sorting import sort_key

LIMIT_BYTES = 5_000_000
SHORT = 32  # characters that are not broken over lines
STRIP_WIDTH, STRIP_ROW = 160, 12  # units of the drawing of a strip
_CLASSES = {"green": "good", "red": "bad", "bold red": "bad", "yellow": "doubt", "bright_black": "dim", "cyan": "dim"}


@dataclass(frozen=True)
class Field:
    """One field of a table: its text, what it sorts by, its class in the style sheet."""

    text: str
    key: str
    look: str


def render(page: Page) -> str:
    """The page as HTML below LIMIT_BYTES; of a huge run what stands beside it as files anyway is left out, and said."""
    html = _html(page)
    if _size(html) < LIMIT_BYTES:
        return html
    html = _html(_without(page, "strips"))
    return html if _size(html) < LIMIT_BYTES else _html(_without(page, "strips", "figures"))


def _size(html: str) -> int:
    return len(html.encode())


def _html(page: Page) -> str:
    script = _asset("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        _environment()
        .get_template("page.html")
        .render(page=page, style=Markup(_asset("page.css")), script=Markup(script), digest=digest)
    )


@lru_cache(maxsize=1)
def _environment() -> Environment:
    found = Environment(
        loader=DictLoader({"page.html": _asset("page.html")}),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters |= {"kind": _kind, "shown": _shown, "rows": _rows, "strip": _strip}
    found.filters |= {"drawing": _drawing, "marks": _marks, "coded": _coded}
    return found


def _asset(name: str) -> str:
    return files("mlaprof.report.page").joinpath("templates", name).read_text(encoding="utf-8")


def _kind(part: Part) -> str:
    return type(part).__name__.lower()


def _kept(sheet: Sheet) -> list[Column]:
    return [column for column in sheet.columns if column.rank == 0 or not column.empty]


def _shown(sheet: Sheet) -> list[Column | None]:
    """The columns that are shown; None where the strips stand."""
    kept: list[Column | None] = [*_kept(sheet)]
    if any(sheet.strips):
        titles = [column.title for column in _kept(sheet)]
        place = titles.index(sheet.strips_after) + 1 if sheet.strips_after in titles else len(titles)
        kept.insert(place, None)
    return kept


def _rows(sheet: Sheet) -> Iterator[list[tuple[Field | Strip | None, bool]]]:
    """The fields of each row, and whether they stand to the right; a strip, or None without one, in its place."""
    shown = _shown(sheet)
    for number in range(len(sheet.columns[0].cells)):
        yield [
            (_field(column.cells[number]), column.right) if column else (sheet.strips[number], False)
            for column in shown
        ]


def _field(cell: Text | str) -> Field:
    text = str(cell)
    key = sort_key(text)
    look = _CLASSES.get(str(cell.style), "") if isinstance(cell, Text) else ""
    look = f"{look} short".strip() if len(text) <= SHORT else look
    return Field(text, "" if key is None else repr(key), look)


def _coded(text: str) -> Markup:
    """The text escaped, and what stands between backticks as code."""
    parts = text.split("`")
    if len(parts) % 2 == 0:  # a backtick without another: a character like any
        return Markup(escape(text))
    code = Markup("<code>{}</code>")
    return Markup().join(code.format(part) if place % 2 else part for place, part in enumerate(parts))


def _drawing(picture: Picture) -> Markup:
    # Made by matplotlib out of paths, and freed of comments and metadata by inline_svg: no text of a run is in it.
    return Markup(picture.svg)


def _marks(picture: Picture) -> str:
    return json.dumps(
        [[mark.x, mark.y, mark.text] for mark in picture.marks], ensure_ascii=False, separators=(",", ":")
    )


def _strip(strip: Strip, reach: float) -> Markup:
    """A dot a sample, a row a process; equal places once, so that a strip is never large. Numbers alone."""
    path = "".join(
        f"M{place} {STRIP_ROW * row + STRIP_ROW // 2}h0"
        for row, samples in enumerate(strip.deviations.values())
        for place in sorted({_place(each, reach) for each in samples})
    )
    height, middle = STRIP_ROW * len(strip.deviations), STRIP_WIDTH // 2
    samples = sum(map(len, strip.deviations.values()))
    return Markup(
        f'<svg class="strip" viewBox="-3 0 {STRIP_WIDTH + 6} {height}" width="{STRIP_WIDTH + 6}" height="{height}" '
        f'role="img" aria-label="{samples} samples of {len(strip.deviations)} processes">'
        f'<path class="middle" d="M{middle} 0v{height}"/><path class="samples" d="{path}"/></svg>'
    )


def _place(deviation: float, reach: float) -> int:
    share = max(-1.0, min(1.0, deviation / reach)) if reach else 0.0
    return round((share + 1) / 2 * STRIP_WIDTH)


def _without(page: Page, *what: str) -> Page:
    sections = tuple(replace(each, parts=tuple(_lighter(part, what) for part in each.parts)) for each in page.sections)
    limit = f"{LIMIT_BYTES // 1_000_000} MB"
    told = (*page.facts, f"Left out, to stay below {limit}: {' and '.join(what)}; see the files beside this page")
    return replace(page, facts=told, sections=sections)


def _lighter(part: Part, what: Sequence[str]) -> Part:
    if isinstance(part, Sheet) and "strips" in what:
        return replace(part, strips=())
    if isinstance(part, Picture) and "figures" in what:
        return Words(f"{part.title}: plots/{part.stem}.svg beside this page", "note")
    return part
