"""The layer's dimensions under the papers' names, and the presets. Standard library only.

Sources: the public configuration files of DeepSeek-V3.2 and GLM-5.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields, replace

INDEX_HEAD_DIM = 128  # the fused 1x128 quantiser and the 132-byte cache row allow no other
TOKENS_PER_BLOCK = 64  # one page of either cache
INDEX_ROW_BYTES = INDEX_HEAD_DIM + 4  # 128 e4m3 codes and one fp32 scale


@dataclass(frozen=True)
class RopeShape:
    """Rotary embedding. factor 1 means plain RoPE, above 1 YaRN."""

    theta: float = 10_000.0
    factor: float = 1.0
    mscale: float = 1.0
    mscale_all_dim: float = 0.0
    original_max_positions: int = 4096
    beta_fast: float = 32.0
    beta_slow: float = 1.0

    @property
    def softmax_mscale(self) -> float:
        """YaRN's attention temperature: 0.1 * mscale_all_dim * ln(factor) + 1, or 1 without scaling."""
        if self.factor <= 1.0:
            return 1.0
        return 0.1 * self.mscale_all_dim * math.log(self.factor) + 1.0


@dataclass(frozen=True)
class LayerShape:
    """One attention layer as one tensor-parallel rank holds it: num_heads is already divided by tp_size.

    index_topk 0 describes plain MLA without an indexer.
    """

    hidden_size: int
    num_heads: int
    q_lora_rank: int
    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int
    index_n_heads: int
    index_head_dim: int
    index_topk: int
    indexer_rope_interleave: bool
    max_position_embeddings: int
    rms_norm_eps: float
    intermediate_size: int
    rope: RopeShape = field(default_factory=RopeShape)
    tp_size: int = 1

    @property
    def qk_head_dim(self) -> int:
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    @property
    def latent_dim(self) -> int:
        """Width of one latent cache row: the compressed kv and its rotary part."""
        return self.kv_lora_rank + self.qk_rope_head_dim

    @property
    def is_dsa(self) -> bool:
        return self.index_topk > 0

    @property
    def softmax_scale(self) -> float:
        """mscale^2 / sqrt(qk_head_dim): the un-absorbed head dimension, not the latent one."""
        return self.rope.softmax_mscale**2 / math.sqrt(self.qk_head_dim)

    @property
    def index_weight_scale(self) -> float:
        return float(self.index_head_dim**-0.5 * self.index_n_heads**-0.5)


def problems(shape: LayerShape) -> list[tuple[str, str, str]]:
    """(field, what is wrong, remedy) for every dimension that does not agree with the rest; empty when legal."""
    found: list[tuple[str, str, str]] = []
    optional = {"index_n_heads", "index_head_dim", "index_topk", "qk_nope_head_dim"}
    for each in fields(shape):
        value = getattr(shape, each.name)
        if isinstance(value, bool) or not isinstance(value, int):
            continue
        if value < 0 or (value == 0 and each.name not in optional):
            found.append((each.name, f"{value} is not a dimension", "use a positive integer"))
    for name, value, least in (
        ("rms_norm_eps", shape.rms_norm_eps, 0.0),
        ("rope.theta", shape.rope.theta, 1.0),
        ("rope.original_max_positions", shape.rope.original_max_positions, 0),
        ("rope.beta_slow", shape.rope.beta_slow, 0.0),
        ("rope.beta_fast", shape.rope.beta_fast, shape.rope.beta_slow),
    ):
        if not value > least:  # NaN, too
            found.append((name, f"{value} is not above {least}", "take the model's config.json"))
    if not shape.rope.factor >= 1.0:
        found.append(("rope.factor", f"{shape.rope.factor} is below 1", "1 is plain RoPE, above 1 is YaRN"))
    if shape.qk_rope_head_dim % 4:
        found.append(
            ("qk_rope_head_dim", f"{shape.qk_rope_head_dim} is not a multiple of 4", "DeepSeek and GLM use 64")
        )
    if not shape.is_dsa:
        return found
    if shape.index_n_heads <= 0:
        found.append(
            ("index_n_heads", "0 index heads with index_topk > 0", "give both, or index_topk: 0 for plain MLA")
        )
    if shape.index_head_dim != INDEX_HEAD_DIM:
        found.append(
            (
                "index_head_dim",
                f"{shape.index_head_dim} is not supported",
                f"the 1x128 quantiser demands {INDEX_HEAD_DIM}",
            )
        )
    if shape.qk_rope_head_dim > shape.index_head_dim:
        found.append(
            (
                "qk_rope_head_dim",
                f"{shape.qk_rope_head_dim} is wider than index_head_dim {shape.index_head_dim}",
                "the indexer rotates the first qk_rope_head_dim of its head",
            )
        )
    return found


