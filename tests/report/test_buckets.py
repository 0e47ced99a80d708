"""Capture sizes in the terminal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from mlaprof.buckets import Buckets
from mlaprof.report.buckets import print_buckets


@pytest.mark.parametrize(
    ("buckets", "starts"),
    [
        (Buckets(()), []),
        (Buckets((1, 64)), ["piecewise and breakable graphs of 1 64 tokens"]),
        (Buckets((), dropped=(9,)), ["warning: capture sizes 9 dropped"]),
        (
            Buckets((1, 127), clamped=(128, 256), dropped=(9000,)),
            [
                "piecewise and breakable graphs of 1 127 tokens",
                "warning: capture sizes 128 256 clamped to 127 tokens",
                "warning: capture sizes 9000 dropped",
            ],
        ),
    ],
    ids=["nothing to pad", "as asked for", "all dropped", "every fate"],
)
def test_each_fate_of_a_size_is_a_line(printed: Callable[..., Any], buckets: Buckets, starts: list[str]) -> None:
    """However narrow the terminal; a warning ends with what to do next."""
    console, text = printed(40)
    print_buckets(buckets, console)

    lines = text().splitlines()
    assert [line.startswith(start) for line, start in zip(lines, starts, strict=True)] == [True] * len(starts)
    assert all("; next: " in line for line in lines if line.startswith("warning"))
