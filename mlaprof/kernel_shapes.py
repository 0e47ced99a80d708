"""The single kernels that can be swept: their shape axes, who provides them, and which shapes are legal.

Standard library only: a study is checked and planned where there is no torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from mlaprof.kernels.tiles import KERNELS as TILED
from mlaprof.kernels.tiles import Dims, field_names
from mlaprof.shapes import INDEX_HEAD_DIM, TOKENS_PER_BLOCK

PROVIDERS = ("triton", "hopper", "torch", "deep_gemm", "flash_mla", "flashinfer", "sglang", "vllm")
OWN = ("triton", "hopper")  # the forms of this project, which take tiles; all other providers choose their own
GROUP = 128  # values of a quantisation group, along the summed dimension
MAX_TOPK = 4096
KV_LORA_RANK, ROPE_DIM = 512, 64


@dataclass(frozen=True)
class Axis:
    """One number of a shape."""

    name: str
    meaning: str
    default: int | None = None  # None: the user must give it
    least: int = 1
    most: int | None = None
    multiple_of: int = 1


@dataclass(frozen=True)
class KernelShape:
    """What a kernel's shape is made of, and whose implementations of it can be asked for."""

    axes: tuple[Axis, ...]
    providers: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(axis.name for axis in self.axes)


def _axis(name: str, meaning: str, default: int | None = None, **bounds: int) -> Axis:
    return Axis(name, meaning, default, **bounds)


_TOKENS = _axis("num_tokens", "tokens of the step")
_HEADS = _axis("num_heads", "query heads of one rank", 128)
_INDEX_HEADS = _axis("index_n_heads", "heads of the indexer", 64, most=128)
_M = _axis("m", "rows of activations")
_GROUPED_K = _axis("k", "columns of activations: the summed dimension", multiple_of=GROUP)

KERNELS: dict[str, KernelShape] = {
    "index_logits": KernelShape(
        (
            _axis("num_queries", "query tokens"),
            _axis("num_keys", "keys of the one request"),
            _axis("causal", "1: query i sees all keys but those of later queries; 0: every key", 0, least=0, most=1),
            _INDEX_HEADS,
        ),
        ("triton", "hopper", "torch", "deep_gemm", "vllm"),
    ),
    "paged_index_logits": KernelShape(
        (
            _axis("batch", "requests"),
            _axis("kv_len", "cached tokens of each request, the new ones included"),
            _axis("next_n", "new tokens of each request", 1, most=2),
            _INDEX_HEADS,
            _axis("max_len", "columns of the result; 0: kv_len of them", 0, least=0),
        ),
        ("triton", "hopper", "torch", "deep_gemm", "vllm"),
    ),
    "topk": KernelShape(
        (
            _axis("num_rows", "rows of scores"),
            _axis("width", "scores of a row, all of which count"),
            _axis("k", "how many to select", 2048, most=MAX_TOPK),
        ),
        ("triton", "hopper", "torch", "flashinfer", "sglang", "vllm"),
    ),
    "sparse_attn": KernelShape(
        (
            _TOKENS,
            _axis("num_rows", "rows of the latent cache, all requests together"),
            _axis("num_heads", "query heads of one rank"),
            _axis("topk", "rows that each token selects", 2048),
            _axis("fp8_cache", "1: rows of 656 bytes, most of them e4m3; 0: bf16", 0, least=0, most=1),
            _axis("next_n", "tokens of a request where a provider's decode kernel asks for requests", 1),
            _axis("num_requests", "requests: each owns an equal share of tokens and rows, and selects in its own", 1),
        ),
        ("triton", "hopper", "torch", "flash_mla", "sglang", "vllm"),
    ),
    "block_gemm": KernelShape(
        (_M, _axis("n", "columns of the result", multiple_of=16), _GROUPED_K),
        ("triton", "hopper", "torch", "deep_gemm", "sglang", "vllm"),
    ),
    "group_quant": KernelShape((_M, _GROUPED_K), ("triton", "torch", "sglang", "vllm")),
    "rmsnorm": KernelShape(
        (_M, _axis("k", "columns of a row", 7168)), ("triton", "torch", "flashinfer", "sglang", "vllm")
    ),
    "rmsnorm_quant": KernelShape(
        (_M, _axis("k", "columns of a row", 7168, multiple_of=GROUP)), ("triton", "torch", "vllm")
    ),
    "norm_rope": KernelShape((_TOKENS,), ("triton", "torch")),
    "index_query": KernelShape((_TOKENS, _INDEX_HEADS), ("triton", "torch")),
    "query_rope": KernelShape((_TOKENS, _HEADS), ("triton", "torch")),
    "cache_write": KernelShape((_TOKENS,), ("triton", "torch")),
    "gather_index_cache": KernelShape((_TOKENS,), ("triton", "torch", "vllm")),
    "convert_indices": KernelShape((_TOKENS, _axis("topk", "positions of each token", 2048)), ("triton", "torch")),
    "absorb": KernelShape((_TOKENS, _HEADS), ("triton", "hopper", "torch")),
    "up_project": KernelShape((_TOKENS, _HEADS), ("triton", "hopper", "torch")),
    # The ceilings of the run.
    "copy": KernelShape((_axis("bytes", "bytes read, and as many written", 1 << 30, multiple_of=16),), ("torch",)),
    "matmul_bf16": KernelShape((_axis("n", "rows and columns of each matrix", 8192, multiple_of=16),), ("torch",)),
    "matmul_fp8": KernelShape((_axis("n", "rows and columns of each matrix", 8192, multiple_of=16),), ("torch",)),
}
CEILINGS = ("copy", "matmul_bf16", "matmul_fp8")


