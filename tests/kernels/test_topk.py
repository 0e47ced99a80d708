"""Selection: the chosen values against the oracle's, whatever the distribution, the windows and the bounds."""

from __future__ import annotations

import logging
import random
from typing import Any

import pytest
import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from mlaprof.kernels import reference
from mlaprof.kernels.cubin import read_cubin
from mlaprof.kernels.tiles import Dims, hopper_topk
from mlaprof.kernels.tiles import topk as portable_topk
from mlaprof.kernels.tiles.hopper_topk import HopperTopkTiles
from mlaprof.kernels.tiles.topk import TopkTiles
from mlaprof.kernels.work.topk import topk as work_of

INT_MIN, INT_MAX = -(2**31), 2**31 - 1
SINCE_3_9 = tuple(int(part) for part in triton.__version__.split(".")[:2]) >= (3, 9)  # spills more
DIMS = Dims(128, 512, 64, 64, 128, 2048)
SMALL = TopkTiles(block=512, num_warps=4, num_pieces=2, ambiguous=32, num_registers=0)
LONG = TopkTiles(block=512, num_warps=4, num_pieces=2, ambiguous=32, num_registers=0)

KINDS = {
    "normal": lambda x: x,
    "one value": lambda x: torch.full_like(x, 1.5),
    "few values": lambda x: (x * 2).round(),
    "ascending": lambda x: x.sort(dim=1)[0],
    "signed zeros": lambda x: torch.where(x > 0, 0.0, -0.0),
    "denormal": lambda x: x * 1e-42,
    "huge": lambda x: x * 1e38,
    "infinite": lambda x: x.index_fill(1, torch.arange(0, x.shape[1], 3, device=x.device), torch.inf).index_fill(
        1, torch.arange(1, x.shape[1], 3, device=x.device), -torch.inf
    ),
    "with NaN": lambda x: x.index_fill(1, torch.arange(0, x.shape[1], 3, device=x.device), torch.nan),
    "nothing to choose": lambda x: torch.full_like(x, -torch.inf),
    "heavy tails": lambda x: torch.tan(x),
    "two far groups": lambda x: torch.where(x > 1.4, x + 1e6, x),
}


@pytest.fixture
def generator() -> torch.Generator:
    seed = random.randrange(2**31)
    logging.getLogger(__name__).warning("seed %d", seed)
    return torch.Generator().manual_seed(seed)


