"""The library: which entry serves, that nothing is lost, and that a damaged file is said and left alone."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlaprof.errors import ConfigError
from mlaprof.tuning.library import Conditions, Entry, load, lookup, merged, path_of, save

HERE = Conditions(
    kernel="topk@hopper", gpu="NVIDIA H100 80GB HBM3", sm_count=132, triton="3.6.0", cuda="13.0", source="ab",
    launch="graph", cache="warm",
)  # fmt: skip


def entry(
    num_rows: int = 64, *, values: dict[str, int] | None = None, conditions: Conditions = HERE, **shape: int
) -> Entry:
    return Entry(
        conditions=conditions,
        shape={"num_rows": num_rows, "width": 4096, "k": 2048} | shape,
        decision="tuned" if values else "keep-default",
        values=values,
        device_s=1e-5,
        default_device_s=1.1e-5,
        gain=1.1,
        gain_low=1.08,
        gain_high=1.12,
        evaluations=48,
        seed=0,
        date="2026-11-23",
        mlaprof_version="0.1",
    )


def test_the_very_shape_is_exact_even_where_it_keeps_the_default():
    """A decision to keep the default is a decision; a neighbour's tiles do not overrule it."""
    entries = [entry(64), entry(96, values={"num_warps": 8})]
    assert lookup(entries, HERE, entries[0].shape) == (None, "exact", entries[0])


@pytest.mark.parametrize(
    "num_rows,rule", [(32, "bucket"), (127, "bucket"), (128, "bucket"), (31, "default"), (129, "default")]
)
def test_a_growing_size_may_be_within_a_factor_of_two(num_rows, rule):
    one = entry(64, values={"num_warps": 8})
    found = lookup([one], HERE, one.shape | {"num_rows": num_rows})
    assert found.rule == rule and (found.values is not None) == (rule == "bucket")


def test_the_nearest_of_several_serves():
    entries = [entry(64, values={"num_warps": 4}), entry(128, values={"num_warps": 8})]
    assert lookup(entries, HERE, entries[0].shape | {"num_rows": 100}).values == {"num_warps": 8}


def test_a_size_of_the_model_must_be_equal():
    one = entry(values={"num_warps": 8})
    assert lookup([one], HERE, one.shape | {"k": 1024}).rule == "default"


@pytest.mark.parametrize(
    "other", [{"gpu": "NVIDIA H200"}, {"triton": "3.7.1"}, {"source": "cd"}, {"launch": "eager"}, {"cache": "cold"}]
)
def test_other_conditions_find_nothing(other):
    one = entry(values={"num_warps": 8})
    assert lookup([one], HERE.model_copy(update=other), one.shape).rule == "default"


def test_saving_merges_and_replaces_the_same_key_alone(tmp_path):
    path = path_of(tmp_path, HERE)
    assert path == tmp_path / "nvidia-h100-80gb-hbm3" / "topk@hopper.json"
    save(path, [entry(1), entry(64, values={"num_warps": 4})])
    save(path, [entry(64, values={"num_warps": 8}), entry(4096)])
    assert {each.shape["num_rows"]: each.values for each in load(path)} == {1: None, 64: {"num_warps": 8}, 4096: None}


@given(st.permutations([entry(size) for size in (1, 2, 64, 512)]))
@settings(max_examples=20)
def test_the_order_of_saving_does_not_show(entries):
    assert merged(entries[:2], entries[2:]) == merged(entries, ())


def _save_one(path: Path, number: int) -> None:
    save(path, [entry(number)])


def test_several_processes_lose_nothing(tmp_path):
    path = tmp_path / "topk.json"
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_save_one, args=(path, number)) for number in range(1, 13)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [each.shape["num_rows"] for each in load(path)] and len(load(path)) == 12
    assert [each.name for each in tmp_path.iterdir() if each.name.endswith(".tmp")] == []


def test_no_file_is_an_empty_library(tmp_path):
    assert load(tmp_path / "none.json") == ()


@pytest.mark.parametrize(
    "text,message",
    [
        ("", "is no JSON"),
        ("{", "is no JSON"),
        ("[" * 100_000, "is no JSON"),
        ("[]", "is of schema None, this mlaprof reads 1"),
        ('{"schema_version": 99, "entries": []}', "is of schema 99"),
        ('{"schema_version": 1}', "entries: Field required"),
        ('{"schema_version": 1, "entries": [{}]}', "entries.0.conditions"),
        ('{"schema_version": 1, "entries": [], "more": 1}', "more: Extra inputs"),
    ],
)
def test_a_damaged_file_is_refused_and_left_alone(tmp_path, text, message):
    """Also when something is to be added to it: exit code 2, and its bytes as they were."""
    path = tmp_path / "topk.json"
    path.write_text(text)
    for action in (lambda: load(path), lambda: save(path, [entry()])):
        with pytest.raises(ConfigError, match=message) as caught:
            action()
        assert caught.value.exit_code == 2
    assert path.read_text() == text


def test_a_file_survives_json(tmp_path):
    path = tmp_path / "topk.json"
    save(path, [entry(values={"num_warps": 8})])
    assert json.loads(path.read_text())["schema_version"] == 1
    assert load(path) == (entry(values={"num_warps": 8}),)
