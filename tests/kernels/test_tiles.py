"""Tiles as values: completion, legality, the space, labels and packing."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlaprof.kernels import tiles
from mlaprof.kernels.tiles import (
    KERNELS,
    Dims,
    IndexLogitsTiles,
    SparseAttnTiles,
    as_values,
    complete,
    default,
    field_names,
    illegal,
    label,
    pack,
    space,
    tiles_type,
    unpack,
)
from mlaprof.shapes import PRESETS
from mlaprof.study import kernel_dims

V3_2 = Dims(128, 512, 64, 64, 128, 2048)
TP8 = replace(V3_2, num_heads=16)
MOST_REFUSED_HEADS = {"sparse_attn@hopper": 32}  # half a tile of 64 would idle
# Forms whose blocks the hardware leaves little to choose about; every other has at least a dozen configurations.
SMALL_SPACES = {"up_project@hopper": 4}


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("kernel", KERNELS)
def test_default_is_legal(kernel, preset):
    """What is used when nothing is named can run, for every preset."""
    assert_default_is_legal(kernel, kernel_dims(PRESETS[preset]))


@pytest.mark.parametrize("num_heads", [1, 4, 8, 17, 33, 100], ids="{} heads".format)
@pytest.mark.parametrize("kernel", KERNELS)
def test_default_is_legal_for_any_head_count(kernel, num_heads):
    """A shape of the user's own gets tiles too."""
    dims = replace(V3_2, num_heads=num_heads, index_n_heads=min(num_heads, 64))
    assert_default_is_legal(kernel, dims)


def assert_default_is_legal(kernel: str, dims: Dims) -> None:
    """A form that serves no shape of so few heads says so, and leads to one that does."""
    wrong = illegal(kernel, {}, dims)
    assert wrong == illegal(kernel, as_values(default(kernel, dims)), dims)
    if dims.num_heads <= MOST_REFUSED_HEADS.get(kernel, 0):
        assert wrong is not None and wrong.startswith("num_heads: ") and "use the portable form" in wrong
    else:
        assert wrong is None


def test_complete_fills_the_gaps_from_the_default():
    """Named fields are kept, the others are the default's."""
    assert complete("sparse_attn", {"block_n": 64}, TP8) == replace(default("sparse_attn", TP8), block_n=64)


def test_complete_names_unknown_and_known_fields():
    """A misspelt field is an error that lists what there is."""
    with pytest.raises(
        ValueError, match=r"expected fields among block_h, block_n, num_warps, num_stages, num_splits, got block_m"
    ):
        complete("sparse_attn", {"block_m": 64}, TP8)


@pytest.mark.parametrize(
    "call",
    [
        lambda: default("sparse", TP8),
        lambda: complete("sparse", {}, TP8),
        lambda: illegal("sparse", {}, TP8),
        lambda: list(space("sparse", TP8)),
        lambda: label("sparse", {}),
    ],
    ids=["default", "complete", "illegal", "space", "label"],
)
def test_unknown_kernel_names_the_known_ones(call):
    """Every entry says which kernels have tiles."""
    with pytest.raises(ValueError, match=r"expected one of sparse_attn, sparse_attn@hopper, .*got 'sparse'"):
        call()


