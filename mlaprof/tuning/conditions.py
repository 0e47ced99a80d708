"""Under which conditions a configuration is tuned and holds: the machine, the software, the kernel's own source."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Literal

import mlaprof.kernels
from mlaprof.kernels import tiles
from mlaprof.records import Device, Environment
from mlaprof.study import Launch
from mlaprof.tuning.library import Conditions

PACKAGE = "mlaprof.kernels"
CUDA_RUNTIMES = ("nvidia-cuda-runtime", "nvidia-cuda-runtime-cu12")

# A kernel -> the module of kernels/ with its launcher, where that has another name.
_LAUNCHERS = {"paged_index_logits": "paged_logits", "up_project": "absorb"}
_DTYPES = {
    "sparse_attn": "bf16",
    "index_logits": "e4m3",
    "paged_index_logits": "e4m3",
    "topk": "fp32",
    "block_gemm": "e4m3",
    "absorb": "bf16",
    "up_project": "bf16",
}


def conditions_of(
    environment: Environment,
    device: Device,
    kernel: str,
    shape: Mapping[str, int],
    launch: Launch,
    cache: Literal["cold", "warm"],
) -> Conditions:
    """Those of this machine now. What was emulated on a CPU is kept apart under a name that no GPU has."""
    gpu = environment.gpus[environment.used_gpu or 0] if device == "cuda" and environment.gpus else None
    packages = environment.packages
    cuda = next((packages[name] for name in CUDA_RUNTIMES if name in packages), environment.cuda_driver or "")
    return Conditions(
        kernel=kernel,
        dtypes="bf16, e4m3 rows" if shape.get("fp8_cache") else _DTYPES.get(kernel, ""),
        gpu=gpu.name if gpu else f"emulated on {environment.cpu}",
        sm_count=(gpu.sm_count or 0) if gpu else 0,
        triton=packages.get("triton", ""),
        cuda=cuda if gpu else "",
        source=source_sha256(kernel),
        launch=launch,
        cache=cache,
    )


@cache
def source_sha256(kernel: str) -> str:
    """One hash of every file of kernels/ that a launch of this kernel can reach, of the tiles its own alone.

    Oracles and other kernels' tiles have no part in it, so a change there leaves what was tuned as it is.
    """
    folder = Path(mlaprof.kernels.__file__).parent
    waiting = [folder / f"{_LAUNCHERS.get(kernel, kernel)}.py"]
    waiting += [Path(str(module.__file__)) for name, module in tiles.KERNELS.items() if tiles.kernel_of(name) == kernel]
    found: dict[str, bytes] = {}
    while waiting:
        path = waiting.pop().resolve()
        name = path.relative_to(folder.resolve()).as_posix()
        if name in found:
            continue
        found[name] = path.read_bytes()
        waiting += [each for each in _imported(found[name].decode(), folder) if not _beside(each, folder)]
    digest = hashlib.sha256()
    for name, source in sorted(found.items()):
        digest.update(f"{name}\0{len(source)}\0".encode() + source)
    return digest.hexdigest()


def _imported(source: str, folder: Path) -> list[Path]:
    """The files of kernels/ that a module imports, inside functions too."""
    names: list[str] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    inside = [name.removeprefix(f"{PACKAGE}.") for name in names if name.startswith(f"{PACKAGE}.")]
    paths = [folder / f"{name.replace('.', '/')}.py" for name in inside]
    return [path for path in paths if path.is_file()]


def _beside(path: Path, folder: Path) -> bool:
    return path.parent == folder / "tiles" or path.stem.startswith("reference")
