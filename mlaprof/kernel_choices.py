"""What a launcher of ours would choose for a shape of a single kernel: the default that tuning has to beat.

Standard library only, as kernels.tiles: a tuning is planned where there is no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from mlaprof.kernel_shapes import KV_LORA_RANK, dims, forms
from mlaprof.kernels import tiles
from mlaprof.kernels.tiles import (
    hopper_absorb,
    hopper_paged_index_logits,
    hopper_sparse_decode,
    hopper_topk,
    hopper_up_project,
)
from mlaprof.study import TileChoice

Shape = Mapping[str, int]
NOPE_DIM = VALUE_DIM = 128  # of a head


def _no(shape: Shape) -> bool:
    return False


def _step(shape: Shape) -> tuple[int, int, int]:
    """What attention chooses by."""
    return shape["num_tokens"], shape["num_heads"], shape["topk"]


# A form -> whether its launcher leaves this shape to another form, where that depends on more than the tiles' legality.
_LEAVES: dict[str, Callable[[Shape], bool]] = {
    "sparse_attn@hopper": lambda s: hopper_sparse_decode.pays(*_step(s), packed=bool(s["fp8_cache"])),
    "sparse_attn@hopper_decode": lambda s: not hopper_sparse_decode.pays(*_step(s), packed=bool(s["fp8_cache"])),
    "paged_index_logits@hopper": lambda s: not hopper_paged_index_logits.fits(s["next_n"], s["index_n_heads"]),
    "topk@hopper": lambda s: s["width"] > hopper_topk.MAX_WIDTH,
    "absorb@hopper": lambda s: not hopper_absorb.pays(s["num_tokens"], s["num_heads"]),
    "up_project@hopper": lambda s: not hopper_up_project.pays(s["num_tokens"], s["num_heads"]),
}

# A form -> its module's choice; the arguments are its launcher's.
_CHOICES: dict[str, Callable[[Shape], tiles.Tiles | None]] = {
    "sparse_attn": lambda s: tiles.sparse_attn.choose(*_step(s), fp8=bool(s["fp8_cache"])),
    "sparse_attn@hopper": lambda s: tiles.hopper_sparse_attn.choose(*_step(s), packed=bool(s["fp8_cache"])),
    "sparse_attn@hopper_decode": lambda s: hopper_sparse_decode.choose(*_step(s), packed=bool(s["fp8_cache"])),
    "index_logits": lambda s: tiles.index_logits.choose(s["num_queries"], s["num_keys"], s["index_n_heads"]),
    "index_logits@hopper": lambda s: tiles.hopper_index_logits.choose(
        s["num_queries"], s["num_keys"], s["index_n_heads"]
    ),
    "paged_index_logits": lambda s: tiles.paged_index_logits.choose(s["batch"], s["max_len"] or s["kv_len"]),
    "paged_index_logits@hopper": lambda s: hopper_paged_index_logits.choose(s["batch"], s["max_len"] or s["kv_len"]),
    "topk": lambda s: tiles.topk.choose(s["num_rows"], s["width"]),
    "topk@hopper": lambda s: hopper_topk.choose(s["num_rows"], s["width"]),
    "block_gemm": lambda s: tiles.block_gemm.choose(s["m"], s["n"], s["k"]),
    "block_gemm@hopper": lambda s: tiles.hopper_block_gemm.choose(s["m"], s["n"], s["k"]),
    "absorb": lambda s: tiles.absorb.choose(s["num_tokens"], s["num_heads"], KV_LORA_RANK, NOPE_DIM),
    "absorb@hopper": lambda s: hopper_absorb.choose(KV_LORA_RANK, NOPE_DIM),
    "up_project": lambda s: tiles.up_project.choose(s["num_tokens"], s["num_heads"], VALUE_DIM, KV_LORA_RANK),
    "up_project@hopper": lambda s: hopper_up_project.choose(VALUE_DIM, KV_LORA_RANK),
}


def choices(kernel: str, shape: Shape, *, hopper: bool) -> tuple[TileChoice, ...]:
    """What each form of a kernel would choose for this complete shape, where it serves it; the launcher's own first.

    hopper   whether the GPU is one, so that Hopper forms count
    """
    own: list[TileChoice] = []
    others: list[TileChoice] = []
    for provider in ("hopper", "triton") if hopper else ("triton",):
        for form in forms(kernel, provider):
            if serves(form, shape) and (found := _chosen(form, shape)) is not None:
                (others if own or _LEAVES.get(form, _no)(shape) else own).append(found)
    return (*own, *others)


def serves(form: str, shape: Shape) -> bool:
    """Whether a form runs this shape at all; which of its tiles are legal is another matter."""
    if form == "topk@hopper":
        return shape["width"] <= hopper_topk.MAX_WIDTH
    if form == "paged_index_logits@hopper":
        return hopper_paged_index_logits.fits(shape["next_n"], shape["index_n_heads"])
    return form in tiles.KERNELS


def misfit(form: str, values: Mapping[str, int], shape: Shape) -> str | None:
    """Why a form cannot run these of its tiles at this complete shape; None where it can."""
    if not serves(form, shape):
        return f"{form} does not serve this shape"
    if form == "topk@hopper" and values.get("block", shape["width"]) < shape["width"]:
        return f"block: {values['block']} is less than a row's {shape['width']}; use as much"
    return tiles.illegal(form, values, dims(tiles.kernel_of(form), shape))


def _chosen(form: str, shape: Shape) -> TileChoice | None:
    """The form's choice, or where that is not legal its default; None where no tiles of it are."""
    default = tiles.default(form, dims(tiles.kernel_of(form), shape))
    for found in (_CHOICES[form](shape), default):
        if found is not None and misfit(form, tiles.as_values(found), shape) is None:
            return TileChoice(kernel=form, values=tiles.as_values(found))
    return None
