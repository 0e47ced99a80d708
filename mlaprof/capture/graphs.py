"""What every kind of graph capture offers, on a GPU or emulated on a CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

T = TypeVar("T")


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


class Graph(Protocol):
    """Work recorded once, replayed on the tensors it was recorded with."""

    @property
    def num_nodes(self) -> int:
        """Device operations in one replay; views and allocations are none."""

    def replay(self) -> None:
        """Do the recorded work again, without the Python that led to it."""


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

    def pool_bytes(self) -> int:
        """Memory the pool holds for the graphs alive now."""
