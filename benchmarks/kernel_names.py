"""The families of results/reference/kernels-h100.json, and what its shapes and the recorded peers' are called."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mlaprof.analysis.arms import Arm
from mlaprof.analysis.kernels import KernelCell
from mlaprof.kernel_shapes import OWN
from mlaprof.records import KernelMeasurement

FAMILIES = {  # name -> kernels
    "index_logits": ("index_logits",),
    "paged_index_logits": ("paged_index_logits",),
    "topk": ("topk",),
    "sparse_attn_prefill": ("sparse_attn",),
    "sparse_attn_decode": ("sparse_attn",),
    "sparse_attn_packed": ("sparse_attn",),
    "block_gemm": ("block_gemm",),
    "group_quant": ("group_quant",),
    "fused": (
        "norm_rope", "index_query", "query_rope", "cache_write", "gather_index_cache", "rmsnorm", "rmsnorm_quant",
        "convert_indices",
    ),
    "head_products": ("absorb", "up_project"),
}  # fmt: skip
TOGETHER = {  # launches of ours that one launch of the recorded peer does -> its name
    ("norm_rope", "cache_write"): "fused_norm_rope",
    ("index_query", "query_rope"): "fused_q",
}
PROJECTIONS = {(2112, 7168): "qkv_a", (24576, 1536): "q_b", (7168, 16384): "o", (8192, 1536): "wq_b_idx"}
ONE_CALL = ("topk", "block_gemm", "up_project")  # what torch serves by one call of a library, not by a chain
AGAIN = {  # recorded peer, up to the first _ -> the provider of this run that runs the same kernels, by family
    "index_logits": {"deepgemm": "deep_gemm"},
    "paged_index_logits": {"deepgemm": "deep_gemm"},
    "sparse_attn_prefill": {"flashmla": "flash_mla"},
    "sparse_attn_packed": {"flashmla": "flash_mla"},
    "block_gemm": {"deepgemm": "deep_gemm", "cublaslt": "torch"},
    "up_project": {"torch": "torch"},
}
TENSORWISE = "tensorwise"  # one scale a tensor: another product than block_gemm's
LEAST_OF_PREFILL = 1024  # tokens of one request
SET_ASIDE = {
    f"fused_norm_rope m{tokens}": "its samples are of submitting, not of the kernel: fewer tokens take longer"
    for tokens in (1, 64, 1024)
}


@dataclass(frozen=True)
class Shape:
    """All that was measured of one kernel at one shape."""

    kernel: str
    axes: Mapping[str, int]
    leads: Mapping[str, KernelMeasurement]  # by provider, of those that were timed
    arms: Mapping[str, Arm]
    cells: Mapping[str, KernelCell]

    def fastest(self, own: bool) -> str | None:
        """The provider of the least median; None where none of this side was timed."""
        side = [name for name in self.arms if (name in OWN) == own]
        return min(side, key=lambda name: self.arms[name].device_s.median, default=None)


def name_of(row: Mapping[str, Any]) -> str:
    """The shape, and the kernel where the family has several."""
    return row["shape"] if len(FAMILIES[row["family"]]) == 1 else f"{row['kernel']} {row['shape']}"


def family_name(shape: Shape) -> str:
    if shape.kernel == "sparse_attn":
        return "sparse_attn_packed" if is_packed(shape) else f"sparse_attn_{phase(shape)}"
    return next(name for name, kernels in FAMILIES.items() if shape.kernel in kernels)


def is_packed(shape: Shape) -> bool:
    return bool(shape.axes.get("fp8_cache"))


def phase(shape: Shape) -> str:
    many = shape.axes["num_requests"] == 1 and shape.axes["num_tokens"] >= LEAST_OF_PREFILL
    return "prefill" if many else "decode"


def label(shape: Shape) -> str:
    """The shape as the recorded rows name it, without what is the same in all rows of a kernel."""
    of = shape.axes
    match shape.kernel:
        case "index_logits":
            return f"q{of['num_queries']} kv{of['num_keys']} {'causal' if of['causal'] else 'full'}"
        case "paged_index_logits":
            return f"b{of['batch']} kv{of['kv_len']}" + (f" sq{of['next_n']}" if of["next_n"] > 1 else "")
        case "topk":
            return f"r{of['num_rows']} c{of['width']}"
        case "sparse_attn" if phase(shape) == "prefill":
            return f"q{of['num_tokens']} kv{of['num_rows']} h{of['num_heads']}"
        case "sparse_attn":
            batch, new = of["num_requests"], f" sq{of['next_n']}" if of["next_n"] > 1 else ""
            return f"b{batch}{new} kv{of['num_rows'] // batch} h{of['num_heads']}"
        case "block_gemm":
            return f"{PROJECTIONS[of['n'], of['k']]} m{of['m']}"
        case "gather_index_cache":
            return f"n{of['num_tokens']}"
        case "group_quant" | "rmsnorm" | "rmsnorm_quant":
            return f"m{of['m']} k{of['k']}"
    return f"m{of['num_tokens']}"


def peer_name(shape: Shape) -> str:
    """Kernel and shape of the recorded row; no row has the name where no peer was recorded."""
    of = shape.axes
    kernel = {
        "index_logits": "mqa_logits",
        "paged_index_logits": "paged_logits",
        "block_gemm": "gemm",
        "gather_index_cache": "gather_indexer_k",
        "absorb": "bmm uk",
        "up_project": "bmm uv",
    }.get(shape.kernel, shape.kernel)
    if kernel == "sparse_attn":
        kernel = f"sparse_{phase(shape)}"
    return f"{kernel} {label(shape)}" + (f" n{of['n']} k{of['k']}" if kernel == "gemm" else "")
