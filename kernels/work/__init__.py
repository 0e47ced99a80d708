"""How much a kernel must compute and move, from its shapes alone; one module a kernel. Standard library.

Counted as the authors of FlashMLA and DeepGEMM count for their own figures, so that rates compare: products only, two
FLOP a multiply-add; each operand and result once, but of gathered rows every gather.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Work:
    """FLOP and bytes of one launch."""

    flops: int
    bytes: int
