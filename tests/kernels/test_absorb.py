"""The two products of every head: against fp32, at sizes that fill no tile, in strided operands."""

from __future__ import annotations

import logging
import random
from typing import Any

import pytest
import torch
from torch import Tensor

from mlaprof.kernels import reference_fused as oracle
from mlaprof.kernels.cubin import read_cubin
from mlaprof.kernels.offline import compile_kernel
from mlaprof.kernels.reference import TOLERANCE, mismatch
from mlaprof.kernels.tiles import SHARED_LIMIT_BYTES, default, hopper_absorb, shared_bytes
from mlaprof.kernels.tiles.absorb import AbsorbTiles
from mlaprof.kernels.tiles.up_project import UpProjectTiles
from mlaprof.shapes import PRESETS
from mlaprof.study import kernel_dims

BF16 = torch.bfloat16


@pytest.fixture
def generator() -> torch.Generator:
    seed = random.randrange(2**31)
    logging.getLogger(__name__).warning("seed %d", seed)
    return torch.Generator().manual_seed(seed)


def draw(generator: torch.Generator, *size: int) -> Tensor:
    return torch.randn(*size, generator=generator).to(BF16)


def absorb_args(generator: torch.Generator, num_tokens: int, heads: int, nope: int, latent: int) -> tuple[Any, ...]:
    """Queries and results inside wider rows; some positions lie outside the table."""
    angle = torch.rand(20, 32, generator=generator) * 6.28
    table = torch.stack((angle.cos(), angle.sin()), dim=1)
    positions = torch.randint(-5, 25, (num_tokens,), generator=generator)
    q = draw(generator, num_tokens, heads, nope + 80)[..., : nope + 64]
    out = torch.full((num_tokens, heads + 1, latent + 64), torch.nan, dtype=BF16)[:, :heads]
    return q, draw(generator, heads, latent, nope), table, positions, out


def assert_close(want: Tensor, got: Tensor) -> None:
    wrong = mismatch(want, got, TOLERANCE[BF16])
    assert wrong is None, wrong


@pytest.mark.parametrize(
    ("num_tokens", "heads", "nope", "latent", "tiles"),
    [
        (1, 3, 128, 128, None),
        (17, 2, 192, 64, None),
        (5, 2, 64, 64, AbsorbTiles(16, 32, 64, 4, 2)),
        (70, 1, 64, 128, AbsorbTiles(64, 64, 32, 4, 2)),
    ],
)
def test_absorb(launch, generator, num_tokens, heads, nope, latent, tiles):
    """The product as in fp32, the rotary part to the bit, and nothing beside them."""
    *args, got = absorb_args(generator, num_tokens, heads, nope, latent)
    want = got.clone()
    launch("absorb.absorb", *args, got, tiles)
    oracle.absorb(*args, want)
    assert_close(want, got)
    assert torch.equal(want[..., latent:], got[..., latent:])
    assert bool(got._base[:, heads:].isnan().all())


@pytest.mark.parametrize(
    ("num_tokens", "heads", "latent", "v_dim", "tiles"),
    [(1, 3, 128, 128, None), (33, 2, 64, 32, None), (9, 2, 96, 64, UpProjectTiles(16, 32, 32, 4, 3))],
)
def test_up_project(launch, generator, num_tokens, heads, latent, v_dim, tiles):
    """Into a slice of wider rows."""
    x, w = draw(generator, num_tokens, heads, latent + 8)[..., :latent], draw(generator, heads, v_dim, latent)
    got = torch.full((num_tokens, heads, v_dim + 8), torch.nan, dtype=BF16)
    want = got.clone()
    launch("absorb.up_project", x, w, got[..., :v_dim], tiles)
    oracle.up_project(x, w, want[..., :v_dim])
    assert_close(want[..., :v_dim], got[..., :v_dim])
    assert bool(got[..., v_dim:].isnan().all())


def test_no_tokens_is_no_work(launch, generator):
    """0 tokens launch nothing."""
    launch("absorb.absorb", *absorb_args(generator, 0, 2, 64, 64))
    launch("absorb.up_project", draw(generator, 0, 2, 64), draw(generator, 2, 64, 64), draw(generator, 0, 2, 64))


