"""Weights: random ones, and a checkpoint that the test writes with Hugging Face's names."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from mlaprof.errors import ConfigError
from mlaprof.layer.weights import checkpoint_weights, dequantize, random_weights
from mlaprof.shapes import LayerShape, tensor_parallel

CPU = torch.device("cpu")
LAYER = 3
PREFIX = f"model.layers.{LAYER}."

# Few of these dimensions are multiples of the 128 x 128 scale blocks.
SHAPE = LayerShape(
    hidden_size=200,
    num_heads=4,
    q_lora_rank=136,
    kv_lora_rank=72,
    qk_nope_head_dim=24,
    qk_rope_head_dim=16,
    v_head_dim=40,
    index_n_heads=2,
    index_head_dim=128,
    index_topk=64,
    indexer_rope_interleave=False,
    max_position_embeddings=256,
    rms_norm_eps=1e-6,
    intermediate_size=264,
)
# As DeepSeek-V3.2's own checkpoint has them, written out so that the reader's table is held against a second one.
TENSORS: dict[str, tuple[int, ...]] = {
    "self_attn.q_a_proj.weight": (136, 200),
    "self_attn.q_a_layernorm.weight": (136,),
    "self_attn.q_b_proj.weight": (4 * 40, 136),
    "self_attn.kv_a_proj_with_mqa.weight": (72 + 16, 200),
    "self_attn.kv_a_layernorm.weight": (72,),
    "self_attn.kv_b_proj.weight": (4 * (24 + 40), 72),
    "self_attn.o_proj.weight": (200, 4 * 40),
    "self_attn.indexer.wq_b.weight": (2 * 128, 136),
    "self_attn.indexer.wk.weight": (128, 200),
    "self_attn.indexer.k_norm.weight": (128,),
    "self_attn.indexer.k_norm.bias": (128,),
    "self_attn.indexer.weights_proj.weight": (2, 200),
    "input_layernorm.weight": (200,),
    "post_attention_layernorm.weight": (200,),
    "mlp.gate_proj.weight": (264, 200),
    "mlp.up_proj.weight": (264, 200),
    "mlp.down_proj.weight": (200, 264),
}
KEPT_IN_BF16 = ("indexer.wk", "indexer.weights_proj", "norm")

Named = dict[str, Tensor]


def named_tensors() -> Named:
    generator = torch.Generator().manual_seed(0)
    return {PREFIX + name: torch.randn(size, generator=generator).bfloat16() for name, size in TENSORS.items()}


def in_fp8(named: Named) -> tuple[Named, Named]:
    """(what the file holds, what the reader should make of it): e4m3 under a scale of its own for each 128 x 128 block,
    dequantised here element by element."""
    stored, want = {}, {}
    generator = torch.Generator().manual_seed(1)
    for name, value in named.items():
        if value.ndim < 2 or any(each in name for each in KEPT_IN_BF16):
            stored[name] = want[name] = value
            continue
        rows, columns = value.shape
        scale = torch.rand((-(-rows // 128), -(-columns // 128)), generator=generator) + 0.01
        stored[name] = value.to(torch.float8_e4m3fn)
        stored[f"{name}_scale_inv"] = scale
        block_row, block_column = torch.arange(rows) // 128, torch.arange(columns) // 128
        want[name] = (stored[name].float() * scale[block_row][:, block_column]).bfloat16()
    return stored, want


def expected(named: Named, *, mlp: bool = True) -> Named:
    """The layer's own dict, fused by hand."""
    short = {name.removeprefix(PREFIX).removeprefix("self_attn."): value for name, value in named.items()}
    heads = [short["kv_b_proj.weight"][64 * head : 64 * (head + 1)] for head in range(4)]
    short["kv_b_proj.weight"] = torch.cat([head[:24] for head in heads] + [head[24:] for head in heads])
    fused = torch.cat((short.pop("q_a_proj.weight"), short["kv_a_proj_with_mqa.weight"]))
    short["kv_a_proj_with_mqa.weight"] = fused
    gate, up = short.pop("mlp.gate_proj.weight"), short.pop("mlp.up_proj.weight")
    if not mlp:
        del short["mlp.down_proj.weight"], short["post_attention_layernorm.weight"]
        return short
    return short | {"mlp.gate_up_proj.weight": torch.cat((gate, up))}


