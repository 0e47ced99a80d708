"""What it costs to join partial results of attention, which both Hopper forms weigh against idle multiprocessors."""

from __future__ import annotations

# Measured on an H100 SXM.
_LAUNCH_US = 2.0  # the second launch itself
_BYTES_A_US = 2.5e6  # partial results, written and read back


def joined_us(values: int) -> float:
    """Microseconds to write this many fp32 values of partial results, read them back and join them; none without."""
    return _LAUNCH_US + 2 * 4 * values / _BYTES_A_US if values else 0.0
