"""NVML through a fake library: units, refusals and absence."""

from __future__ import annotations

import os
import sys
from types import SimpleNamespace

import pytest

from mlaprof.machine.nvml import Nvml, Reading, event_names, numa_node


def test_a_reading_is_in_base_units(pynvml):
    """MHz and mW become hertz and watts."""
    with Nvml() as nvml:
        assert nvml.reading(0) == Reading(
            sm_clock_hz=1.38e9, mem_clock_hz=2.619e9, power_w=699.125, temperature_c=61.0, event_reasons=0x4
        )


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("nvmlDeviceGetPowerUsage", "power_w"),
        ("nvmlDeviceGetTemperature", "temperature_c"),
    ],
)
@pytest.mark.parametrize("way", ["refused", "missing"])
def test_a_field_that_the_card_refuses_is_none(pynvml, query, field, way):
    """A refusal, or a query that an older library lacks, costs its own field only."""
    getattr(pynvml, way).add(query)

    with Nvml() as nvml:
        reading = nvml.reading(0)

    absent = {name for name in Reading.__dataclass_fields__ if getattr(reading, name) is None}
    assert absent == {field}


def test_event_reasons_fall_back_to_their_older_name(pynvml):
    """Before driver 535 the query was called ThrottleReasons."""
    pynvml.refused.add("nvmlDeviceGetCurrentClocksEventReasons")

    with Nvml() as nvml:
        assert nvml.reading(0).event_reasons == 0x8


def test_no_event_reason_is_zero_and_not_none(pynvml):
    """A mask of 0 is an answer."""
    pynvml._answers["nvmlDeviceGetCurrentClocksEventReasons"] = lambda handle: 0

    with Nvml() as nvml:
        assert nvml.reading(0).event_reasons == 0


def test_gpus_are_described(pynvml):
    """Every GPU of the machine, in base units."""
    pynvml.processes = [SimpleNamespace(pid=4711, usedGpuMemory=2**30)]
    with Nvml() as nvml:
        first, second = nvml.gpus()

    assert (first.uuid, second.uuid) == ("GPU-aaaa1111-0000", "GPU-bbbb2222-0000")
    assert first.name == "NVIDIA H100 80GB HBM3"
    assert first.compute_capability == "9.0"
    assert first.memory_bytes == 80 * 2**30
    assert (first.power_limit_w, first.power_limit_default_w) == (600.0, 700.0)
    assert first.sm_clock_max_hz == 1.98e9
    assert first.compute_pids == (4711,)


def test_what_may_change_a_number_is_told_of_each_gpu(pynvml):
    """Clocks in hertz, switches as they are now and not as they will be after a reset, and the SMs."""
    with Nvml() as nvml:
        gpu = nvml.gpus()[1]
        assert (nvml.cuda_driver, nvml.confidential_computing) == ("13.1", False)

    assert (gpu.sm_count, gpu.vbios) == (132, "96.00.89.00.01")
    assert (gpu.sm_clock_hz, gpu.mem_clock_hz, gpu.mem_clock_max_hz) == (1.38e9, 2.619e9, 2.619e9)
    assert (gpu.sm_clock_set_hz, gpu.sm_clock_default_hz) == (1.59e9, 1.98e9)
    assert (gpu.persistence, gpu.ecc, gpu.mig) == (True, True, False)


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("nvmlDeviceGetNumGpuCores", "sm_count"),
        ("nvmlDeviceGetVbiosVersion", "vbios"),
        ("nvmlDeviceGetApplicationsClock", "sm_clock_set_hz"),
        ("nvmlDeviceGetDefaultApplicationsClock", "sm_clock_default_hz"),
        ("nvmlDeviceGetPersistenceMode", "persistence"),
        ("nvmlDeviceGetEccMode", "ecc"),
        ("nvmlDeviceGetMigMode", "mig"),
        ("nvmlDeviceGetPciInfo", "numa_node"),
    ],
)
def test_a_fact_that_the_card_refuses_costs_itself_alone(pynvml, query, field):
    pynvml.refused.add(query)

    with Nvml() as nvml:
        gpu = nvml.gpus()[0]

    absent = {name for name in type(gpu).model_fields if getattr(gpu, name) is None} - {"numa_node"}
    assert getattr(gpu, field) is None and absent <= {field}


def test_the_sms_of_an_unknown_architecture_are_not_guessed(pynvml):
    pynvml._answers["nvmlDeviceGetCudaComputeCapability"] = lambda handle: (13, 7)

    with Nvml() as nvml:
        assert nvml.gpus()[0].sm_count is None


@pytest.mark.parametrize(("written", "node"), [("1\n", 1), ("-1\n", None), ("", None), (None, None)])
def test_the_numa_node_is_the_kernel_s(tmp_path, written, node):
    """-1 is a machine that has no such nodes."""
    if written is not None:
        (tmp_path / "0000:1b:00.0").mkdir()
        (tmp_path / "0000:1b:00.0" / "numa_node").write_text(written)

    assert numa_node("00000000:1B:00.0", tmp_path) == node
    assert numa_node("", tmp_path) is None


