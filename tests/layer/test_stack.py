"""Layers in a row: norms, residuals, the dense MLP, and variants that share everything."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mlaprof.kernels.tiles import kernel_of
from mlaprof.layer import reference
from mlaprof.layer.tiling import layer_tiles
from mlaprof.shapes import PRESETS
from mlaprof.study import kernel_dims

MIXED = {"contexts": [(33, 0), (20, 60)], "generations": [(1, 100)]}


def norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * weight.float()


@pytest.mark.parametrize("mlp", [False, True], ids=["attention only", "dense MLP"])
@pytest.mark.parametrize("geometry", ["tiny", "glm-like"])
def test_two_layers_agree_with_the_oracle_end_to_end(make_bench, shapes, geometry, mlp):
    """x + attention(norm(x)), then h + down(silu(gate) * up) of the normed h, twice, in fp32 throughout. Sequences are
    short enough that all is selected, so that no tie can part the two."""
    bench = make_bench(shapes[geometry], num_layers=2, mlp=mlp)
    batch = bench.batch([(33, 0), (20, 40)], [(1, 60), (1, 0)])
    hidden, positions = bench.load(batch)
    eps, x = bench.shape.rms_norm_eps, hidden.float()
    for number, weights in enumerate(bench.weights):
        past = [
            reference.read_history(
                bench.caches.latent, bench.caches.index_k[number], number, pages, r.cached_tokens, r.new_tokens
            )
            for r, pages in zip(batch.requests, batch.pages, strict=True)
        ]
        normed = norm(x, weights["input_layernorm.weight"], eps)
        x = x + reference.attention(weights, bench.shape, normed, past).output
        if mlp:
            h = norm(x, weights["post_attention_layernorm.weight"], eps)
            gate, up = (h @ weights["mlp.gate_up_proj.weight"].float().T).chunk(2, dim=-1)
            x = x + (gate * torch.sigmoid(gate) * up) @ weights["mlp.down_proj.weight"].float().T
    got = bench.forward(hidden, positions).float()
    error = (got - x).norm(dim=-1) / (x - hidden.float()).norm(dim=-1)  # of what the layers add
    assert float(error.max()) < 0.015


@pytest.mark.parametrize("mlp", [False, True], ids=["attention only", "dense MLP"])
def test_two_layers_split_or_not_give_the_same_bits(make_bench, shapes, mlp):
    """Layer boundaries included."""
    bench = make_bench(shapes["glm-like"], num_layers=2, mlp=mlp)
    outputs = []
    for form in ("split", "monolithic"):
        hidden, positions = bench.load(bench.batch(**MIXED))
        outputs.append(bench.forward(hidden, positions, form=form))
    assert torch.equal(*outputs)


def test_layers_are_known_by_their_number_as_text(make_bench, shapes):
    """The ops look them up by these strings."""
    bench = make_bench(shapes["glm-like"], num_layers=3)
    assert list(bench.split.attention) == ["0", "1", "2"]
    assert [attn.layer_number for attn in bench.split.attention.values()] == [0, 1, 2]


def test_a_variant_shares_weights_and_caches_and_leaves_the_original_alone(make_bench, shapes):
    """Another form with other tiles costs no memory; every mode is measured on the same parameters."""
    bench = make_bench(shapes["tiny"], num_layers=2, mlp=True)
    tiles = layer_tiles(kernel_dims(bench.shape), {"sparse_attn": {"block_n": 64}})
    twin = bench.monolith.variant(form="split", tiles=tiles)
    first, second = dict(bench.monolith.named_parameters()), dict(twin.named_parameters())
    assert first.keys() == second.keys()
    assert all(first[name] is second[name] for name in first)
    for number, attn in twin.attention.items():
        original = bench.monolith.attention[number]
        assert (attn.form, attn.tiles) == ("split", tiles)
        assert (original.form, original.tiles) == ("monolithic", bench.tiles)
        assert attn.caches is original.caches


def test_tiles_reach_the_kernels_as_an_argument(make_bench, shapes, spy):
    """What the study names is what the op is called with."""
    bench = make_bench(shapes["tiny"], skip_indexer_for_short_seqs=False)
    chosen = {
        "sparse_attn@hopper_decode": {"num_splits": 4},
        "index_logits": {"num_warps": 8},
        "paged_index_logits": {"num_stages": 1},
        "topk@hopper": {"num_warps": 16},
        "absorb": {"block_n": 64},
        "up_project": {"num_stages": 2},
    }
    bench.split = bench.monolith.variant(form="split", tiles=layer_tiles(kernel_dims(bench.shape), chosen))
    hidden, positions = bench.load(bench.batch(**MIXED))
    with spy:
        bench.forward(hidden, positions)
    before_out = {"sparse_attn", "topk", "absorb", "up_project"}
    for name in map(kernel_of, chosen):
        place = -2 if name in before_out else -1
        [packed] = {tuple(args[place]) for args, _ in spy.of(name)}
        assert list(packed) == getattr(bench.split.attention["0"].tiles, name) != getattr(bench.tiles, name)


@pytest.mark.parametrize("chosen", [{"sparse": {}}, {"sparse_attn": {"block": 1}}, {"block_gemm": {}}])
def test_unknown_tiles_are_refused(chosen):
    """A kernel or a field that nobody has, and a kernel whose tiles follow from the shape of each product."""
    with pytest.raises(ValueError, match="expected"):
        layer_tiles(kernel_dims(PRESETS["tiny"]), chosen)
