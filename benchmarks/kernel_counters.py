"""What the hardware counted during one launch of single kernels: results/reference/kernel-counters-h100.json.

python benchmarks/kernel_counters.py                                   every shape below, under ncu; writes the file
python benchmarks/kernel_counters.py launch KERNEL PROVIDER AXIS=N...  one launch between the profiler's start and stop

Needs an NVIDIA GPU and Nsight Compute. Clocks are left alone, so times differ a little from those of `mlaprof kernels`.
"""

from __future__ import annotations

import csv
import datetime
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

OUT = ROOT / "results" / "reference" / "kernel-counters-h100.json"
METRICS = {
    "gpu__time_duration.sum": "duration_ns",
    "sm__cycles_active.avg": "active_cycles_per_multiprocessor",
    "sm__pipe_tensor_cycles_active.avg.pct_of_peak_sustained_active": "tensor_active_percent",
    "sm__inst_executed_pipe_tensor.sum": "tensor_instructions",
    "smsp__issue_active.avg.pct_of_peak_sustained_active": "issue_active_percent",
    "lts__t_bytes.sum": "l2_bytes",
    "dram__bytes_read.sum": "dram_read_bytes",
    "dram__bytes_write.sum": "dram_write_bytes",
    "l1tex__data_bank_conflicts_pipe_lsu.sum": "shared_bank_conflicts",
    "launch__registers_per_thread": "registers_at_launch",
}
SHAPES = (
    "index_logits hopper num_queries=4096 num_keys=32768",
    "index_logits hopper num_queries=1024 num_keys=4096 causal=1",
    "paged_index_logits hopper batch=64 kv_len=32768",
    "paged_index_logits hopper batch=64 kv_len=4096",
    "topk hopper num_rows=4096 width=4096",
    "topk triton num_rows=4096 width=32768",
    "sparse_attn hopper num_tokens=4096 num_rows=4096 num_heads=128",
    "sparse_attn hopper num_tokens=1024 num_rows=4096 num_heads=64",
    "sparse_attn flash_mla num_tokens=1024 num_rows=4096 num_heads=64",
    "sparse_attn hopper num_tokens=128 num_rows=4194304 num_requests=128 num_heads=16",
    "sparse_attn hopper num_tokens=64 num_rows=2097152 num_requests=64 num_heads=128 fp8_cache=1",
    "block_gemm hopper m=4096 n=2112 k=7168",
    "block_gemm deep_gemm m=4096 n=2112 k=7168",
    "block_gemm hopper m=4096 n=7168 k=16384",
    "absorb hopper num_tokens=4096",
)


def main(given: list[str]) -> int:
    if given[:1] == ["launch"]:
        launch(*given[1:])
        return 0
    import torch

    rows = [row for shape in SHAPES for row in rows_of(shape, counted(shape))]
    about = {
        "command": "python benchmarks/kernel_counters.py",
        "date": datetime.date.today().isoformat(),
        "commit": subprocess.check_output(["git", "rev-parse", "HEAD"], cwd=ROOT, text=True).strip(),
        "gpu": torch.cuda.get_device_name(0),
    }
    OUT.write_text(json.dumps(about | {"rows": rows}, indent=1) + "\n")
    return 0


def launch(kernel: str, provider: str, *axes: str) -> None:
    """A few launches to compile and settle, then one with a cold L2 that the profiler sees."""
    import torch

    from mlaprof import kernel_shapes
    from mlaprof.cases import CASES

    shape = kernel_shapes.complete(kernel, {name: int(size) for name, size in (axis.split("=") for axis in axes)})
    run = CASES[kernel](shape, seed=1, device=torch.device("cuda")).call(provider, None)
    flush = torch.empty(32 << 20, dtype=torch.int32, device="cuda")
    for _ in range(3):
        run()
    flush.zero_()
    torch.cuda.synchronize()
    torch.cuda.cudart().cudaProfilerStart()
    run()
    torch.cuda.synchronize()
    torch.cuda.cudart().cudaProfilerStop()


def counted(shape: str) -> str:
    """ncu's CSV of that launch. Raises CalledProcessError where ncu or the launch fails."""
    ncu = ["ncu", "--clock-control", "none", "--profile-from-start", "off", "--metrics", ",".join(METRICS), "--csv"]
    return subprocess.check_output([*ncu, sys.executable, __file__, "launch", *shape.split()], cwd=ROOT, text=True)


def rows_of(shape: str, text: str) -> list[dict[str, Any]]:
    """A row a kernel of the launch: the figures of METRICS under their own names."""
    lines = [line for line in text.splitlines() if line.startswith('"')]
    found: dict[str, dict[str, Any]] = {}
    for each in csv.DictReader(lines):
        values = found.setdefault(each["Kernel Name"], {"shape": shape, "kernel": each["Kernel Name"]})
        values[METRICS[each["Metric Name"]]] = float(each["Metric Value"].replace(",", ""))
    return list(found.values())


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
