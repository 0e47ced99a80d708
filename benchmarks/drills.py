"""Faults on purpose on a real GPU: each study swept without and with them, and what the two sweeps differ by.

    python benchmarks/drills.py [--device cuda] [--out drills.json]

About four minutes on an H100, most of it starts of workers. Exits 1 where a cell that had no fault is not as in the
sweep without, where a fault is not called by its name, or where anything is left of the sweeps: a process, a temporary
file, memory of the GPU. On a CPU only the faults that one has are injected, which proves the script and no more.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mlaprof import __version__
from mlaprof.config.load import load_study
from mlaprof.drill.expected import Found, Struck, differences, outcomes, with_faults
from mlaprof.machine import environment
from mlaprof.machine.nvml import Nvml
from mlaprof.plan import expand
from mlaprof.records import Device
from mlaprof.study import DRILL_VARIABLE, DrilledFault

Plan = Callable[[Device, list[str]], list[Struck]]

CHECKOUT = Path(__file__).parents[1]
MEASURE = """\
measure: {cache: warm, processes: 1, min_samples: 6, max_samples: 10, warmup_s: 0, memory: false, counts: false,
  twin: false, limits_s: {capture: 25, verify: 25, measure: 12}}
"""
STAGES = f"""\
name: drills
preset: tiny
sweep:
  num_tokens: {{range: [2, 19, 1]}}
  mode: [monolithic_eager, split_eager]
  include: [{{mode: full, num_tokens: 3}}, {{mode: full, num_tokens: 2}}]
{MEASURE}"""
# The kernel of each tile is compiled at the first Point that runs with it.
COMPILER = f"""\
name: compiler
preset: tiny
sweep: {{num_tokens: 5, mode: [monolithic_eager]}}
tiles:
  sparse_attn: [{{block_n: 16, num_warps: 8, num_stages: 1}}, {{block_n: 16, num_warps: 4, num_stages: 1}}]
{MEASURE}"""
SETTLED_S = 3.0  # from the end of a sweep until the driver has taken its memory back
GRANULE_BYTES = 2**21  # of the driver; what is less is nobody's


def cell(num_tokens: int, way: str = "split_eager") -> str:
    return f"tiny/prefill/t{num_tokens}/ctx0/{way}"


def stages(device: Device, keys: list[str]) -> list[Struck]:
    """Faults in the cells of STAGES, largest first, which is the order that they strike in."""
    every = [
        Struck("illegal_address", "capture", cell(19)),
        Struck("illegal_address", "verify", cell(18)),
        Struck("illegal_address", "measure", cell(17)),
        Struck("misaligned_address", "verify", cell(16)),
        Struck("endless_kernel", "measure", cell(15)),
        Struck("device_oom", "verify", cell(14)),
        Struck("host_oom", "measure", cell(13)),
        Struck("abort", "verify", cell(12)),
        Struck("sigkill", "measure", cell(11)),
        Struck("sigint", "verify", cell(10)),
        Struck("sigterm", "capture", cell(9)),
        Struck("rubbish", "verify", cell(8)),
        Struck("nan", "verify", cell(7)),
        Struck("nvml_gone", "measure", cell(6), costs=tuple(key for key in keys if "/t6/" in key)),
        Struck("illegal_address", "capture", cell(3, "full")),
    ]
    return [each for each in every if device == "cuda" or each.fault != "nvml_gone"]  # a CPU has no NVML to lose


def compiler(device: Device, keys: list[str]) -> list[Struck]:
    """Faults of the assembler, in COMPILER; a CPU times no tiles."""
    tiled = [key for key in keys if "sparse_attn=" in key] if device == "cuda" else []
    faults: tuple[DrilledFault, ...] = ("slow_compile", "broken_compiler")
    return [Struck(fault, "verify", key) for fault, key in zip(faults, tiled, strict=False)]


@dataclass(frozen=True)
class Drilled:
    """One study swept without its faults and with them."""

    faults: list[Struck]
    clean: Found
    found: Found
    facts: dict[str, Any]
    wrong: list[str]


def drill(folder: Path, text: str, plan: Plan, device: Device) -> Drilled:
    study = folder / "study.yaml"
    study.write_text(text)
    faults = plan(device, [point.key for job in expand(load_study(study), device).jobs for point in job.points])
    clean_facts, clean = sweep(folder, f"{plan.__name__}-clean", text, device)
    facts, found = sweep(folder, f"{plan.__name__}-drilled", with_faults(text, faults) if faults else text, device)
    wrong = differences(clean, found, faults)
    wrong += [f"clean: {name} is {each}" for name, each in clean.items() if each[0] not in ("ok", "compiled")]
    for name, each in (("clean", clean_facts), ("drilled", facts)):
        wrong += [f"{name}: left {what}" for what in remains(each)]
        wanted = 5 if name == "drilled" and faults else 0
        if each["exit_code"] != wanted:
            wrong.append(f"{name}: expected exit code {wanted}, got {each['exit_code']}")
    return Drilled(faults, clean, found, {"clean": clean_facts, "drilled": facts}, wrong)


def sweep(folder: Path, name: str, text: str, device: Device) -> tuple[dict[str, Any], Found]:
    """Facts and outcomes of one `mlaprof sweep` as a process of its own."""
    (folder / f"{name}.yaml").write_text(text)
    temporary = folder / "temporary"
    temporary.mkdir(exist_ok=True)
    path = folder / f"{name}.mlaprof"
    before_bytes = used_bytes(device)
    began_s = time.monotonic()
    ended = subprocess.run(
        [sys.executable, "-m", "mlaprof", "sweep", f"{name}.yaml", "--device", device, "--out", str(path)],
        cwd=folder,
        env={**os.environ, "TMPDIR": str(temporary), "PYTHONPATH": python_path()},
        capture_output=True,
        text=True,
    )
    print(ended.stderr[-8000:], file=sys.stderr)
    wall_s = time.monotonic() - began_s
    time.sleep(SETTLED_S)
    facts = {
        "exit_code": ended.returncode,
        "wall_s": round(wall_s, 1),
        "gpu_used_before_bytes": before_bytes,
        "gpu_used_after_bytes": used_bytes(device),
        "temporary_files_left": sorted(each.name for each in temporary.iterdir()),
        "processes_left": processes(temporary),
    }
    return facts, outcomes(path)


def python_path() -> str:
    return os.pathsep.join(filter(None, [str(CHECKOUT), os.environ.get("PYTHONPATH", "")]))


def processes(temporary: Path) -> list[str]:
    """Those that run with this folder for temporary files, or one inside."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"TMPDIR={temporary}".encode() in path.read_bytes():
                found.append((path.parent / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:
            continue
    return found


def used_bytes(device: Device) -> int | None:
    """Memory in use on the GPU that the sweep takes, by whomever; None on a CPU."""
    if device != "cuda":
        return None
    with Nvml() as nvml:
        index = nvml.cuda_index()
        if index is None:
            return None
        import pynvml

        return int(pynvml.nvmlDeviceGetMemoryInfo(pynvml.nvmlDeviceGetHandleByIndex(index)).used)


def remains(facts: dict[str, Any]) -> list[str]:
    """What a sweep has left behind."""
    before, after = facts["gpu_used_before_bytes"], facts["gpu_used_after_bytes"]
    grown = [] if before is None or after - before < GRANULE_BYTES else [f"{after - before} bytes on the GPU"]
    return [*facts["temporary_files_left"], *facts["processes_left"], *grown]


def _told(struck: Struck, found: Found) -> dict[str, Any]:
    """One fault of the report: [status, stage, fault] of each cell that it may cost."""
    return {
        "fault": struck.fault,
        "at": struck.at,
        "key": struck.key,
        "expected": list(next(iter(struck.expected.values()))),
        "found": [list(found.get(name, ())) for name in struck.expected],
        "as_expected": all(found.get(name) == want for name, want in struck.expected.items()),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--out", type=Path, default=Path("drills.json"))
    options = parser.parse_args()
    os.environ[DRILL_VARIABLE] = "1"
    with tempfile.TemporaryDirectory(prefix="drills-") as folder:
        pairs = ((STAGES, stages), (COMPILER, compiler))
        drills = [drill(Path(folder), text, plan, options.device) for text, plan in pairs]
    untouched = [
        each.found.get(name) == each.clean[name]
        for each in drills
        for name in each.clean.keys() - {name for struck in each.faults for name in struck.expected}
    ]
    wrong = [line for each in drills for line in each.wrong]
    here = environment.snapshot()
    report = {
        "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "mlaprof": __version__,
        "source_sha256": here.source_sha256,
        "device": options.device,
        "processor": here.processor(options.device),
        "driver": here.gpus[here.used_gpu or 0].driver if here.gpus else None,
        "packages": here.packages,
        "sweeps": [each.facts for each in drills],
        "cells_without_a_fault": len(untouched),
        "of_them_as_in_the_clean_sweep": sum(untouched),
        "faults": [_told(struck, each.found) for each in drills for struck in each.faults],
        "wrong": wrong,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps({"wrong": wrong, "faults": len(report["faults"]), "out": str(options.out)}, indent=1))
    raise SystemExit(1 if wrong else 0)


if __name__ == "__main__":
    main()