def test_text_in_bytes_is_text(pynvml):
    """Older bindings answer in bytes."""
    pynvml._answers["nvmlDeviceGetName"] = lambda handle: b"Tesla"

    with Nvml() as nvml:
        assert nvml.gpus()[0].name == "Tesla"


def test_process_memory_is_that_of_the_process(pynvml):
    """Bytes of one pid; None when it is not listed or the driver hides the amount."""
    pynvml.processes = [
        SimpleNamespace(pid=1, usedGpuMemory=123),
        SimpleNamespace(pid=2, usedGpuMemory=None),
    ]
    with Nvml() as nvml:
        assert nvml.process_memory_bytes(1, 0) == 123
        assert nvml.process_memory_bytes(2, 0) is None
        assert nvml.process_memory_bytes(3, 0) is None


@pytest.mark.parametrize("error", [RuntimeError("NVML Shared Library Not Found"), OSError("broken library")])
def test_a_missing_driver_is_a_value(pynvml, error):
    """No exception escapes, and the status says why."""
    pynvml.init_error = error

    with Nvml() as nvml:
        assert not nvml.present
        assert str(error) in nvml.status
        assert nvml.gpus() == ()
        assert nvml.reading(0) == Reading(None, None, None, None, None)
        assert nvml.process_memory_bytes(os.getpid(), 0) is None
        assert nvml.cuda_index() is None


def test_a_missing_package_is_a_value(monkeypatch):
    """mlaprof runs without nvidia-ml-py."""
    monkeypatch.setitem(sys.modules, "pynvml", None)

    with Nvml() as nvml:
        assert not nvml.present
        assert "nvidia-ml-py" in nvml.status


def test_an_unknown_index_is_none_throughout(pynvml):
    """A GPU that is not there reads as nothing, not as an error."""
    with Nvml() as nvml:
        assert nvml.reading(7) == Reading(None, None, None, None, None)


def test_the_library_is_shut_down_once(pynvml):
    """Leaving the context, and closing again, ends what was opened; a closed Nvml answers nothing."""
    with Nvml() as nvml:
        assert pynvml.open == 1
        nvml.reading(0)
    nvml.close()

    assert pynvml.open == 0
    assert nvml.reading(0).power_w is None


@pytest.mark.parametrize(
    ("visible", "ordinal", "index"),
    [
        (None, 0, 0),
        (None, 1, 1),
        (None, 2, None),
        ("0", 0, 0),
        ("1", 0, 1),
        ("1,0", 1, 0),
        (" 1 , 0 ", 1, 0),
        ("GPU-bbbb2222-0000", 0, 1),
        ("GPU-b", 0, 1),
        ("GPU-", 0, None),
        ("", 0, None),
        ("-1", 0, None),
        ("0,-1,1", 1, None),
        ("7", 0, None),
        ("MIG-1234", 0, None),
        ("NoDevFiles", 0, None),
    ],
)
def test_cuda_device_0_is_the_one_that_is_visible(pynvml, monkeypatch, visible, ordinal, index):
    """CUDA_VISIBLE_DEVICES by index or UUID; the first entry that names no GPU ends the list."""
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)

    with Nvml() as nvml:
        assert nvml.cuda_index(ordinal) == index
        assert nvml.cuda_index(ordinal, visible) == index


@pytest.mark.parametrize(
    ("mask", "names"),
    [
        (0, ()),
        (0x1, ("GpuIdle",)),
        (0x4 | 0x40, ("SwPowerCap", "HwThermalSlowdown")),
        (0x80 | 0x2000, ("HwPowerBrakeSlowdown", "0x2000")),
    ],
)
def test_event_names(mask, names):
    """Every bit has a name, an unknown one its number."""
    assert event_names(mask) == names


def test_event_names_agree_with_nvml():
    """The bits are those of the real library."""
    library = pytest.importorskip("pynvml")
    prefix = "nvmlClocksEventReason"
    reasons = {name: getattr(library, name) for name in dir(library) if name.startswith(prefix)}
    bits = {name: mask for name, mask in reasons.items() if mask.bit_count() == 1 and not name.endswith("All")}

    assert len(bits) >= 8
    for name, mask in bits.items():
        if name != f"{prefix}UserDefinedClocks":  # an older name of ApplicationsClocksSetting
            assert event_names(mask) == (name.removeprefix(prefix),)


@pytest.mark.gpu
def test_a_real_gpu_answers_every_query():
    """On a GPU machine all fields are there, and this process's memory is seen once it has a context."""
    import torch

    held = torch.ones(2**20, device="cuda")
    with Nvml() as nvml:
        index = nvml.cuda_index()
        assert index is not None
        reading = nvml.reading(index)
        assert None not in vars(reading).values()
        gpu = nvml.gpus()[index]
    assert gpu.memory_bytes > held.nbytes
    assert gpu.sm_count == torch.cuda.get_device_properties(0).multi_processor_count
    assert gpu.vbios and gpu.sm_clock_hz and gpu.mem_clock_hz and gpu.mem_clock_max_hz
