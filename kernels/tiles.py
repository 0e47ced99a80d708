"""Tile configurations as values: a frozen dataclass a kernel, one legality predicate, the space. Standard library."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import astuple, dataclass, fields
from itertools import product

SHARED_LIMIT_BYTES = 232_448  # what one program may use on Hopper
MAX_ACCUMULATOR = (
    512  # fp32 values a thread: spills from about 255 on, but only beyond 512 does ptxas take 10 s and more
)
MIN_DOT = 16  # smallest side of a tile product
MAX_STAGES = 6


@dataclass(frozen=True)
class Dims:
    """The layer dimensions that decide which tiles are legal."""

    num_heads: int
    kv_lora_rank: int
    qk_rope_head_dim: int
    index_n_heads: int
    index_head_dim: int
    index_topk: int


@dataclass(frozen=True)
class SparseAttnTiles:
    """One program: block_h heads of one token, over its selected rows block_n at a time."""

    block_h: int
    block_n: int
    num_warps: int
    num_stages: int


@dataclass(frozen=True)
class IndexLogitsTiles:
    """One program: block_q queries with all their heads, over a span of keys block_n at a time."""

    block_q: int
    block_n: int
    num_warps: int
    num_stages: int


@dataclass(frozen=True)
class PagedIndexLogitsTiles:
    """One program: all new queries of one request, over a span of its positions block_n at a time."""

    block_n: int
    num_warps: int
    num_stages: int


Tiles = SparseAttnTiles | IndexLogitsTiles | PagedIndexLogitsTiles

KERNELS: dict[str, type[Tiles]] = {
    "sparse_attn": SparseAttnTiles,
    "index_logits": IndexLogitsTiles,
    "paged_index_logits": PagedIndexLogitsTiles,
}


def padded_heads(num_heads: int) -> int:
    """num_heads rounded up to a power of two of at least 16, the smallest side of a tile product."""
    return max(MIN_DOT, 1 << (num_heads - 1).bit_length())


def tiles_type(kernel: str) -> type[Tiles]:
    """The tile dataclass of a kernel; ValueError naming the known ones for any other name."""
    if kernel not in KERNELS:
        raise ValueError(f"kernel: expected one of {', '.join(KERNELS)}, got {kernel!r}")
    return KERNELS[kernel]


def default(kernel: str, dims: Dims) -> Tiles:
    """The tiles used where none are named: they fit every multiprocessor of Hopper and spill no register."""
    tiles_type(kernel)
    if kernel == "sparse_attn":
        if dims.num_heads > 32:
            return SparseAttnTiles(block_h=64, block_n=32, num_warps=8, num_stages=2)
        block_h = padded_heads(dims.num_heads)
        return SparseAttnTiles(block_h=block_h, block_n=32, num_warps=block_h // 4, num_stages=2)
    if kernel == "index_logits":
        block_q = max(1, 64 // padded_heads(dims.index_n_heads))
        return IndexLogitsTiles(block_q=block_q, block_n=128, num_warps=4, num_stages=3)
    return PagedIndexLogitsTiles(block_n=64, num_warps=4, num_stages=3)


def complete(kernel: str, values: Mapping[str, int], dims: Dims) -> Tiles:
    """Tiles from the fields given, the default's for the others. Legality is illegal()'s to judge.

    Raises ValueError naming an unknown kernel, or unknown fields and the known ones.
    """
    known = field_names(kernel)
    unknown = [name for name in values if name not in known]
    if unknown:
        raise ValueError(f"{kernel}: expected fields among {', '.join(known)}, got {', '.join(unknown)}")
    chosen = default(kernel, dims)
    return unpack(kernel, [values.get(name, getattr(chosen, name)) for name in known])


def illegal(
    kernel: str, values: Mapping[str, int], dims: Dims, *, shared_limit_bytes: int = SHARED_LIMIT_BYTES
) -> str | None:
    """Why these tiles (completed by the default's) cannot run, with a remedy; None when they can.

    Raises ValueError as complete() does.
    """
    tiles = complete(kernel, values, dims)
    return _bad_value(tiles) or _bad_shape(tiles, dims) or _too_large(tiles, dims, shared_limit_bytes)


def space(kernel: str, dims: Dims) -> Iterator[Tiles]:
    """Every legal tile configuration once, in field order."""
    choices = [_CHOICES[name] for name in field_names(kernel)]
    for values in product(*choices):
        tiles = unpack(kernel, list(values))
        if illegal(kernel, as_values(tiles), dims) is None:
            yield tiles


def shared_bytes(tiles: Tiles, dims: Dims) -> int:
    """Shared memory of one program as Triton 3.6 and 3.7 lay it out for sm_90; an upper bound, close once pipelined.

    A warp-group product reads both operands from shared memory and keeps one more block in flight; the older product
    passes its operands through registers. Paged logits are judged for one new token a request.
    """
    stages, warps = tiles.num_stages, tiles.num_warps
    if isinstance(tiles, SparseAttnTiles):
        row = 2 * (dims.kv_lora_rank + dims.qk_rope_head_dim)
        queries, block = tiles.block_h * row, tiles.block_n * row
        if _on_wgmma(tiles.block_h, warps):
            return queries + stages * block
        if stages == 1:
            # Not pipelined: the rows are laid out anew for either product, some warps sharing a copy.
            latent = 2 * tiles.block_n * dims.kv_lora_rank
            return queries + latent + min(latent, 16 * warps * dims.kv_lora_rank)
        return queries + (stages - 1) * block + 2 * tiles.block_h * tiles.block_n
    block_q = tiles.block_q if isinstance(tiles, IndexLogitsTiles) else 1
    queries = block_q * padded_heads(dims.index_n_heads) * dims.index_head_dim
    block = tiles.block_n * dims.index_head_dim
    sums = 4 * tiles.block_n * block_q if stages > 1 else 0  # scores on their way to the result
    if _on_wgmma(tiles.block_n, warps):
        return queries + stages * block + 2 * sums
    return 2 * queries + max(1, stages - 1) * block + max(2, warps) * sums


def pack(tiles: Tiles) -> list[int]:
    """The fields as plain numbers, so that tiles can travel as an operator's int list."""
    return list(astuple(tiles))


def unpack(kernel: str, numbers: list[int]) -> Tiles:
    """The tiles that pack() made numbers of. Raises ValueError for an unknown kernel or a wrong count."""
    known = field_names(kernel)
    if len(numbers) != len(known):
        raise ValueError(f"{kernel}: expected {len(known)} numbers ({', '.join(known)}), got {len(numbers)}")
    return tiles_type(kernel)(*numbers)


def field_names(kernel: str) -> tuple[str, ...]:
    """The fields of a kernel's tiles, in order."""
    return tuple(field.name for field in fields(tiles_type(kernel)))


def as_values(tiles: Tiles) -> dict[str, int]:
    """Field name to value, in field order."""
    return {field.name: getattr(tiles, field.name) for field in fields(tiles)}


def label(kernel: str, values: Mapping[str, int]) -> str:
    """Short name of the fields given, in field order, e.g. `h16.n64.w4.s3`. Raises ValueError for an unknown kernel."""
    known = field_names(kernel)
    return ".".join(f"{_LETTERS[name]}{values[name]}" for name in known if name in values)


_LETTERS = {"block_h": "h", "block_q": "q", "block_n": "n", "num_warps": "w", "num_stages": "s"}
_CHOICES: dict[str, tuple[int, ...]] = {
    "block_h": (16, 32, 64, 128),
    "block_q": (1, 2, 4, 8),
    "block_n": (16, 32, 64, 128, 256),
    "num_warps": (1, 2, 4, 8),
    "num_stages": tuple(range(1, MAX_STAGES + 1)),
}


def _bad_value(tiles: Tiles) -> str | None:
    for name, value in as_values(tiles).items():
        if isinstance(value, bool) or not isinstance(value, int):
            return f"{name}: {value!r} is not a whole number; use one of {_listed(name)}"
        if value not in _CHOICES[name]:
            kind = "between 1 and 6" if name == "num_stages" else "a power of two that Triton can tile with"
            return f"{name}: {value} is not {kind}; use one of {_listed(name)}"
    return None


def _listed(name: str) -> str:
    return ", ".join(map(str, _CHOICES[name]))


def _bad_shape(tiles: Tiles, dims: Dims) -> str | None:
    if not isinstance(tiles, SparseAttnTiles):
        return None
    for name in ("kv_lora_rank", "qk_rope_head_dim"):
        value = getattr(dims, name)
        if value < MIN_DOT or value & (value - 1):
            return f"{name}: {value} is not a power of two of at least {MIN_DOT}; DeepSeek and GLM use 512 and 64"
    needed = padded_heads(dims.num_heads)
    if tiles.block_h > needed:
        return f"block_h: {tiles.block_h} rows for {dims.num_heads} heads would idle; use at most {needed}"
    return None


def _too_large(tiles: Tiles, dims: Dims, shared_limit_bytes: int) -> str | None:
    values = _accumulator(tiles, dims) // (32 * tiles.num_warps)
    if values > MAX_ACCUMULATOR:
        return (
            f"the accumulator takes {values} registers a thread and a thread has 255; use a smaller block or more warps"
        )
    needed = shared_bytes(tiles, dims)
    if needed > shared_limit_bytes:
        return f"{needed:,} bytes of shared memory, above {shared_limit_bytes:,}; use a smaller block_n or fewer stages"
    return None


def _accumulator(tiles: Tiles, dims: Dims) -> int:
    """fp32 values that a program's largest product keeps in registers."""
    if isinstance(tiles, SparseAttnTiles):
        return tiles.block_h * dims.kv_lora_rank
    queries = tiles.block_q if isinstance(tiles, IndexLogitsTiles) else 1
    return tiles.block_n * queries * padded_heads(dims.index_n_heads)


def _on_wgmma(rows: int, num_warps: int) -> bool:
    """Whether Hopper's warp-group product is used: 64 rows and four warps at least."""
    return rows >= 64 and num_warps >= 4
