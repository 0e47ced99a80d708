"""What carries a million Points: made without validation, read without a look at each string, and the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mlaprof.records import Measurement, Outcome, Point
from mlaprof.study import TileChoice
from mlaprof.wire import decode, decode_event, decode_row, encode


def test_a_trusted_point_is_the_validated_one() -> None:
    tiles = (TileChoice(kernel="sparse_attn", values={"block_n": 64}),)
    fields = ("v3.2", "prefill", 4, 64, "split_piecewise", "proj", tiles)

    point = Point.trusted(*fields)
    same = Point(**dict(zip(Point.model_fields, fields, strict=False)))

    assert (point, hash(point.key), point.model_dump_json()) == (same, hash(same.key), same.model_dump_json())
    assert point.model_copy(update={"twin": True}) == same.model_copy(update={"twin": True})
    assert Point.trusted(*fields).model_fields_set == set()  # which model_copy of another leaves alone
    with pytest.raises(ValueError, match="frozen"):
        point.num_tokens = 5


@pytest.mark.parametrize(
    "written", ["\\u001b[31m", "\\u009b31m", "\x9b31m", "\\r", "\\b", "\\f", "a\\\\u", "\\n\\t", "é"]
)
def test_what_steers_a_terminal_is_replaced_however_it_is_written(written: str) -> None:
    event = decode_event(f'{{"started": {{"kind": "timing", "key": "{written}", "stage": "build"}}}}')

    steering = {chr(each) for each in (*range(32), *range(127, 160))} - {"\n", "\t"}
    assert event.key and not steering & set(event.key)
    assert len(event.key) == len(json.loads(f'"{written}"'))


@pytest.mark.parametrize("reason", ["ran out", "a\x1b[31m", "two\nlines", "é"])
def test_a_row_is_read_as_its_line_is(reason: str) -> None:
    """In one pass or not; and a row that says it is of another kind is none."""
    line = encode(
        Measurement(
            point=Point.trusted("v3.2", "prefill", 4, 64, "split_piecewise", "proj", ()),
            kind="timing",
            outcome=Outcome(status="failed", stage="measure", reason=reason),
            emulated=True,
            recorded_at="2026-11-23T10:15:00+00:00",
        )
    )

    assert decode_row("timing", line) == decode(line)
    for wrong in ("timing", line[:-1]), ("kernel", line.replace("\\", "")):
        with pytest.raises(ValueError):
            decode_row(*wrong)


def test_the_figures_say_how_they_were_made(checkout: Path) -> None:
    """A goal that is missed is called so; what could not be run has its reason."""
    found = json.loads((checkout / "results" / "reference" / "scale.json").read_text())

    assert found["two_gpus"] is None and "scale.py --gpus 0,1" in found["two_gpus_reason"]
    for name in ("plan", "driver", "run"):
        assert {"goal", "met", "command", "date", "machine", "versions"} <= found[name].keys()
