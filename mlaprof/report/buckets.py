"""What the engine's rule made of the capture sizes."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console

from mlaprof.buckets import Buckets
from mlaprof.report.lines import print_line


def print_buckets(buckets: Buckets, console: Console) -> None:
    """The sizes that are captured; then those that are not as asked for, each line with its remedy."""
    if buckets.sizes:
        print_line(f"piecewise and breakable graphs of {_listed(buckets.sizes)} tokens", console)
    if buckets.clamped:
        print_line(
            f"warning: capture sizes {_listed(buckets.clamped)} clamped to {buckets.sizes[-1]} tokens, "
            "max_batch_size * (max_seq_len - 1), the most that a step can hold; "
            "next: raise capture.max_seq_len or capture.max_batch_size, or ask for smaller sizes",
            console,
            "yellow",
        )
    if buckets.dropped:
        print_line(
            f"warning: capture sizes {_listed(buckets.dropped)} dropped: above max_num_tokens, so such steps run "
            "eagerly; next: raise capture.max_num_tokens, or ask for smaller sizes",
            console,
            "yellow",
        )


def _listed(sizes: Iterable[int]) -> str:
    return " ".join(map(str, sizes))
