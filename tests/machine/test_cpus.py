"""CPUs kept apart for workers: near their GPUs, whole cores, none shared while there are enough."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlaprof.errors import ConfigError, MachineError
from mlaprof.machine import seats as module
from mlaprof.machine.cpus import listed, run_queue_s, shares, unlisted
from mlaprof.machine.seats import seats
from mlaprof.records import Gpu


@pytest.fixture
def machine(tmp_path: Path) -> dict[str, Path]:
    """Two nodes of eight CPUs; CPU n and n + 4 of a node are one core."""
    for node in (0, 1):
        (tmp_path / f"node{node}").mkdir()
        (tmp_path / f"node{node}" / "cpulist").write_text(f"{8 * node}-{8 * node + 7}\n")
    for cpu in range(16):
        folder = tmp_path / f"cpu{cpu}" / "topology"
        folder.mkdir(parents=True)
        first = cpu - cpu % 8 + cpu % 4
        (folder / "thread_siblings_list").write_text(f"{first},{first + 4}\n")
    return {"nodes": tmp_path, "cpus": tmp_path}


@pytest.mark.parametrize(
    ("nodes", "usable", "found"),
    [
        ([0, 1], range(16), ["0-7", "8-15"]),
        ([1, 1], range(16), ["8-9,12-13", "10-11,14-15"]),  # whole cores
        ([0, 1, 1], range(16), ["0-7", "8-9,12-13", "10-11,14-15"]),
        ([None, None], range(16), ["0-3,4-7", "8-15"]),
        ([0, None], range(16), ["0-7", "8-15"]),
        ([0, 1], range(8), ["0-1,4-5", "2-3,6-7"]),  # a container that holds the CPUs of one node
        ([0, 0], [0, 4], ["0", "4"]),  # one core: its threads are split
        ([0, 0], [3], ["", ""]),  # one CPU: nobody can be kept apart
        ([7, 7], range(16), ["0-7", "8-15"]),  # a node that the kernel does not list
    ],
)
def test_workers_share_no_cpu(machine, nodes, usable, found) -> None:
    parts = shares(nodes, usable, **machine)

    assert [unlisted(each) for each in found] == list(parts)
    assert sum(map(len, parts)) == len(frozenset().union(*parts))


@pytest.mark.parametrize(("numbers", "text"), [((), ""), ((3,), "3"), ((0, 1, 2, 3, 8), "0-3,8"), ((1, 3), "1,3")])
def test_a_set_is_written_as_the_kernel_does(numbers, text) -> None:
    assert listed(numbers) == text
    assert unlisted(text) == frozenset(numbers)


def test_waiting_for_a_cpu_only_grows() -> None:
    before = run_queue_s()
    if before is None:
        pytest.skip("this kernel does not tell how long a thread waits for a CPU")
    assert 0 <= before <= run_queue_s()


class FakeNvml:
    """Three GPUs, of which CUDA sees the last two."""

    names = ("NVIDIA H100", "NVIDIA H100", "NVIDIA H200")

    def __enter__(self):
        return self

    def __exit__(self, *how: object) -> None:
        pass

    def gpus(self) -> tuple[Gpu, ...]:
        return tuple(
            Gpu(name=name, uuid=f"GPU-{'abc'[at]}1", driver="580", compute_capability="9.0", memory_bytes=1)
            for at, name in enumerate(self.names)
        )

    def cuda_index(self, ordinal: int) -> int | None:
        return ordinal if ordinal < 3 else None


def test_gpus_are_named_by_number_or_uuid(monkeypatch) -> None:
    monkeypatch.setattr(module, "Nvml", FakeNvml)

    found = seats("1,GPU-a", "cuda")

    assert [seat.variables for seat in found] == [
        {"CUDA_VISIBLE_DEVICES": "GPU-b1"},
        {"CUDA_VISIBLE_DEVICES": "GPU-a1"},
    ]
    assert str(found[0]).startswith("1: NVIDIA H100 GPU-b1, ")


@pytest.mark.parametrize(
    ("wanted", "error", "words"),
    [
        ("0,", ConfigError, "an empty name"),
        ("0,0", ConfigError, "named twice"),
        ("0,GPU-a1", ConfigError, "named twice"),
        ("7", ConfigError, "'7' names no GPU"),
        ("GPU-z", ConfigError, "'GPU-z' names no GPU"),
        ("0,2", MachineError, "several kinds: NVIDIA H100, NVIDIA H200"),
    ],
)
def test_what_names_no_gpu_is_refused(monkeypatch, wanted, error, words) -> None:
    monkeypatch.setattr(module, "Nvml", FakeNvml)
    with pytest.raises(error, match=words):
        seats(wanted, "cuda")


def test_emulated_gpus_are_numbered() -> None:
    assert [(seat.gpu, seat.name, dict(seat.variables)) for seat in seats("0,1", "cpu")] == [
        (None, "0", {}),
        (None, "1", {}),
    ]
    with pytest.raises(ConfigError, match="is no number"):
        seats("GPU-a", "cpu")
