"""absorb and up_project as Triton's compiler takes them, for compiling where there is no GPU."""

from __future__ import annotations

from typing import Any

from triton.compiler import ASTSource

from mlaprof.kernels.absorb import Tiles, head_product_kernel
from mlaprof.kernels.tiles import Dims
from mlaprof.kernels.tiles.absorb import AbsorbTiles
from mlaprof.kernels.tiles.hopper_absorb import HopperAbsorbTiles
from mlaprof.kernels.tiles.up_project import UpProjectTiles

HEAD_PRODUCTS = ("absorb", "up_project")


def head_product_source(tiles: Tiles, dims: Dims) -> Any:
    """The kernel of these tiles, specialised as a launch from the layer would: rows at multiples of 16 elements."""
    absorbs = isinstance(tiles, AbsorbTiles | HopperAbsorbTiles)
    n, k = (dims.kv_lora_rank, dims.qk_nope_head_dim) if absorbs else (dims.v_head_dim, dims.kv_lora_rank)
    rope = dims.qk_rope_head_dim if absorbs else 0
    if isinstance(tiles, AbsorbTiles | UpProjectTiles):
        return _portable(tiles, n, k, rope)
    from mlaprof.kernels.hopper.head_product import source

    return source(tiles, n, k, rope)


def _portable(tiles: AbsorbTiles | UpProjectTiles, n: int, k: int, rope: int) -> ASTSource:
    kernel = head_product_kernel
    constants: dict[str, int | None] = {
        "K": k,
        "N": n,
        "ROPE": rope,
        "BLOCK_M": tiles.block_m,
        "BLOCK_N": tiles.block_n,
        "BLOCK_K": tiles.block_k,
    }
    if not rope:
        constants |= {"cos_sin_ptr": None, "positions_ptr": None}
    types = {"cos_sin_ptr": "*fp32", "positions_ptr": "*i64"}
    types |= dict.fromkeys(("x_ptr", "w_ptr", "out_ptr"), "*bf16")
    signature = dict.fromkeys(kernel.arg_names, "i32") | types | dict.fromkeys(constants, "constexpr")
    place = {name: (i,) for i, name in enumerate(kernel.arg_names)}
    aligned = [name for name, kind in signature.items() if kind.startswith("*") or "stride" in name]
    return ASTSource(
        fn=kernel,
        signature=signature,
        constexprs={place[name]: value for name, value in constants.items()},
        attrs={place[name]: [["tt.divisibility", 16]] for name in aligned},
    )
