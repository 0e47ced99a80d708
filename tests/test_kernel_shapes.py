"""Shape axes of the single kernels: defaults, legality, and the tiles that belong to a form."""

from __future__ import annotations

import pytest

from mlaprof import kernel_shapes
from mlaprof.kernels import tiles


def test_defaults_fill_what_is_left_out_in_axis_order():
    shape = kernel_shapes.complete("sparse_attn", {"num_heads": 16, "num_tokens": 128, "num_rows": 4096})
    assert list(shape) == ["num_tokens", "num_rows", "num_heads", "topk", "fp8_cache", "next_n", "num_requests"]
    assert shape["topk"] == 2048 and shape["num_heads"] == 16 and shape["fp8_cache"] == 0


@pytest.mark.parametrize(
    ("kernel", "given", "complaint"),
    [
        ("top_k", {}, "expected one of index_logits"),
        ("topk", {"rows": 1}, "expected axes among num_rows, width, k, got rows"),
        ("block_gemm", {"m": 1}, "n, k must be given"),
    ],
)
def test_unknown_and_missing_names_are_refused(kernel, given, complaint):
    with pytest.raises(ValueError, match=complaint):
        kernel_shapes.complete(kernel, given)


@pytest.mark.parametrize(
    ("kernel", "given", "complaint"),
    [
        ("topk", {"num_rows": 0, "width": 8}, "num_rows: 0 is out of range"),
        ("topk", {"num_rows": 1, "width": 8, "k": 5000}, "and at most 4096"),
        ("topk", {"num_rows": 1, "width": True}, "not a whole number"),
        ("block_gemm", {"m": 1, "n": 2112, "k": 100}, "k: 100 is not a multiple of 128"),
        ("index_logits", {"num_queries": 9, "num_keys": 8, "causal": 1}, "fewer than the 9 causal queries"),
        ("paged_index_logits", {"batch": 1, "kv_len": 1, "next_n": 2}, "below next_n 2"),
        ("paged_index_logits", {"batch": 1, "kv_len": 9, "max_len": 8}, "below kv_len 9"),
        ("sparse_attn", {"num_tokens": 3, "num_rows": 64, "num_heads": 16, "num_requests": 2}, "evenly"),
        ("sparse_attn", {"num_tokens": 3, "num_rows": 64, "num_heads": 16, "next_n": 2}, "does not divide"),
        ("sparse_attn", {"num_tokens": 2, "num_rows": 65, "num_heads": 16, "fp8_cache": 1}, "whole pages"),
    ],
)
def test_an_illegal_shape_names_its_axis_and_a_remedy(kernel, given, complaint):
    assert complaint in str(kernel_shapes.illegal(kernel, given))


@pytest.mark.parametrize("kernel", kernel_shapes.KERNELS)
def test_every_kernel_has_a_legal_shape_and_known_providers(kernel):
    axes = kernel_shapes.KERNELS[kernel].axes
    given = {axis.name: 128 for axis in axes if axis.default is None}
    assert kernel_shapes.illegal(kernel, given) is None
    assert set(kernel_shapes.KERNELS[kernel].providers) <= set(kernel_shapes.PROVIDERS)
    assert "torch" in kernel_shapes.KERNELS[kernel].providers


def test_tiles_of_a_shape_are_judged_by_its_own_dimensions():
    shape = kernel_shapes.complete("sparse_attn", {"num_heads": 16, "num_tokens": 128, "num_rows": 4096})
    dims = kernel_shapes.dims("sparse_attn", shape)
    assert (dims.num_heads, dims.index_topk) == (16, 2048)
    name = kernel_shapes.tiles_name("sparse_attn", "triton")
    assert name == "sparse_attn" and tiles.default(name, dims)
    assert kernel_shapes.tiles_name("sparse_attn", "torch") is None


def test_a_provider_has_forms_whose_fields_tell_them_apart():
    """What a study names under `hopper` belongs to one form."""
    assert kernel_shapes.forms("sparse_attn", "hopper") == ("sparse_attn@hopper", "sparse_attn@hopper_decode")
    assert kernel_shapes.tiles_name("sparse_attn", "hopper") == "sparse_attn@hopper"
    assert kernel_shapes.tiles_name("sparse_attn", "hopper", {"block_h": 16}) == "sparse_attn@hopper_decode"
    for kernel in kernel_shapes.KERNELS:
        for provider in kernel_shapes.OWN:
            named = [field for form in kernel_shapes.forms(kernel, provider) for field in tiles.field_names(form)]
            assert len(named) == len(set(named))
