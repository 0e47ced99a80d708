"""What is said of a machine before its numbers are believed."""

from __future__ import annotations

import pytest

from mlaprof.machine.checks import warnings
from mlaprof.records import Environment, Gpu

H100 = Gpu(
    name="NVIDIA H100 80GB HBM3",
    uuid="GPU-aaaa",
    driver="580.159",
    compute_capability="9.0",
    memory_bytes=80 * 2**30,
    power_limit_w=700.0,
    power_limit_default_w=700.0,
)
GOOD = Environment(
    gpus=(H100,),
    nvml="13.580.159",
    cpu="some CPU",
    cpu_count=16,
    memory_bytes=2**37,
    os="some Linux",
    python="3.12.3",
    packages={"torch": "2.11.0+cu130", "triton": "3.6.0"},
    kernel_source_sha256="0" * 64,
    git_commit="a" * 40,
    git_dirty=False,
)


def gpu(**changes: object) -> dict[str, object]:
    return {"gpus": (H100.model_copy(update=changes),)}


def packages(torch: str | None, triton: str | None) -> dict[str, object]:
    given = {"torch": torch, "triton": triton}
    return {"packages": {name: version for name, version in given.items() if version is not None}}


def test_a_quiet_gpu_machine_has_no_warning():
    """Nothing is said where nothing is wrong."""
    assert warnings(GOOD, "cuda") == ()


@pytest.mark.parametrize(
    ("changes", "device", "codes"),
    [
        ({"gpus": (), "nvml": "no NVIDIA driver"}, "cpu", ["emulated"]),
        ({}, "cpu", ["emulated"]),
        (packages("2.13.0+cpu", "3.7.1"), "cpu", ["cpu_torch"]),
        (gpu(compute_pids=(12, 13)), "cuda", ["shared_gpu"]),
        (gpu(compute_pids=(12,)), "cpu", ["emulated"]),
        (gpu(power_limit_w=350.0), "cuda", ["power_limit"]),
        (gpu(power_limit_w=None), "cuda", []),
        (gpu(compute_capability="8.0"), "cuda", ["compute_capability"]),
        (gpu(compute_capability="10.0"), "cuda", []),
        (gpu(compute_capability="unknown"), "cuda", []),
        ({"gpus": (), "nvml": "nvidia-ml-py cannot be imported"}, "cuda", ["nvml"]),
        (packages("2.11.0+cu130", "3.7.1"), "cuda", ["triton_mismatch"]),
        (packages("2.13.0", "3.7.1"), "cuda", []),
        (packages("2.99.0", "3.7.1"), "cuda", []),
        (packages("2.11.0", None), "cuda", ["no_triton"]),
        ({"git_dirty": True}, "cuda", ["dirty"]),
        ({"git_dirty": None, "git_commit": None}, "cuda", []),
        ({"variables": {"CUDA_LAUNCH_BLOCKING": "1"}}, "cuda", ["variable"]),
        ({"variables": {"CUDA_LAUNCH_BLOCKING": "0", "TRITON_INTERPRET": ""}}, "cuda", []),
        (gpu(compute_pids=(12,), power_limit_w=350.0), "cuda", ["shared_gpu", "power_limit"]),
        ({"used_gpu": 1, "gpus": (H100.model_copy(update={"compute_pids": (12,)}), H100)}, "cuda", []),
        ({"used_gpu": 1, "gpus": (H100, H100.model_copy(update={"compute_pids": (12,)}))}, "cuda", ["shared_gpu"]),
        ({"confidential_computing": True}, "cuda", ["confidential"]),
        ({"confidential_computing": False}, "cuda", []),
        ({"load_average": 16.0}, "cuda", []),
        ({"load_average": 16.1}, "cuda", ["busy_host"]),
    ],
)  # fmt: skip
def test_each_trouble_is_told_by_its_code(changes, device, codes):
    """One warning a trouble, with a sentence and a next step."""
    found = warnings(GOOD.model_copy(update=changes), device)

    assert [each.code for each in found] == codes
    assert all(each.what and each.why and each.next_step for each in found)


def test_the_reason_for_emulation_is_named():
    """A user sees at once whether the driver, the wheel or the option is at fault."""
    (no_driver,) = warnings(GOOD.model_copy(update={"gpus": (), "nvml": "no NVIDIA driver: not loaded"}), "cpu")
    (no_build,) = warnings(GOOD.model_copy(update=packages("2.13.0+cpu", "3.7.1")), "cpu")

    assert "not loaded" in no_driver.why
    assert "2.13.0+cpu" in no_build.why and "H100" in no_build.why
