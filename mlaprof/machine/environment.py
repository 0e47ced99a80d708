"""Facts of the machine and the software that can change a number. Judging them is checks.py."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import platform
import re
import subprocess
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

from mlaprof import version
from mlaprof.machine.nvml import Nvml
from mlaprof.records import Environment

PACKAGES = (
    "torch",
    "triton",
    "numpy",
    "scipy",
    "pydantic",
    "safetensors",
    "nvidia-ml-py",
    "cuda-bindings",
    "nvidia-cuda-runtime",
    "nvidia-cuda-runtime-cu12",
    "nvidia-cublas",
    "nvidia-cublas-cu12",
    "nvidia-cudnn-cu12",
    "nvidia-cudnn-cu13",
)
# NVIDIA_REQUIRE_* is a container image's demand on the driver.
# What a group of tensor parallel ranks runs under, whatever the user's shell says. NVLink multicast sums in the switch,
# in another order and only on some machines: off, so that runs of two machines do the same.
RANK_VARIABLES = {"NCCL_NVLS_ENABLE": "0"}
_VARIABLE = re.compile(r"CUDA|CUBLAS|CUDNN|NCCL|TORCH|PYTORCH|TRITON|NVIDIA_(?!REQUIRE)|(OMP|MKL|OPENBLAS)_")
_SECRET = re.compile(r"TOKEN|KEY|SECRET|PASS|CREDENTIAL|AUTH", re.IGNORECASE)
_URL_WITH_USER = re.compile(r"://[^/\s]*@")
_VARIABLE_CHARACTERS = 1000


def snapshot() -> Environment:
    """This machine and this mlaprof, now; what cannot be told is None or says so."""
    with Nvml() as nvml:
        gpus, status, used = nvml.gpus(), nvml.status, nvml.cuda_index()
        cuda_driver, confidential = nvml.cuda_driver, nvml.confidential_computing
    commit, dirty = _git(Path(version.__file__).resolve().parents[1])
    return Environment(
        gpus=gpus,
        nvml=status,
        cpu=_cpu_model(),
        cpu_count=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        os=_os_name(),
        python=platform.python_version(),
        packages=package_versions(),
        kernel_source_sha256=kernel_source_sha256(Path(version.__file__).parent / "kernels"),
        source_sha256=source_sha256(Path(version.__file__).parent),
        git_commit=commit,
        git_dirty=dirty,
        variables=behaviour_variables(os.environ),
        used_gpu=used,
        cuda_driver=cuda_driver,
        confidential_computing=confidential,
        container=_container(),
        load_average=_load_average(),
    )


def cuda_present() -> bool:
    """A GPU is visible and the installed torch was built for CUDA; torch itself stays unimported."""
    if not built_for_cuda(_version("torch")):
        return False
    with Nvml() as nvml:
        return nvml.cuda_index() is not None


def visible_gpus() -> int:
    """How many GPUs CUDA sees."""
    with Nvml() as nvml:
        return next(number for number in itertools.count() if nvml.cuda_index(number) is None)


def other_processes(visible: str | None = None) -> tuple[int, ...]:
    """Processes with a context on the GPU that CUDA calls 0, without this one and its children.

    visible   CUDA_VISIBLE_DEVICES, by default this process's own

    Empty where NVML tells of none, as in some containers; where it tells numbers of the host, ours go unrecognised, so
    ask before a worker has a context.
    """
    with Nvml() as nvml:
        index = nvml.cuda_index(visible=visible)
        pids = () if index is None else nvml.compute_pids(index)
    return tuple(pid for pid in pids if os.getpid() not in (pid, _parent_of(pid)))


def built_for_cuda(torch_version: str | None) -> bool:
    """Whether a torch wheel of this version can use an NVIDIA GPU; `2.13.0+cpu` says that it cannot."""
    if torch_version is None:
        return False
    _, _, build = torch_version.partition("+")
    return not build.startswith(("cpu", "rocm", "xpu"))


def package_versions() -> dict[str, str]:
    """Distribution -> version of the installed ones among PACKAGES."""
    versions = {name: _version(name) for name in PACKAGES}
    return {name: version for name, version in versions.items() if version is not None}


def kernel_source_sha256(folder: Path) -> str:
    """One hash over name and content of folder/*.py in sorted order."""
    return _sha256({path.name: path for path in folder.glob("*.py")})


def source_sha256(folder: Path) -> str:
    """One hash over name and content of every .py below folder, through links, too: kernels is one in a checkout."""
    found = (Path(where, name) for where, _, names in os.walk(folder, followlinks=True) for name in names)
    return _sha256({path.relative_to(folder).as_posix(): path for path in found if path.suffix == ".py"})


def _sha256(files: Mapping[str, Path]) -> str:
    digest = hashlib.sha256()
    for name, path in sorted(files.items()):
        source = path.read_bytes()
        digest.update(f"{name}\0{len(source)}\0".encode() + source)
    return digest.hexdigest()


def behaviour_variables(variables: Mapping[str, str]) -> dict[str, str]:
    """Those that steer torch, Triton, CUDA or the thread pools; never one that may hold a secret."""
    return {
        name: value[:_VARIABLE_CHARACTERS]
        for name, value in sorted(variables.items())
        if _VARIABLE.match(name) and not _SECRET.search(name) and not _URL_WITH_USER.search(value)
    }


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _parent_of(pid: int, processes: Path = Path("/proc")) -> int | None:
    try:
        found = re.search(r"^PPid:\s*(\d+)$", (processes / str(pid) / "status").read_text(), re.MULTILINE)
    except OSError:
        return None
    return int(found[1]) if found else None


def _container(process: Path = Path("/proc/self")) -> str | None:
    """The id of the container that this process runs in, from its control group or from the engine's mounts."""
    # A host sees the mounts of its containers, too, but not upon its own /etc.
    mount_upon_etc = r"/(?:containers|sandboxes)/([0-9a-f]{64})/\S+ /etc/"
    for name, pattern in (("cgroup", r"\b([0-9a-f]{64})\b"), ("mountinfo", mount_upon_etc)):
        with contextlib.suppress(OSError):
            if found := re.search(pattern, (process / name).read_text(errors="replace")):
                return found[1]
    return None


def _load_average() -> float | None:
    try:
        return os.getloadavg()[0]
    except OSError:
        return None


def _cpu_model(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(errors="replace"), re.MULTILINE)
    except OSError:
        found = None
    return found[1].strip() if found else platform.machine() or "unknown"


def _os_name() -> str:
    kernel = f"{platform.system()} {platform.release()}"
    try:
        return f"{platform.freedesktop_os_release()['PRETTY_NAME']}, {kernel}"
    except (OSError, KeyError):
        return kernel


def _git(root: Path) -> tuple[str | None, bool | None]:
    """(commit, whether mlaprof/ or kernels/ differ from it) of the checkout at root; None outside of one."""
    # An mlaprof inside site-packages of somebody else's checkout is not tracked there.
    if _git_answer(root, "ls-files", "--error-unmatch", "mlaprof/__init__.py") is None:
        return None, None
    commit = _git_answer(root, "rev-parse", "HEAD")
    changes = _git_answer(root, "status", "--porcelain", "--", "mlaprof", "kernels")
    return commit, None if changes is None else bool(changes)


def _git_answer(root: Path, *arguments: str) -> str | None:
    # GIT_DIR and its like would point git at another repository; a look must not take the index lock.
    variables = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        answer = subprocess.run(
            ["git", "-C", os.fspath(root), *arguments],
            env={**variables, "GIT_OPTIONAL_LOCKS": "0"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=30,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return answer.stdout.strip()
