"""What two runs do not share: machine, software, kernels, study."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from mlaprof.analysis.cells import Summary
from mlaprof.analysis.stored import stored_study
from mlaprof.errors import MachineError
from mlaprof.kernels.tiles import label
from mlaprof.records import Environment, Manifest
from mlaprof.study import BatchSpec, BudgetSpec, CaptureSpec, LayerOptions, MeasureSpec, TpSpec

MACHINE = frozenset({"device", "processor", "capture"})  # mismatches that another machine brings
# Notes that are told before all others: what most often explains a change.
WEIGHTY = ("GPU uuid", "driver", "torch", "triton", "kernel source", "git commit")
MEASURED = ("driver", "torch", "triton", "kernel source", "git commit")  # what must be alike to measure a thing again

# What a study stored before a setting existed ran with.
DEFAULTS: dict[str, Any] = {
    "layer": LayerOptions().model_dump(),
    "tp": TpSpec().model_dump(),
    "batch": BatchSpec().model_dump(),
    "capture": CaptureSpec().model_dump(),
    "budget": BudgetSpec().model_dump(),
    "measure": {**MeasureSpec().model_dump(), "processes": 1},
}


@dataclass(frozen=True)
class Difference:
    """A fact that the two runs do not share, e.g. name `driver`."""

    name: str
    base: str
    new: str

    def __str__(self) -> str:
        return f"{self.name} {self.base} -> {self.new}"


def mismatches(base: Summary, new: Summary) -> Iterator[Difference]:
    """What makes ratios of the two runs mean nothing, or something else than a change of the code."""
    for name, before, after in (
        ("device", base.device, new.device),
        ("processor", base.processor, new.processor),
        ("capture", _capture(base), _capture(new)),
        ("cache state", _cache(base), _cache(new)),
    ):
        if before and after and before != after:
            yield Difference(name, before, after)


def refusal(found: Sequence[Difference]) -> MachineError:
    """The error that says why two runs with these mismatches do not compare, and what to do."""
    names = [each.name for each in found]
    remedy = ", or compare them as they are with --cross-machine" if MACHINE.intersection(names) else ""
    return MachineError(
        f"the runs do not compare: they differ in {' and '.join(names)}",
        hint=f"measure both on one machine, one way{remedy}",
    )


def elsewhere(manifest: Manifest, here: Environment) -> Iterator[Difference]:
    """What keeps a machine from measuring once more what a run measured: another processor, or other code."""
    was, is_now = (each.processor(manifest.device) for each in (manifest.environment, here))
    if was != is_now:
        yield Difference("processor", was, is_now)
    before, after = (_environment_facts(each) for each in (manifest.environment, here))
    for name in MEASURED:
        if before.get(name) != after.get(name):
            yield Difference(name, before.get(name, "absent"), after.get(name, "absent"))


def unlike(manifest: Manifest, here: Environment) -> Iterator[Difference]:
    """What keeps a machine from measuring a part of a run that others measure: another processor, or other code.

    A commit that changes no source changes no number.
    """
    yield from (each for each in elsewhere(manifest, here) if each.name != "git commit")
    was, is_now = manifest.environment.source_sha256, here.source_sha256
    if was != is_now:
        yield Difference("source", was[:12], is_now[:12])


def changes_since(manifest: Manifest, here: Environment, version: str) -> Iterator[Difference]:
    """What of code and environment is not as it was when a run began; version is mlaprof's own."""
    before = {**_environment_facts(manifest.environment), "mlaprof": manifest.mlaprof_version}
    after = {**_environment_facts(here), "mlaprof": version}
    for name in dict.fromkeys([*WEIGHTY, *before, *after]):
        # A commit that changes no source changes no number.
        if name != "git commit" and before.get(name) != after.get(name):
            yield Difference(name, before.get(name, "absent"), after.get(name, "absent"))


def other_shape(manifest: Manifest, here: Environment) -> Iterator[Difference]:
    """What keeps a machine from running at all what a run ran: a GPU that is absent, or another one.

    A CPU emulates what any other does.
    """
    if manifest.device == "cpu":
        return
    was, is_now = (_shape(each) for each in (manifest.environment, here))
    if here.used_gpu is None:
        yield Difference("GPU", was.get("GPU", "unknown"), "none that CUDA sees")
        return
    for name in was:
        if name in is_now and was[name] != is_now[name]:
            yield Difference(name, was[name], is_now[name])


def _shape(environment: Environment) -> dict[str, str]:
    """What a kernel finds of the GPU that is used, as far as it is known; empty without one."""
    if not environment.gpus:
        return {}
    gpu = environment.gpus[environment.used_gpu or 0]
    facts = {"GPU": gpu.name, "compute capability": gpu.compute_capability, "SMs": gpu.sm_count, "MIG": gpu.mig}
    return {name: str(value) for name, value in facts.items() if value is not None}


def _capture(summary: Summary) -> str:
    return "emulated" if summary.emulated else "real"


def _cache(summary: Summary) -> str:
    return "+".join(sorted({cell.cache for cell in summary.cells if cell.cache}))


def notes(base: Manifest, new: Manifest) -> Iterator[Difference]:
    """What differs beside that and may explain a change; WEIGHTY ones first."""
    before, after = _facts(base), _facts(new)
    for name in dict.fromkeys([*WEIGHTY, *before, *after]):
        was, is_now = before.get(name, "absent"), after.get(name, "absent")
        if was != is_now:
            yield Difference(name, was, is_now)


def _facts(manifest: Manifest) -> dict[str, str]:
    """What may explain a difference, name -> value."""
    return {
        **_environment_facts(manifest.environment),
        "mlaprof": manifest.mlaprof_version,
        **_study_facts(manifest.study_yaml),
        "tuned tiles": _tuned(manifest),
    }


def _tuned(manifest: Manifest) -> str:
    """The tiles that libraries served; which libraries were asked says less."""
    served = {
        f"{use.form} {label(use.form, use.values)} at t{use.num_tokens} {use.way}"
        for use in manifest.tuned
        if use.values is not None
    }
    return ", ".join(sorted(served)) or "none"


def _environment_facts(environment: Environment) -> dict[str, str]:
    return {
        **_gpu_facts(environment),
        "nvml": environment.nvml,
        "os": environment.os,
        "python": environment.python,
        **environment.packages,
        **environment.variables,
        "kernel source": environment.kernel_source_sha256[:12],
        **({"source": environment.source_sha256[:12]} if environment.source_sha256 else {}),
        "git commit": f"{environment.git_commit or 'unknown'}{' (changed)' if environment.git_dirty else ''}",
    }


def _gpu_facts(environment: Environment) -> dict[str, str]:
    if not environment.gpus:
        return {}
    gpu = environment.gpus[environment.used_gpu or 0]
    return {
        "driver": gpu.driver,
        "GPU uuid": gpu.uuid,
        "power limit": "unknown" if gpu.power_limit_w is None else f"{gpu.power_limit_w:g} W",
    }


def _study_facts(study_yaml: str) -> dict[str, str]:
    """What changes the meaning of a key: everything stored but the name, and the axes, which the key itself holds."""
    study = stored_study(study_yaml)
    if study is None:
        return {"study": study_yaml}
    parts = {part: value for part, value in study.items() if part not in ("name", "sweep", "tiles", "tuned")}
    every = [*DEFAULTS.items(), *parts.items()]
    return {name: value for part, inner in every for name, value in _leaves(str(part), inner)}


def _leaves(name: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(f"{name}.{key}", inner)
    else:
        yield name, str(value)
