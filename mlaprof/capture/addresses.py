"""Where the tensors were that a graph reads, and whether they are still there.

A graph reads addresses, not names: an input, weight or hand-over that has moved since the capture is silently read
where it used to be. TensorRT-LLM compares the addresses under a debug flag only.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from mlaprof.capture.buffers import InputBuffers

SOME_PIECE = "some piece"  # that reads a tensor below an operator, or that nobody watched


class StaleAddress(RuntimeError):
    """A graph would read an address at which its input no longer is."""


@dataclass(frozen=True)
class Read:
    """A tensor that a captured piece reads.

    address   at capture
    now       where it is, None where it is gone
    """

    piece: str
    name: str
    address: int
    now: Callable[[], int | None]

    def check(self) -> None:
        now = self.now()
        if now != self.address:
            place = "is gone" if now is None else f"is at {now:#x}"
            raise StaleAddress(
                f"{self.piece} was captured with {self.name} at {self.address:#x}, which {place}: the graph would "
                "read what is left there"
            )


@dataclass(frozen=True)
class Statics:
    """The tensors that are there before any capture: inputs, parameters and buffers.

    now     by name, where each is. Looked up by name each time, as whoever replaces one does; a view made earlier would
            still be where it was
    names   by id of the tensor that captured code gets
    """

    now: Mapping[str, Callable[[], int | None]]
    names: Mapping[int, str]

    def reads(self, piece: str, *, but: Collection[str] = ()) -> tuple[Read, ...]:
        """All except those named, as read by piece, at the addresses of now."""
        found = ((name, now(), now) for name, now in self.now.items() if name not in but)
        return tuple(Read(piece, name, address, now) for name, address, now in found if address is not None)

    def argument(self, piece: str, name: str, given: Any, kept: Any) -> tuple[Read, ...]:
        """An argument of piece: given now, kept for the runs to come."""
        static = self.names.get(id(given))
        if static is not None:
            return (Read(piece, static, given.data_ptr(), self.now[static]),)
        pairs = zip(tree_leaves(given), tree_leaves(kept), strict=True)
        return tuple(
            Read(piece, name, now.data_ptr(), later.data_ptr) for now, later in pairs if isinstance(now, Tensor)
        )


def statics(module: nn.Module, buffers: InputBuffers, num_tokens: int) -> Statics:
    """Those of module on its first num_tokens rows."""
    state = dict(module.named_parameters(remove_duplicate=False)) | dict(module.named_buffers(remove_duplicate=False))
    inputs = {f"input {name}": view for name, view in zip(buffers.tensors, buffers.slice(num_tokens), strict=True)}
    now = {f"input {name}": _input(buffers, name) for name in buffers.tensors}
    now |= {name: _attribute(module, name) for name in state}
    return Statics(now, {id(tensor): name for name, tensor in (state | inputs).items()})


def _input(buffers: InputBuffers, name: str) -> Callable[[], int | None]:
    return lambda: buffers.tensors[name].data_ptr()


def _attribute(module: nn.Module, name: str) -> Callable[[], int | None]:
    find = operator.attrgetter(name)

    def now() -> int | None:
        try:
            tensor = find(module)
        except AttributeError:
            return None
        return tensor.data_ptr() if isinstance(tensor, Tensor) else None

    return now
