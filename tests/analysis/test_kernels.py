"""A run of single kernels, from known times: rates, roofline, and who is faster than whom."""

from __future__ import annotations

import json

import pytest

from mlaprof.analysis.kernels import summarize_kernels
from mlaprof.facts import Timing
from mlaprof.records import Environment, KernelMeasurement, KernelPoint, Manifest, Outcome, Run
from mlaprof.report.kernels import kernels_csv, kernels_json, kernels_markdown

SHAPE = {"num_rows": 4, "width": 4096, "k": 2048}


def measured(provider, device_s, *, kernel="topk", shape=SHAPE, flops=0, num_bytes=0, precision="", process=0, **other):
    timing = Timing(
        device_s=(device_s,) * 9, submit_s=(1e-6,) * 9, cache="cold", clock="cuda_event", warmup_s=0.0, first_call_s=0.1
    )
    fields = {"outcome": Outcome(status="ok"), "timing": timing} | other
    point = KernelPoint(kernel=kernel, shape=shape, provider=provider)
    return KernelMeasurement(
        point=point,
        emulated=False,
        recorded_at="now",
        flops=flops,
        bytes=num_bytes,
        precision=precision,
        process=process,
        **fields,
    )


def run_of(*measurements):
    environment = Environment(
        gpus=(),
        nvml="absent",
        cpu="a CPU",
        cpu_count=1,
        memory_bytes=1,
        os="os",
        python="3",
        packages={},
        kernel_source_sha256="0",
    )
    manifest = Manifest(
        schema_version=5, run_id="r", created_at="now", mlaprof_version="0", command=("mlaprof",), device="cuda",
        study_yaml="", environment=environment, planned=tuple(f"kernel {each.point.key}" for each in measurements),
    )  # fmt: skip
    return Run(manifest=manifest, measurements=(), kernels=measurements)


CEILINGS = (
    measured("torch", 1e-3, kernel="copy", shape={"bytes": 1}, num_bytes=3_000_000_000),
    measured("torch", 1e-3, kernel="matmul_fp8", shape={"n": 1}, flops=10**12, precision="fp8"),
)


def test_rates_and_roofline_come_from_the_ceilings_of_the_run():
    """A memory-bound kernel at half the copy's rate, and one bound by its products at a quarter of theirs."""
    found = summarize_kernels(
        run_of(
            *CEILINGS,
            measured("triton", 2e-3, num_bytes=3_000_000_000),
            measured("triton", 4e-3, kernel="block_gemm", shape={"m": 1}, flops=10**12, num_bytes=3, precision="fp8"),
        )
    )
    topk, gemm = found.cells
    assert topk.byte_rate == pytest.approx(1.5e12) and topk.flop_rate is None
    assert topk.roofline == pytest.approx(0.5)
    assert gemm.flop_rate == pytest.approx(2.5e14)
    assert gemm.roofline == pytest.approx(0.25)
    assert found.copy_rate == pytest.approx(3e12) and found.product_rates == {"fp8": pytest.approx(1e15)}


def test_without_a_ceiling_of_its_precision_a_kernel_has_no_roofline():
    [cell] = summarize_kernels(run_of(CEILINGS[0], measured("triton", 1e-3, flops=5, precision="bf16"))).cells
    assert cell.roofline is None


def test_a_kernel_is_compared_with_the_fastest_other_provider():
    """Above 1 is faster; an own kernel's mean is over its shapes, with the least named."""
    other = SHAPE | {"num_rows": 8}
    found = summarize_kernels(
        run_of(
            measured("hopper", 1e-3),
            measured("triton", 4e-3),
            measured("vllm", 2e-3),
            measured("hopper", 2e-3, shape=other),
            measured("torch", 1e-3, shape=other),
        )
    )
    versus = {(cell.way, cell.axes["num_rows"]): cell.versus.median for cell in found.cells}
    assert versus["hopper", 4] == pytest.approx(2.0)
    assert versus["triton", 4] == pytest.approx(0.25)
    assert versus["vllm", 4] == pytest.approx(0.5)
    [mean] = found.means
    assert (mean.kernel, mean.shapes) == ("topk", 2)
    assert mean.versus.median == pytest.approx(1.0)
    assert mean.least == pytest.approx(0.5) and mean.least_shape == "num_rows=8,width=4096,k=2048"


def test_a_wrong_kernel_has_no_time_and_beats_nobody():
    """Incorrect in one of two processes is incorrect."""
    wrong = {"outcome": Outcome(status="incorrect", stage="verify", reason="off"), "timing": None}
    found = summarize_kernels(
        run_of(measured("triton", 1e-9), measured("triton", 1e-9, process=1, **wrong), measured("torch", 1e-3))
    )
    ours, theirs = found.cells
    assert ours.outcome.status == "incorrect" and ours.device_s is None
    assert theirs.versus is None and found.means == ()


def test_the_exports_hold_what_the_table_does():
    """JSON and CSV with base units, Markdown with the reason of what was not timed."""
    absent = {"outcome": Outcome(status="skipped", stage="verify", reason="vllm is not installed"), "timing": None}
    run = run_of(*CEILINGS, measured("triton", 2e-3, num_bytes=3_000_000), measured("vllm", 1.0, **absent))
    found = summarize_kernels(run)
    loaded = json.loads(kernels_json(found, run.manifest))
    assert loaded["copy_rate"] == pytest.approx(3e12)
    assert [cell["provider"] for cell in loaded["cells"]] == ["triton", "vllm"]
    assert kernels_csv(found).splitlines()[1].startswith('topk,"num_rows=4,width=4096,k=2048",triton,triton,,ok,')
    assert "vllm is not installed" in kernels_markdown(found, run.manifest)
