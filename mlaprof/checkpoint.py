"""Hugging Face checkpoints: the tensors that a decoder layer reads, and whether files hold them. Reads headers only."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from mlaprof.shapes import LayerShape

FP8 = "F8_E4M3"
FP8_BLOCK = 128  # weight_scale_inv covers 128 x 128 blocks
INDEX = "model.safetensors.index.json"
MAX_HEADER_BYTES = 100_000_000  # safetensors' own limit

Size = tuple[int, ...]


@dataclass(frozen=True)
class Stored:
    """A tensor as a safetensors header has it."""

    dtype: str
    size: Size


def weight_shapes(shape: LayerShape, *, mlp: bool) -> dict[str, Size]:
    """Name below `model.layers.N.` -> size, for one rank's heads, of every tensor that a decoder layer reads."""
    heads, hidden = shape.num_heads, shape.hidden_size
    attention: dict[str, Size] = {
        "q_a_proj.weight": (shape.q_lora_rank, hidden),
        "q_a_layernorm.weight": (shape.q_lora_rank,),
        "q_b_proj.weight": (heads * shape.qk_head_dim, shape.q_lora_rank),
        "kv_a_proj_with_mqa.weight": (shape.latent_dim, hidden),
        "kv_a_layernorm.weight": (shape.kv_lora_rank,),
        "kv_b_proj.weight": (heads * (shape.qk_nope_head_dim + shape.v_head_dim), shape.kv_lora_rank),
        "o_proj.weight": (hidden, heads * shape.v_head_dim),
    }
    if shape.is_dsa:
        attention |= {
            "indexer.wq_b.weight": (shape.index_n_heads * shape.index_head_dim, shape.q_lora_rank),
            "indexer.wk.weight": (shape.index_head_dim, hidden),
            "indexer.k_norm.weight": (shape.index_head_dim,),
            "indexer.k_norm.bias": (shape.index_head_dim,),
            "indexer.weights_proj.weight": (shape.index_n_heads, hidden),
        }
    shapes = {f"self_attn.{name}": size for name, size in attention.items()}
    shapes["input_layernorm.weight"] = (hidden,)
    if mlp:
        shapes |= {
            "post_attention_layernorm.weight": (hidden,),
            "mlp.gate_proj.weight": (shape.intermediate_size, hidden),
            "mlp.up_proj.weight": (shape.intermediate_size, hidden),
            "mlp.down_proj.weight": (hidden, shape.intermediate_size),
        }
    return shapes


def checkpoint_problem(path: Path, layers: Iterable[int], shape: LayerShape, *, mlp: bool) -> tuple[str, str] | None:
    """(what is wrong, remedy) when a safetensors file, or a folder of them, does not hold these layers of a shape.

    A folder needs its model.safetensors.index.json, or a single file.
    """
    try:
        file_of, header = _files(path), cache(_header)

        def find(name: str) -> Stored | None:
            file = file_of(name)
            return None if file is None else header(file).get(name)

        for number in layers:
            for name, size in weight_shapes(shape, mlp=mlp).items():
                if problem := _problem(f"model.layers.{number}.{name}", size, find, shape.tp_size):
                    wrong, remedy = problem
                    return f"{path} {wrong}", remedy
    except OSError as error:
        shown = error.filename or path
        return f"{shown} cannot be read: {error.strerror or error}", "give a .safetensors file or its folder"
    except ValueError as error:
        return str(error), "give a complete .safetensors file or the folder of a Hugging Face checkpoint"
    return None


def _problem(name: str, size: Size, find: Callable[[str], Stored | None], tp_size: int) -> tuple[str, str] | None:
    found = find(name)
    if found is None:
        return f"has no tensor {name}", "choose another layer, fewer layers or the shape of this model"
    fits = len(found.size) == len(size) and all(
        got == want or (tp_size > 1 and got == want * tp_size) for got, want in zip(found.size, size, strict=True)
    )
    if not fits:
        wrong = f"holds {name} as {list(found.size)}, the study's shape needs {list(size)}"
        return wrong, "use shape: {hf_config: config.json} of the same checkpoint"
    if found.dtype != FP8:
        return None
    scale_name, blocks = f"{name}_scale_inv", tuple(-(-each // FP8_BLOCK) for each in found.size)
    scale = find(scale_name)
    if scale is None:
        return f"has no tensor {scale_name} beside the FP8 weight", "give a complete checkpoint"
    if scale.size != blocks:
        wrong = f"holds {scale_name} as {list(scale.size)}, blocks of {FP8_BLOCK} x {FP8_BLOCK} need {list(blocks)}"
        return wrong, "give a checkpoint quantised as DeepSeek-V3.2's own"
    return None


def _files(path: Path) -> Callable[[str], Path | None]:
    """Tensor name -> the file that should hold it, None where the index knows none. Raises ValueError if undecided."""
    if not path.is_dir():
        return lambda name: path
    index = path / INDEX
    if not index.exists():
        files = sorted(path.glob("*.safetensors"))
        if len(files) == 1:
            return lambda name: files[0]
        count = f"{len(files)} *.safetensors and no {INDEX}" if files else "no *.safetensors"
        raise ValueError(f"{path} holds {count}")
    try:
        places = {str(name): path / str(file) for name, file in json.loads(index.read_bytes())["weight_map"].items()}
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{index} is not a weight index") from error
    return places.get


def _header(file: Path) -> dict[str, Stored]:
    """A safetensors header: 8 bytes of little-endian length, then JSON. Raises ValueError on other files."""
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        available = file.stat().st_size - 8
        if not 2 <= length <= min(available, MAX_HEADER_BYTES):
            raise ValueError(f"{file} is not a safetensors file, or is cut short")
        try:
            entries = {name: each for name, each in json.loads(stream.read(length)).items() if name != "__metadata__"}
            ends = [int(each["data_offsets"][1]) for each in entries.values()]
            held = {name: Stored(str(each["dtype"]), tuple(map(int, each["shape"]))) for name, each in entries.items()}
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"{file} has no safetensors header") from error
    if max(ends, default=0) > available - length:
        raise ValueError(f"{file} is cut short: tensors lie beyond its end")
    return held
