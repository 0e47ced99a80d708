"""A Hugging Face config.json as a LayerShape. No torch.

Field names of DeepseekV32ForCausalLM and GlmMoeDsaForCausalLM; also older MLA configurations without an indexer.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from mlaprof.errors import ConfigError
from mlaprof.shapes import LayerShape, RopeShape, problems, tensor_parallel

MLA_LITE = "null means MLA-lite, which is not supported: upstream's split has no branch for it"
INDEXER_ROPE_INTERLEAVE = {"deepseek_v32": False, "glm_moe_dsa": True}  # where config.json does not say
PLAIN_MLA = ("deepseek_v2", "deepseek_v3")
MAX_CONFIG_BYTES = 1 << 20

_HF_NAME = {
    "num_heads": "num_attention_heads",
    "rope.theta": "rope_theta",
    "rope.factor": "rope_scaling.factor",
    "rope.original_max_positions": "rope_scaling.original_max_position_embeddings",
    "rope.beta_fast": "rope_scaling.beta_fast",
    "rope.beta_slow": "rope_scaling.beta_slow",
    "rope.mscale": "rope_scaling.mscale",
    "rope.mscale_all_dim": "rope_scaling.mscale_all_dim",
}


def layer_shape(path: Path, tp_size: int = 1) -> LayerShape:
    """The attention layer that a config.json describes, one of tp_size ranks' share.

    Raises ConfigError naming the file and the key that is missing, of the wrong type, or at odds with another.
    """
    config = _Config(path, _read_json(path))
    _refuse_other_layers(config)
    model_type = config.values.get("model_type")
    plain = model_type in PLAIN_MLA and config.values.get("index_topk") is None
    nope, rotary = config.integer("qk_nope_head_dim"), config.integer("qk_rope_head_dim")
    config.agree("qk_head_dim", nope + rotary, "qk_nope_head_dim + qk_rope_head_dim")
    heads = config.integer("num_attention_heads")
    config.agree("num_key_value_heads", heads, "num_attention_heads")
    shape = LayerShape(
        hidden_size=config.integer("hidden_size"),
        num_heads=heads,
        q_lora_rank=config.integer("q_lora_rank"),
        kv_lora_rank=config.integer("kv_lora_rank"),
        qk_nope_head_dim=nope,
        qk_rope_head_dim=rotary,
        v_head_dim=config.integer("v_head_dim"),
        index_n_heads=0 if plain else config.integer("index_n_heads"),
        index_head_dim=0 if plain else config.integer("index_head_dim"),
        index_topk=0 if plain else config.integer("index_topk"),
        indexer_rope_interleave=False if plain else _indexer_rope_interleave(config),
        max_position_embeddings=config.integer("max_position_embeddings"),
        rms_norm_eps=config.number("rms_norm_eps"),
        intermediate_size=config.integer("intermediate_size"),
        rope=_rope(config),
    )
    for name, wrong, remedy in problems(shape):
        raise config.error(_HF_NAME.get(name, name), wrong, remedy)
    try:
        return tensor_parallel(shape, tp_size)
    except ValueError as error:
        raise ConfigError(str(error), where=str(path), hint="use a tp_size that divides heads and MLP") from error


class _Config:
    """A config.json with typed access; every refusal names the file and the key."""

    def __init__(self, path: Path, values: dict[str, Any]) -> None:
        self.path = path
        self.values = values

    def error(self, key: str, wrong: str, remedy: str) -> ConfigError:
        return ConfigError(f"{key}: {wrong}", where=str(self.path), hint=remedy)

    def number(self, key: str, block: dict[str, Any] | None = None, default: float | None = None) -> float:
        source = self.values if block is None else block
        value = source.get(key)
        if value is None:
            if default is not None:
                return default
            wrong = "is null" if key in source else "is missing"
            raise self.error(key, wrong, "use a config.json of DeepSeek-V3.2's or GLM-5's family")
        if isinstance(value, bool) or not isinstance(value, int | float) or not _finite(value):
            raise self.error(key, f"expected a number, got {str(value)[:40]!r}", "mend the file")
        return float(value)

    def integer(self, key: str, block: dict[str, Any] | None = None) -> int:
        value = self.number(key, block)
        if not value.is_integer():
            raise self.error(key, f"expected an integer, got {value}", "mend the file")
        return int(value)

    def agree(self, key: str, expected: int, origin: str) -> None:
        """Refuse a redundant key that says something else than the keys it follows from."""
        if self.values.get(key) is not None and (got := self.integer(key)) != expected:
            raise self.error(key, f"{got} disagrees with {origin} = {expected}", "mend the file")


def _finite(value: int | float) -> bool:
    try:
        return math.isfinite(float(value))
    except OverflowError:
        return False


def _read_json(path: Path) -> dict[str, Any]:
    hint = "give the path of a Hugging Face config.json"
    try:
        with path.open("rb") as file:
            content = file.read(MAX_CONFIG_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"cannot be read: {reason}", where=str(path), hint=hint) from error
    if len(content) > MAX_CONFIG_BYTES:
        raise ConfigError("is larger than 1 MiB", where=str(path), hint=hint)
    try:
        values = json.loads(content)
    except (ValueError, RecursionError) as error:
        line = getattr(error, "lineno", 1)
        raise ConfigError("is not JSON", where=f"{path}:{line}", hint=hint) from error
    if not isinstance(values, dict):
        raise ConfigError("is not a JSON object", where=str(path), hint=hint)
    return values


def _refuse_other_layers(config: _Config) -> None:
    """Refuse what would change the layer's mathematics without showing in LayerShape."""
    if "q_lora_rank" in config.values and config.values["q_lora_rank"] is None:
        raise config.error("q_lora_rank", MLA_LITE, "use a model with q_lora_rank")
    if config.values.get("attention_bias"):
        raise config.error("attention_bias", "biases are not modelled", "use a model without attention biases")
    if config.values.get("index_kpool") not in (None, 1):
        raise config.error("index_kpool", "pooled index keys are not plain DSA", "use a model without index_kpool")


