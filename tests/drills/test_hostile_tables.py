"""Files from strangers, the smaller ones: tuned libraries and token traces, damaged in 2,000 ways."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import given

from mlaprof.errors import MlaprofError
from mlaprof.sizing.tracefile import read_trace
from mlaprof.tuning.library import load, save, shipped
from tests.drills.test_hostile import SEEDS, damaged, refused, tries

pytestmark = pytest.mark.drill

TRACES = {
    "steps.csv": "num_tokens,weight\n1,3\n256,1\n8192,0.5\n",
    "steps.jsonl": '{"num_tokens": 256, "weight": 3}\n17\n{"num_tokens": 1}\n',
    "requests.csv": "arrival_s,prompt_tokens,output_tokens,cached_tokens\n0,5,1,0\n0.5,700,20,64\n",
    "requests.jsonl": '{"arrival_s": 0, "prompt_tokens": 5, "output_tokens": 1}\n',
}


@tries(1000)
@given(seed=SEEDS)
def test_a_tuned_library(tmp_path: Path, seed: int) -> None:
    """What is refused is left as it was, also when something is to be added."""
    content = damaged(sorted(shipped().rglob("*.json"))[0].read_bytes(), random.Random(seed))
    path = tmp_path / "topk.json"
    path.write_bytes(content)
    try:
        entries = load(path)
    except MlaprofError as error:
        refused(error, path)
        with pytest.raises(MlaprofError):
            save(path, ())
        assert path.read_bytes() == content
        return
    save(path, entries)


@tries(1000)
@given(seed=SEEDS)
def test_a_token_trace(tmp_path: Path, seed: int) -> None:
    dice = random.Random(seed)
    name = dice.choice(sorted(TRACES))
    path = tmp_path / name
    path.write_bytes(damaged(TRACES[name].encode(), dice))
    try:
        found = read_trace(path)
    except MlaprofError as error:
        refused(error, path)
        return
    assert isinstance(found, tuple) or found.tokens.min() >= 1
