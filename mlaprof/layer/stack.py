"""Layers in a row with norms, residuals and, if asked, a dense MLP, so that captured pieces merge across the layer
boundary as they do in a model."""

from __future__ import annotations

import copy

from torch import Tensor, nn
from torch.nn import functional as F

from mlaprof.layer.linear import Linear, RMSNorm
from mlaprof.layer.mla import MLA, Form
from mlaprof.layer.ops import OPS
from mlaprof.layer.tiling import LayerTiles
from mlaprof.study import PR_BOUNDARY, Boundary


class DenseMLP(nn.Module):
    """down(silu(gate(x)) * up(x)), gate and up in one product; reduces: summed over the ranks behind down."""

    def __init__(self, weights: dict[str, Tensor], *, reduces: bool = False) -> None:
        super().__init__()
        self.reduces = reduces
        self.gate_up_proj = Linear(weights["mlp.gate_up_proj.weight"])
        self.down_proj = Linear(weights["mlp.down_proj.weight"])

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up_proj(x).chunk(2, dim=-1)
        down: Tensor = self.down_proj(F.silu(gate) * up)
        if self.reduces:
            OPS.all_reduce(down)
        return down


class DecoderLayer(nn.Module):
    """x + attention(norm(x)), then with an MLP h + mlp(norm(h))."""

    def __init__(self, attn: MLA, weights: dict[str, Tensor], *, mlp: bool) -> None:
        super().__init__()
        eps = attn.shape.rms_norm_eps
        self.input_layernorm = RMSNorm(weights["input_layernorm.weight"], eps)
        self.self_attn = attn
        self.post_attention_layernorm: RMSNorm | None = None
        self.mlp: DenseMLP | None = None
        if mlp:
            self.post_attention_layernorm = RMSNorm(weights["post_attention_layernorm.weight"], eps)
            self.mlp = DenseMLP(weights, reduces=attn.reduces)

    def forward(self, hidden_states: Tensor, position_ids: Tensor) -> Tensor:
        hidden_states = hidden_states + self.self_attn(self.input_layernorm(hidden_states), position_ids)
        if self.mlp is None or self.post_attention_layernorm is None:
            return hidden_states
        hidden_states = hidden_states + self.mlp(self.post_attention_layernorm(hidden_states))
        return hidden_states

    def variant(self, *, form: Form, tiles: LayerTiles, boundary: Boundary = PR_BOUNDARY) -> DecoderLayer:
        twin = copy.copy(self)
        twin._modules = dict(self._modules)
        twin.self_attn = self.self_attn.variant(form=form, tiles=tiles, boundary=boundary)
        return twin


class Stack(nn.Module):
    """forward(hidden_states [T, hidden_size] bf16, position_ids [T] int64) -> [T, hidden_size] bf16."""

    def __init__(self, layers: list[DecoderLayer]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, hidden_states: Tensor, position_ids: Tensor) -> Tensor:
        for layer in self.layers:
            hidden_states = layer(hidden_states, position_ids)
        return hidden_states

    @property
    def attention(self) -> dict[str, MLA]:
        """The attention layers under the string index by which the ops look them up."""
        return {layer.self_attn.layer_idx: layer.self_attn for layer in self.decoder_layers}

    @property
    def decoder_layers(self) -> list[DecoderLayer]:
        return [layer for layer in self.layers if isinstance(layer, DecoderLayer)]

    def variant(self, *, form: Form, tiles: LayerTiles, boundary: Boundary = PR_BOUNDARY) -> Stack:
        """The same stack, weights and caches shared, run in another form, with other tiles or cut elsewhere."""
        return Stack([layer.variant(form=form, tiles=tiles, boundary=boundary) for layer in self.decoder_layers])
