"""Presets against the models' public configurations, derived scales, and dimensions that do not agree."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from mlaprof.shapes import (
    INDEX_ROW_BYTES,
    PRESETS,
    LayerShape,
    RopeShape,
    problems,
    tensor_parallel,
)

# Table (c) of the two models: config.json of DeepSeek-V3.2 and of GLM-5.
PUBLISHED = {
    "v3.2": {
        "hidden_size": 7168,
        "num_heads": 128,
        "q_lora_rank": 1536,
        "kv_lora_rank": 512,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "v_head_dim": 128,
        "index_n_heads": 64,
        "index_head_dim": 128,
        "index_topk": 2048,
        "indexer_rope_interleave": False,
        "max_position_embeddings": 163_840,
        "rms_norm_eps": 1e-6,
        "intermediate_size": 18_432,
        "rope": RopeShape(10_000.0, 40.0, 1.0, 1.0, 4096, 32.0, 1.0),
        "tp_size": 1,
    },
    "glm-5": {
        "hidden_size": 6144,
        "num_heads": 64,
        "q_lora_rank": 2048,
        "kv_lora_rank": 512,
        "qk_nope_head_dim": 192,
        "qk_rope_head_dim": 64,
        "v_head_dim": 256,
        "index_n_heads": 32,
        "index_head_dim": 128,
        "index_topk": 2048,
        "indexer_rope_interleave": True,
        "max_position_embeddings": 202_752,
        "rms_norm_eps": 1e-5,
        "intermediate_size": 12_288,
        "rope": RopeShape(theta=1e6, factor=1.0),
        "tp_size": 1,
    },
}


@pytest.mark.parametrize(
    ("preset", "field"), [(preset, field) for preset, fields in PUBLISHED.items() for field in fields], ids=str
)
def test_preset_has_the_published_value(preset: str, field: str) -> None:
    """Every field of a preset is the model's own."""
    assert PUBLISHED[preset][field] == getattr(PRESETS[preset], field)


def test_every_field_of_a_shape_is_compared_with_a_publication() -> None:
    """No field of LayerShape escapes the table above."""
    names = set(LayerShape.__dataclass_fields__)
    assert [names, names] == [set(fields) for fields in PUBLISHED.values()]


@pytest.mark.parametrize(("whole", "heads", "mlp"), [("v3.2", 16, 2304), ("glm-5", 8, 1536)])
def test_tp8_preset_divides_heads_and_mlp_and_replicates_the_indexer(whole: str, heads: int, mlp: int) -> None:
    """One of eight ranks holds an eighth of the heads and of the MLP, and everything else whole."""
    expected = replace(PRESETS[whole], num_heads=heads, intermediate_size=mlp, tp_size=8)
    assert expected == PRESETS[f"{whole}-tp8"]


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_is_legal(preset: str) -> None:
    """Nothing is wrong with a shape that is offered by name."""
    assert problems(PRESETS[preset]) == []


@pytest.mark.parametrize(("preset", "scale"), [("v3.2", 0.135234), ("v3.2-tp8", 0.135234), ("glm-5", 0.0625)])
def test_softmax_scale_uses_the_unabsorbed_head_and_the_square_of_mscale(preset: str, scale: float) -> None:
    """V3.2: YaRN raises 192^-0.5 by 1.36889 squared; GLM-5 has no YaRN, so 256^-0.5."""
    assert scale == pytest.approx(PRESETS[preset].softmax_scale, abs=5e-7)


def test_mscale_of_v3_2() -> None:
    """0.1 ln 40 + 1."""
    assert pytest.approx(1.36889, abs=5e-6) == PRESETS["v3.2"].rope.softmax_mscale


@pytest.mark.parametrize(("preset", "scale"), [("v3.2", 0.0110485), ("glm-5", 0.015625)])
def test_index_weight_scale(preset: str, scale: float) -> None:
    """head_dim^-0.5 n_heads^-0.5."""
    assert scale == pytest.approx(PRESETS[preset].index_weight_scale, abs=5e-8)


@pytest.mark.parametrize(("preset", "handed_over"), [("v3.2", 60_036), ("glm-5", 39_428)])
def test_bytes_a_token_that_op_1_hands_to_op_2(preset: str, handed_over: int) -> None:
    """The eight tensors of Op 1: bf16 q, latent parts twice, fp8 index q and k, fp32 scale and head weights."""
    shape = PRESETS[preset]
    bf16 = 2 * (shape.num_heads * shape.qk_head_dim + 2 * shape.latent_dim)
    index = (shape.index_n_heads + 1) * shape.index_head_dim + 4 + 4 * shape.index_n_heads
    assert handed_over == bf16 + index


@pytest.mark.parametrize("preset", ["v3.2", "glm-5"])
def test_bytes_a_token_of_output_and_caches(preset: str) -> None:
    """32,768 B of attention output, 1,152 B of latent cache and 132 B of index key in both models."""
    shape = PRESETS[preset]
    assert (2 * shape.num_heads * shape.v_head_dim, 2 * shape.latent_dim, INDEX_ROW_BYTES) == (32_768, 1_152, 132)


@pytest.mark.parametrize("tp_size", [0, -1, 3, 256])
def test_heads_that_do_not_divide_are_refused(tp_size: int) -> None:
    """tensor_parallel names the argument, what it expected and what it got."""
    with pytest.raises(ValueError, match=f"tp_size: expected a divisor of 128 heads, got {tp_size}"):
        tensor_parallel(PRESETS["v3.2"], tp_size)


BAD = {
    "hidden_size": 0,
    "num_heads": -1,
    "q_lora_rank": 0,
    "index_n_heads": 0,
    "index_head_dim": 64,
    "index_topk": -1,
    "qk_rope_head_dim": 66,
    "rms_norm_eps": 0.0,
    "rope.theta": 1.0,
    "rope.factor": 0.5,
    "rope.original_max_positions": 0,
    "rope.beta_fast": 0.5,
    "rope.beta_slow": -1.0,
}


def broken(field: str, value: float) -> LayerShape:
    tiny = PRESETS["tiny"]
    block, _, name = field.rpartition(".")
    if block:
        return replace(tiny, rope=replace(tiny.rope, **{name: value}))
    return replace(tiny, **{name: value})


@pytest.mark.parametrize(("field", "value"), BAD.items())
def test_a_wrong_dimension_is_named_with_a_remedy(field: str, value: float) -> None:
    """The complaint is about the field that is wrong, and says what to do."""
    found = problems(broken(field, value))
    assert field in [name for name, _, _ in found]
    assert all(wrong and remedy for _, wrong, remedy in found)


@pytest.mark.parametrize("field", ["rms_norm_eps", "rope.theta", "rope.factor", "rope.beta_fast"])
def test_not_a_number_is_no_dimension(field: str) -> None:
    """NaN compares false with everything, and must not pass for that."""
    assert field in [name for name, _, _ in problems(broken(field, math.nan))]


def test_rotary_part_wider_than_the_index_head_is_refused() -> None:
    """The indexer rotates the first qk_rope_head_dim elements of its head."""
    assert "qk_rope_head_dim" in [name for name, _, _ in problems(replace(PRESETS["tiny"], qk_rope_head_dim=132))]


def test_plain_mla_needs_no_index_dimensions() -> None:
    """index_topk 0 is MLA without an indexer."""
    plain = replace(PRESETS["tiny"], index_topk=0, index_n_heads=0, index_head_dim=0)
    assert (problems(plain), plain.is_dsa) == ([], False)
