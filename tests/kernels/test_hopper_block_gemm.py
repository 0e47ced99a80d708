"""The Hopper forms of block_gemm: what they compile to without a GPU, and their results on one."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import torch
import triton

from mlaprof.kernels import reference
from mlaprof.kernels.cubin import read_cubin
from mlaprof.kernels.offline import compile_kernel
from mlaprof.kernels.reference import TOLERANCE, mismatch
from mlaprof.kernels.tiles.hopper_block_gemm import (
    CHOICES,
    HopperBlockGemmTiles,
    choose,
    problem,
    shared_bytes,
)
from mlaprof.kernels.tiles.limits import SHARED_LIMIT_BYTES, Dims

DIMS = Dims(num_heads=128, kv_lora_rank=512, qk_rope_head_dim=64, index_n_heads=64, index_head_dim=128, index_topk=2048)
PROJECTIONS = [(2112, 7168), (24576, 1536), (8192, 1536), (7168, 16384), (3072, 1536), (7168, 2048)]
TOKENS = [1, 16, 64, 256, 1024, 4096]


@pytest.mark.parametrize(
    "tiles", sorted({choose(m, n, k) for m in TOKENS for n, k in PROJECTIONS}, key=str), ids=lambda t: str(t)[20:]
)
def test_default_tiles_compile(tiles):
    """They multiply by warp groups, keep everything in registers, and take the shared memory that is said."""
    compiled = compile_kernel("block_gemm@hopper", tiles, DIMS)
    assert "wgmma.mma_async.sync.aligned" in compiled.asm["ptx"]
    assert read_cubin(compiled.asm["cubin"]).stack_bytes == 0
    assert compiled.metadata.shared <= shared_bytes(tiles, DIMS) <= SHARED_LIMIT_BYTES


def test_sums_read_both_register_banks(tmp_path):
    """A product and its sum have registers of different parity: what the kernel's comment on its sums relies on."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/nvdisasm"
    if not tool.exists():
        pytest.skip("this Triton brings no nvdisasm")
    for block_m, block_n, stages in ((256, 128, 4), (128, 128, 5), (256, 64, 5), (128, 192, 4)):
        cubin = tmp_path / "sums.cubin"
        tiles = HopperBlockGemmTiles(1, block_m, block_n, 1, 1, stages)
        cubin.write_bytes(compile_kernel("block_gemm@hopper", tiles, DIMS).asm["cubin"])
        listing = subprocess.run([tool, "-c", cubin], capture_output=True, text=True, check=True).stdout
        sums = re.findall(r"FFMA (R\d+), R(\d+)(?:\.reuse)?, R\d+(?:\.reuse)?, (R(\d+))", listing)
        same = [1 for result, part, total, number in sums if result == total and int(part) % 2 == int(number) % 2]
        assert len(sums) >= block_m * block_n // 256 and not same


@pytest.mark.parametrize("m", [1, 2, 9, 33, 65, 100, 129, 512, 8192], ids="m{}".format)
def test_every_choice_is_legal(m):
    """Whatever the shape, the default's fields are among those that a user may give, and go together."""
    for n, k in [*PROJECTIONS, (16, 128), (1024, 384)]:
        tiles = choose(m, n, k)
        assert all(getattr(tiles, name) in values for name, values in CHOICES.items())
        assert problem(tiles, DIMS) is None
        assert shared_bytes(tiles, DIMS) <= SHARED_LIMIT_BYTES
        assert tiles.splits <= k // 128


@pytest.mark.parametrize(
    "tiles,complaint",
    [
        (HopperBlockGemmTiles(1, 128, 128, 2, 1, 3), "specialised: one group of k at a time and no splits"),
        (HopperBlockGemmTiles(1, 64, 128, 1, 1, 3), "block_m: two warpgroups take 128 tokens times 128 or 192 rows"),
        (HopperBlockGemmTiles(0, 64, 192, 1, 1, 3), "block_n: only specialised kernels take 192 rows"),
        (HopperBlockGemmTiles(0, 256, 128, 1, 1, 2), "block_m: 256 tokens leave no registers"),
    ],
    ids=["depth", "tokens", "columns", "registers"],
)
def test_fields_that_do_not_go_together(tiles, complaint):
    """The complaint names the field and ends in a remedy."""
    said = problem(tiles, DIMS)
    assert said is not None and said.startswith(complaint) and "use" in said


