"""The sections of a run of single kernels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import groupby

from mlaprof.analysis.kernels import KernelMean, KernelSummary
from mlaprof.records import Manifest
from mlaprof.report.columns import Column
from mlaprof.report.kernels import LEGEND, ceilings, kernel_columns, troubles
from mlaprof.report.page.facts import command_section, environment_section
from mlaprof.report.page.parts import Page, Part, Picture, Section, Sheet, Words
from mlaprof.report.page.verdict import EMULATED, interval
from mlaprof.report.style import STATUS

NO_LAYER = (
    "This run times single kernels: no step, no capture, no ledger. "
    "`mlaprof sweep configs/v3.2-tp8-prefill.yaml` measures those, and `mlaprof report` of that run shows them."
)
NO_ROOFLINE = (
    "No ceilings were measured in this run, or no kernel that computes was timed. "
    "Get it with `mlaprof kernels configs/kernels.yaml --device cuda`."
)


def kernels_verdict(summary: KernelSummary) -> str:
    """One sentence: the own kernels beside the fastest other provider, the most behind first."""
    stamp = "EMULATED: " if any(cell.emulated for cell in summary.cells) else ""
    if not summary.means:
        return f"{stamp}No kernel of another package ran beside the own ones, so no comparison can be told."
    ordered = _behind_first(summary)
    behind, ahead = ordered[0], ordered[-1]
    slower = sum(mean.versus.ci_high < 1 for mean in ordered)
    be = "is" if slower == 1 else "are"
    return (
        f"{stamp}{slower} of {len(ordered)} kernels {be} slower than the fastest other provider in the geometric mean "
        f"of their shapes: {behind.kernel} is {interval(behind.versus)} over {behind.shapes} shapes, "
        f"{ahead.kernel} {interval(ahead.versus)} over {ahead.shapes}."
    )


def kernels_page(summary: KernelSummary, manifest: Manifest, pictures: Mapping[str, Picture]) -> Page:
    """The page of a run of single kernels."""
    processor = manifest.environment.processor(manifest.device)
    emulated = any(cell.emulated for cell in summary.cells)
    return Page(
        title=f"{manifest.run_id} on {processor}",
        verdict=kernels_verdict(summary),
        facts=tuple(filter(None, (f"{processor}, run {manifest.run_id}, {manifest.created_at}", ceilings(summary)))),
        sections=tuple(_sections(summary, manifest, pictures)),
        stamp=EMULATED if emulated else "",
    )


def _sections(summary: KernelSummary, manifest: Manifest, pictures: Mapping[str, Picture]) -> Iterator[Section]:
    if summary.means:
        yield Section("verdict", "The verdict, kernel by kernel", (_means(summary),))
    roof = pictures.get("roofline")
    yield Section("roofline", "Roofline of each kernel", (roof or Words(NO_ROOFLINE, "missing"), Words(LEGEND, "note")))
    yield Section("cells", "Every kernel and shape", tuple(_tables(summary)))
    yield Section("layer", "The layer around them", (Words(NO_LAYER, "missing"),))
    yield environment_section(manifest)
    yield command_section(manifest)
    yield Section("failures", "Failed and skipped", tuple(_failures(summary)))


def _means(summary: KernelSummary) -> Sheet:
    rows = _behind_first(summary)
    return Sheet(
        "Own kernel beside the fastest other provider, geometric mean of the shapes; above 1 is faster",
        [
            Column("kernel", 0, [mean.kernel for mean in rows], right=False),
            Column("speed", 0, [f"{mean.versus.median:.3f}x" for mean in rows]),
            Column("95% CI", 0, [f"{mean.versus.ci_low:.3f}x, {mean.versus.ci_high:.3f}x" for mean in rows]),
            Column("shapes", 0, [str(mean.shapes) for mean in rows]),
            Column("least", 0, [f"{mean.least:.3f}x" for mean in rows]),
            Column("at shape", 0, [mean.least_shape for mean in rows], right=False),
        ],
    )


def _tables(summary: KernelSummary) -> Iterator[Part]:
    for kernel, members in groupby(summary.cells, key=lambda cell: cell.kernel):
        timed = [cell for cell in members if cell.device_s]
        if timed:
            shapes = Column("shape", 0, [cell.shape for cell in timed], right=False)
            axes = set(timed[0].axes)
            yield Sheet(kernel, [shapes, *(each for each in kernel_columns(timed) if each.title not in axes)])


def _failures(summary: KernelSummary) -> Iterator[Part]:
    found = [
        (kernel, status, text)
        for kernel, members in groupby(summary.cells, key=lambda cell: cell.kernel)
        for status, text in troubles(list(members))
    ]
    if not found:
        yield Words("None: everything that was planned has its time.")
        return
    yield Sheet(
        "What has no time",
        [
            Column("kernel", 0, [kernel for kernel, _, _ in found], right=False),
            Column("status", 0, [STATUS[status].text() for _, status, _ in found], right=False),
            Column("reason", 0, [text for _, _, text in found], right=False),
        ],
    )


def _behind_first(summary: KernelSummary) -> list[KernelMean]:
    return sorted(summary.means, key=lambda mean: mean.versus.median)
