from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mlaprof.report.columns import Column, print_columns

Printed = Callable[..., Any]
CELL = Column("cell", 0, ["a", "b", "mean"], right=False)
WIDE = Column("wide", 2, ["1234567890", "1234567890", ""])
RATIO = Column("ratio", 1, ["1.0", "1.0", "2.0"])


def test_the_highest_rank_goes_first_and_is_named(printed: Printed) -> None:
    console, text = printed(16)
    dropped = print_columns([CELL, WIDE, RATIO], console, instead=", or look elsewhere")
    assert [column.title for column in dropped] == ["wide"]
    assert text().splitlines()[0].split() == ["cell", "ratio"]
    assert "too narrow for: wide (widen the terminal, or look elsewhere)" in " ".join(text().split())


def test_a_last_row_goes_with_the_column_that_it_had_something_to_say_in(printed: Printed) -> None:
    for width, stays in ((12, True), (8, False)):
        console, text = printed(width)
        print_columns([CELL, RATIO], console, last_rows=1)
        assert ("mean" in text()) is stays, width


def test_an_empty_column_is_left_out_and_not_missed(printed: Printed) -> None:
    console, text = printed(80)
    assert print_columns([CELL, Column("nothing", 1, ["", " ", ""])], console) == []
    assert "nothing" not in text()


def test_a_column_of_rank_0_stays_however_narrow_and_empty(printed: Printed) -> None:
    console, text = printed(6)
    print_columns([CELL, Column("must", 0, ["", "", ""])], console)
    assert "mu" in text()