def int32(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


def assert_chosen(logits: Tensor, starts: Tensor | None, ends: Tensor | None, k: int, got: Tensor) -> None:
    """got holds distinct positions of each window, with the values of the oracle's choice, and -1 behind them."""
    n, width = logits.shape
    assert got.shape == (n, k) and got.dtype == torch.int32
    first = torch.zeros(n, dtype=torch.int32, device=logits.device) if starts is None else starts.clamp(0, width)
    last = torch.full_like(first, width) if ends is None else ends.clamp(0, width)
    want = reference.topk(logits, first, last, k).long()
    positions = got.long()
    assert torch.equal(positions == -1, want == -1)
    assert bool((positions < (last - first).clamp(min=0)[:, None]).all())
    beyond = width + torch.arange(k, device=logits.device)
    ordered = torch.where(positions < 0, beyond, positions).sort(dim=1)[0]
    assert bool((ordered[:, 1:] > ordered[:, :-1]).all()), "a position is chosen twice"
    assert torch.equal(values_at(logits, first, want), values_at(logits, first, positions))


def values_at(logits: Tensor, first: Tensor, positions: Tensor) -> Tensor:
    column = (positions + first.long()[:, None]).clamp(0, logits.shape[1] - 1)
    return torch.where(positions < 0, -torch.inf, logits.gather(1, column)).sort(dim=1)[0]


@pytest.mark.parametrize("kind", KINDS)
def test_any_distribution(launch, generator, kind):
    """In registers, and read again."""
    for width, k, tiles in ((500, 70, SMALL), (1100, 300, LONG)):
        logits = KINDS[kind](torch.randn(2, width, generator=generator))
        got = launch("topk.topk", logits, None, None, k, tiles)
        assert_chosen(logits, None, None, k, got)


def test_equal_inputs_give_equal_outputs(launch, generator):
    """In the same order, ties too."""
    logits = torch.randn(2, 500, generator=generator).round()
    first, second = (launch("topk.topk", logits, None, None, 100, SMALL) for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("tiles", [SMALL, LONG], ids=["in registers", "read again"])
def test_hostile_windows(launch, generator, tiles):
    """Bounds outside the row are cut to it, an end before its start is empty; outside the window lies poison."""
    width = 510 if tiles is SMALL else 1100
    starts = int32(0, 7, -5, INT_MAX, 3, INT_MIN, width, 90)
    ends = int32(width, 200, INT_MAX, INT_MIN, 3, width - 1, INT_MAX, 155)
    logits = torch.randn(8, width + 9, generator=generator)[:, 4 : width + 4]
    column = torch.arange(width)
    outside = (column < starts.clamp(0)[:, None]) | (column >= ends[:, None])
    logits[outside] = torch.inf
    got = launch("topk.topk", logits, starts, ends, 64, tiles)
    assert_chosen(logits, starts, ends, 64, got)


@pytest.mark.parametrize(
    ("n", "width", "k"), [(0, 64, 8), (3, 0, 8), (2, 64, 0), (3, 1, 5), (2, 513, 512), (1, 300, 300)]
)
def test_any_size(launch, generator, n, width, k):
    """Nothing to choose from, nothing to choose, one column, all columns."""
    logits = torch.randn(n, width, generator=generator)
    got = launch("topk.topk", logits, None, None, k)
    if width and n:
        assert_chosen(logits, None, None, k, got)
    assert got.shape == (n, k) and (width > 0 or bool((got == -1).all()))


def test_out_is_written(launch, generator):
    """Into rows of a wider tensor, and nothing beside them."""
    logits = torch.randn(3, 400, generator=generator)
    wide = torch.full((3, 80), -7, dtype=torch.int32)
    launch("topk.topk", logits, None, int32(400, 20, 0), 64, out=wide[:, 8:72])
    assert_chosen(logits, None, int32(400, 20, 0), 64, wide[:, 8:72])
    assert bool((wide[:, :8] == -7).all()) and bool((wide[:, 72:] == -7).all())


def test_wrong_operands_are_named(launch):
    """The complaint names the argument, what was expected and what came."""
    logits = torch.zeros(2, 600)
    with pytest.raises(ValueError, match=r"ends: expected shape \[2\], got \[1\]"):
        launch("topk.topk", logits, None, int32(4), 8)
    with pytest.raises(ValueError, match="k: expected 0 to 4096, got 5000"):
        launch("topk.topk", logits, None, None, 5000)
    with pytest.raises(ValueError, match="tiles: num_warps: 32 give a thread 0 of 512 elements"):
        launch("topk.topk", logits, None, None, 8, TopkTiles(512, 32, 1, 32, 0))
    with pytest.raises(ValueError, match="tiles: expected a block of at least 600 for the Hopper form, got 512"):
        launch("topk.topk", logits, None, None, 8, HopperTopkTiles(512, 4, 1, 64, 0))


@pytest.mark.parametrize("width", [1, 512, 3000, 4096, 8191, 16384, 32768, 163840])
@pytest.mark.parametrize("num_rows", [1, 64, 528, 1024, 8192])
def test_chosen_tiles_are_legal(num_rows, width):
    """Any shape gets tiles that run; the Hopper form's hold the whole row."""
    forms: list[Any] = [portable_topk] if width > hopper_topk.MAX_WIDTH else [portable_topk, hopper_topk]
    for form in forms:
        tiles = form.choose(num_rows, width)
        assert form.problem(tiles, DIMS) is None
        assert all(getattr(tiles, name) in values for name, values in form.CHOICES.items())
        assert form is portable_topk or tiles.block >= width


@pytest.mark.parametrize(
    ("tiles", "topk", "reason"),
    [
        (TopkTiles(32768, 8, 1, 64, 0), 2048, "use a number that gives 1 (num_pieces) to 64"),
        (TopkTiles(4096, 16, 1, 64, 0), 8192, "use at most that"),
        (TopkTiles(32768, 32, 1, 64, 80), 2048, "use fewer"),
    ],
)
def test_what_does_not_fit_is_said(tiles, topk, reason):
    """Each refusal carries a remedy."""
    dims = Dims(128, 512, 64, 64, 128, topk)
    assert reason in str(portable_topk.problem(tiles, dims))
    assert reason in str(hopper_topk.problem(HopperTopkTiles(*vars(tiles).values()), dims))


@pytest.mark.parametrize("num_rows", [64, 4096])
def test_hopper_form_compiles_for_hopper(num_rows):
    """All but a few values in registers, ballots where results are written, shared memory within its estimate."""
    from triton.experimental.gluon._runtime import GluonASTSource

    from mlaprof.kernels.hopper.topk import topk_kernel

    tiles = hopper_topk.choose(num_rows, 4096)
    compiled = compiled_for_hopper(GluonASTSource, topk_kernel, tiles, {"EAGER": hopper_topk.few_rows(num_rows)})
    assert "vote.sync.ballot" in compiled.asm["ptx"]
    assert read_cubin(compiled.asm["cubin"]).stack_bytes <= (32 if SINCE_3_9 else 16)
    assert compiled.metadata.shared <= hopper_topk.shared_bytes(tiles, DIMS)


@pytest.mark.parametrize("width", [4096, 65536])
def test_portable_form_compiles_for_hopper(width):
    """A row in registers or read again, shared memory within its estimate."""
    from mlaprof.kernels.topk import topk_kernel

    tiles = portable_topk.choose(64, width)
    compiled = compiled_for_hopper(ASTSource, topk_kernel, tiles, {"LONG": width > tiles.block})
    assert read_cubin(compiled.asm["cubin"]).stack_bytes <= (128 if width > tiles.block else 0)
    assert compiled.metadata.shared <= portable_topk.shared_bytes(tiles, DIMS)


def compiled_for_hopper(source: Any, kernel: Any, tiles: Any, more: dict[str, Any]) -> Any:
    """The kernel as the layer launches it: ends given, starts not."""
    threads = 32 * tiles.num_warps
    constants = {"starts_ptr": None, "C": threads, "R": tiles.block // threads // tiles.num_pieces}
    constants |= {"PIECES": tiles.num_pieces, "AMBIGUOUS": tiles.ambiguous} | more
    types = {"logits_ptr": "*fp32", "ends_ptr": "*i32", "out_ptr": "*i32", "between_ptr": "*i64"}
    signature = {name: types.get(name, "i32") for name in kernel.arg_names} | dict.fromkeys(constants, "constexpr")
    place = {name: (i,) for i, name in enumerate(kernel.arg_names)}
    return triton.compile(
        source(
            fn=kernel,
            signature=signature,
            constexprs={place[name]: value for name, value in constants.items()},
            attrs={place[name]: [["tt.divisibility", 16]] for name in ("ends_ptr", "out_ptr")},
        ),
        target=GPUTarget("cuda", 90, 32),
        options={"num_warps": tiles.num_warps, "maxnreg": tiles.num_registers or None},
    )


def test_work():
    """Each logit read once, each position written once."""
    assert work_of(2, 100, 10).bytes == 4 * 2 * 110 and work_of(2, 100, 10).flops == 0


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("n", "width", "windows"),
    [(3, 4096, False), (700, 4096, True), (3, 16_001, False), (200, 32768, True), (5, 100_003, True)],
)
def test_full_size_on_the_gpu(n, width, windows):
    """By the form that a launch chooses and by the portable one, twice to the same result."""
    from mlaprof.kernels.topk import topk

    torch.manual_seed(seed := random.randrange(2**31))
    logging.getLogger(__name__).warning("seed %d", seed)
    bounds = torch.randint(-5, width + 5, (2, n), device="cuda", dtype=torch.int32).sort(dim=0)[0]
    starts, ends = bounds if windows else (None, None)
    for make in (KINDS["normal"], KINDS["few values"], KINDS["with NaN"], KINDS["heavy tails"]):
        logits = make(torch.randn(n, width, device="cuda"))
        for tiles in (None, portable_topk.choose(n, width)):
            for k in (512, 2048):
                got = torch.full((n, k), -7, dtype=torch.int32, device="cuda")
                topk(logits, starts, ends, k, tiles, out=got)
                assert_chosen(logits, starts, ends, k, got)
                assert torch.equal(got, topk(logits, starts, ends, k, tiles))


@pytest.mark.gpu
def test_replays_in_a_graph():
    """Captured once, right for logits and windows that came later."""
    from mlaprof.kernels.topk import topk

    logits, ends = torch.randn(8, 4096, device="cuda"), torch.full((8,), 4096, dtype=torch.int32, device="cuda")
    topk(logits, None, ends, 512)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = topk(logits, None, ends, 512)
    logits.copy_(torch.randn(8, 4096, device="cuda"))
    ends.copy_(torch.tensor([4096, 1, 0, 511, 512, 513, 4095, 3000], dtype=torch.int32))
    graph.replay()
    torch.cuda.synchronize()
    assert_chosen(logits, None, ends, 512, got)
