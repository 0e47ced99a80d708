"""The registered operators. Importing this module registers them; the dispatcher is the only backend switch.

`torch.library` define/impl, not the custom_op decorator: 4 us against 21 us of host time a call (H100 machine,
torch 2.11, 2026-11-23), a tax that would drown small cells.

mla_dsa_proj           Op 1: token-wise, capturable; eight tensors
mla_dsa_attn_inplace   Op 2: reads batch structure and caches; writes only the caller's output
mla_custom_op_inplace  the monolith: both bodies behind one op; for plain MLA, the only form
all_reduce             the sum over tensor parallel ranks, in place: behind o_proj, outside of both ops, capturable
index_logits ...       single kernels: CPU runs the oracle, CUDA the launcher (kernel_ops.py)

The schema of Op 2 names every tensor it mutates. Unlike upstream's fused RoPE, it leaves q alone: running it twice on
the same Op 1 outputs gives the same result.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mlaprof.layer import kernel_ops
from mlaprof.layer.context import current

NAMESPACE = "mlaprof"
PROJ = f"{NAMESPACE}::mla_dsa_proj"
ATTN = f"{NAMESPACE}::mla_dsa_attn_inplace"
MONOLITH = f"{NAMESPACE}::mla_custom_op_inplace"

library = torch.library.Library(NAMESPACE, "DEF")


def _mla_dsa_proj(hidden_states: Tensor, position_ids: Tensor, layer_idx: str) -> list[Tensor]:
    context = current()
    return context.layer(layer_idx).dsa_proj(hidden_states, position_ids, context)


def _mla_dsa_proj_fake(hidden_states: Tensor, position_ids: Tensor, layer_idx: str) -> list[Tensor]:
    # Always eight, whatever the eager run may return: a graph needs one arity.
    return current().layer(layer_idx).dsa_proj_like(hidden_states)


def _mla_dsa_attn_inplace(
    q: Tensor,
    compressed_kv: Tensor,
    k_pe: Tensor,
    latent_cache: Tensor,
    indexer_intermediates: list[Tensor],
    position_ids: Tensor,
    layer_idx: str,
    output: Tensor,
) -> None:
    context = current()
    context.layer(layer_idx).dsa_attn(
        q, compressed_kv, k_pe, latent_cache, indexer_intermediates, position_ids, context, output
    )


def _mla_custom_op_inplace(hidden_states: Tensor, position_ids: Tensor, layer_idx: str, output: Tensor) -> None:
    context = current()
    context.layer(layer_idx).forward_impl(hidden_states, position_ids, context, output)


def _all_reduce(partial: Tensor) -> None:
    reduce = current().reduce
    if reduce is None:
        raise RuntimeError("all_reduce: expected a context with a group of ranks, got one without")
    reduce(partial)


def _nothing(*_: object) -> None:
    """The fake of an op that returns nothing and mutates only what its schema says."""


def _register() -> None:
    library.define("mla_dsa_proj(Tensor hidden_states, Tensor position_ids, str layer_idx) -> Tensor[]")
    library.define(
        "mla_dsa_attn_inplace(Tensor q, Tensor compressed_kv, Tensor k_pe, Tensor latent_cache, "
        "Tensor[] indexer_intermediates, Tensor position_ids, str layer_idx, Tensor(a!) output) -> ()"
    )
    library.define(
        "mla_custom_op_inplace(Tensor hidden_states, Tensor position_ids, str layer_idx, Tensor(a!) output) -> ()"
    )
    library.define("all_reduce(Tensor(a!) partial) -> ()")
    for key in ("CPU", "CUDA"):
        library.impl("all_reduce", _all_reduce, key)
        library.impl("mla_dsa_proj", _mla_dsa_proj, key)
        library.impl("mla_dsa_attn_inplace", _mla_dsa_attn_inplace, key)
        library.impl("mla_custom_op_inplace", _mla_custom_op_inplace, key)
    torch.library.register_fake(PROJ, _mla_dsa_proj_fake, lib=library)
    torch.library.register_fake(ATTN, _nothing, lib=library)
    torch.library.register_fake(MONOLITH, _nothing, lib=library)
    torch.library.register_fake(f"{NAMESPACE}::all_reduce", _nothing, lib=library)

    kernel_ops.register(library)


_register()
OPS = torch.ops.mlaprof