def _indexer_rope_interleave(config: _Config) -> bool:
    key = "indexer_rope_interleave"
    written = config.values.get(key)
    if isinstance(written, bool):
        return written
    if written is not None:
        raise config.error(key, f"expected true or false, got {str(written)[:40]!r}", "mend the file")
    model_type = config.values.get("model_type")
    if not isinstance(model_type, str) or model_type not in INDEXER_ROPE_INTERLEAVE:
        raise config.error(
            key,
            f"is missing, and model_type {str(model_type)[:40]!r} has no known default",
            f"add it; known are {', '.join(INDEXER_ROPE_INTERLEAVE)}",
        )
    return INDEXER_ROPE_INTERLEAVE[model_type]


def _rope(config: _Config) -> RopeShape:
    """rope_theta and rope_scaling, or newer files' rope_parameters that holds both."""
    blocks: dict[str, dict[str, Any]] = {}
    for key in ("rope_scaling", "rope_parameters"):
        block = config.values.get(key)
        if block is not None and not isinstance(block, dict):
            raise config.error(key, f"expected an object, got {str(block)[:40]!r}", "mend the file")
        blocks[key] = block or {}
    scaling, parameters = blocks["rope_scaling"], blocks["rope_parameters"]
    for key in scaling.keys() & parameters.keys():
        if scaling[key] != parameters[key]:
            raise config.error(f"rope_parameters.{key}", f"disagrees with rope_scaling.{key}", "keep one of them")
    merged = scaling | parameters
    theta = config.number("rope_theta", merged if merged.get("rope_theta") is not None else None)
    if config.values.get("rope_theta") is not None and config.number("rope_theta") != theta:
        raise config.error("rope_parameters.rope_theta", "disagrees with rope_theta", "keep one of them")
    kinds = {merged[key] for key in ("type", "rope_type") if isinstance(merged.get(key), str)}
    if len(kinds) > 1:
        raise config.error("rope_scaling.type", "disagrees with rope_scaling.rope_type", "keep one of them")
    kind = next(iter(kinds), "yarn" if merged.get("factor") is not None else "default")
    if kind == "default":
        return RopeShape(theta=theta)
    if kind != "yarn":
        raise config.error("rope_scaling.type", f"{kind[:40]!r} is not supported", "use default or yarn")
    return RopeShape(
        theta=theta,
        factor=config.number("factor", merged),
        mscale=config.number("mscale", merged, default=1.0),
        mscale_all_dim=config.number("mscale_all_dim", merged, default=0.0),
        original_max_positions=config.integer("original_max_position_embeddings", merged),
        beta_fast=config.number("beta_fast", merged, default=32.0),
        beta_slow=config.number("beta_slow", merged, default=1.0),
    )