@pytest.mark.parametrize(
    "kernel,values,dims,reason",
    [
        pytest.param(
            "sparse_attn", {"block_n": 48}, TP8, "block_n: 48 is not legal; use one of 16, 32", id="power of two"
        ),
        pytest.param("sparse_attn", {"block_n": 8}, TP8, "block_n: 8 .* use one of 16, 32", id="too small"),
        pytest.param("sparse_attn", {"block_n": True}, TP8, "block_n: True is not a whole number", id="bool"),
        pytest.param("sparse_attn", {"num_warps": 3}, TP8, "num_warps: 3 .* use one of 1, 2, 4, 8", id="warps"),
        pytest.param(
            "sparse_attn",
            {"num_stages": 0},
            TP8,
            "num_stages: 0 is not legal; use one of 1, 2, 3, 4, 5, 6",
            id="no stage",
        ),
        pytest.param("sparse_attn", {"num_stages": 7}, TP8, "num_stages: 7 is not legal; use one of 1, 2", id="stages"),
        pytest.param("sparse_attn", {"block_h": 64}, TP8, "block_h: 64 rows for 16 heads .* at most 16", id="idle"),
        pytest.param(
            "sparse_attn", {"block_n": 128, "num_stages": 4}, TP8, "bytes of shared memory, above 232,448", id="shared"
        ),
        pytest.param("sparse_attn", {"num_warps": 1}, V3_2, "accumulator takes 1024 registers", id="accumulator"),
        pytest.param("index_logits", {"block_q": 8, "num_warps": 1}, V3_2, "accumulator takes", id="index accumulator"),
        pytest.param(
            "sparse_attn", {}, replace(TP8, kv_lora_rank=384), "kv_lora_rank: 384 is not a power of two", id="latent"
        ),
        pytest.param(
            "sparse_attn", {}, replace(TP8, qk_rope_head_dim=8), "qk_rope_head_dim: 8 is not a power of two", id="rope"
        ),
    ],
)
def test_illegal_says_why_and_what_to_do(kernel, values, dims, reason):
    """Each refusal names the value and a remedy."""
    import re

    said = illegal(kernel, values, dims)
    assert said is not None and re.search(reason, said), said


def test_shared_memory_limit_is_the_callers():
    """A GPU with less shared memory refuses what Hopper takes."""
    values = {"block_n": 64, "num_stages": 3}
    assert illegal("sparse_attn", values, TP8) is None
    assert illegal("sparse_attn", values, TP8, shared_limit_bytes=101_376) is not None


@pytest.mark.parametrize("dims", [V3_2, TP8], ids=["v3.2", "v3.2-tp8"])
@pytest.mark.parametrize("kernel", KERNELS)
def test_space_is_legal_without_repeats_and_holds_the_default(kernel, dims):
    """Everything a search may try, once."""
    found = list(space(kernel, dims))
    if dims.num_heads <= MOST_REFUSED_HEADS.get(kernel, 0):
        assert found == []
        return
    assert len(found) == len(set(found))
    assert len(found) == SMALL_SPACES[kernel] if kernel in SMALL_SPACES else len(found) >= 12
    assert default(kernel, dims) in found
    assert all(illegal(kernel, as_values(each), dims) is None for each in found)


@given(st.sampled_from(list(KERNELS)), st.data())
def test_pack_and_unpack_are_inverse(kernel, data):
    """Tiles survive the trip through an operator's int list, and say whose they are."""
    count = len(field_names(kernel))
    tiles = tiles_type(kernel)(*data.draw(st.lists(st.integers(1, 512), min_size=count, max_size=count)))
    assert unpack(pack(tiles)) == tiles


def test_the_choice_left_to_the_launcher_is_an_empty_list():
    """An operator's schema has no optional list, and an empty one names no kernel."""
    assert pack(None) == []
    assert unpack([]) is None


def test_label_lists_given_fields_in_field_order():
    """Short, sortable, and silent about what was left to the default."""
    assert label("sparse_attn", {"num_stages": 3, "block_n": 64, "block_h": 16, "num_warps": 4}) == "h16.n64.w4.s3"
    assert label("index_logits", {"num_warps": 8, "block_q": 2}) == "q2.w8"
    assert label("sparse_attn", {}) == ""


def test_tiles_are_values():
    """Frozen, comparable, and typed by kernel."""
    assert KERNELS["index_logits"].TILES is IndexLogitsTiles
    with pytest.raises(AttributeError):
        SparseAttnTiles(16, 64, 4, 2).block_n = 32  # type: ignore[misc]


def test_tiles_import_neither_torch_nor_triton():
    """A sweep is planned where neither is installed."""
    code = "import sys, mlaprof.kernels.tiles; print([m for m in ('torch', 'triton', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert tiles.__file__ is not None