def same(expected_dict: Named, got: Named) -> None:
    assert expected_dict.keys() == got.keys()
    for name, value in expected_dict.items():
        assert got[name].dtype == torch.bfloat16
        assert torch.equal(value, got[name]), name


@pytest.fixture
def checkpoint(tmp_path: Path) -> Callable[..., Path]:
    """Write tensors to a safetensors file."""

    def write(named: Named, name: str = "layer.safetensors") -> Path:
        save_file(named, tmp_path / name)
        return tmp_path / name

    return write


@pytest.mark.parametrize("mlp", [True, False], ids=["dense MLP", "attention only"])
def test_a_bf16_checkpoint_becomes_the_fused_tensors(checkpoint, mlp):
    """Every tensor by its Hugging Face name; q_a and kv_a joined, kv_b regrouped, gate and up joined. Tensors of other
    layers, and experts, are not touched."""
    named = named_tensors()
    others = {"model.layers.4.self_attn.q_a_proj.weight": torch.zeros(1), "model.embed_tokens.weight": torch.zeros(2)}
    path = checkpoint(named | others)
    same(expected(named, mlp=mlp), checkpoint_weights(path, LAYER, SHAPE, mlp=mlp, device=CPU))


def test_an_fp8_checkpoint_is_multiplied_by_its_block_scales(checkpoint):
    """Partial blocks at both edges included."""
    stored, want = in_fp8(named_tensors())
    same(expected(want), checkpoint_weights(checkpoint(stored), LAYER, SHAPE, mlp=True, device=CPU))


