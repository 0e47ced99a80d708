"""Where a kernel test runs its kernel: interpreted on the CPU, and compiled on the GPU where there is one."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import triton
from torch import Tensor

Launch = Callable[..., Any]


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("+")[0].split(".")[:2])


def _load_interpreter() -> ModuleType:
    spec = importlib.util.spec_from_file_location("kernel_interpreter", Path(__file__).with_name("interpreter.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def start_interpreter() -> Callable[..., Any]:
    """The Interpreter class; skips where Triton's interpreter cannot run a loop."""
    if _version(triton.__version__) < (3, 7) and _version(np.__version__) >= (2, 4):
        pytest.skip("the interpreter of Triton 3.6 cannot run loops with numpy 2.4 or newer")
    return _load_interpreter().Interpreter


@pytest.fixture(scope="session")
def interpreter(start_interpreter: Callable[..., Any]) -> Iterator[Any]:
    process = start_interpreter()
    yield process
    process.close()


@pytest.fixture(params=["interpreted", pytest.param("cuda", marks=pytest.mark.gpu)])
def launch(request: pytest.FixtureRequest) -> Launch:
    """launch("sparse_attn.sparse_attn", ...) runs a launcher on CPU tensors, wherever kernels can run.

    Strides are kept, in-place results land in the caller's tensors.
    """
    if request.param == "interpreted":
        process = request.getfixturevalue("interpreter")
        return lambda name, *args, **kwargs: process.call(*_place(name), *args, **kwargs)
    return _launch_on_gpu


def _place(name: str) -> tuple[str, str]:
    module, function = name.split(".")
    return f"mlaprof.kernels.{module}", function


def _launch_on_gpu(name: str, *args: Any, **kwargs: Any) -> Any:
    module, function = _place(name)
    there = [_to_gpu(arg) for arg in args]
    named = {key: _to_gpu(value) for key, value in kwargs.items()}
    # torch.empty gives NaN in this mode, so an element left unwritten cannot look right.
    torch.use_deterministic_algorithms(True)
    try:
        outcome = getattr(importlib.import_module(module), function)(*there, **named)
    finally:
        torch.use_deterministic_algorithms(False)
    torch.cuda.synchronize()
    for old, new in zip([*args, *kwargs.values()], [*there, *named.values()], strict=True):
        if isinstance(old, Tensor):
            old.copy_(new)
    if isinstance(outcome, tuple):
        return tuple(_to_cpu(each) for each in outcome)
    return _to_cpu(outcome) if isinstance(outcome, Tensor) else outcome


def _to_cpu(x: Tensor) -> Tensor:
    """A copy with the same strides: Tensor.cpu() would make padded rows dense."""
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype).copy_(x)


def _to_gpu(value: Any) -> Any:
    """A copy of the tensor's whole storage, seen through the same strides: Tensor.cuda() would make a slice dense."""
    if not isinstance(value, Tensor):
        return value
    storage = torch.empty(0, dtype=value.dtype).set_(value.untyped_storage())  # type: ignore[call-overload]
    return storage.cuda().as_strided(value.shape, value.stride(), value.storage_offset())