def test_wrong_operands_are_named(launch, generator):
    """The complaint names the tensor, what was expected and what came."""
    q, *rest = absorb_args(generator, 2, 2, 64, 64)
    with pytest.raises(ValueError, match=r"q: expected shape \[num_tokens, 2, 128\], got \[2, 2, 127\]"):
        launch("absorb.absorb", q[..., 1:], *rest)
    with pytest.raises(ValueError, match="tiles: block_n: 128 does not divide the 64 columns"):
        launch("absorb.absorb", q, *rest, AbsorbTiles(16, 128, 64, 4, 3))
    x, w = draw(generator, 2, 2, 64), draw(generator, 2, 32, 64)
    with pytest.raises(ValueError, match=r"out: expected shape \[2, 2, 32\], got \[2, 2, 33\]"):
        launch("absorb.up_project", x, w, draw(generator, 2, 2, 33))


@pytest.mark.parametrize(
    ("kernel", "preset"), [("absorb@hopper", "v3.2"), ("absorb@hopper", "glm-5"), ("up_project@hopper", "glm-5")]
)
def test_hopper_form_compiles(kernel, preset):
    """It multiplies by warp groups, keeps everything in registers, and takes the shared memory that its tiles say."""
    dims = kernel_dims(PRESETS[preset])
    tiles = default(kernel, dims)
    compiled = compile_kernel(kernel, tiles, dims)
    assert "wgmma.mma_async.sync.aligned.m64n128k16" in compiled.asm["ptx"]
    assert read_cubin(compiled.asm["cubin"]).stack_bytes == 0
    assert compiled.metadata.shared <= shared_bytes(tiles, dims) <= SHARED_LIMIT_BYTES


def test_hopper_tiles_hold_what_is_read_again():
    """Every choice is legal; a matrix too wide for one program is cut, one that no chunk divides is left alone."""
    for n, k in ((512, 128), (512, 192), (128, 512), (256, 512)):
        tiles = hopper_absorb.choose(n, k)
        assert tiles is not None
        assert hopper_absorb.misfit(tiles.block_n, tiles.block_k, tiles.num_stages, n, k) is None
        assert hopper_absorb.needed(tiles.block_n, tiles.block_k, tiles.num_stages, k) <= SHARED_LIMIT_BYTES
    assert hopper_absorb.choose(96, 128) is None and hopper_absorb.choose(128, 96) is None
    assert "use 3" in (hopper_absorb.misfit(256, 64, 2, 512, 192) or "")
    assert "does not divide the 512 columns of the result" in (hopper_absorb.misfit(384, 64, 2, 512, 192) or "")
    assert "does not divide the 192 columns summed" in (hopper_absorb.misfit(256, 128, 2, 512, 192) or "")


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("num_tokens", "heads", "nope", "v_dim"),
    [(1, 128, 128, 128), (333, 128, 128, 128), (4096, 16, 128, 128), (77, 64, 192, 256)],
)
def test_full_size_on_the_gpu(num_tokens, heads, nope, v_dim):
    """DeepSeek-V3.2's and GLM-5's products with the tiles that the layer takes, in the layout that it gives them."""
    from mlaprof.kernels.absorb import absorb, up_project

    generator = torch.Generator().manual_seed(random.randrange(2**31))
    args = [
        each.cuda() if isinstance(each, Tensor) else each
        for each in absorb_args(generator, num_tokens, heads, nope, 512)
    ]
    args[0] = torch.randn(num_tokens, heads * (nope + 64), device="cuda").to(BF16).view(num_tokens, heads, nope + 64)
    got, want = (torch.full((num_tokens, heads, 576), torch.nan, dtype=BF16, device="cuda") for _ in range(2))
    absorb(*args[:4], got)
    oracle.absorb(*args[:4], want)
    assert_close(want, got)
    assert torch.equal(want[..., 512:], got[..., 512:])
    x, w = (
        torch.randn(num_tokens, heads, 512, device="cuda").to(BF16),
        torch.randn(heads, v_dim, 512, device="cuda").to(BF16),
    )
    got, want = (torch.full((num_tokens, heads, v_dim), torch.nan, dtype=BF16, device="cuda") for _ in range(2))
    up_project(x, w, got)
    oracle.up_project(x, w, want)
    assert_close(want, got)
