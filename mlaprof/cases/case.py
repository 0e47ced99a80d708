"""What a case of one kernel at one shape must offer, and what its parts share: inputs, own tiles, comparisons."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Literal, Protocol

import torch
import triton
from torch import Tensor

from mlaprof import kernel_shapes
from mlaprof.facts import Check
from mlaprof.kernels import tiles as kernel_tiles
from mlaprof.kernels.work import Work
from mlaprof.peers import Prepared, Unavailable
from mlaprof.peers.package import need, need_hopper

Precision = Literal["bf16", "fp8", "fp32", ""]  # of the products; "": none worth counting

# Provider to what its form chooses for a shape, of the module that holds the form's tiles; None where it has none.
Choices = Mapping[str, Callable[[ModuleType], kernel_tiles.Tiles | None]]

SAMPLED_ROWS = 16
SLICE_BYTES = 256 << 20  # what a chain of torch operations may take for one intermediate
FP8 = torch.float8_e4m3fn
FP8_MAX = 448.0
GROUP = 128

# bf16 results of fp32 sums differ by 0.002 to 0.004 in a row; a wrong row, head or scale gives 0.1 and more.
MAX_ROW_ERROR = 0.01
# Of one element, in units of its row's largest: rounding gives 0.004.
MAX_ELEMENT_ERROR = 0.02
# e4m3 keeps 3 bits: 0.026 of a row is rounding, and power-of-two scales change nothing about it.
MAX_CODE_ERROR = 0.05


class Case(Protocol):
    """One kernel at one shape with inputs of its own.

    precision   which measured ceiling bounds its products
    """

    @property
    def kernel(self) -> str: ...
    @property
    def work(self) -> Work: ...
    @property
    def precision(self) -> Precision: ...

    def call(self, provider: str, tiles: Mapping[str, int] | None = None) -> Prepared:
        """The call to time: host-cheap, its operands converted. tiles: fields of a form of ours, None for its choice.

        Raises Unavailable where the provider does not run this here, ValueError for tiles that are not legal.
        """
        ...

    def check(self, result: object) -> list[Check]:
        """What the call returned against the oracle, on sampled rows. Waits for the device."""
        ...


class TiledCase(Case, Protocol):
    """A case whose own forms take tiles."""

    @property
    def shape(self) -> Mapping[str, int]: ...


@contextmanager
def poisoned() -> Iterator[None]:
    """New memory is NaN inside (or the largest integer): what a kernel leaves unwritten cannot look right.

    Prepare and make a provider's first call in here. Not for timing: the fills are launches.
    """
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that an operation has no deterministic form
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def generator(seed: int, device: torch.device) -> torch.Generator:
    return torch.Generator(device).manual_seed(seed)


def normal(*shape: int, random: torch.Generator, dtype: torch.dtype = torch.bfloat16, size: float = 1.0) -> Tensor:
    """Standard normal values times size."""
    return torch.randn(shape, generator=random, device=random.device, dtype=dtype).mul_(size)


def unwritten(*shape: int, device: torch.device) -> Tensor:
    """bf16 to be written to: NaN."""
    return torch.full(shape, torch.nan, dtype=torch.bfloat16, device=device)


def quantised(x: Tensor) -> tuple[Tensor, Tensor]:
    """Codes e4m3 of x and one plain fp32 scale a row of the last dimension, which it loses."""
    rows = x.float()
    scale = rows.abs().amax(-1).clamp(min=1e-10) / FP8_MAX
    return (rows / scale[..., None]).to(FP8), scale


def random_rows(num_tokens: int, num_rows: int, k: int, random: torch.Generator) -> Tensor:
    """k different unsorted rows of num_rows for every token [num_tokens, k] int32; -1 behind the last."""
    out = torch.full((num_tokens, k), -1, dtype=torch.int32, device=random.device)
    for part in slices(num_tokens, 4 * num_rows):
        mixed = torch.rand(part.stop - part.start, num_rows, generator=random, device=random.device)
        picked = mixed.topk(min(k, num_rows), dim=1).indices
        out[part, : picked.shape[1]] = picked.int()
    return out


def slices(rows: int, row_bytes: int) -> list[slice]:
    """The rows in parts of at most SLICE_BYTES, one row at least."""
    step = max(1, SLICE_BYTES // max(row_bytes, 1))
    return [slice(lo, min(lo + step, rows)) for lo in range(0, rows, step)]


def sampled(num_rows: int) -> list[int]:
    """Up to SAMPLED_ROWS row numbers, the first and the last among them."""
    return sorted(set(torch.linspace(0, max(num_rows - 1, 0), SAMPLED_ROWS).long().tolist())) if num_rows else []


def own_tiles(
    case: TiledCase,
    provider: str,
    given: Mapping[str, int] | None,
    device: torch.device,
    choose: Choices,
) -> kernel_tiles.Tiles:
    """The tiles of a form of ours: those given completed, or the form's own choice for this shape.

    Raises Unavailable where this form does not exist, run or serve such a shape, ValueError for tiles not legal.
    """
    name = kernel_shapes.tiles_name(case.kernel, provider, given or ())
    if name is None:
        raise Unavailable(f"{case.kernel} has no {provider} form")
    need_device(provider, device)
    dims = kernel_shapes.dims(case.kernel, case.shape)
    if given is not None:
        if wrong := kernel_tiles.illegal(name, given, dims):
            raise ValueError(f"{name}: {wrong}")
        return kernel_tiles.complete(name, given, dims)
    chosen = choose[provider](kernel_tiles.KERNELS[name])
    if chosen is None:
        raise Unavailable(f"the {provider} form of {case.kernel} does not serve this shape")
    if wrong := kernel_tiles.illegal(name, kernel_tiles.as_values(chosen), dims):
        raise Unavailable(f"the {provider} form of {case.kernel} does not serve this shape: {wrong}")
    return chosen


def need_device(provider: str, device: torch.device) -> None:
    """Raise Unavailable where a form of ours does not run on this device."""
    if provider == "hopper":
        need_hopper("the hopper form", device)
    elif device.type != "cuda":
        need(triton.knobs.runtime.interpret, "Triton needs a CUDA GPU", "on a CPU only its interpreter runs kernels")


def no_tiles(kernel: str, provider: str, given: Mapping[str, int] | None, device: torch.device) -> None:
    """For a kernel whose launcher alone decides. Raises as own_tiles() does."""
    need(provider == "triton", f"{kernel} has no {provider} form")
    need_device(provider, device)
    if given is not None:
        raise ValueError(f"{kernel}: takes no tiles, got {dict(given)}")


def close(
    what: str, want: Tensor, got: Tensor, *, size: Tensor | None = None, limit: float = MAX_ROW_ERROR
) -> list[Check]:
    """Rows of the last dimension: the worst |got - want| / |want|, and the worst element in units of its row's peak.

    size  what the rows are measured by in want's place: a sum of cancelling terms errs by the size of its terms
    A NaN fails both; so does anything but zero where want is zero.
    """
    want, got = want.detach().float(), got.detach().float()
    size = want if size is None else size.detach().float()
    if want.shape != got.shape:
        raise ValueError(f"{what}: expected shape {list(want.shape)}, got {list(got.shape)}")
    if want.numel() == 0:
        return []
    missed = (got - want).abs()
    return [
        Check(name=f"{what}: worst row error", value=_worst(missed.norm(dim=-1), size.norm(dim=-1)), limit=limit),
        Check(
            name=f"{what}: worst element over its row's peak",
            value=_worst(missed.amax(-1), size.abs().amax(-1)),
            limit=max(MAX_ELEMENT_ERROR, 2 * limit),
        ),
    ]


def close_scores(oracle: Callable[[Tensor], Tensor], weights: Tensor, got: Tensor) -> list[Check]:
    """Scores where the oracle, a function of the heads' weights, has any; other places are the kernel's own."""
    want = oracle(weights)
    seen = want != -torch.inf
    return close(
        "scores",
        torch.where(seen, want, 0.0),
        torch.where(seen, got, 0.0),
        size=torch.where(seen, oracle(weights.abs()), 0.0),
    )


def equal(what: str, want: Tensor, got: Tensor) -> Check:
    """How many elements are not the same value; limit 0."""
    if want.shape != got.shape:
        raise ValueError(f"{what}: expected shape {list(want.shape)}, got {list(got.shape)}")
    return Check(name=f"{what}: differing elements", value=float((want != got).sum()), limit=0.0)


def dequantised(codes: Tensor, scale: Tensor) -> Tensor:
    """Codes [rows, k] times the scales [rows, k / 128] of their groups, fp32."""
    return codes.float() * scale.float().repeat_interleave(GROUP, dim=-1)


def tensors(result: object, count: int | None = None) -> tuple[Tensor, ...]:
    """result as tensors, so many where count is given."""
    found = result if isinstance(result, tuple) else (result,)
    if not all(isinstance(x, Tensor) for x in found) or count not in (None, len(found)):
        raise ValueError(f"result: expected {count or 'some'} tensors, got {[type(x).__name__ for x in found]}")
    return found


def _worst(error: Tensor, size: Tensor) -> float:
    """The largest error / size; 0 / 0 is none, anything / 0 infinite, and NaN stays."""
    ratio = torch.where((size == 0) & (error == 0), 0.0, error / size)
    return float(ratio.max())  # max() keeps a NaN
