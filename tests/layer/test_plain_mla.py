"""Plain MLA, without an indexer: one in-place op, as before the split."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mlaprof.layer import reference
from mlaprof.layer.mla import MLA
from mlaprof.layer.ops import OPS

BATCHES: dict[str, dict[str, Any]] = {
    "prefill": {"contexts": [(70, 0), (1, 0)]},
    "chunked prefill": {"contexts": [(30, 100), (5, 64)]},
    "decode": {"generations": [(1, 200), (1, 63), (1, 0)]},
    "decode of two": {"generations": [(2, 200), (2, 63)]},
    "mixed": {"contexts": [(9, 60)], "generations": [(2, 130), (2, 5)]},
}
TOLERANCE = 0.015  # as in test_mla.py


@pytest.mark.parametrize("name", BATCHES)
def test_a25_plain_mla_is_the_single_in_place_op_and_agrees_with_the_oracle(plain, spy, name, monkeypatch):
    """Neither Op 1 nor Op 2 nor an indexer kernel runs, and every row attends to all it may see."""
    for body in ("dsa_proj", "dsa_attn"):
        monkeypatch.setattr(MLA, body, None)
    batch = plain.batch(**BATCHES[name])
    hidden, positions = plain.load(batch)
    past = [
        reference.read_history(plain.caches.latent, None, 0, pages, request.cached_tokens, request.new_tokens)
        for request, pages in zip(batch.requests, batch.pages, strict=True)
    ]
    with plain.context(), spy:
        got = plain.attn(hidden, positions).float()
    assert spy.names[0] == "mla_custom_op_inplace"
    assert set(spy.names[1:]) <= {
        "project_norms",
        "append_latent",
        "convert_indices",
        "absorb",
        "sparse_attn",
        "up_project",
    }
    want = reference.attention(plain.weights[0], plain.shape, hidden, past).output
    assert float(((got - want).norm(dim=-1) / want.norm(dim=-1)).max()) < TOLERANCE


def test_a25_plain_mla_cuts_to_the_true_token_count_before_it_projects(plain):
    """Unlike Op 1: padding rows of hidden_states and positions are never read."""
    batch = plain.batch(**BATCHES["mixed"])
    hidden, positions = plain.load(batch)
    want = plain.forward(hidden, positions)
    hidden, positions = plain.load(batch, rows=40)
    hidden[batch.num_tokens :] = torch.nan
    positions[batch.num_tokens :] = -(1 << 40)
    sizes = []
    hook = plain.attn.kv_a_proj_with_mqa.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    got = plain.forward(hidden, positions)
    hook.remove()
    assert sizes == [batch.num_tokens]
    assert torch.equal(want, got[: batch.num_tokens])


def test_a25_the_split_form_of_plain_mla_is_refused(plain, make_bench, plain_shape):
    """At construction and when a variant is asked for; the ops refuse the layer, too."""
    with pytest.raises(ValueError, match="form: expected 'monolithic' for plain MLA, got 'split'"):
        plain.monolith.variant(form="split", tiles=plain.tiles)
    attn = plain.attn
    with pytest.raises(ValueError, match="form: expected 'monolithic' for plain MLA, got 'split'"):
        MLA(
            plain_shape,
            plain.weights[0],
            layer_idx=0,
            caches=plain.caches,
            cos_sin=attn.cos_sin,
            tiles=plain.tiles,
            form="split",
        )
    hidden, positions = plain.load(plain.batch([(3, 0)]))
    with plain.context(), pytest.raises(AssertionError, match="mla_dsa_proj: expected a layer with an indexer"):
        OPS.mla_dsa_proj(hidden, positions, "0")


def test_plain_mla_holds_no_index_cache_and_a_dense_table_of_full_width(plain):
    """Decode attends to everything through the same sparse kernel."""
    assert plain.caches.index_k == () and plain.attn.indexer is None
    assert plain.metadata.dense_topk.shape == (256, plain.metadata.limits.max_seq_len)
