"""Engines' default lists as their sources have them, and configuration lines that parse."""

from __future__ import annotations

import json
import shlex

import pytest
from ruamel.yaml import YAML

from mlaprof.sizing.engines import ENGINES, config_text, default_sizes, naive_lists


def test_defaults_are_those_of_the_engines():
    """Counts and ends that the sources, or a start-up log of the engine, tell: see docs/buckets.md."""
    found = {engine: default_sizes(engine) for engine in ENGINES}

    assert found["tensorrt-llm"] == (1, 2, 4, 8, 16, 32, 64, 128, *range(256, 3073, 256))
    assert found["vllm"][:5] == (1, 2, 4, 8, 16) and found["vllm"][-3:] == (480, 496, 512)
    assert found["sglang"][:3] == (4, 8, 12) and found["sglang"][-3:] == (1536, 1792, 2048)
    assert {engine: len(sizes) for engine, sizes in found.items()} == {"tensorrt-llm": 20, "vllm": 51, "sglang": 42}
    assert all(list(sizes) == sorted(set(sizes)) for sizes in found.values())


@pytest.mark.parametrize("largest", [1, 5, 256, 8192])
def test_naive_lists_stay_within_the_run(largest):
    assert all(sizes and max(sizes) <= largest for sizes in naive_lists(largest).values())


def test_lines_for_tensorrt_llm_are_yaml_under_both_spellings():
    text = config_text("tensorrt-llm", (8, 64))
    older = "\n".join(line.removeprefix("# ") for line in text.splitlines()[4:])

    assert YAML(typ="safe").load(text) == {
        "prefill_cuda_graph_backend": "piecewise",
        "prefill_capture_num_tokens": [8, 64],
    }
    assert YAML(typ="safe").load(older) == {
        "torch_compile_config": {"enable_piecewise_cuda_graph": True, "capture_num_tokens": [8, 64]}
    }
    assert "breakable" in config_text("tensorrt-llm", (8,), breakable=True)


def test_lines_for_vllm_are_one_argument_of_json():
    option, value = shlex.split(config_text("vllm", (8, 64)))

    assert (option, json.loads(value)) == ("--compilation-config", {"cudagraph_capture_sizes": [8, 64]})


def test_lines_for_sglang_name_the_largest_size():
    words = config_text("sglang", (8, 64)).splitlines()[0].split()

    assert words == ["--piecewise-cuda-graph-max-tokens", "64", "--piecewise-cuda-graph-tokens", "8", "64"]
