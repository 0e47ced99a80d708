"""The sentence of each finding and of each reference line; a warning ends with what to do next."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from mlaprof.analysis.cells import NOISY_HALF_WIDTH, Cell, CellStatus, Finding, FindingKind, Summary
from mlaprof.analysis.ratios import BoundaryPrice
from mlaprof.facts import Ledger
from mlaprof.report.lines import keys_by_reason
from mlaprof.report.style import STATUS
from mlaprof.report.units import percent, seconds, size, times

RESIDUAL_LIMIT_BYTES = 4 * 2**20  # two granules of the driver; beyond it the ledger misses something

REMARKS: tuple[FindingKind, ...] = ("power_capped",)  # to know, no more: nothing went wrong

_WITHIN_BUDGET = {  # limit -> what to do about its breach
    "syncs": 'find each with torch.cuda.set_sync_debug_mode("error")',
    "d2h": "find what the host reads (.item(), .tolist(), .cpu())",
    "eager_launches": "see which kernels are outside the graphs with `mlaprof graph CONFIG`",
}


def heading(found: Finding) -> str:
    """`warning`, or `note` before what is no ground to doubt a number."""
    return "note" if found.kind in REMARKS else "warning"


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
        case "irreproducible":
            return _irreproducible(found, summary)
        case "missing":
            return f"{cells} not measured yet. Finish with `mlaprof sweep --resume RUN`."
        case "over_budget":
            return _over_budget(found, summary)
        case "unbudgeted":
            return (
                f"{cells} without counts, so the budget was not checked there. "
                "Leave measure.counts on, and sweep again or `mlaprof sweep --resume RUN`."
            )
        case "not_captured":
            return _not_captured(found, summary)
        case "fell_back":
            largest = max(cell.num_tokens for cell in _cells(found, summary))
            return (
                f"{cells} fell back to eager, as no captured size reaches so many tokens: the mode's times there are "
                f"eager ones. Add a size of {largest} or more to capture.sizes, within capture.max_num_tokens, and "
                "sweep again."
            )
        case "incomplete":
            return (
                f"{cells} with incomplete counts: kernels seen and kernels asked for differ, or the steps do. Read the "
                "counts as lower bounds, and sweep again where they matter."
            )
        case "partial":
            return f"{cells} lack a part (notes below). Complete with `mlaprof sweep --resume RUN`."
        case "noisy":
            limit = f"{NOISY_HALF_WIDTH:.0%}"
            return (
                f"{cells} with a confidence interval beyond ±{limit} of the median, though measure.ci_half_width asks "
                "for less. Quiet the machine, or let a cell take longer (--rigorous, or measure.cell_time_s and "
                "measure.max_samples), and sweep again."
            )
        case "throttled":
            names = sorted({name for cell in _cells(found, summary) for name in cell.clock_events})
            why = f" ({', '.join(names)})" if names else ""
            return (
                f"{cells} timed while the GPU held its clocks down{why}: the times are those of a slowed GPU, and "
                "`mlaprof compare` gives no verdict on them. See `mlaprof doctor`, let the GPU cool, and sweep again."
            )
        case "power_capped":
            most = max(cell.power_capped for cell in _cells(found, summary))
            return (
                f"{cells} under the GPU's power cap in up to {most:.0%} of the rounds. That is a regime, no error: "
                "compare them with runs under the same power limit alone."
            )
        case "ranks_disagree":
            kernels = sorted(
                {name for cell in _cells(found, summary) if cell.ranks for name in cell.ranks.disagreement}
            )
            return (
                f"{cells} timed with other tiles on one rank than on another ({', '.join(kernels)}): the spread of "
                "the ranks holds what the tiles differ by. Use GPUs of one kind, or name one configuration for all "
                "under tiles: in the study, and sweep again."
            )
        case "shared_gpu":
            most = max(cell.other_processes for cell in _cells(found, summary))
            others = "another process" if most == 1 else f"up to {most} other processes"
            return (
                f"{cells} timed beside {others} on the same GPU: the times hold what those took. "
                "Stop them (`nvidia-smi` names them), and sweep again without --shared-gpu."
            )
        case "contended":
            most = max(cell.cpu_wait or 0.0 for cell in _cells(found, summary))
            return (
                f"{cells} timed while others were at work on the worker's CPUs, and no quieter when timed again: it "
                f"waited for a CPU up to {most:.0%} of the time, which submit, latency and sustained times hold. "
                "Stop them, or leave each GPU more CPUs, and sweep again."
            )
        case "self_synchronising":
            return (
                f"{cells} with a step that waits for the device itself: its device time holds launch gaps, its submit "
                "time waits. Find the synchronisation with torch.cuda.set_sync_debug_mode, and sweep again."
            )
        case "host_bound":
            return _host_bound(found, summary)
        case "emulated":
            return (
                "Capture was emulated on the CPU: correctness carries over to a GPU, times do not, and what is counted "
                "as a kernel is an operator. "
                "Run the same sweep with --device cuda for numbers."
            )


def _cells(found: Finding, summary: Summary) -> list[Cell]:
    keys = set(found.keys)
    return [cell for cell in summary.cells if cell.key in keys]


def _host_bound(found: Finding, summary: Summary) -> str:
    """The worst cell with its times in service, or with its submit time in runs of before service was timed."""
    cells = _cells(found, summary)
    worst = max(cells, key=lambda cell: _host_factor(cell) or 0.0)
    factor = times(_host_factor(worst) or 0.0)
    are = "1 cell is" if len(cells) == 1 else f"{len(cells)} cells are"
    if worst.sustained_s and worst.warm_device_s:
        taken, needed = seconds(worst.sustained_s.median), seconds(worst.warm_device_s.median)
        return (
            f"{are} host-bound: step behind step, as in service, one takes up to {factor} what the device works on it "
            f"({taken} where {needed} are work, {worst.key}), so a speed-up of device time is not what service sees. "
            "Read the sustained time beside it (`sustained_s` in JSON), and capture more of the step to submit it "
            "faster."
        )
    return (
        f"{are} host-bound: to submit a step takes the host up to {factor} its device time ({worst.key}). In service "
        "the step takes at least its submit time there, so a speed-up of device time is not what service sees. Read "
        "the speed-up of submit time beside it (`mlaprof plot RUN`, `submit_speedup` in JSON), and capture more of "
        "the step to submit it faster."
    )


def _host_factor(cell: Cell) -> float | None:
    """By what a step in service exceeds the device's work on it; where that was not timed, submit over device time."""
    if cell.sustained_s and cell.warm_device_s and cell.warm_device_s.median > 0:
        return cell.sustained_s.median / cell.warm_device_s.median
    return cell.submit_ratio


