"""In a process of its own: a launch under a driver without a GPU, written down, compiled by another process, and made.

Argument: JSON of (kernel, form, shape). Prints JSON: what was recorded, and whether the launch found it compiled.
"""

# ruff: noqa: T201

import json
import sys
from contextlib import suppress

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from mlaprof import kernel_shapes
from mlaprof.cases import CASES, case, sparse_attn
from mlaprof.kernels import tiles
from mlaprof.kernels.launches import recorded
from mlaprof.kernels.stable_keys import make_keys_stable
from mlaprof.tuning.candidates import provider_of
from mlaprof.worker.compilers import Compilers


class NoGpu:
    """What a launch asks of a driver before it loads anything."""

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)


def main() -> None:
    make_keys_stable()
    driver.set_active(NoGpu())
    for module in (case, sparse_attn):
        module.need_device = lambda *arguments: None
    kernel, form, given = json.loads(sys.argv[1])
    shape = kernel_shapes.complete(kernel, given)
    every = list(tiles.space(form, kernel_shapes.dims(kernel, shape)))
    values = tiles.as_values(every[len(every) // 2])
    call = CASES[kernel](shape, seed=0, device=torch.device("cpu")).call(provider_of(form), values)
    launches = recorded(call)
    with Compilers(1) as compilers:
        compilers.submit("one", launches)
        found = []
        while not found:
            found = compilers.done(1.0)
    hits: list[bool] = []
    triton.knobs.compilation.listener = lambda *, cache_hit, **rest: hits.append(cache_hit)
    with suppress(AttributeError):  # this driver cannot load what was compiled
        call()
    built = found[0].built
    registers = built.resources.registers if built else 0
    print(json.dumps({"launches": len(launches), "reason": found[0].reason, "registers": registers, "hits": hits}))


if __name__ == "__main__":
    main()
