"""What can be told without a run: the plan of a study, what there is to choose from, and this machine."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from rich.console import Console
from rich.table import Table

from mlaprof.kernels import tiles
from mlaprof.machine.checks import Warning_
from mlaprof.plan import Plan
from mlaprof.records import Environment, Gpu, Job, Kind, Point
from mlaprof.report.lines import print_line
from mlaprof.report.units import megahertz, size
from mlaprof.shapes import PRESETS
from mlaprof.store import RunEntry
from mlaprof.study import BOUNDARY_SUMMARY, MODE_SUMMARY, PR_BOUNDARY, MeasureSpec, kernel_dims


def print_plan(plan: Plan, console: Console) -> None:
    """Jobs with what they measure, in run order, those that do the same in one row, then what is skipped and why."""
    table = _table("job", "kind", "points", "of")
    processes: dict[tuple[Kind, tuple[str, ...]], list[Job]] = {}
    for job in plan.jobs:
        processes.setdefault((job.kind, tuple(point.key for point in job.points)), []).append(job)
    for number, jobs in enumerate(processes.values(), start=1):
        points = jobs[0].points
        for line, described in enumerate(_described(points)):
            head = ("", "", "") if line else (str(number), _kind(jobs), str(len(points)))
            table.add_row(*head, described)
    console.print(table)
    if timed := [jobs for jobs in processes.values() if jobs[0].kind == "timing"]:
        print_line(_timing(max(map(len, timed)), timed[0][0].measure), console)
    for reason, count in Counter(skip.outcome.reason for skip in plan.skips).items():
        print_line(f"skipped {count}: {reason}", console)
    workers = "1 worker process" if len(plan.jobs) == 1 else f"{len(plan.jobs)} worker processes"
    print_line(f"{len(plan)} measurements in {workers}; nothing was run", console)


def _kind(jobs: Sequence[Job]) -> str:
    """`timing`; `timing x3` of three processes; `timing#2` where the second alone is left."""
    first = jobs[0]
    if len(jobs) > 1:
        return f"{first.kind} x{len(jobs)}"
    return f"{first.kind}#{first.process + 1}" if first.process else first.kind


def _timing(processes: int, measure: MeasureSpec) -> str:
    """How a cell is timed, in one line."""
    rounds = f"{measure.min_samples} to {measure.max_samples} rounds"
    how = f"{processes} fresh processes time each cell, {rounds} each" if processes > 1 else f"{rounds} a cell"
    head = f"timing x{processes}" if processes > 1 else "timing"
    known = f"{measure.ci_half_width * 100:g}%"
    return f"{head}: {how}, until medians are known to {known} or {measure.cell_time_s:g} s are over"


def _described(points: Iterable[Point]) -> list[str]:
    """`tiny/prefill/ctx0, tokens 128 64: monolithic_eager, full`, a line for all sizes with the same arms."""
    arms_of_cell: dict[str, list[Point]] = {}
    for point in points:
        arms_of_cell.setdefault(point.cell, []).append(point)
    sizes: dict[tuple[str, str], list[str]] = {}
    for arms in arms_of_cell.values():
        place = f"{arms[0].preset}/{arms[0].phase}/ctx{arms[0].context_len}"
        sizes.setdefault((place, _arms(arms)), []).append(str(arms[0].num_tokens))
    return [f"{place}, tokens {' '.join(tokens)}: {arms}" for (place, arms), tokens in sizes.items()]


def _arms(points: Sequence[Point]) -> str:
    """`full, split_eager` of one cell; with tiles `full with sparse_attn=n64.w4.s3, index_logits=n64`; twins behind."""
    twins = [f"{point.way}/aa" for point in points if point.twin]
    return "; ".join([_named_arms([point for point in points if not point.twin]), *twins])


def _named_arms(points: Sequence[Point]) -> str:
    ways = list(dict.fromkeys(point.way for point in points))
    labels = list(dict.fromkeys(point.tiles_label for point in points))
    if len(points) < len(ways) * len(labels):
        return ", ".join("/".join(part for part in (each.way, each.tiles_label) if part) for each in points)
    tiled = f", each with {', '.join(label or 'default tiles' for label in labels)}" if any(labels) else ""
    return ", ".join(ways) + tiled


def print_presets(console: Console) -> None:
    table = _table("preset", "hidden", "heads", "q_lora", "kv_lora", "qk nope+rope", "v", "index", "top-k", "tp")
    for name, shape in PRESETS.items():
        table.add_row(
            name,
            str(shape.hidden_size),
            str(shape.num_heads),
            str(shape.q_lora_rank),
            str(shape.kv_lora_rank),
            f"{shape.qk_nope_head_dim}+{shape.qk_rope_head_dim}",
            str(shape.v_head_dim),
            f"{shape.index_n_heads}x{shape.index_head_dim}",
            str(shape.index_topk),
            str(shape.tp_size),
        )
    console.print(table)


def print_modes(console: Console) -> None:
    table = _table("mode", "what it is")
    for mode, summary in MODE_SUMMARY.items():
        table.add_row(mode, summary)
    console.print(table)


def print_boundaries(console: Console) -> None:
    """Where the captured part of a layer may end; each boundary includes the steps of those above it."""
    table = _table("boundary", "what is captured")
    for boundary, summary in BOUNDARY_SUMMARY.items():
        table.add_row(f"{boundary} (default)" if boundary == PR_BOUNDARY else boundary, summary)
    console.print(table)


def print_kernels(console: Console) -> None:
    """Tunable kernels with the fields of their tiles, and the default of every preset."""
    fields, defaults = _table("kernel", "fields of its tiles"), _table("kernel", "default tiles", "of presets")
    for kernel in tiles.KERNELS:
        fields.add_row(kernel, ", ".join(tiles.field_names(kernel)))
        presets: dict[str, list[str]] = {}
        for name, shape in PRESETS.items():
            dims = kernel_dims(shape)
            label = tiles.label(kernel, tiles.as_values(tiles.default(kernel, dims)))
            presets.setdefault("(no legal tiles)" if tiles.illegal(kernel, {}, dims) else label, []).append(name)
        for number, (label, names) in enumerate(presets.items()):
            every = len(names) == len(PRESETS)
            defaults.add_row("" if number else kernel, label, "all" if every else ", ".join(names))
    console.print(fields)
    console.print()
    console.print(defaults)


def print_runs(runs: Sequence[RunEntry], console: Console) -> None:
    if not runs:
        console.print("no runs yet; `mlaprof sweep configs/quickstart.yaml` makes one")
        return
    named = all(entry.path.stem == entry.manifest.run_id for entry in runs)
    table = _table("run", "created (UTC)", "device", "recorded", *(() if named else ("file",)))
    for entry in runs:
        manifest = entry.manifest
        recorded = f"{entry.recorded}/{len(manifest.planned)}"
        created = manifest.created_at[:16].replace("T", " ")
        row = (manifest.run_id, created, manifest.device, recorded)
        table.add_row(*row, *(() if named else (entry.path.name,)))
    console.print(table)


def print_environment(environment: Environment, warnings: Sequence[Warning_], console: Console) -> None:
    """This machine, and what on it speaks against a number."""
    table = _table("fact", "value", headers=False)
    for fact, value in environment_rows(environment):
        table.add_row(fact, value)
    console.print(table)
    print_warnings(warnings, console)


def environment_rows(environment: Environment) -> Iterator[tuple[str, str]]:
    """(fact, value) of the machine and the software, those of GPUs first."""
    for number, gpu in enumerate(environment.gpus):
        unused = number != environment.used_gpu
        for name, facts in _facts(gpu).items():
            yield f"{name} (not used)" if unused and name == "GPU" else name, ", ".join(filter(None, facts))
    if not environment.gpus:
        yield "GPU", "none"
    driver = f"CUDA up to {environment.cuda_driver}" if environment.cuda_driver else ""
    secret = _on("confidential computing", environment.confidential_computing)
    yield "NVML", ", ".join(filter(None, (environment.nvml, driver, secret)))
    load = "" if environment.load_average is None else f"load {environment.load_average:.1f}"
    cpu = (environment.cpu, f"{environment.cpu_count} cores", size(environment.memory_bytes), load)
    yield "CPU", ", ".join(filter(None, cpu))
    container = f"container {environment.container[:12]}" if environment.container else ""
    yield "system", ", ".join(filter(None, (environment.os, f"Python {environment.python}", container)))
    yield "packages", ", ".join(f"{name} {version}" for name, version in environment.packages.items())
    commit = environment.git_commit or "not a git checkout"
    yield "mlaprof", f"{commit[:12]}{' with local changes' if environment.git_dirty else ''}"
    yield from environment.variables.items()


def print_warnings(warnings: Sequence[Warning_], console: Console) -> None:
    """One line each, ending with what to do."""
    for found in warnings:
        print_line(f"warning: {found.what}: {found.why}; next: {found.next_step}", console, "yellow")


def _facts(gpu: Gpu) -> dict[str, list[str]]:
    """Rows on a GPU, each a list of what is known; empty texts for what is not."""
    set_hz = gpu.sm_clock_set_hz if gpu.sm_clock_set_hz != gpu.sm_clock_default_hz else None
    rows = {
        "GPU": [
            gpu.name,
            size(gpu.memory_bytes),
            f"sm {gpu.compute_capability}",
            f"{gpu.sm_count} SMs" if gpu.sm_count else "",
            f"driver {gpu.driver}",
            f"{gpu.power_limit_w:.0f} W" if gpu.power_limit_w else "",
        ],
        "clocks": [
            _clock("SM", gpu.sm_clock_hz, gpu.sm_clock_max_hz),
            _clock("memory", gpu.mem_clock_hz, gpu.mem_clock_max_hz),
            f"SM set to {megahertz(set_hz)}" if set_hz else "",
        ],
        "switches": [
            _on("persistence", gpu.persistence),
            _on("ECC", gpu.ecc),
            _on("MIG", gpu.mig),
            f"VBIOS {gpu.vbios}" if gpu.vbios else "",
            f"NUMA node {gpu.numa_node}" if gpu.numa_node is not None else "",
        ],
    }
    return {name: facts for name, facts in rows.items() if any(facts)}


def _clock(name: str, now_hz: float | None, most_hz: float | None) -> str:
    parts = [megahertz(now_hz) if now_hz else "", f"max {megahertz(most_hz)}" if most_hz else ""]
    told = ", ".join(filter(None, parts))
    return f"{name} {told}" if told else ""


def _on(name: str, state: bool | None) -> str:
    return "" if state is None else f"{name} {'on' if state else 'off'}"


def _table(*columns: str, headers: bool = True) -> Table:
    table = Table(show_header=headers, box=None, pad_edge=False)
    for name in columns:
        table.add_column(name, overflow="fold", no_wrap=name in ("run", "job", "kind", "points"))
    return table
