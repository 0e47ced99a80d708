"""Whose turn it is inside a stage that several Points share: read by the parent when the worker is gone."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Protocol, TypeVar


class _Keyed(Protocol):
    @property
    def key(self) -> str: ...


P = TypeVar("P", bound=_Keyed)


class Mark:
    """The key of the Point at work, "" where that is whoever the stage was begun for.

    descriptor  a file that the parent has open, too; a write takes about 1 us and wakes nobody, unlike one to a pipe,
                so it may stand between two samples. None keeps it inside this process
    """

    def __init__(self, descriptor: int | None = None) -> None:
        self.key = ""
        self._descriptor = descriptor

    def __call__(self, key: str) -> None:
        self.key = key
        if self._descriptor is not None:
            os.pwrite(self._descriptor, f"{key}\n".encode(), 0)

    def among(self, points: Sequence[P]) -> list[P]:
        """The Point at work if it is one of these; all of them where nobody knows."""
        return [point for point in points if point.key == self.key] or list(points)
