"""The sentence that a report begins with: a number, its interval, and what they are of."""

from __future__ import annotations

from mlaprof.analysis.cells import Floor, Summary
from mlaprof.analysis.compare import Comparison
from mlaprof.analysis.headline import Headline, headlines
from mlaprof.analysis.stats import Estimate
from mlaprof.report import sentences
from mlaprof.report.cells_table import unclear
from mlaprof.report.comparison import tally
from mlaprof.report.units import change

FEW = 6  # samples below which an interval of a median is little more than their range
EMULATED = (
    "EMULATED: this run was made on a CPU. Correctness carries over to a GPU, no time on this page does. "
    "Run the same sweep with --device cuda for numbers."
)


def verdict(summary: Summary, comparison: Comparison | None = None) -> str:
    """One sentence: of a comparison what it found, else how much faster a step is with the split captured."""
    if comparison is not None:
        return _compared(comparison)
    found = headlines(summary)
    if not found:
        return f"No speed-up can be told: {_why_not(summary)}."
    return headline_sentence(found[0], summary)


def headline_sentence(found: Headline, summary: Summary) -> str:
    """`split_piecewise runs a prefill step (context 0) 1.81x faster [1.71x, 2.02x] than monolithic_eager ...`"""
    low, high = found.num_tokens
    over = f"at {low} token{'s' * (low != 1)}" if low == high else _over_sizes(found, low, high)
    told = _told(found.mean, summary.floor)
    alone = _told(found.device, summary.floor)
    stamp = "EMULATED: " if summary.emulated else ""
    return (
        f"{stamp}{found.way} runs a {found.group.phase} step (context {found.group.context_len}) {told} than "
        f"{found.over} in service (n={found.samples} a cell), {over}; of device time alone it is {alone}."
    )


def few_samples(found: Headline) -> str:
    """What to make of an interval of very few bursts; empty where there are enough."""
    if found.samples >= FEW:
        return ""
    return (
        f"In service each cell of {found.way} at context {found.group.context_len} had {found.samples} bursts of "
        "steps at least: an interval of so few is hardly more than their range and holds the truth "
        "less often than 95 times in 100. Sweep again with `--rigorous`, or with more `measure.min_samples`: every "
        "tenth round has a burst."
    )


def interval(ratio: Estimate) -> str:
    """`1.81x faster [1.71x, 2.02x]`; below 1 `1.05x slower [1.02x, 1.08x]`, the interval of the same fraction."""
    if ratio.median >= 1:
        return f"{ratio.median:.2f}x faster [{ratio.ci_low:.2f}x, {ratio.ci_high:.2f}x]"
    return f"{1 / ratio.median:.2f}x slower [{1 / ratio.ci_high:.2f}x, {1 / ratio.ci_low:.2f}x]"


def _told(ratio: Estimate, floor: Floor | None) -> str:
    if unclear(ratio, floor):
        return f"not measurably faster or slower ({ratio.median:.3f}x [{ratio.ci_low:.3f}x, {ratio.ci_high:.3f}x])"
    return interval(ratio)


def _over_sizes(found: Headline, low: int, high: int) -> str:
    most, least = (
        f"{each.step_speedup.median:.2f}x at {each.num_tokens}" if each.step_speedup else ""
        for each in (found.most, found.least)
    )
    return (
        f"in the geometric mean of {found.mean.n} token counts from {low} to {high} (most {most} tokens, least {least})"
    )


def _compared(comparison: Comparison) -> str:
    stamp = "EMULATED: " if comparison.new.emulated else ""
    judged = [(each.ratio, each) for each in comparison.deltas if each.ratio and each.verdict in ("SLOWER", "FASTER")]
    against = f"Against base run {comparison.base.run_id}"
    if not judged:
        return f"{stamp}{against}: {tally(comparison)}."
    ratio, worst = max(judged, key=lambda pair: (pair[1].verdict == "SLOWER", abs(pair[0].median - 1)))
    return (
        f"{stamp}{against}: {tally(comparison)}; {'worst' if worst.verdict == 'SLOWER' else 'most'} "
        f"{change(ratio.median)} in device time (new / base {ratio.median:.3f} "
        f"[{ratio.ci_low:.3f}, {ratio.ci_high:.3f}]) at {worst.key}."
    )


def _why_not(summary: Summary) -> str:
    told = (sentence for outcome, sentence in sentences.troubles(summary) if outcome in ("incorrect", "failed"))
    lacking = "no way was timed beside the baseline; sweep with -a mode=monolithic_eager,split_piecewise,full"
    return next(told, lacking)
