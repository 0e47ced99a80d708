"""Which CPUs a worker may use: those near its GPU, and none of another worker's. Linux; elsewhere nothing is pinned."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from pathlib import Path

NODES = Path("/sys/devices/system/node")
CPUS = Path("/sys/devices/system/cpu")


def allowed() -> frozenset[int]:
    """The CPUs that this thread may run on; empty where the system does not tell."""
    return frozenset(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else frozenset()


def shares(
    gpu_nodes: Sequence[int | None], usable: Collection[int], *, nodes: Path = NODES, cpus: Path = CPUS
) -> tuple[frozenset[int], ...]:
    """CPUs for each of several workers, by the NUMA node of its GPU; no two share one while there are enough.

    usable   CPUs to hand out

    The CPUs of a node are split evenly among the workers there, whole cores as long as they last. Where the node of one
    GPU is unknown, or holds no usable CPU, all CPUs are split among all workers. Empty sets: none could be kept apart.
    """
    pools = [_of_node(node, nodes) & frozenset(usable) for node in gpu_nodes]
    if not all(pools):
        pools = [frozenset(usable)] * len(gpu_nodes)
    found = []
    for place, pool in enumerate(pools):
        alike = [other for other, each in enumerate(pools) if each == pool]
        found.append(_part(pool, alike.index(place), len(alike), cpus))
    return tuple(found) if all(found) else (frozenset(),) * len(found)


def listed(numbers: Collection[int]) -> str:
    """`0-3,8`, as the kernel writes a set of CPUs."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(f"{first}" if first == last else f"{first}-{last}" for first, last in runs)


def unlisted(text: str) -> frozenset[int]:
    """The set of `0-3,8`. Raises ValueError on anything else."""
    ends = (part.partition("-") for part in text.strip().split(",") if part)
    return frozenset(number for first, _, last in ends for number in range(int(first), int(last or first) + 1))


def run_queue_s() -> float | None:
    """How long this thread has been ready and waiting for a CPU, ever; None where the kernel does not tell."""
    try:
        return int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e9
    except (OSError, ValueError, IndexError):
        return None


def _of_node(node: int | None, nodes: Path) -> frozenset[int]:
    return frozenset() if node is None else _read(nodes / f"node{node}" / "cpulist")


def _part(pool: frozenset[int], place: int, parts: int, cpus: Path) -> frozenset[int]:
    """One of so many parts of pool: whole cores, or where there are too few single CPUs."""
    cores = list(dict.fromkeys((_siblings(cpu, cpus) & pool) or frozenset({cpu}) for cpu in sorted(pool)))
    if len(cores) < parts:
        cores = [frozenset({cpu}) for cpu in sorted(pool)]
    mine = cores[place * len(cores) // parts : (place + 1) * len(cores) // parts]
    return frozenset().union(*mine)


def _siblings(cpu: int, cpus: Path) -> frozenset[int]:
    return _read(cpus / f"cpu{cpu}" / "topology" / "thread_siblings_list")


def _read(path: Path) -> frozenset[int]:
    try:
        return unlisted(path.read_text())
    except (OSError, ValueError):
        return frozenset()
