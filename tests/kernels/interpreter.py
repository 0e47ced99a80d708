"""Triton's CPU interpreter in a process of its own, with the repairs it needs.

TRITON_INTERPRET must be set before triton is imported and then holds for the whole process, so kernels are interpreted
in a child: it reads (module, function, args, kwargs) from stdin and answers (outcome, args, kwargs) on stdout.

Two things are numerically wrong in the interpreters of Triton 3.6 to 3.9 and are replaced here: casts from and to e4m3
(127.99 became 64) and tl.dot of bf16 operands (multiplied as integers). A third is refused by 3.9 alone: a mask made of
a vector's and a scalar's condition, which the compiler takes. `python interpreter.py stock` runs without the repairs,
for the test that notices when a release no longer needs them.
"""

from __future__ import annotations

import importlib
import io
import os
import struct
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any, BinaryIO

import torch

ROOT = Path(__file__).resolve().parents[2]


class Interpreter:
    """Calls functions in the child. In-place results are copied back into the caller's tensors."""

    def __init__(self, *, repaired: bool = True) -> None:
        # The path goes in front: a mlaprof installed from elsewhere must not be what is tested.
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
        self._process = subprocess.Popen(
            [sys.executable, __file__, "repaired" if repaired else "stock"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        )

    def call(self, module: str, function: str, *args: Any, **kwargs: Any) -> Any:
        """module.function(*args, **kwargs), run interpreted. An exception of the child comes back as its own type."""
        assert self._process.stdin is not None and self._process.stdout is not None
        _send((module, function, args, kwargs), self._process.stdin)
        outcome, new_args, new_kwargs = _receive(self._process.stdout)
        if isinstance(outcome, Exception):
            raise outcome
        for old, new in zip([*args, *kwargs.values()], [*new_args, *new_kwargs.values()], strict=True):
            if isinstance(old, torch.Tensor) and old.numel():
                old.copy_(new)
        return outcome

    def close(self) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(timeout=30)
        self._process.stdout.close()


def repair() -> None:
    """Replace the interpreter's float conversion and dot by torch's conversion and numpy's fp32 product."""
    import numpy as np
    import triton.language as tl
    from triton.runtime import interpreter as stock

    original = stock._convert_float
    dtypes = {
        "fp8e4nv": torch.float8_e4m3fn,
        "bf16": torch.bfloat16,
        "fp16": torch.float16,
        "fp32": torch.float32,
        "fp64": torch.float64,
    }
    words = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}

    def convert_float(x: Any, from_dtype: Any, to_dtype: Any, rounding: Any) -> Any:
        if from_dtype.name not in dtypes or to_dtype.name not in dtypes:
            return original(x, from_dtype, to_dtype, rounding)
        raw = torch.from_numpy(np.ascontiguousarray(np.atleast_1d(x)).view(np.uint8))
        values = raw.view(dtypes[from_dtype.name])
        if to_dtype.name == "fp8e4nv":
            values = values.float().clamp(-448, 448)  # the GPU's cast saturates, torch's makes NaN
        values = values.to(dtypes[to_dtype.name])
        return values.view(torch.uint8).numpy().view(words[values.element_size()]).reshape(np.shape(x))

    def as_fp32(handle: Any) -> Any:
        if handle.dtype.name not in ("bf16", "fp8e4nv"):
            return handle.data
        return convert_float(handle.data, handle.dtype, tl.float32, None).view(np.float32)

    def create_dot(self: Any, a: Any, b: Any, d: Any, input_precision: Any, max_num_imprecise_acc: Any) -> Any:
        product = np.matmul(as_fp32(a), as_fp32(b), dtype=d.data.dtype)
        return stock.TensorHandle(product + d.data, d.dtype.scalar)

    masked_load = stock.InterpreterBuilder.create_masked_load

    def create_masked_load(self: Any, ptrs: Any, mask: Any, *rest: Any) -> Any:
        return masked_load(self, ptrs, stock.TensorHandle(mask.data.astype(bool), mask.dtype), *rest)

    stock.InterpreterBuilder.create_masked_load = create_masked_load
    stock._convert_float = convert_float
    stock.InterpreterBuilder.create_dot = create_dot


def serve() -> None:
    """Answer calls until stdin closes."""
    torch.use_deterministic_algorithms(True)  # torch.empty gives NaN, so an element left unwritten cannot look right
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what a kernel prints must not reach the pipe
    while True:
        try:
            module, function, args, kwargs = _receive(sys.stdin.buffer)
        except EOFError:
            return
        try:
            outcome = getattr(importlib.import_module(module), function)(*args, **kwargs)
        except Exception as error:
            outcome = _portable(error)
        _send((outcome, args, kwargs), answers)


def _send(message: Any, pipe: BinaryIO) -> None:
    """torch's own format, because plain pickle cannot carry an e4m3 tensor; its length goes first."""
    body = io.BytesIO()
    torch.save(message, body)
    pipe.write(struct.pack("<Q", body.tell()) + body.getvalue())
    pipe.flush()


def _receive(pipe: BinaryIO) -> Any:
    head = pipe.read(8)
    if len(head) < 8:
        raise EOFError("the other end of the pipe is closed")
    return torch.load(io.BytesIO(pipe.read(*struct.unpack("<Q", head))), weights_only=False)


def _portable(error: Exception) -> Exception:
    """error itself when it is a plain one; else its traceback, because Triton's own exceptions do not pickle."""
    if type(error) in (ValueError, IndexError, TypeError):
        return error
    return RuntimeError("".join(traceback.format_exception(error)))


if __name__ == "__main__":
    if sys.argv[1] == "repaired":
        repair()
    serve()
