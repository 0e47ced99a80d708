"""The whole layer once more, dense and unabsorbed, fp32: what every mode must agree with.

Written from the papers' formulas and on purpose without the layer's modules: keys and values of every head are
expanded, positions are visited request by request, rotation is complex multiplication, pages are read one token at a
time. Only `shapes` is shared.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mlaprof.shapes import INDEX_HEAD_DIM, TOKENS_PER_BLOCK, LayerShape


@dataclass(frozen=True)
class History:
    """What the caches hold of one request before this step, in token order."""

    latent: Tensor  # [cached, kv_lora + rope] any float dtype; the rope part already rotated
    index_k: Tensor | None  # [cached, 128] fp32, dequantised; None for plain MLA
    new_tokens: int

    @property
    def cached(self) -> int:
        return self.latent.shape[0]


@dataclass(frozen=True)
class Expected:
    """rows [n]: batch rows that were computed; output [n, hidden_size] fp32; topk: the positions each row selected.

    latent [n, kv_lora + rope] and index_k [n, 128] fp32: what the caches should hold of those rows after the step.
    """

    rows: tuple[int, ...]
    output: Tensor
    topk: tuple[Tensor, ...]
    latent: Tensor
    index_k: Tensor | None  # None for plain MLA


def read_history(
    latent_pool: Tensor,
    index_pool: Tensor | None,
    layer: int,
    pages: Sequence[int],
    cached: int,
    new_tokens: int,
) -> History:
    """One request's cached tokens, read from the pools token by token through its page list; see read_tokens."""
    latent, index_k = read_tokens(latent_pool, index_pool, layer, [(pages, position) for position in range(cached)])
    return History(latent, index_k, new_tokens)


