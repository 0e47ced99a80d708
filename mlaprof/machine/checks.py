"""What to know before believing a number: an Environment judged. Warnings are values; the door prints."""

from __future__ import annotations

from dataclasses import dataclass

from mlaprof.machine.environment import built_for_cuda
from mlaprof.records import Device, Environment

# The Triton that each torch release was built and tested with.
TRITON_OF_TORCH = {"2.11": "3.6", "2.13": "3.7", "2.15": "3.9"}

MIN_COMPUTE_CAPABILITY = (9, 0)  # the tiles are drawn up for Hopper

_DISTORTING = {
    "CUDA_LAUNCH_BLOCKING": "every launch waits for the GPU, so host times mean nothing",
    "TRITON_INTERPRET": "Triton kernels are interpreted on the host instead of compiled",
    "TORCHDYNAMO_DISABLE": "the graph is never traced, so piecewise modes cannot be built",
    "PYTORCH_NO_CUDA_MEMORY_CACHING": "the allocator is bypassed, so neither memory nor times are a server's",
}


@dataclass(frozen=True)
class Warning_:
    """One thing to know. code is stable; what and why make the sentence; next_step is a command or a deed."""

    code: str
    what: str
    why: str
    next_step: str


def warnings(environment: Environment, device: Device) -> tuple[Warning_, ...]:
    """All that speaks against the numbers of a run on device, the gravest first."""
    on_gpu = device == "cuda"
    found = _emulation(environment) if not on_gpu else [*_gpu(environment), *_nvml(environment)]
    return (*found, *_host(environment), *_software(environment), *_variables(environment))


def _emulation(environment: Environment) -> list[Warning_]:
    what = "times come from the CPU emulation"
    if not environment.gpus:
        return [
            Warning_(
                "emulated",
                what,
                f"no GPU was found ({environment.nvml})",
                "run on a machine with an NVIDIA GPU",
            )
        ]
    if not built_for_cuda(environment.packages.get("torch")):
        version = environment.packages.get("torch", "none")
        why = f"there is a {environment.gpus[0].name}, but torch {version} is built without CUDA"
        return [Warning_("cpu_torch", what, why, "install a CUDA build of torch")]
    return [Warning_("emulated", what, f"the {environment.gpus[0].name} is not used", "mlaprof sweep --device cuda")]


def _gpu(environment: Environment) -> list[Warning_]:
    found = []
    used = environment.used_gpu
    for gpu in environment.gpus if used is None else environment.gpus[used : used + 1]:
        if gpu.compute_pids:
            pids = ", ".join(map(str, gpu.compute_pids))
            found.append(
                Warning_(
                    "shared_gpu",
                    f"{gpu.name} is also used by process {pids}",
                    "its work slows the measured step and changes the clocks",
                    "wait for it or stop it (nvidia-smi shows it), and sweep again",
                )
            )
        limit, default = gpu.power_limit_w, gpu.power_limit_default_w
        if limit is not None and default is not None and limit < default:
            found.append(
                Warning_(
                    "power_limit",
                    f"{gpu.name} is limited to {limit:g} W",
                    f"its default is {default:g} W, so clocks fall earlier than elsewhere",
                    f"nvidia-smi --power-limit={default:g}",
                )
            )
        if _numbers(gpu.compute_capability) < MIN_COMPUTE_CAPABILITY:
            found.append(
                Warning_(
                    "compute_capability",
                    f"{gpu.name} has compute capability {gpu.compute_capability}",
                    "kernels and tiles are drawn up for 9.0 and may not run",
                    "mlaprof sweep --device cpu",
                )
            )
    if environment.confidential_computing:
        what = "confidential computing is on"
        why = "what CUDA events measure is wrong there, at times negative"  # FlashInfer #3638
        found.append(Warning_("confidential", what, why, "measure on a machine without it"))
    return found


def _host(environment: Environment) -> list[Warning_]:
    found = []
    load, cpus = environment.load_average, environment.cpu_count
    if load is not None and load > cpus:
        what = f"{load:.1f} threads wanted the {cpus} CPUs over the last minute"
        why = "times of the host, and of steps that it limits, are too long"
        found.append(Warning_("busy_host", what, why, "uptime, then wait for the other work or stop it"))
    return found


def _nvml(environment: Environment) -> list[Warning_]:
    if environment.gpus:
        return []
    why = f"NVML does not answer ({environment.nvml})"
    return [Warning_("nvml", "clocks, power and temperature are not recorded", why, "pip install nvidia-ml-py")]


def _software(environment: Environment) -> list[Warning_]:
    found = []
    torch, triton = environment.packages.get("torch"), environment.packages.get("triton")
    mate = TRITON_OF_TORCH.get(_release(torch)) if torch else None
    if triton is None:
        found.append(
            Warning_("no_triton", "tile cells cannot be compiled", "Triton is not installed", "pip install triton")
        )
    elif mate is not None and _release(triton) != mate:
        found.append(
            Warning_(
                "triton_mismatch",
                f"Triton {triton} runs beside torch {torch}",
                f"that torch was built with Triton {mate}",
                f"pip install 'triton=={mate}.*'",
            )
        )
    if environment.git_dirty:
        found.append(
            Warning_(
                "dirty",
                "mlaprof/ or kernels/ has uncommitted changes",
                f"commit {(environment.git_commit or '')[:12]} alone does not tell what was measured",
                "git status",
            )
        )
    return found


def _variables(environment: Environment) -> list[Warning_]:
    return [
        Warning_("variable", f"{name}={environment.variables[name]} is set", why, f"unset {name}")
        for name, why in _DISTORTING.items()
        if environment.variables.get(name, "0") not in ("", "0")
    ]


def _release(version: str) -> str:
    return ".".join(version.split(".")[:2])


def _numbers(capability: str) -> tuple[int, ...]:
    parts = capability.split(".")
    return tuple(map(int, parts)) if all(part.isdecimal() for part in parts) else MIN_COMPUTE_CAPABILITY