def complete(kernel: str, given: Mapping[str, int]) -> dict[str, int]:
    """The shape with the defaults of the axes left out, in axis order. Legality is illegal()'s to judge.

    Raises ValueError naming an unknown kernel, unknown axes, or those that have no default.
    """
    known = _shape_of(kernel)
    if unknown := [name for name in given if name not in known.names]:
        raise ValueError(f"{kernel}: expected axes among {', '.join(known.names)}, got {', '.join(unknown)}")
    if missing := [axis.name for axis in known.axes if axis.default is None and axis.name not in given]:
        raise ValueError(f"{kernel}: {', '.join(missing)} must be given")
    return {axis.name: given.get(axis.name, axis.default or 0) for axis in known.axes}


def illegal(kernel: str, given: Mapping[str, int]) -> str | None:
    """Why this shape (completed by the defaults) is none of this kernel, with a remedy; None when it is.

    Raises ValueError as complete() does.
    """
    shape = complete(kernel, given)
    for axis in _shape_of(kernel).axes:
        if wrong := _bad_value(axis, shape[axis.name]):
            return wrong
    return _disagreement(kernel, shape)


def dims(kernel: str, shape: Mapping[str, int]) -> Dims:
    """The layer dimensions by which tiles are judged for this shape; an axis that a kernel lacks is V3.2's."""
    return Dims(
        num_heads=shape.get("num_heads", 128),
        kv_lora_rank=KV_LORA_RANK,
        qk_rope_head_dim=ROPE_DIM,
        index_n_heads=shape.get("index_n_heads", 64),
        index_head_dim=INDEX_HEAD_DIM,
        index_topk=shape.get("k" if kernel == "topk" else "topk", 2048),
    )


def forms(kernel: str, provider: str) -> tuple[str, ...]:
    """The names under which kernels.tiles holds the tiles of what this provider has of this kernel; none: no tiles.

    `hopper` has two forms of sparse_attn, `sparse_attn@hopper` and `sparse_attn@hopper_decode`; no field is in both.
    """
    if provider not in OWN:
        return ()
    if provider == "triton":
        return (kernel,) if kernel in TILED else ()
    name = f"{kernel}@{provider}"
    return tuple(form for form in TILED if form == name or form.startswith(f"{name}_"))


def tiles_name(kernel: str, provider: str, fields: Iterable[str] = ()) -> str | None:
    """Of forms() the one that has all these fields, else the first; None where the provider takes no tiles."""
    known = forms(kernel, provider)
    return next((form for form in known if set(fields) <= set(field_names(form))), known[0] if known else None)


def _shape_of(kernel: str) -> KernelShape:
    if kernel not in KERNELS:
        raise ValueError(f"kernel: expected one of {', '.join(KERNELS)}, got {kernel!r}")
    return KERNELS[kernel]


def _bad_value(axis: Axis, value: int) -> str | None:
    if isinstance(value, bool) or not isinstance(value, int):
        return f"{axis.name}: {value!r} is not a whole number; it is {axis.meaning}"
    if value < axis.least or (axis.most is not None and value > axis.most):
        upper = "" if axis.most is None else f" and at most {axis.most}"
        return f"{axis.name}: {value} is out of range; use at least {axis.least}{upper}"
    if value % axis.multiple_of:
        return f"{axis.name}: {value} is not a multiple of {axis.multiple_of}; use one"
    return None


def _disagreement(kernel: str, shape: Mapping[str, int]) -> str | None:
    """What two axes say against each other."""
    if kernel == "index_logits" and shape["causal"] and shape["num_keys"] < shape["num_queries"]:
        return f"num_keys: {shape['num_keys']} are fewer than the {shape['num_queries']} causal queries; use as many"
    if kernel == "paged_index_logits":
        if shape["kv_len"] < shape["next_n"]:
            return f"kv_len: {shape['kv_len']} is below next_n {shape['next_n']}, which it includes; use more"
        if 0 < shape["max_len"] < shape["kv_len"]:
            return f"max_len: {shape['max_len']} is below kv_len {shape['kv_len']}; use as much, or 0"
    if kernel == "sparse_attn":
        requests = shape["num_requests"]
        for name in ("num_tokens", "num_rows"):
            if shape[name] % requests:
                return f"num_requests: {requests} do not share {shape[name]} {name} evenly; use a divisor of both"
        if shape["num_tokens"] % shape["next_n"]:
            return f"next_n: {shape['next_n']} does not divide {shape['num_tokens']} num_tokens; use a divisor"
        if shape["fp8_cache"] and shape["num_rows"] % TOKENS_PER_BLOCK:
            return f"num_rows: {shape['num_rows']} do not fill pages of {TOKENS_PER_BLOCK}; use whole pages"
    return None
