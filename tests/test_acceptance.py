"""The acceptance list of the layer: every row of the table of behaviours has a test that can be found by its number."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pytest

ROWS = range(1, 31)
NAME = re.compile(r"test_a(\d\d)_\w+")


def acceptance_tests(sources: Iterable[str]) -> Counter[int]:
    """Row -> how many tests of it run on a CPU, from the names of test functions; those marked gpu do not count."""
    found: Counter[int] = Counter()
    for source in sources:
        for node in ast.walk(ast.parse(source)):
            if not isinstance(node, ast.FunctionDef) or not (named := NAME.fullmatch(node.name)):
                continue
            marks = [ast.unparse(each) for each in node.decorator_list]
            if "pytest.mark.gpu" not in marks:
                found[int(named[1])] += 1
    return found


def whole_module_on_gpu(source: str) -> bool:
    return bool(re.search(r"^pytestmark = .*pytest\.mark\.gpu", source, re.MULTILINE))


def test_every_row_has_a_test_on_a_cpu():
    """test_a01_... to test_a30_..., none beyond."""
    files = [path.read_text() for path in Path(__file__).parent.rglob("test_*.py")]
    found = acceptance_tests(source for source in files if not whole_module_on_gpu(source))
    assert [row for row in ROWS if not found[row]] == []
    assert [row for row in found if row not in ROWS] == []


@pytest.mark.parametrize(
    "source",
    [
        "",
        "def test_a1_x(): ...",
        "# def test_a01_x(): ...",
        "@pytest.mark.gpu\ndef test_a01_x(): ...",
        "test_a01_x = 1",
    ],
    ids=["no test", "one digit", "a comment", "a GPU test", "no function"],
)
def test_what_does_not_count(source):
    """A name in a comment or behind a GPU is no evidence."""
    assert acceptance_tests([source]) == {}
    assert acceptance_tests([source, "def test_a01_it_holds():\n    pass"]) == {1: 1}
