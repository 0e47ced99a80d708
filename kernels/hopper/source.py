"""A Gluon kernel as Triton's compiler takes it, for compiling where there is no GPU."""

from __future__ import annotations

from triton.experimental.gluon._runtime import GluonASTSource

__all__ = ["GluonASTSource"]
