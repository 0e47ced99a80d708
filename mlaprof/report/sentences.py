"""The sentence of each finding and of each reference line; a warning ends with what to do next."""

from __future__ import annotations

from collections.abc import Sequence

from mlaprof.analysis.cells import NOISY_HALF_WIDTH, Cell, Finding, Summary
from mlaprof.report.style import STATUS
from mlaprof.report.units import times


def finding(found: Finding, summary: Summary) -> str:
    """One or two sentences for `found`, the last one a remedy."""
    n = len(found.keys)
    cells = "1 cell" if n == 1 else f"{n} cells"
    match found.kind:
        case "incorrect":
            return (
                f"{cells} INCORRECT: the result disagrees with its reference, so no latency is shown. "
                "Read the failed checks in `mlaprof show RUN --format json`."
            )
        case "failed":
            return (
                f"{cells} failed; the rest is unaffected. "
                "Mend the cause, then `mlaprof sweep --resume RUN` measures them again."
            )
        case "missing":
            return f"{cells} not measured yet. Finish with `mlaprof sweep --resume RUN`."
        case "partial":
            return f"{cells} lack a part (notes below). Complete with `mlaprof sweep --resume RUN`."
        case "noisy":
            limit = f"{NOISY_HALF_WIDTH:.0%}"
            return (
                f"{cells} with a confidence interval beyond ±{limit} of the median. "
                "Quiet the machine or raise measure.max_samples and measure.min_time_s, and sweep again."
            )
        case "throttled":
            cells_by_key = {cell.key: cell for cell in summary.cells}
            names = sorted({name for key in found.keys for name in cells_by_key[key].clock_events})
            return f"{cells} ran while the GPU slowed its clock ({', '.join(names)}). See `mlaprof doctor`."
        case "self_synchronising":
            return (
                f"{cells} with a step that waits for the device itself: its device time holds launch gaps, its submit "
                "time waits. Find the synchronisation with torch.cuda.set_sync_debug_mode, and sweep again."
            )
        case "host_bound":
            ratios = {cell.key: cell.submit_ratio for cell in summary.cells if cell.submit_ratio}
            worst = max(found.keys, key=lambda key: ratios[key])
            are = "is" if n == 1 else "are"
            return (
                f"{cells} {are} host-bound: to submit a step takes the host up to {times(ratios[worst])} its device "
                f"time ({worst}). In service the step takes at least its submit time there, so a speed-up of device "
                "time is not what service sees. Read the speed-up of submit time beside it (`mlaprof plot RUN`, "
                "`submit_speedup` in JSON), and capture more of the step to submit it faster."
            )
        case "emulated":
            return (
                "Capture was emulated on the CPU: correctness carries over to a GPU, times do not. "
                "Run the same sweep with --device cuda for numbers."
            )


def conditions(summary: Summary, cells: Sequence[Cell]) -> str:
    """`cold L2, median of n=50 to 500, 95% CI` for the timed ones of `cells`."""
    timed = [cell for cell in cells if cell.device_s]
    if not timed:
        return "nothing timed"
    counts = sorted({cell.device_s.n for cell in timed if cell.device_s})
    n = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    caches = "+".join(sorted({cell.cache for cell in timed if cell.cache}))
    where = "cache" if summary.device == "cpu" else "L2"
    return f"{caches} {where}, median of n={n}, 95% CI"


def bound(cell: Cell) -> str:
    """`host 7.3x` where submitting takes 7.3 times the device time, `device` where it takes less, else nothing."""
    return f"host {times(cell.submit_ratio)}" if cell.bound == "host" and cell.submit_ratio else cell.bound or ""


def left_out(cells: Sequence[Cell]) -> str:
    """`; not shown: 1 INCORRECT, 2 FAILED`, or nothing when every cell that should have a time has one."""
    outcomes = ("incorrect", "failed", "missing")
    counts = {each: sum(cell.outcome == each for cell in cells) for each in outcomes}
    words = ", ".join(f"{count} {STATUS[each].word}" for each, count in counts.items() if count)
    return f"; not shown: {words}" if words else ""


def processor(summary: Summary) -> str:
    """The GPU's name; on a CPU the warning that belongs beside every number."""
    return f"{summary.processor}, emulated capture" if summary.emulated else summary.processor


def placed(phase: str, context_len: int) -> str:
    """`prefill, context 4096`."""
    return f"{phase}, context {context_len}"