@pytest.mark.parametrize("rows,columns", [(1, 1), (128, 128), (129, 127), (300, 136)])
def test_dequantisation_takes_any_size(rows, columns):
    """Element (i, j) is scaled by block (i // 128, j // 128)."""
    codes = torch.randn(rows, columns).to(torch.float8_e4m3fn)
    scale = torch.rand(-(-rows // 128), -(-columns // 128))
    got = dequantize(codes, scale)
    assert got.dtype == torch.float32 and got.shape == codes.shape
    for i, j in ((0, 0), (rows - 1, columns - 1), (rows // 2, columns - 1)):
        assert float(got[i, j]) == pytest.approx(float(codes[i, j].float() * scale[i // 128, j // 128]))


def test_kv_b_is_regrouped_from_heads_to_all_keys_then_all_values(checkpoint):
    """The file interleaves [nope | v] head by head; the layer wants every head's nope rows first."""
    named = named_tensors()
    rows = torch.arange(256, dtype=torch.float32)[:, None].expand(-1, 72).contiguous()
    named[f"{PREFIX}self_attn.kv_b_proj.weight"] = rows.bfloat16()
    got = checkpoint_weights(checkpoint(named), LAYER, SHAPE, mlp=False, device=CPU)["kv_b_proj.weight"][:, 0]
    keys = [64 * head + i for head in range(4) for i in range(24)]
    values = [64 * head + 24 + i for head in range(4) for i in range(40)]
    assert got.int().tolist() == keys + values


def test_a_folder_is_read_through_its_index(tmp_path, checkpoint):
    """Tensors of one layer may lie in several files."""
    named = named_tensors()
    names = list(named)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, inside in parts.items():
        checkpoint({name: named[name] for name in inside}, file)
    weight_map = {name: file for file, inside in parts.items() for name in inside}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    same(expected(named), checkpoint_weights(tmp_path, LAYER, SHAPE, mlp=True, device=CPU))


def test_a_folder_of_one_file_needs_no_index(tmp_path, checkpoint):
    """As small models are published."""
    named = named_tensors()
    checkpoint(named, "model.safetensors")
    same(expected(named), checkpoint_weights(tmp_path, LAYER, SHAPE, mlp=True, device=CPU))


def test_fp8_codes_and_scales_may_lie_in_different_files(tmp_path, checkpoint):
    """Sharded checkpoints cut anywhere, between a tensor and its scale, too."""
    stored, want = in_fp8(named_tensors())
    scales = {name: value for name, value in stored.items() if name.endswith("_scale_inv")}
    checkpoint({name: value for name, value in stored.items() if name not in scales}, "a.safetensors")
    checkpoint(scales, "b.safetensors")
    weight_map = {name: "b.safetensors" if name in scales else "a.safetensors" for name in stored}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    same(expected(want), checkpoint_weights(tmp_path, LAYER, SHAPE, mlp=True, device=CPU))


@pytest.mark.parametrize("fp8", [False, True], ids=["bf16", "fp8"])
def test_one_tensor_parallel_rank_takes_the_first_heads(checkpoint, fp8):
    """Half the heads' rows of q_b, kv_b and half of the MLP, half the columns of o_proj; the indexer whole."""
    stored, full = in_fp8(named_tensors()) if fp8 else (named_tensors(), named_tensors())
    rank = tensor_parallel(SHAPE, 2)
    got = checkpoint_weights(checkpoint(stored), LAYER, rank, mlp=True, device=CPU)
    attn = f"{PREFIX}self_attn."
    assert torch.equal(full[f"{attn}q_b_proj.weight"][:80], got["q_b_proj.weight"])
    assert torch.equal(full[f"{attn}o_proj.weight"][:, :80], got["o_proj.weight"])
    kv_b = full[f"{attn}kv_b_proj.weight"]
    heads = [kv_b[64 * head : 64 * (head + 1)] for head in range(2)]
    want = torch.cat([head[:24] for head in heads] + [head[24:] for head in heads])
    assert torch.equal(want, got["kv_b_proj.weight"])
    assert torch.equal(full[f"{attn}indexer.wq_b.weight"], got["indexer.wq_b.weight"])
    gate, up = full[f"{PREFIX}mlp.gate_proj.weight"], full[f"{PREFIX}mlp.up_proj.weight"]
    assert torch.equal(torch.cat((gate[:132], up[:132])), got["mlp.gate_up_proj.weight"])
    assert torch.equal(full[f"{PREFIX}mlp.down_proj.weight"][:, :132], got["mlp.down_proj.weight"])


def refused(path: Path, shape: LayerShape = SHAPE, *, layer: int = LAYER) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        checkpoint_weights(path, layer, shape, mlp=True, device=CPU)
    assert caught.value.where and caught.value.hint, "a place and a remedy"
    return caught.value


def test_a_missing_tensor_is_named_with_its_file(checkpoint):
    """A layer that is not in the file, or one without an indexer."""
    named = named_tensors()
    gone = f"{PREFIX}self_attn.indexer.wk.weight"
    del named[gone]
    path = checkpoint(named)
    error = refused(path)
    assert gone in error.message and error.where == str(path)
    assert "model.layers.9.self_attn" in refused(path, layer=9).message


def test_a_wrong_shape_is_named_with_both_sizes(checkpoint):
    """The study's shape must be the checkpoint's."""
    error = refused(checkpoint(named_tensors()), replace(SHAPE, q_lora_rank=128))
    assert "[136, 200]" in error.message and "[128, 200]" in error.message
    assert "hf_config" in error.hint


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 a zip", b"\xff" * 64], ids=["empty", "a zip", "nonsense"])
def test_what_is_no_safetensors_file_is_told_so(tmp_path, content):
    """No traceback of another library."""
    path = tmp_path / "layer.safetensors"
    path.write_bytes(content)
    error = refused(path)
    assert "not a readable safetensors file" in error.message and error.where == str(path)


def test_a_file_that_is_not_there_is_told_so(tmp_path):
    """The path is in the message."""
    assert refused(tmp_path / "gone.safetensors").where.endswith("gone.safetensors")


def test_a_cut_short_file_is_told_so(checkpoint):
    """A download that broke off."""
    path = checkpoint(named_tensors())
    path.write_bytes(path.read_bytes()[:-1000])
    assert "not a readable safetensors file" in refused(path).message


def test_fp8_without_a_scale_is_told_so(checkpoint):
    """Codes alone are no weights."""
    stored, _ = in_fp8(named_tensors())
    gone = f"{PREFIX}self_attn.q_b_proj.weight_scale_inv"
    del stored[gone]
    assert gone in refused(checkpoint(stored)).message


def test_an_fp8_scale_of_another_block_size_is_told_so(checkpoint):
    """One scale a row instead of one a block."""
    stored, _ = in_fp8(named_tensors())
    name = f"{PREFIX}self_attn.q_b_proj.weight_scale_inv"
    stored[name] = torch.ones(160, 1)
    error = refused(checkpoint(stored))
    assert name in error.message and "[160, 1]" in error.message and "[2, 2]" in error.message


@pytest.mark.parametrize("index", ["{}", "not json", '{"weight_map": []}', '{"weight_map": {}}', "[]"])
def test_a_broken_index_is_told_so(tmp_path, index):
    """Not JSON, no map, or a map without the tensor."""
    (tmp_path / "model.safetensors.index.json").write_text(index)
    assert refused(tmp_path).where.endswith("model.safetensors.index.json")


def test_a_folder_of_several_files_without_an_index_is_told_so(tmp_path, checkpoint):
    """Which file is not guessed."""
    for name in ("a.safetensors", "b.safetensors"):
        checkpoint(named_tensors(), name)
    error = refused(tmp_path)
    assert "2 safetensors files and no model.safetensors.index.json" in error.message


def test_random_weights_are_seeded_and_never_zeros():
    """Variance 1 / fan-in, norms around 1, biases around 0; layers of different seeds differ."""
    first, again, other = (random_weights(SHAPE, seed=seed, mlp=True, device=CPU) for seed in (1, 1, 2))
    same(first, again)
    assert not any(torch.equal(first[name], other[name]) for name in first)
    for name, value in first.items():
        wide = value.float()
        assert float((wide == 0).float().mean()) < 0.01, name
        if value.ndim == 2:
            assert float(wide.std()) * value.shape[1] ** 0.5 == pytest.approx(1.0, abs=0.15), name
        else:
            centre = 0.0 if name.endswith("bias") else 1.0
            assert float(wide.mean()) == pytest.approx(centre, abs=0.05), name


def test_random_weights_have_the_layer_s_shapes():
    """The same keys and sizes that a checkpoint of this shape gives."""
    named = {name.removeprefix(PREFIX): tuple(value.shape) for name, value in expected(named_tensors()).items()}
    assert named == {
        name: tuple(value.shape) for name, value in random_weights(SHAPE, seed=0, mlp=True, device=CPU).items()
    }


def test_random_weights_written_as_a_checkpoint_read_back_the_same(checkpoint):
    """Taking the fusions apart and reading them again is the identity."""
    weights = random_weights(SHAPE, seed=0, mlp=True, device=CPU)
    q_a, kv_a = weights["kv_a_proj_with_mqa.weight"].split((136, 88))
    k, v = weights["kv_b_proj.weight"].split((4 * 24, 4 * 40))
    gate, up = weights["mlp.gate_up_proj.weight"].chunk(2)
    apart = weights | {
        "q_a_proj.weight": q_a,
        "kv_a_proj_with_mqa.weight": kv_a,
        "kv_b_proj.weight": torch.cat((k.view(4, 24, 72), v.view(4, 40, 72)), dim=1).flatten(0, 1),
        "mlp.gate_proj.weight": gate,
        "mlp.up_proj.weight": up,
    }
    named = {PREFIX + name: apart[name.removeprefix("self_attn.")].contiguous() for name in TENSORS}
    same(weights, checkpoint_weights(checkpoint(named), LAYER, SHAPE, mlp=True, device=CPU))
