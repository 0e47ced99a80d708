"""What the layer refuses to be built as, in code and in a study."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from mlaprof.config import hf
from mlaprof.config.load import load_study
from mlaprof.errors import ConfigError
from mlaprof.layer.build import build_stack

STUDY = "name: study\npreset: tiny\nsweep:\n  num_tokens: [1, 8]\n"


def test_a26_mla_lite_is_refused_where_a_layer_is_built(tiny):
    """q_lora_rank 0 stands for none: Op 1 has no branch for it, upstream crashes."""
    lite = replace(tiny.shape, q_lora_rank=0)
    with pytest.raises(ValueError, match="q_lora_rank: expected a positive rank, got none: Op 1 has no MLA-lite"):
        build_stack(lite, tiny.weights, caches=tiny.caches, tiles=tiny.tiles, form="split")


def test_a26_mla_lite_is_refused_where_a_user_asks_for_it(tmp_path: Path):
    """null in a study's shape or in a config.json: one line with the place and a remedy."""
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"model_type": "deepseek_v3", "q_lora_rank": None}))
    with pytest.raises(ConfigError, match="q_lora_rank: null means MLA-lite") as caught:
        hf.layer_shape(config)
    assert caught.value.where == str(config) and caught.value.hint

    study = tmp_path / "study.yaml"
    study.write_text(f"name: study\nshape:\n  hf_config: {config}\nsweep:\n  num_tokens: [1]\n")
    with pytest.raises(ConfigError, match="null means MLA-lite"):
        load_study(study)


def test_a27_llama_4_scaling_is_refused_not_ignored(tmp_path: Path):
    """Upstream's DSA path drops it silently; here it is an error with its line and a remedy, and false is fine."""
    study = tmp_path / "study.yaml"
    study.write_text(STUDY + "layer:\n  llama_4_scaling: true\n")
    with pytest.raises(ConfigError, match="llama_4_scaling is not supported") as caught:
        load_study(study)
    assert caught.value.where.endswith("study.yaml:6")
    assert caught.value.hint == "use false"

    study.write_text(STUDY + "layer:\n  llama_4_scaling: false\n")
    assert load_study(study).layer.options.llama_4_scaling is False
