"""Two independent pieces of work, on two streams where that is asked for. TensorRT-LLM's helper of the same name.

Streams cost host time, so the engine switches this on around graph work only: graphs and eager runs then differ in
concurrency, and a profiler has to say which it timed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from mlaprof.layer.context import ForwardContext

First = TypeVar("First")
Second = TypeVar("Second", bound=Tensor | tuple[Tensor, ...])


def maybe_execute_in_parallel(
    first: Callable[[], First], second: Callable[[], Second], context: ForwardContext
) -> tuple[First, Second]:
    """Both results: first on the current stream, second beside it on the context's auxiliary one, joined before return.

    One after the other unless context.forks. May run inside a capture: fork and join are events.
    """
    if not context.forks:
        return first(), second()
    current = torch.cuda.current_stream()
    aux = context.aux_stream(current)
    fork = current.record_event()
    left = first()
    with torch.cuda.stream(aux):
        aux.wait_event(fork)
        right = second()
        join = aux.record_event()
    current.wait_event(join)
    # Its memory belongs to aux: without this, freeing it would let aux overwrite what current may still read. A capture
    # has no such race, and a block marked in it could not be used again before it ends.
    if not torch.cuda.is_current_stream_capturing():
        for tensor in (right,) if isinstance(right, Tensor) else right:
            tensor.record_stream(current)
    return left, right
