"""What every kind of graph capture offers, on a GPU or emulated on a CPU."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch

T = TypeVar("T")
MACHINERY = (os.path.dirname(torch.__file__), os.path.dirname(__file__))  # not where a user's mistake is


class CaptureError(RuntimeError):
    """Something cannot be traced, split or captured.

    op   the operator or source line to blame; empty where it is not known
    """

    def __init__(self, message: str, *, op: str = "") -> None:
        super().__init__(message)
        self.op = op


def first_line(error: BaseException) -> str:
    """The first line of what an error says; its type where it says nothing."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def source_line(error: BaseException) -> str:
    """The innermost line outside torch and this package; of a traced piece, its generated line."""
    frames = traceback.extract_tb(error.__traceback__)
    outside = [frame for frame in frames if not frame.filename.startswith(MACHINERY)] or list(frames)
    frame = outside[-1]
    return f"{frame.filename}:{frame.lineno} {frame.line or frame.name}"


@dataclass(frozen=True)
class Nodes:
    """Device operations of one replay by type; views and allocations are none."""

    kernel: int = 0
    memcpy: int = 0
    memset: int = 0
    other: int = 0

    def __add__(self, other: Nodes) -> Nodes:
        return Nodes(
            self.kernel + other.kernel,
            self.memcpy + other.memcpy,
            self.memset + other.memset,
            self.other + other.other,
        )

    @property
    def total(self) -> int:
        return self.kernel + self.memcpy + self.memset + self.other


class Graph(Protocol):
    """Work recorded once, replayed on the tensors it was recorded with."""

    nodes: Nodes
    ops: tuple[str, ...]  # operators below which its work was recorded, in order; empty where nobody watched
    capture_s: float
    instantiate_s: float
    first_replay_s: float  # until the device is done; 0 where the maker did not make it

    def replay(self) -> None:
        """Do the recorded work again, without the Python that led to it."""


@dataclass(frozen=True)
class Break:
    """The operator call at which a broken capture was ended, to be made eagerly between two graphs."""

    op: str
    func: Callable[..., object]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    def __call__(self) -> object:
        return self.func(*self.args, **self.kwargs)


class GraphMaker(Protocol):
    """Captures any number of graphs into one memory pool."""

    @property
    def emulated(self) -> bool:
        """True where the semantics are a capture's but the times are not."""

    def capture(self, fn: Callable[[], T]) -> tuple[Graph, T]:
        """Record fn and return the graph with fn's result, whose tensors every replay writes again.

        The result holds meaningful values only after the first replay. Raises CaptureError where fn does what a
        capture cannot hold; the maker stays usable.
        """

    def capture_broken(self, fn: Callable[[], T], breaks: Collection[str]) -> tuple[tuple[Graph | Break, ...], T]:
        """Record fn, ending the capture before every operator named in breaks and resuming after it.

        Each graph is replayed as soon as it ends and the operator is then called, so that what follows is recorded on
        real data. An operator of breaks that returns a tensor raises CaptureError: a later graph would go on reading
        the first one. The breaks hold their arguments strongly.
        """

    def disown(self, tree: T) -> T:
        """The same structure with tensors of the pool replaced by views that do not own their memory.

        Once nothing else holds the tensors, later captures may take their blocks.
        """

    def pool_bytes(self) -> int:
        """Memory the pool holds for the graphs alive now."""
