"""The one wall of checks: shape, dtype, device and contiguity of a tensor that a launcher was given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor


def check_tensor(
    name: str,
    x: Tensor,
    *,
    shape: Sequence[int | str],
    dtype: torch.dtype | tuple[torch.dtype, ...],
    device: torch.device | None = None,
    contiguous: Literal["none", "last", "all"] = "last",
) -> tuple[int, ...]:
    """Return the sizes of the wildcard dimensions of x, in order, once x is what the caller expects.

    shape       sizes; a string such as "*" or "num_tokens" matches any size and is what the complaint shows
    dtype       one, or a tuple of those allowed
    device      where the other operands live; None accepts any
    contiguous  "last": elements of a row are adjacent; "all": rows too; "none": any strides

    Raises ValueError that names the tensor, what was expected and what came.
    """
    got = x.shape
    if len(got) != len(shape):
        raise _wrong_shape(name, shape, x)
    sizes = []
    for want, size in zip(shape, got, strict=True):
        if isinstance(want, str):
            sizes.append(size)
        elif want != size:
            raise _wrong_shape(name, shape, x)
    if x.dtype != dtype and not (isinstance(dtype, tuple) and x.dtype in dtype):
        allowed = " or ".join(map(str, dtype)) if isinstance(dtype, tuple) else str(dtype)
        raise ValueError(f"{name}: expected {allowed}, got {x.dtype}")
    if device is not None and x.device != device:
        raise ValueError(f"{name}: expected a tensor on {device}, got one on {x.device}")
    if contiguous == "last" and got and got[-1] > 1 and x.stride(-1) != 1:
        raise ValueError(f"{name}: expected a contiguous last dimension, got strides {x.stride()}")
    if contiguous == "all" and not x.is_contiguous():
        raise ValueError(f"{name}: expected a contiguous tensor, got shape {list(got)} with strides {x.stride()}")
    return tuple(sizes)


def _wrong_shape(name: str, shape: Sequence[int | str], x: Tensor) -> ValueError:
    return ValueError(f"{name}: expected shape [{', '.join(map(str, shape))}], got {list(x.shape)}")