def _over_budget(found: Finding, summary: Summary) -> str:
    """Each limit with its worst cell, then what to do."""
    breaches = [(each, cell.key) for cell in summary.cells for each in cell.breaches]
    names = [name for name in _WITHIN_BUDGET if any(each.name == name for each, _ in breaches)]
    worst = [max((pair for pair in breaches if pair[0].name == name), key=lambda pair: pair[0].got) for name in names]
    told = ", ".join(f"{each.name} {each.got} where {each.limit} are allowed ({key})" for each, key in worst)
    cells = "1 cell exceeds" if len(found.keys) == 1 else f"{len(found.keys)} cells exceed"
    remedies = "; ".join(_WITHIN_BUDGET[name] for name in names)
    return f"{cells} the budget, at worst {told}. To mend it {remedies}."


def _irreproducible(found: Finding, summary: Summary) -> str:
    """The baselines whose twin ended another way, by how it ended."""
    cells = _cells(found, summary)
    told = keys_by_reason((cell.twin_trouble, cell.key) for cell in cells)
    baselines = "1 baseline is" if len(cells) == 1 else f"{len(cells)} baselines are"
    return (
        f"{baselines} not reproducible: the same step, timed again in the same process, ended otherwise: "
        f"{'; '.join(f'{trouble} ({keys})' for trouble, keys in told.items())}. "
        "Believe no speed-up over it: find the race or the memory that is read before it is written, and sweep again."
    )


def _not_captured(found: Finding, summary: Summary) -> str:
    """The sizes of each way with their reasons; the process of a way has many cells, each size counts once."""
    sizes = {
        (placed(cell.phase, cell.context_len), cell.way, size.num_tokens): size.reason
        for cell in summary.cells
        if cell.key in found.keys
        for size in cell.not_captured
    }
    reasons = keys_by_reason(
        (reason or "no reason given", f"{way} {tokens} tokens, {place}")
        for (place, way, tokens), reason in sizes.items()
    )
    told = "; ".join(f"{reason} ({keys})" for reason, keys in reasons.items())
    count = "1 size that was asked for was" if len(sizes) == 1 else f"{len(sizes)} sizes that were asked for were"
    return f"{count} not captured: {told}. Mend that or take the size out of capture.sizes, and sweep again."


