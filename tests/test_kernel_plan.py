"""A kernel study as jobs."""

from __future__ import annotations

from mlaprof.kernel_plan import expand_kernels
from mlaprof.study import KernelStudy, KernelSweep, MeasureSpec, TileChoice

STUDY = KernelStudy(
    name="few",
    launch=("eager", "graph"),
    kernels={
        "sparse_attn": KernelSweep(
            shapes=(
                {"num_tokens": 1, "num_rows": 64, "num_heads": 16},
                {"num_tokens": 2, "num_rows": 64, "num_heads": 16},
            ),
            provider=("triton", "torch"),
            tiles={"triton": (TileChoice(kernel="sparse_attn", values={"block_n": 64}),)},
        ),
        "copy": KernelSweep(shapes=({"bytes": 1024},), provider=("torch",)),
    },
    measure=MeasureSpec(processes=2),
)


def test_a_cell_has_every_provider_tile_and_launch_adjacent():
    """What is compared with one another is timed in the same rounds."""
    first, _ = expand_kernels(STUDY, "cpu").jobs
    shape = "num_tokens=1,num_rows=64,num_heads=16,topk=2048,fp8_cache=0,next_n=1,num_requests=1"
    assert [point.key for point in first.points][:6] == [
        f"sparse_attn/{shape}/{way}"
        for way in (
            "triton",
            "triton@graph",
            "triton:block_n=64",
            "triton@graph:block_n=64",
            "torch",
            "torch@graph",
        )
    ]
    assert {point.shape["num_tokens"] for point in first.points[6:12]} == {2}


def test_every_process_does_the_same():
    one, other = expand_kernels(STUDY, "cpu").jobs
    assert (one.process, other.process) == (0, 1) and one.points == other.points


def test_a_gpu_run_measures_its_ceilings_unless_the_study_does():
    """A rate means little without them; an emulated run has no use for them."""
    kernels = [point.kernel for point in expand_kernels(STUDY, "cuda").jobs[0].points]
    assert list(dict.fromkeys(kernels)) == ["matmul_bf16", "matmul_fp8", "sparse_attn", "copy"]
    assert len(expand_kernels(STUDY, "cpu")) == 2 * 14
    assert len(set(expand_kernels(STUDY, "cuda").planned)) == len(expand_kernels(STUDY, "cuda"))
