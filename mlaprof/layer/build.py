"""From a shape and weights to a stack that runs."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from mlaprof.layer.cache import Caches
from mlaprof.layer.mla import MLA, Form
from mlaprof.layer.rope import cos_sin_table
from mlaprof.layer.stack import DecoderLayer, Stack
from mlaprof.layer.tiling import LayerTiles
from mlaprof.shapes import LayerShape
from mlaprof.study import LinearKind


def build_stack(
    shape: LayerShape,
    layer_weights: Sequence[dict[str, Tensor]],
    *,
    caches: Caches,
    tiles: LayerTiles,
    form: Form,
    mlp: bool = False,
    short_seq_mha_threshold: int = 0,
    linear: LinearKind = "bf16",
    reduces: bool = False,
) -> Stack:
    """One decoder layer a weight dict (`weights.random_weights` or `checkpoint_weights`), weights fused and ready.

    linear   other than bf16 wants weights that went `through_blocks`
    reduces  shape and weights are one rank's share, and what the ranks' products give is summed over them

    Raises ValueError for a shape the split has no answer to: q_lora_rank 0 (MLA-lite).
    """
    if shape.q_lora_rank <= 0:
        raise ValueError("q_lora_rank: expected a positive rank, got none: Op 1 has no MLA-lite branch")
    cos_sin = cos_sin_table(shape.rope, shape.qk_rope_head_dim, shape.max_position_embeddings, caches.latent.device)
    layers = []
    for number, weights in enumerate(layer_weights):
        attn = MLA(
            shape,
            weights,
            layer_idx=number,
            caches=caches,
            cos_sin=cos_sin,
            tiles=tiles,
            form=form,
            short_seq_mha_threshold=short_seq_mha_threshold,
            linear=linear,
            reduces=reduces,
        )
        attn.post_load_weights()
        layers.append(DecoderLayer(attn, weights, mlp=mlp))
    return Stack(layers)