def unpriced(prices: Sequence[BoundaryPrice]) -> Iterator[str]:
    """One sentence a reason for which moves of the boundary have no price."""
    moves = ((each.reason, f"{each.mode} {each.start} to {each.end} at {each.num_tokens}") for each in prices)
    for reason, keys in keys_by_reason(move for move in moves if move[0]).items():
        yield f"no price: {reason} ({keys})"


def residuals(ledgers: Mapping[str, Ledger]) -> Iterator[str]:
    """One sentence a way whose ledger misses more than the driver's granules explain."""
    for way, ledger in ledgers.items():
        residual = ledger.residual_bytes
        if residual is not None and abs(residual) > RESIDUAL_LIMIT_BYTES:
            what = "that no part explains" if residual > 0 else "counted twice or freed meanwhile"
            yield f"residual of {way}: {size(abs(residual))} {what}; up to {size(RESIDUAL_LIMIT_BYTES)} is rounding"


def troubles(summary: Summary) -> Iterator[tuple[CellStatus | None, str]]:
    """`at verify: replay differs [check 1 > 0] (keys)` for each outcome and reason, then notes, without an outcome."""
    outcomes: tuple[CellStatus, ...] = ("incorrect", "failed", "missing", "skipped")
    for outcome in outcomes:
        cells = [cell for cell in summary.cells if cell.outcome == outcome]
        for reason, keys in keys_by_reason((_reason(cell), cell.key) for cell in cells).items():
            yield outcome, f"{reason or 'no reason given'} ({keys})"
    for note, keys in keys_by_reason((note, cell.key) for cell in summary.cells for note in cell.notes).items():
        yield None, f"note: {note} ({keys})"
    for line in summary.forced:
        yield None, f"note: gone on with by --force, {line}"


def _reason(cell: Cell) -> str:
    parts = [f"at {cell.stage}:" if cell.stage else "", cell.reason]
    if cell.outcome == "incorrect":
        parts += [
            f"[{c.name} {c.value:.3g} > {c.limit:.3g}]"
            for c in cell.checks
            if not c.passed and c.name not in cell.reason
        ]
    return " ".join(part for part in parts if part)


def conditions(summary: Summary, cells: Sequence[Cell]) -> str:
    """`cold L2, median of n=60 (3 processes), 95% CI, A/A floor 0.5% (n=14), 0.3% between processes` for the timed of
    `cells`; the floor is the run's. Behind it the share of rounds under the power cap, where there are any.
    """
    timed = [cell for cell in cells if cell.device_s]
    if not timed:
        return "nothing timed"
    n = _range([cell.device_s.n for cell in timed if cell.device_s])
    processes = [cell.processes for cell in timed]
    fresh = f" ({_range(processes)} processes)" if max(processes) > 1 else ""
    caches = "+".join(sorted({cell.cache for cell in timed if cell.cache}))
    where = "cache" if summary.device == "cpu" else "L2"
    return f"{caches} {where}, median of n={n}{fresh}{_ranks(timed)}, 95% CI, {_floor(summary)}{_capped(timed)}"


def _ranks(timed: Sequence[Cell]) -> str:
    worlds = sorted({cell.ranks.world for cell in timed if cell.ranks})
    return f", slowest of {_range(worlds)} ranks" if worlds else ""


def _range(counts: Sequence[int]) -> str:
    return f"{min(counts)}" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"


def _floor(summary: Summary) -> str:
    floor = summary.floor
    if floor is None:
        return "no A/A floor"
    between = "" if floor.between is None else f", {floor.between:.1%} between processes"
    return f"A/A floor {floor.ratio:.1%} (n={floor.cells}){between}"


def _capped(timed: Sequence[Cell]) -> str:
    """A regime and no error, so it stands with the conditions."""
    rounds = [(cell.device_s.n, cell.power_capped) for cell in timed if cell.device_s]
    share = sum(n * capped for n, capped in rounds) / sum(n for n, _ in rounds)
    return f", power-capped in {percent(share)} of rounds" if share else ""


def bound(cell: Cell) -> str:
    """`host 7.3x` where a step in service takes 7.3 times the device's work on it, `device`, `mixed`, or nothing."""
    factor = _host_factor(cell)
    return f"host {times(factor)}" if cell.bound == "host" and factor else cell.bound or ""


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
