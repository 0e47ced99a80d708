"""A page as HTML: escaped, self-contained, below its limit."""

from __future__ import annotations

import base64
import hashlib
import json
import re

import pytest
from rich.text import Text

from mlaprof.analysis.strips import Strip
from mlaprof.report.columns import Column
from mlaprof.report.figures.marks import Mark
from mlaprof.report.page import render as rendering
from mlaprof.report.page.parts import Page, Picture, Section, Sheet, Words
from mlaprof.report.page.render import render
from mlaprof.report.page.sorting import sort_key

EVIL = '</title></script><script>alert(1)</script><img src=x onerror=alert(1)>" onfocus="alert(1)\' {{ 7*7 }}'


def page(*parts, **changes):
    fields = {"title": "t", "verdict": "v", "facts": ("f",), "sections": (Section("s", "S", parts),), **changes}
    return Page(**fields)


def full_of(evil):
    return page(
        Words(evil),
        Words(f"`{evil}`", "missing"),
        Words(evil, "code"),
        Sheet(evil, [Column(evil, 0, [evil, Text(evil, style=evil)])], evil),
        Picture("stem", evil, "<svg></svg>", [Mark(0.5, 0.5, evil)]),
        title=evil,
        verdict=evil,
        facts=(evil,),
        stamp=evil,
    )


def test_no_text_of_a_run_becomes_markup(read):
    found = read(render(full_of(EVIL)))
    assert [tag for tag, _ in found.tags].count("script") == 1 and "img" not in {tag for tag, _ in found.tags}
    assert not any(name.startswith("on") for _, attributes in found.tags for name in attributes)
    assert EVIL in found.text and "49" not in found.text


def test_a_page_asks_for_nothing(read):
    html = render(full_of("plain"))
    found = read(html)
    assert not {"link", "iframe", "object", "embed", "base", "form", "img"} & {tag for tag, _ in found.tags}
    for _, attributes in found.tags:
        assert "src" not in attributes and (attributes.get("href") or "#").startswith("#")
    assert not re.search(r"@import|url\(\s*['\"]?(?!#)", html)


def test_no_script_runs_but_the_page_s_own(read):
    html = render(full_of("plain"))
    policy = next(each["content"] for tag, each in read(html).tags if each.get("http-equiv"))
    script = re.search(r"<script>(.*?)</script>", html, re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy and "default-src 'none'" in policy


def test_values_for_hover_come_back_as_they_were(read):
    told = 'a "quoted" <value> & µs'
    found = read(render(page(Picture("stem", "T", "<svg></svg>", [Mark(0.25, 0.5, told)]))))
    marks = next(each["data-marks"] for tag, each in found.tags if tag == "figure")
    assert json.loads(marks) == [[0.25, 0.5, told]]


def test_a_table_is_told_to_a_screen_reader(read):
    tags = read(render(page(Sheet("Cells", [Column("tokens", 0, ["1", "64"])])))).tags
    assert ("th", {"scope": "col", "class": "right"}) in tags
    assert any(tag == "input" and "Cells" in (each.get("aria-label") or "") for tag, each in tags)
    assert any(
        tag == "div" and each.get("role") == "region" and each.get("aria-label") == "Cells" for tag, each in tags
    )
    assert [each.get("data-key") for tag, each in tags if tag == "td"] == ["1.0", "64.0"]


def test_a_strip_has_a_row_a_process_and_stays_on_its_axis():
    strip = Strip({0: (0.0, 0.01, -5.0), 1: (5.0, 5.0)})
    html = render(page(Sheet("Cells", [Column("a", 0, ["1"])], strips=[strip], reach=0.02)))
    path = re.search(r'class="samples" d="([^"]+)"', html)[1]
    assert path == "M0 6h0M80 6h0M120 6h0M160 18h0"


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("12.5", 12.5), ("~1.05x", 1.05), ("1.25x slower", 0.8), ("1.25x faster", 1.25), ("baseline", 1.0),
        ("same", 1.0),
        ("-3.2", -3.2), ("+3.2", 3.2), ("≥14", 14.0), ("±0.4%", 0.4), ("full", None), ("", None), ("host 7.3x", 7.3),
    ],
)  # fmt: skip
def test_a_field_sorts_by_the_number_that_it_tells(text, key):
    assert sort_key(text) == key


def test_less_than_a_percent_sorts_below_one():
    assert sort_key("<1%") < sort_key("1%") < sort_key(">99%") < sort_key("100%")


def test_a_huge_page_leaves_out_what_stands_beside_it_and_says_so(monkeypatch):
    strip = Strip({0: tuple(each / 1000 for each in range(100))})
    picture = Picture("budget", "Where", f"<svg>{'x' * 40_000}</svg>", [])
    huge = page(Sheet("Cells", [Column("a", 0, ["1"] * 50)], strips=[strip] * 50, reach=0.1), picture)
    monkeypatch.setattr(rendering, "LIMIT_BYTES", 75_000)
    html = render(huge)
    assert "strips; see the files" in html and 'class="samples"' not in html and "x" * 40_000 in html
    monkeypatch.setattr(rendering, "LIMIT_BYTES", 40_000)
    html = render(huge)
    assert "strips and figures" in html and "x" * 40_000 not in html and "plots/budget.svg" in html