def read_tokens(
    latent_pool: Tensor, index_pool: Tensor | None, layer: int, places: Sequence[tuple[Sequence[int], int]]
) -> tuple[Tensor, Tensor | None]:
    """(latent [n, width], index_k [n, 128] fp32, dequantised) of tokens, each given as its request's pages and place.

    latent_pool [blocks, layers, 64, width], index_pool [blocks, 64 * 132] uint8 of this layer, None for plain MLA
    """
    blocks = [pages[position // TOKENS_PER_BLOCK] for pages, position in places]
    block = torch.tensor(blocks, dtype=torch.int64, device=latent_pool.device)
    offset = torch.tensor([p % TOKENS_PER_BLOCK for _, p in places], dtype=torch.int64, device=latent_pool.device)
    latent = latent_pool[block, layer, offset]
    if index_pool is None:
        return latent, None
    codes = index_pool[:, : TOKENS_PER_BLOCK * INDEX_HEAD_DIM].reshape(-1, TOKENS_PER_BLOCK, INDEX_HEAD_DIM)
    scales = index_pool[:, TOKENS_PER_BLOCK * INDEX_HEAD_DIM :].reshape(-1, TOKENS_PER_BLOCK, 4)
    key = codes[block, offset].view(torch.float8_e4m3fn).float()
    scale = scales[block, offset].contiguous().view(torch.float32)  # [n, 1]
    return latent, key * scale


def attention(
    weights: dict[str, Tensor],
    shape: LayerShape,
    hidden: Tensor,
    histories: Sequence[History],
    *,
    rows: Sequence[int] | None = None,
    selected: dict[int, Tensor] | None = None,
    fp8_activations: bool = False,
) -> Expected:
    """The attention layer's output, o_proj included.

    weights    Hugging Face names below self_attn, as layer/weights.py fuses them
    hidden     [num_tokens, hidden_size]: what enters the attention, the requests' new tokens one after the other
    rows       which batch rows to compute; all by default
    selected   positions to attend to, by row, in place of the reference's own selection
    fp8_activations  what enters the four block-scaled projections is rounded to e4m3 in groups of 128
    """
    wide = {name: value.float() for name, value in weights.items() if not name.startswith("mlp.")}
    wanted = set(range(hidden.shape[0]) if rows is None else rows)
    outputs: list[Tensor] = []
    picks: list[Tensor] = []
    latent: list[Tensor] = []
    index_k: list[Tensor] = []
    done: list[int] = []
    start = 0
    for history in histories:
        stop = start + history.new_tokens
        mine = sorted(wanted & set(range(start, stop)))
        if mine:
            request = _Request(wide, shape, hidden[start:stop].float(), history, fp8_activations)
            for row in mine:
                given = None if selected is None else selected.get(row)
                output, picked = request.row(row - start, given)
                outputs.append(output)
                picks.append(picked)
                latent.append(request.latent[row - start])
                if shape.is_dsa:
                    index_k.append(request.index_k[history.cached + row - start])
                done.append(row)
        start = stop
    keys = torch.stack(index_k) if shape.is_dsa else None
    return Expected(tuple(done), torch.stack(outputs), tuple(picks), torch.stack(latent), keys)


class _Request:
    """One request's keys, values and index keys, all heads, all positions, in fp32."""

    def __init__(
        self, weights: dict[str, Tensor], shape: LayerShape, x: Tensor, history: History, fp8_activations: bool
    ) -> None:
        self.rounded = _through_groups if fp8_activations else _as_it_is
        self.w = weights
        self.shape = shape
        self.first = history.cached
        heads, nope, rope = shape.num_heads, shape.qk_nope_head_dim, shape.qk_rope_head_dim
        position = torch.arange(x.shape[0], device=x.device) + history.cached
        angle = position[:, None].double() * _frequencies(shape, x.device)  # [new, rope/2]

        a = self.rounded(x) @ self.w["kv_a_proj_with_mqa.weight"].T
        c_q = _rms_norm(a[:, : shape.q_lora_rank], self.w["q_a_layernorm.weight"], shape.rms_norm_eps)
        c_kv = a[:, shape.q_lora_rank : shape.q_lora_rank + shape.kv_lora_rank]
        c_kv = _rms_norm(c_kv, self.w["kv_a_layernorm.weight"], shape.rms_norm_eps)
        k_rope = _rotate_pairs(a[:, -rope:], angle)
        self.latent = torch.cat((c_kv, k_rope), dim=-1)  # [new, kv_lora + rope]

        past = history.latent.float()
        c_kv = torch.cat((past[:, : shape.kv_lora_rank], c_kv))  # [total, kv_lora]
        k_rope = torch.cat((past[:, shape.kv_lora_rank :], k_rope))  # [total, rope]
        kv = c_kv @ self.w["kv_b_proj.weight"].T
        k_nope = kv[:, : heads * nope].view(-1, heads, nope)
        self.v = kv[:, heads * nope :].view(-1, heads, shape.v_head_dim)
        self.k = torch.cat((k_nope, k_rope[:, None].expand(-1, heads, -1)), dim=-1)  # [total, heads, nope + rope]

        q = (self.rounded(c_q) @ self.w["q_b_proj.weight"].T).view(-1, heads, nope + rope)
        self.q = torch.cat((q[..., :nope], _rotate_pairs(q[..., nope:], angle[:, None])), dim=-1)
        if shape.is_dsa:
            self._index(x, c_q, angle, history)

    def _index(self, x: Tensor, c_q: Tensor, angle: Tensor, history: History) -> None:
        shape, rope = self.shape, self.shape.qk_rope_head_dim
        turn = _rotate_pairs if shape.indexer_rope_interleave else _rotate_halves
        k = x @ self.w["indexer.wk.weight"].T
        k = (k - k.mean(-1, keepdim=True)) / torch.sqrt(k.var(-1, unbiased=False, keepdim=True) + 1e-6)
        k = k * self.w["indexer.k_norm.weight"] + self.w["indexer.k_norm.bias"]
        k = torch.cat((turn(k[:, :rope], angle), k[:, rope:]), dim=-1)
        q = (self.rounded(c_q) @ self.w["indexer.wq_b.weight"].T).view(-1, shape.index_n_heads, shape.index_head_dim)
        q = torch.cat((turn(q[..., :rope], angle[:, None]), q[..., rope:]), dim=-1)
        assert history.index_k is not None
        self.index_k = torch.cat((history.index_k, _through_fp8(k)))  # [total, 128]
        self.index_q = _through_fp8(q)  # [new, index heads, 128]
        scale = shape.index_n_heads**-0.5 * shape.index_head_dim**-0.5
        self.index_w = (x @ self.w["indexer.weights_proj.weight"].T) * scale  # [new, index heads]

    def row(self, local: int, given: Tensor | None) -> tuple[Tensor, Tensor]:
        """(output [hidden_size], selected positions) of the request's new token number `local`."""
        visible = self.first + local + 1
        picked = given if given is not None else self._select(local, visible)
        k, v = self.k[picked], self.v[picked]  # [n, heads, ...]
        score = torch.einsum("hd,nhd->hn", self.q[local], k) * self._softmax_scale()
        value = torch.einsum("hn,nhd->hd", score.softmax(dim=-1), v)
        return self.rounded(value.flatten()) @ self.w["o_proj.weight"].T, picked

    def _select(self, local: int, visible: int) -> Tensor:
        everything = torch.arange(visible, device=self.k.device)
        if not self.shape.is_dsa or visible <= self.shape.index_topk:
            return everything
        dots = torch.einsum("hd,nd->hn", self.index_q[local], self.index_k[:visible]).relu()
        best: Tensor = (self.index_w[local] @ dots).topk(self.shape.index_topk).indices
        return best

    def _softmax_scale(self) -> float:
        rope = self.shape.rope
        scale = 1.0 / math.sqrt(self.shape.qk_nope_head_dim + self.shape.qk_rope_head_dim)
        if rope.factor > 1:
            scale *= (0.1 * rope.mscale_all_dim * math.log(rope.factor) + 1) ** 2
        return scale


def _rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + eps) * weight


def _through_fp8(x: Tensor) -> Tensor:
    """What survives the 1x128 ue8m0 quantiser: rounded up to a power-of-two scale, e4m3, and back."""
    amax = x.abs().amax(-1, keepdim=True).clamp_min(1e-4)
    scale = torch.exp2(torch.ceil(torch.log2(amax.double() / 448.0))).float()
    return (x / scale).clamp(-448, 448).to(torch.float8_e4m3fn).float() * scale


def _through_groups(x: Tensor) -> Tensor:
    """What survives the activations' quantiser: groups of 128, amax / 448 for a scale, e4m3, and back."""
    groups = x.unflatten(-1, (-1, 128))
    scale = groups.abs().amax(-1, keepdim=True).clamp_min(1e-10) / 448.0
    codes: Tensor = (groups / scale).to(torch.float8_e4m3fn)
    restored: Tensor = codes.float() * scale
    return restored.flatten(-2)


def _as_it_is(x: Tensor) -> Tensor:
    return x


def _rotate_pairs(x: Tensor, angle: Tensor) -> Tensor:
    """Rotate (x[2i], x[2i+1]) as a complex number."""
    as_complex = torch.view_as_complex(x.double().unflatten(-1, (-1, 2)).contiguous())
    turned = as_complex * torch.polar(torch.ones_like(angle), angle)
    return torch.view_as_real(turned).flatten(-2).float()


def _rotate_halves(x: Tensor, angle: Tensor) -> Tensor:
    """Rotate (x[i], x[i + dim/2]) as a complex number."""
    half = x.shape[-1] // 2
    turned = torch.complex(x[..., :half].double(), x[..., half:].double()) * torch.polar(torch.ones_like(angle), angle)
    return torch.cat((turned.real, turned.imag), dim=-1).float()


def _frequencies(shape: LayerShape, device: torch.device) -> Tensor:
    """[rope/2] double. YaRN: pair i turns t_i times within the original context; above beta_fast it keeps its speed,
    below beta_slow it is slowed by factor, in between a linear ramp over the pair number."""
    rope, dim = shape.rope, shape.qk_rope_head_dim
    speeds = []
    for i in range(dim // 2):
        speed = rope.theta ** (-2 * i / dim)
        if rope.factor > 1:
            pair = [
                dim * math.log(rope.original_max_positions / (2 * math.pi * turns)) / (2 * math.log(rope.theta))
                for turns in (rope.beta_fast, rope.beta_slow)
            ]
            low, high = max(math.floor(pair[0]), 0), min(math.ceil(pair[1]), dim - 1)
            slowed = min(max((i - low) / max(high - low, 0.001), 0.0), 1.0)
            speed = speed * (1 - slowed) + speed / rope.factor * slowed
        speeds.append(speed)
    return torch.tensor(speeds, dtype=torch.float64, device=device)
