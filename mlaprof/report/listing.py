"""What can be told without a run: the plan of a study, what there is to choose from, and this machine."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mlaprof.kernels import tiles
from mlaprof.machine.checks import Warning_
from mlaprof.plan import Plan
from mlaprof.records import Environment
from mlaprof.report.units import megahertz, size
from mlaprof.shapes import PRESETS
from mlaprof.store import RunEntry
from mlaprof.study import MODE_SUMMARY, kernel_dims


def print_plan(plan: Plan, console: Console) -> None:
    """Jobs with their cells, then what is skipped and why."""
    table = _table("job", "kind", "cells", "first", "last")
    for number, job in enumerate(plan.jobs, start=1):
        first, last = job.points[0].key, job.points[-1].key
        table.add_row(str(number), job.kind, str(len(job.points)), first, last if last != first else "")
    console.print(table)
    for reason, count in Counter(skip.outcome.reason for skip in plan.skips).items():
        console.print(Text(f"skipped {count}: {reason}"), soft_wrap=True)
    console.print(Text(f"{len(plan)} measurements in {len(plan.jobs)} worker processes; nothing was run"))


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


def print_kernels(console: Console) -> None:
    """Tunable kernels with their tile fields and the default of every preset."""
    table = _table("kernel", "tile fields", "default tiles by preset")
    for kernel in tiles.KERNELS:
        labels: dict[str, list[str]] = {}
        for name, shape in PRESETS.items():
            chosen = tiles.default(kernel, kernel_dims(shape))
            labels.setdefault(tiles.label(kernel, tiles.as_values(chosen)), []).append(name)
        defaults = "; ".join(f"{label} ({', '.join(names)})" for label, names in labels.items())
        table.add_row(kernel, ", ".join(tiles.field_names(kernel)), defaults)
    console.print(table)


def print_runs(runs: Sequence[RunEntry], console: Console) -> None:
    if not runs:
        console.print("no runs yet; `mlaprof sweep configs/quickstart.yaml` makes one")
        return
    table = _table("run", "created (UTC)", "device", "recorded", "file")
    for entry in runs:
        manifest = entry.manifest
        recorded = f"{entry.recorded}/{len(manifest.planned)}"
        created = manifest.created_at[:16].replace("T", " ")
        table.add_row(manifest.run_id, created, manifest.device, recorded, str(entry.path))
    console.print(table)


def print_environment(environment: Environment, warnings: Sequence[Warning_], console: Console) -> None:
    """This machine, and what on it speaks against a number."""
    table = _table("fact", "value", headers=False)
    for gpu in environment.gpus:
        limits = [f"{gpu.power_limit_w:.0f} W" if gpu.power_limit_w else "", _clock(gpu.sm_clock_max_hz)]
        facts = [gpu.name, size(gpu.memory_bytes), f"sm {gpu.compute_capability}", f"driver {gpu.driver}", *limits]
        table.add_row("GPU", ", ".join(part for part in facts if part))
    if not environment.gpus:
        table.add_row("GPU", "none")
    table.add_row("NVML", environment.nvml)
    table.add_row("CPU", f"{environment.cpu}, {environment.cpu_count} cores, {size(environment.memory_bytes)}")
    table.add_row("system", f"{environment.os}, Python {environment.python}")
    table.add_row("packages", ", ".join(f"{name} {version}" for name, version in environment.packages.items()))
    commit = environment.git_commit or "not a git checkout"
    table.add_row("mlaprof", f"{commit[:12]}{' with local changes' if environment.git_dirty else ''}")
    for name, value in environment.variables.items():
        table.add_row(name, value)
    console.print(table)
    print_warnings(warnings, console)


def print_warnings(warnings: Sequence[Warning_], console: Console) -> None:
    """One line each, ending with what to do."""
    for found in warnings:
        line = f"warning: {found.what}: {found.why}. {found.next_step}"
        console.print(Text(line, style="yellow"), soft_wrap=True)


def _clock(hertz: float | None) -> str:
    return f"max {megahertz(hertz)}" if hertz else ""


def _table(*columns: str, headers: bool = True) -> Table:
    table = Table(show_header=headers, box=None, pad_edge=False)
    for name in columns:
        table.add_column(name, overflow="fold")
    return table
