"""Rotary embeddings: YaRN tables once, two pairings. Rotation runs in fp32.

The main attention rotates interleaved pairs (2i, 2i+1); the indexer of V3.2 rotates halves (i, i + dim/2), that of
GLM-5 interleaved pairs. They are two settings on purpose: one for both gives garbage top-k on one of the models.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mlaprof.shapes import RopeShape


def inverse_frequencies(rope: RopeShape, dim: int) -> Tensor:
    """Angular frequency [dim/2] fp32 of each rotated pair.

    YaRN keeps the fast pairs, divides the slow ones by factor, and ramps between beta_fast and beta_slow turns
    within original_max_positions. Source: the YaRN paper, as DeepSeek's configuration parametrises it.
    """
    pairs = torch.arange(0, dim, 2, dtype=torch.float64) / dim
    base = rope.theta**-pairs
    if rope.factor <= 1.0:
        return base.float()

    def pair_of(turns: float) -> float:
        return dim * math.log(rope.original_max_positions / (turns * 2 * math.pi)) / (2 * math.log(rope.theta))

    low = max(math.floor(pair_of(rope.beta_fast)), 0)
    high = min(math.ceil(pair_of(rope.beta_slow)), dim - 1)
    ramp = ((torch.arange(dim // 2, dtype=torch.float64) - low) / max(high - low, 1e-3)).clamp(0, 1)
    return (base * (1 - ramp) + base / rope.factor * ramp).float()


def cos_sin_table(rope: RopeShape, dim: int, max_positions: int, device: torch.device) -> Tensor:
    """[max_positions, 2, dim/2] fp32: cosines, then sines.

    YaRN's magnitude correction is mscale over mscale_all_dim; both are 1 in V3.2, so the tables stay unscaled and
    the whole temperature sits in the softmax scale.
    """
    angles = torch.outer(torch.arange(max_positions, dtype=torch.float32), inverse_frequencies(rope, dim))
    magnitude = 1.0
    if rope.factor > 1.0:
        magnitude = (0.1 * rope.mscale * math.log(rope.factor) + 1.0) / rope.softmax_mscale
    return torch.stack((angles.cos(), angles.sin()), dim=1).mul(magnitude).to(device)


def rotate(x: Tensor, cos_sin: Tensor, *, interleaved: bool) -> Tensor:
    """Rotate the last dimension of x and return it in x's dtype.

    x        [num_tokens, ..., dim]      any float dtype
    cos_sin  [num_tokens, 2, dim/2]      fp32 rows of `cos_sin_table`
    """
    shape = (x.shape[0], *([1] * (x.ndim - 2)), x.shape[-1] // 2)
    cos, sin = cos_sin[:, 0].view(shape), cos_sin[:, 1].view(shape)
    wide = x.float()
    if interleaved:
        even, odd = wide[..., 0::2], wide[..., 1::2]
        return torch.stack((even * cos - odd * sin, odd * cos + even * sin), dim=-1).flatten(-2).to(x.dtype)
    first, second = wide.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)