def tensor_parallel(shape: LayerShape, tp_size: int) -> LayerShape:
    """One rank's share: attention heads and the MLP are divided, the indexer is replicated.

    Raises ValueError when the heads do not divide.
    """
    if tp_size < 1 or shape.num_heads % tp_size or shape.intermediate_size % tp_size:
        raise ValueError(f"tp_size: expected a divisor of {shape.num_heads} heads, got {tp_size}")
    return replace(
        shape,
        num_heads=shape.num_heads // tp_size,
        intermediate_size=shape.intermediate_size // tp_size,
        tp_size=tp_size,
    )


def undivided(shape: LayerShape) -> LayerShape:
    """The whole layer of which shape is one rank's share."""
    heads, width = shape.num_heads * shape.tp_size, shape.intermediate_size * shape.tp_size
    return replace(shape, num_heads=heads, intermediate_size=width, tp_size=1)


_V3_2 = LayerShape(
    hidden_size=7168,
    num_heads=128,
    q_lora_rank=1536,
    kv_lora_rank=512,
    qk_nope_head_dim=128,
    qk_rope_head_dim=64,
    v_head_dim=128,
    index_n_heads=64,
    index_head_dim=128,
    index_topk=2048,
    indexer_rope_interleave=False,
    max_position_embeddings=163_840,
    rms_norm_eps=1e-6,
    intermediate_size=18_432,
    rope=RopeShape(theta=10_000.0, factor=40.0, mscale=1.0, mscale_all_dim=1.0),
)

_GLM_5 = LayerShape(
    hidden_size=6144,
    num_heads=64,
    q_lora_rank=2048,
    kv_lora_rank=512,
    qk_nope_head_dim=192,
    qk_rope_head_dim=64,
    v_head_dim=256,
    index_n_heads=32,
    index_head_dim=128,
    index_topk=2048,
    indexer_rope_interleave=True,
    max_position_embeddings=202_752,
    rms_norm_eps=1e-5,
    intermediate_size=12_288,
    rope=RopeShape(theta=1_000_000.0),
)

# V3.2's head geometry (so kernels compile as they do there) at a size that two CPU cores sweep in seconds.
_TINY = LayerShape(
    hidden_size=512,
    num_heads=16,
    q_lora_rank=256,
    kv_lora_rank=512,
    qk_nope_head_dim=128,
    qk_rope_head_dim=64,
    v_head_dim=128,
    index_n_heads=8,
    index_head_dim=128,
    index_topk=64,
    indexer_rope_interleave=False,
    max_position_embeddings=4096,
    rms_norm_eps=1e-6,
    intermediate_size=1024,
    rope=_V3_2.rope,
)

MODEL_LAYERS: dict[str, int] = {"v3.2": 61, "v3.2-tp8": 61, "glm-5": 78, "glm-5-tp8": 78}  # each with attention

PRESETS: dict[str, LayerShape] = {
    "v3.2": _V3_2,
    "v3.2-tp8": tensor_parallel(_V3_2, 8),
    "glm-5": _GLM_5,
    "glm-5-tp8": tensor_parallel(_GLM_5, 8),
    "tiny": _TINY,
}
