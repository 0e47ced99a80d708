"""Pages of planted runs, and what stands in them."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest

from mlaprof.analysis.summary import summarize
from mlaprof.report.page.layers import Subject, layer_page


class Read(HTMLParser):
    """Tags with their attributes, and all text outside of style and script."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._inside = ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._inside = tag

    def handle_endtag(self, tag):
        self._inside = ""

    def handle_data(self, data):
        if self._inside not in ("style", "script"):
            self.text += data


@pytest.fixture(scope="session")
def read():
    return Read


@pytest.fixture
def paged(fake_runs):
    """Make the page of a run without figures."""

    def make(run, **changes):
        return layer_page(Subject(run, summarize(run), {}, **changes))

    return make
