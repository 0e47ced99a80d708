"""Traces from files: what is read, and one line with file, line and remedy for what is not."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlaprof.errors import ConfigError
from mlaprof.sizing import tracefile
from mlaprof.sizing.scheduler import Request
from mlaprof.sizing.steps import Steps
from mlaprof.sizing.tracefile import read_trace


@pytest.fixture
def trace(tmp_path: Path):
    def write(text: str | bytes, name: str = "t.csv") -> Path:
        path = tmp_path / name
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return path

    return write


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("t.csv", "8\n8\n64\n"),
        ("t.csv", "# a comment\n\nnum_tokens,weight\n8,2\n64,1\n"),
        ("t.csv", "num_tokens\r\n 8 \r\n8\r\n64\r\n"),
        ("t.jsonl", "8\n8\n64\n"),
        ("t.jsonl", '{"num_tokens": 8, "weight": 2}\n{"num_tokens": 64}\n'),
    ],
    ids=["a count a line", "weights", "a header and carriage returns", "numbers in JSON", "objects"],
)
def test_steps_are_read(trace, name, text):
    found = read_trace(trace(text, name))

    assert isinstance(found, Steps)
    assert found.tokens.tolist() == [8, 64]
    assert found.weights == pytest.approx([2 / 3, 1 / 3])


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("r.csv", "arrival_s,prompt_tokens,output_tokens,cached_tokens\n0,100,5,30\n1.5,10,1,0\n"),
        ("r.jsonl", '{"arrival_s": 0, "prompt_tokens": 100, "output_tokens": 5, "cached_tokens": 30}\n'
         '{"arrival_s": 1.5, "prompt_tokens": 10, "output_tokens": 1}\n'),
    ],
)  # fmt: skip
def test_requests_are_read(trace, name, text):
    assert read_trace(trace(text, name)) == (Request(0.0, 100, 5, 30), Request(1.5, 10, 1, 0))


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("t.csv", "", "t.csv: an empty trace; one token count a line"),
        ("t.csv", "\n# nothing\n", "an empty trace"),
        ("t.csv", "num_tokens\n", "a header and no entry"),
        ("t.csv", "8\n0\n", "t.csv:2: num_tokens: 0 tokens; give 1 to"),
        ("t.csv", "8\n-4\n", "t.csv:2: num_tokens: -4 tokens"),
        ("t.csv", "8\n99999999999\n", "t.csv:2: num_tokens: 99999999999 tokens"),
        ("t.csv", "8\n" + "9" * 3000 + "\n", "t.csv:2: num_tokens: '9999"),
        ("t.csv", "8\n3.5\n", "t.csv:2: num_tokens: '3.5' is not a whole number"),
        ("t.csv", "8\nnan\n", "t.csv:2: num_tokens: 'nan' is not a whole number"),
        ("t.csv", "8,nan\n", "t.csv:1: weight: 'nan' is out of bounds"),
        ("t.csv", "8,0\n", "t.csv:1: weight: '0' is out of bounds"),
        ("t.csv", "8,inf\n", "t.csv:1: weight: 'inf' is out of bounds"),
        ("t.csv", "8,1,2\n", "t.csv:1: weight: '1,2' is out of bounds"),
        ("t.csv", "size,count\n8,1\n", "t.csv:1: unknown columns 'size,count'; use num_tokens"),
        ("t.csv", "8\n" + "1" * 5000 + "\n", "t.csv:2: a line of more than 4096 characters"),
        ("t.csv", b"8\n\xff\xfe\n", "t.csv: not UTF-8 text"),
        ("t.csv", "8\x00\n", "t.csv:1: num_tokens: '8\\x00' is not a whole number"),
        ("t.jsonl", "8\n{\n", "t.jsonl:2: not JSON"),
        ("t.jsonl", "8\n" + "[" * 2000 + "\n", "t.jsonl:2: not JSON"),
        ("t.jsonl", "true\n", "t.jsonl:1: num_tokens: 'True' is not a whole number"),
        ("t.jsonl", "null\n", "t.jsonl:1: num_tokens: 'None' is not a whole number"),
        ("t.jsonl", "8.0\n", "t.jsonl:1: num_tokens: '8.0' is not a whole number"),
        ("t.jsonl", '{"tokens": 8}\n', "t.jsonl:1: no num_tokens"),
        ("t.jsonl", '{"num_tokens": 8, "weigth": 1}\n', "t.jsonl:1: unknown key 'weigth'"),
        ("t.jsonl", '{"num_tokens": 8, "weight": true}\n', "weight: 'True' is out of bounds"),
        ("r.csv", "arrival_s,prompt_tokens,output_tokens\n0,5\n", "r.csv:2: 2 fields"),
        ("r.csv", "arrival_s,prompt_tokens,output_tokens\n2,5,1\n1,5,1\n", "r.csv:3: arrives before the request above"),
        ("r.csv", "arrival_s,prompt_tokens,output_tokens\n-1,5,1\n", "r.csv:2: arrival_s: '-1' is out of bounds"),
        ("r.csv", "arrival_s,prompt_tokens,output_tokens,cached_tokens\n0,5,1,5\n", "r.csv:2: 5 cached of 5 prompt"),
        ("r.jsonl", '{"prompt_tokens": 5}\n', "r.jsonl:1: no arrival_s"),
        ("r.jsonl", '{"arrival_s": 0, "prompt_tokens": 5, "output_tokens": 1}\n7\n', "r.jsonl:2: not an object"),
    ],
)
def test_what_is_wrong_is_one_line_with_its_place(trace, name, text, words):
    with pytest.raises(ConfigError) as raised:
        read_trace(trace(text, name))

    assert words in str(raised.value).replace("\x00", "\\x00")
    assert raised.value.hint and "\n" not in str(raised.value)
    assert len(raised.value.message) < 200


def test_limits_hold(trace, monkeypatch):
    monkeypatch.setattr(tracefile, "MOST_LINES", 3)
    with pytest.raises(ConfigError, match=r"t.csv:4: more than 3 lines"):
        read_trace(trace("1\n" * 9))
    monkeypatch.setattr(tracefile, "MOST_BYTES", 10)
    with pytest.raises(ConfigError, match="18 bytes, more than 10"):
        read_trace(trace("1\n" * 9))
    monkeypatch.setattr(tracefile, "MOST_BYTES", 1000)
    monkeypatch.setattr(tracefile, "MOST_LINES", 100)
    monkeypatch.setattr(tracefile, "MOST_REQUESTS", 1)
    with pytest.raises(ConfigError, match="more than 1 requests"):
        read_trace(trace("arrival_s,prompt_tokens,output_tokens\n0,5,1\n1,5,1\n"))


def test_a_folder_is_no_trace(tmp_path):
    with pytest.raises(ConfigError, match="not a file"):
        read_trace(tmp_path)


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=60), suffix=st.sampled_from([".csv", ".jsonl"]))
def test_any_text_is_read_or_refused(tmp_path_factory, text, suffix):
    """Never another error than the user's own."""
    path = tmp_path_factory.mktemp("fuzz") / f"t{suffix}"
    path.write_text(text, encoding="utf-8", errors="replace")
    try:
        found = read_trace(path)
    except ConfigError:
        return
    assert isinstance(found, tuple) or found.tokens.min() >= 1
