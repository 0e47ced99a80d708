"""Weights of one decoder layer: random from a seed, or read from a Hugging Face checkpoint.

Names are Hugging Face's, with two fusions done at load: q_a_proj and kv_a_proj_with_mqa become one matrix, and
kv_b_proj is regrouped from head-interleaved rows to all k_nope rows, then all v rows.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor

from mlaprof.checkpoint import FP8_BLOCK, INDEX, weight_shapes
from mlaprof.errors import ConfigError
from mlaprof.layer.streams import stream
from mlaprof.shapes import LayerShape, undivided


def random_weights(
    shape: LayerShape, *, seed: int, mlp: bool, device: torch.device, rank: int | None = None
) -> dict[str, Tensor]:
    """bf16 weights drawn from N(0, 1/fan_in), norms around 1; the same on every device, never zeros.

    rank  of shape.tp_size: this rank's rows and columns of the whole layer's weights, so that the ranks' outputs sum to
          that layer's; what is replicated is the same on all. None draws the share itself, of no layer in particular

    Zeros would be faster than real data: input values move the power draw and with it the clock.
    """
    generator = stream("weights", seed)
    own = weight_shapes(shape, mlp=mlp)
    drawn = own if rank is None else weight_shapes(undivided(shape), mlp=mlp)

    def placed(name: str, value: Tensor) -> Tensor:
        share = value.to(torch.bfloat16)
        return (share if rank is None else _share(share, own[name], shape.tp_size, rank)).to(device)

    def draw(name: str, size: tuple[int, ...]) -> Tensor:
        noise = torch.randn(size, generator=generator)
        if len(size) == 2:
            return placed(name, noise.mul(size[-1] ** -0.5))
        centre = 0.0 if name.endswith("bias") else 1.0
        return placed(name, noise * 0.1 + centre)

    return fuse({name: draw(name, size) for name, size in drawn.items()}, shape)


def checkpoint_weights(
    path: Path, layer: int, shape: LayerShape, *, mlp: bool, device: torch.device, rank: int = 0
) -> dict[str, Tensor]:
    """Layer `layer` of a safetensors file, or of a folder of them with its index.

    FP8 tensors are multiplied by their `weight_scale_inv`. Heads of other ranks than `rank` are left out.
    Raises ConfigError for a missing tensor or one whose shape disagrees with the study's.
    """
    prefix, checkpoint = f"model.layers.{layer}.", _Checkpoint(path)
    named = {
        name: _read(checkpoint, prefix + name, size, tp_size=shape.tp_size, rank=rank).to(torch.bfloat16).to(device)
        for name, size in weight_shapes(shape, mlp=mlp).items()
    }
    return fuse(named, shape)


def fuse(named: dict[str, Tensor], shape: LayerShape) -> dict[str, Tensor]:
    """The layer's own dict from Hugging Face's names, `self_attn.` dropped."""
    attn = {name.removeprefix("self_attn."): value for name, value in named.items()}
    attn["kv_a_proj_with_mqa.weight"] = torch.cat((attn.pop("q_a_proj.weight"), attn["kv_a_proj_with_mqa.weight"]))
    per_head = attn["kv_b_proj.weight"].view(shape.num_heads, -1, shape.kv_lora_rank)
    k_b, v_b = per_head.split((shape.qk_nope_head_dim, shape.v_head_dim), dim=1)
    attn["kv_b_proj.weight"] = torch.cat((k_b.flatten(0, 1), v_b.flatten(0, 1)))
    if "mlp.gate_proj.weight" in attn:
        attn["mlp.gate_up_proj.weight"] = torch.cat((attn.pop("mlp.gate_proj.weight"), attn.pop("mlp.up_proj.weight")))
    return attn


def _read(checkpoint: _Checkpoint, name: str, size: tuple[int, ...], *, tp_size: int, rank: int) -> Tensor:
    value = checkpoint.tensor(name)
    if value.dtype == torch.float8_e4m3fn:
        value = dequantize(value, _block_scales(checkpoint, f"{name}_scale_inv", value))
    value = _share(value, size, tp_size, rank)
    if tuple(value.shape) != size:
        raise ConfigError(
            f"{name} is {list(value.shape)}, the study's shape needs {list(size)}",
            where=str(checkpoint.path),
            hint="use shape: {hf_config: config.json} of the same checkpoint",
        )
    return value


def _block_scales(checkpoint: _Checkpoint, name: str, codes: Tensor) -> Tensor:
    scales = checkpoint.tensor(name)
    blocks = [-(-size // FP8_BLOCK) for size in codes.shape]
    if list(scales.shape) != blocks:
        raise ConfigError(
            f"{name} is {list(scales.shape)}, {FP8_BLOCK} x {FP8_BLOCK} blocks of {list(codes.shape)} need {blocks}",
            where=str(checkpoint.path),
            hint="give a checkpoint quantised as DeepSeek-V3.2's own",
        )
    return scales


def _share(value: Tensor, size: tuple[int, ...], tp_size: int, rank: int) -> Tensor:
    """A rank's rows or columns where value holds tp_size times as many."""
    for dim in range(min(value.ndim, len(size))):
        if tp_size > 1 and value.shape[dim] == size[dim] * tp_size:
            value = value.narrow(dim, rank * size[dim], size[dim]).contiguous()
    return value


def dequantize(codes: Tensor, scale_inv: Tensor) -> Tensor:
    """fp32 weight from e4m3 codes [m, n] and their scales [ceil(m/128), ceil(n/128)]."""
    rows, columns = codes.shape
    scale = scale_inv.float().repeat_interleave(FP8_BLOCK, 0)[:rows].repeat_interleave(FP8_BLOCK, 1)[:, :columns]
    return codes.float() * scale


class _Checkpoint:
    """A safetensors file, or a folder of them, whose index is read once for all tensors.

    Raises ConfigError for an index without a map, or several files without an index.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._index = path / INDEX
        self._weight_map = self._read_index() if path.is_dir() and self._index.exists() else None
        if path.is_dir() and self._weight_map is None:
            files = sorted(path.glob("*.safetensors"))
            if len(files) != 1:
                raise ConfigError(
                    f"{len(files)} safetensors files and no {INDEX}", where=str(path), hint="name one file"
                )
            self._only = files[0]
        else:
            self._only = path

    def tensor(self, name: str) -> Tensor:
        """A tensor as its file has it. A weight and its scale may lie in two files of one folder."""
        from safetensors import SafetensorError, safe_open

        file = self._file_of(name)
        try:
            with safe_open(file, framework="pt") as tensors:
                if name not in tensors.keys():  # noqa: SIM118 (safe_open is not a dict)
                    raise ConfigError(
                        f"no tensor {name}",
                        where=str(file),
                        hint="check weights.layer and that the model uses DSA",
                    )
                value: Tensor = tensors.get_tensor(name)
                return value
        except (SafetensorError, OSError) as error:
            raise ConfigError(
                f"not a readable safetensors file ({error})",
                where=str(file),
                hint="give a .safetensors file or its folder",
            ) from error

    def _read_index(self) -> dict[str, object]:
        try:
            return dict(json.loads(self._index.read_text())["weight_map"])
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(
                "holds no weight_map", where=str(self._index), hint="give a complete checkpoint"
            ) from error

    def _file_of(self, name: str) -> Path:
        if self._weight_map is None:
            return self._only
        if name not in self._weight_map:
            raise ConfigError(f"{name} is not in its weight_map", where=str(self._index), hint="check weights.layer")
        return self.path / str(self._weight_map[name])
