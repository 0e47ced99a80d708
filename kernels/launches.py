"""What a launch would compile, written down instead of launched, so that another process can compile it beforehand.

A launch compiles for the types, divisibilities and constants of its very arguments. Whatever else compiles the same
beforehand, into Triton's cache on disk, spares the launch its compiler: seconds of it for one configuration of tiles.
"""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import triton
from triton.backends.compiler import GPUTarget

from mlaprof.kernels.cubin import read_cubin
from mlaprof.kernels.offline import Resources, compile_kernel
from mlaprof.kernels.sources.build import source_type
from mlaprof.kernels.tiles import Dims, Tiles


@dataclass(frozen=True)
class Launch:
    """One jit function specialised for the arguments of a launch; plain values that travel between processes."""

    module: str
    name: str
    signature: dict[str, str]
    constants: dict[Any, Any]
    attributes: dict[Any, Any]
    options: dict[str, Any]
    target: dict[str, Any]


@dataclass(frozen=True)
class Offline:
    """Tiles to be compiled as offline.compile_kernel does, where there is no GPU to launch on."""

    form: str
    tiles: Tiles
    dims: Dims
    target: int  # compute capability, 90: Hopper


@dataclass(frozen=True)
class Built:
    """What the compiler made. digest: of every kernel's code and shared memory, equal for equal programs."""

    resources: Resources  # the largest of each over the kernels
    digest: str


def recorded(call: Callable[[], object]) -> list[Launch]:
    """The launches of call that are not compiled in this process yet. They are skipped, those compiled are made.

    So what call computes is of no use. Needs an active driver. Raises what call raises.
    """
    found: list[Launch] = []

    def hook(*, fn: Any, compile: dict[str, Any], **_: object) -> bool:
        told = json.loads(compile["specialization_data"])
        target = told.get("target") or triton.runtime.driver.active.get_current_target().__dict__
        found.append(
            Launch(
                module=fn.module,
                name=fn.name,
                signature=compile["signature"],
                constants=compile["constants"],
                attributes=compile["configs"][0],
                # JSON knows no tuples, and the options are part of the key under which Triton keeps what it compiled.
                options={name: _as_tuple(value) for name, value in told["options"].items()},
                target=dict(target),
            )
        )
        return True

    before = triton.knobs.runtime.jit_cache_hook
    triton.knobs.runtime.jit_cache_hook = hook
    try:
        call()
    finally:
        triton.knobs.runtime.jit_cache_hook = before
    return found


def compile_launch(launch: Launch | Offline) -> Any:
    """What Triton makes of it, from its cache or anew. No GPU is needed. Raises Triton's own errors."""
    if isinstance(launch, Offline):
        return compile_kernel(launch.form, launch.tiles, launch.dims, launch.target)
    function = getattr(importlib.import_module(launch.module), launch.name)
    source = source_type(function)(function, launch.signature, launch.constants, launch.attributes)
    return triton.compile(source, target=GPUTarget(**launch.target), options=launch.options)


def build(launches: list[Launch | Offline]) -> Built:
    """Compile every launch. Raises what compile_launch raises; ValueError on no launches."""
    if not launches:
        raise ValueError("launches: expected at least one, got none")
    digest = hashlib.sha256()
    registers = stack_bytes = shared_bytes = 0
    for launch in launches:
        compiled = compile_launch(launch)
        facts, shared = read_cubin(compiled.asm["cubin"]), compiled.metadata.shared
        digest.update(compiled.asm["cubin"])
        digest.update(f"{shared}".encode())
        registers, stack_bytes = max(registers, facts.registers), max(stack_bytes, facts.stack_bytes)
        shared_bytes = max(shared_bytes, shared)
    return Built(Resources(registers, stack_bytes, shared_bytes), digest.hexdigest())


def _as_tuple(value: Any) -> Any:
    return tuple(map(_as_tuple, value)) if isinstance(value, list) else value
