"""What a run of single kernels says: times, rates, how near each comes to the chip's own ceilings, and to its peers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from mlaprof import kernel_shapes
from mlaprof.analysis.arms import Arm, arm_of, speedup
from mlaprof.analysis.stats import Estimate, geometric_mean
from mlaprof.records import KernelMeasurement, Outcome, Precision, Run

CEILING_OF: dict[str, Precision | None] = {"copy": None, "matmul_bf16": "bf16", "matmul_fp8": "fp8"}


@dataclass(frozen=True)
class KernelCell:
    """One kernel at one shape, run one way.

    versus    speed over the fastest other provider of the cell: above 1, this one is faster; None without another
    roofline  least time by the ceilings measured in the same run over the time taken; of gathered rows every gather
              counts as bytes, so a kernel that the L2 serves may come out above 1. None without ceilings
    """

    kernel: str
    axes: Mapping[str, int]  # of the shape
    shape: str  # the same as one word
    way: str
    provider: str
    version: str
    outcome: Outcome
    emulated: bool
    device_s: Estimate | None = None
    processes: int = 0
    flop_rate: float | None = None  # FLOP/s
    byte_rate: float | None = None  # bytes/s
    roofline: float | None = None
    versus: Estimate | None = None
    versus_provider: str = ""

    @property
    def own(self) -> bool:
        """By a kernel of this project, not by another's."""
        return self.provider in kernel_shapes.OWN


@dataclass(frozen=True)
class KernelMean:
    """Geometric mean over the shapes of a kernel of the fastest own form's speed over the fastest other provider."""

    kernel: str
    shapes: int
    versus: Estimate
    least: float  # of a single shape
    least_shape: str


@dataclass(frozen=True)
class KernelSummary:
    """All cells in the order of the run, and what they come to."""

    cells: tuple[KernelCell, ...]
    means: tuple[KernelMean, ...]
    copy_rate: float | None  # bytes/s, read and written
    product_rates: Mapping[str, float]  # precision -> FLOP/s


def summarize_kernels(run: Run) -> KernelSummary:
    """The summary of a run of single kernels; what is planned and not measured yet is not in it."""
    grouped: dict[str, dict[int, KernelMeasurement]] = {}
    for each in run.kernels:
        grouped.setdefault(each.point.key, {})[each.process] = each
    arms = {key: arm_of(key, found) for key, found in grouped.items()}
    leads = {key: _leading(list(found.values())) for key, found in grouped.items()}
    copy_rate, product_rates = _ceilings(leads, arms)
    cells: list[KernelCell] = []
    means: list[KernelMean] = []
    measured = [lead for lead in leads.values() if lead.point.kernel not in CEILING_OF]
    for kernel, members in groupby(measured, key=lambda lead: lead.point.kernel):
        own: list[tuple[str, Arm, Arm]] = []
        for cell, found in groupby(list(members), key=lambda lead: lead.point.cell):
            together = list(found)
            cells += _cells(together, arms, copy_rate, product_rates)
            ours, theirs = _fastest(together, arms, own=True), _fastest(together, arms, own=False)
            if ours is not None and theirs is not None:
                own.append((cell, ours, theirs))
        means += _mean(kernel, own)
    return KernelSummary(tuple(cells), tuple(means), copy_rate, product_rates)


def _cells(
    leads: Sequence[KernelMeasurement],
    arms: Mapping[str, Arm | None],
    copy_rate: float | None,
    product_rates: Mapping[str, float],
) -> Iterator[KernelCell]:
    for lead in leads:
        point, arm = lead.point, arms[lead.point.key]
        other = _fastest([each for each in leads if each.point.provider != point.provider], arms)
        ratio = speedup(other, arm)
        median_s = arm.device_s.median if arm else None
        yield KernelCell(
            kernel=point.kernel,
            axes=point.shape,
            shape=point.shape_label,
            way=point.way,
            provider=point.provider,
            version=lead.version,
            outcome=lead.outcome,
            emulated=lead.emulated,
            device_s=arm.device_s if arm else None,
            processes=len(arm.timings) if arm else 0,
            flop_rate=lead.flops / median_s if median_s and lead.flops else None,
            byte_rate=lead.bytes / median_s if median_s and lead.bytes else None,
            roofline=_roofline(lead, median_s, copy_rate, product_rates),
            versus=ratio,
            versus_provider=other.key.rsplit("/", 1)[1] if other and ratio else "",
        )


def _roofline(
    lead: KernelMeasurement, median_s: float | None, copy_rate: float | None, product_rates: Mapping[str, float]
) -> float | None:
    if not median_s or copy_rate is None:
        return None
    least_s = lead.bytes / copy_rate
    if lead.flops:
        if lead.precision not in product_rates:
            return None
        least_s = max(least_s, lead.flops / product_rates[lead.precision])
    return least_s / median_s


def _mean(kernel: str, own: Sequence[tuple[str, Arm, Arm]]) -> Iterator[KernelMean]:
    ratios = [(cell, ratio) for cell, ours, theirs in own if (ratio := speedup(theirs, ours)) is not None]
    if ratios:
        shape, worst = min(ratios, key=lambda each: each[1].median)
        yield KernelMean(
            kernel,
            len(ratios),
            geometric_mean([ratio for _, ratio in ratios]),
            worst.median,
            shape.partition("/")[2],
        )


def _fastest(leads: Sequence[KernelMeasurement], arms: Mapping[str, Arm | None], own: bool | None = None) -> Arm | None:
    wanted = [lead for lead in leads if own is None or (lead.point.provider in kernel_shapes.OWN) == own]
    usable = [arm for lead in wanted if (arm := arms[lead.point.key]) is not None]
    return min(usable, key=lambda arm: arm.device_s.median, default=None)


def _ceilings(
    leads: Mapping[str, KernelMeasurement], arms: Mapping[str, Arm | None]
) -> tuple[float | None, dict[str, float]]:
    """Bytes/s of a copy and FLOP/s of products, by precision."""
    copy_rate: float | None = None
    rates: dict[str, float] = {}
    for key, lead in leads.items():
        arm = arms[key]
        if lead.point.kernel not in CEILING_OF or arm is None:
            continue
        precision = CEILING_OF[lead.point.kernel]
        if precision is None:
            copy_rate = lead.bytes / arm.device_s.median
        else:
            rates[precision] = lead.flops / arm.device_s.median
    return copy_rate, rates


def _leading(found: Sequence[KernelMeasurement]) -> KernelMeasurement:
    """Of several processes the one that says most: a failure before a success."""
    rank = ("incorrect", "failed", "skipped", "ok")
    return min(found, key=lambda each: rank.index(each.outcome.status))