def random_operands(m: int, n: int, k: int) -> tuple[torch.Tensor, ...]:
    """Codes and scales on the GPU; unused room beside the scales' columns is NaN."""
    a = torch.randn(m, k, device="cuda").mul(40).to(torch.float8_e4m3fn)
    b = torch.randn(n, k, device="cuda").mul(40).to(torch.float8_e4m3fn)
    columns = torch.full((k // 128, m + (-m) % 4), torch.nan, device="cuda")
    columns[:, :m] = torch.randn(k // 128, m, device="cuda").exp()
    return a, columns.T[:m], b, torch.randn(-(-n // 128), k // 128, device="cuda").exp()


@pytest.mark.gpu
@pytest.mark.parametrize("n,k", [(2112, 7168), (3072, 1536), (7168, 2048), (272, 1664)], ids=str)
@pytest.mark.parametrize("m", [1, 7, 64, 100, 257, 1000, 1024], ids="m{}".format)
def test_default_tiles_on_the_gpu(m, n, k):
    """Odd token counts, a width that is no multiple of a tile, an odd number of groups; twice to the same bits."""
    from mlaprof.kernels.block_gemm import block_gemm

    operands = random_operands(m, n, k)
    out = torch.full((m, n), torch.nan, dtype=torch.bfloat16, device="cuda")
    block_gemm(*operands, out=out)
    assert mismatch(reference.block_gemm(*operands), out, TOLERANCE[torch.bfloat16]) is None
    again = block_gemm(*operands)
    assert torch.equal(out.view(torch.int16), again.view(torch.int16))


@pytest.mark.gpu
@pytest.mark.parametrize(
    "tiles",
    [
        HopperBlockGemmTiles(1, 256, 128, 1, 1, 4),
        HopperBlockGemmTiles(1, 128, 128, 1, 1, 3),
        HopperBlockGemmTiles(1, 256, 64, 1, 1, 5),
        HopperBlockGemmTiles(1, 128, 192, 1, 1, 4),
        HopperBlockGemmTiles(0, 8, 64, 2, 5, 3),
        HopperBlockGemmTiles(0, 64, 128, 1, 1, 4),
        HopperBlockGemmTiles(0, 256, 64, 1, 3, 4),
    ],
    ids=str,
)
def test_every_form_on_the_gpu(tiles):
    """Tiles change the time, not the value."""
    from mlaprof.kernels.block_gemm import block_gemm

    for m, n, k in ((300, 2112, 1664), (5, 7168, 384), (130, 272, 256), (200, 16, 128)):
        operands = random_operands(m, n, k)
        out = torch.full((m, n), torch.nan, dtype=torch.bfloat16, device="cuda")
        block_gemm(*operands, tiles, out=out)
        assert mismatch(reference.block_gemm(*operands), out, TOLERANCE[torch.bfloat16]) is None


@pytest.mark.gpu
def test_capture_gives_the_same_bits():
    """Both launches of a split, and the one of tiles, are replayed on new data in the same place."""
    from mlaprof.kernels.block_gemm import block_gemm

    for m in (4, 300):
        operands, others = random_operands(m, 2112, 7168), random_operands(m, 2112, 7168)
        out = torch.empty(m, 2112, dtype=torch.bfloat16, device="cuda")
        block_gemm(*operands, out=out)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            block_gemm(*operands, out=out)
        for mine, other in zip(operands, others, strict=True):
            mine.copy_(other)
        graph.replay()
        assert torch.equal(out.view(torch.int16), block_gemm(*others).view(torch.int16))


@pytest.mark.gpu
def test_unaligned_operand_is_named():
    """The TMA unit takes multiples of 16 bytes only."""
    from mlaprof.kernels.block_gemm import block_gemm

    _, a_scale, b, b_scale = random_operands(4, 32, 256)
    wide = torch.zeros(4, 264, dtype=torch.uint8, device="cuda").view(torch.float8_e4m3fn)
    with pytest.raises(ValueError, match="a: expected an address and strides in multiples of 16 bytes; copy it"):
        block_gemm(wide[:, :256], a_scale, b, b_scale)
