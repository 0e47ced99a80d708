"""What a list of capture sizes costs in device memory and in seconds of start-up, of the sizes that a run captured.

Sizes are captured largest first into one pool, so the largest one makes the pool and each further one adds little: an
allocator's segment here and there, and its graphs' driver memory. That little jumps by whole segments from size to
size, so a further size counts for the mean of those measured below the largest; with hand-overs held weakly, of all
that were measured. A list whose largest size is smaller than the run's needs a smaller pool: tensors in it have a row a
token, so it is taken in proportion to tokens, a prediction that `--measure` puts to the test.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mlaprof.facts import SizeFacts
from mlaprof.sizing.steps import Floats, Ints


@dataclass(frozen=True, eq=False)
class CaptureCost:
    """Measured costs by captured size, ascending; bytes of pool and driver memory, seconds until the first replay."""

    tokens: Ints
    bytes: Floats | None  # what each added; the last made the pool. None: the run has no memory ledger
    seconds: Floats
    hold: str = ""

    def memory(self, largest: Ints, further: Ints) -> Floats | None:
        """Bytes of lists of one size `largest` and so many `further`, smaller ones; None without a ledger."""
        if self.bytes is None:
            return None
        first = self.bytes[-1] * largest / self.tokens[-1]
        return np.asarray(np.ceil(first + further * self._mean_below(self.bytes, largest)))

    def capture_s(self, largest: Ints, further: Ints) -> Floats:
        """Seconds of capture, instantiation and first replay of such lists."""
        first = np.interp(largest, self.tokens, self.seconds)
        return np.asarray(first + further * self._mean_below(self.seconds, largest))

    def spread_bytes(self) -> tuple[float, float] | None:
        """Least and most that a further size added; None where none was measured."""
        if self.bytes is None or self.bytes.size < 2:
            return None
        return float(self.bytes[:-1].min()), float(self.bytes[:-1].max())

    def _mean_below(self, values: Floats, largest: Ints) -> Floats:
        """The mean over measured sizes below each `largest`, at least the smallest; of one size alone its own."""
        below = values[:-1] if values.size > 1 else values
        if (
            self.hold == "weak"
        ):  # later sizes live in what the largest made: what one adds does not grow with its tokens
            return np.full(np.shape(largest), below.mean())
        means = np.cumsum(below) / np.arange(1, below.size + 1)
        place = np.searchsorted(self.tokens[: below.size], largest, side="left") - 1
        return means[np.clip(place, 0, below.size - 1)]

    def scaled(self, factor: float) -> CaptureCost:
        return CaptureCost(
            self.tokens, None if self.bytes is None else self.bytes * factor, self.seconds * factor, self.hold
        )


def of_ledger(sizes: tuple[SizeFacts, ...], hold: str) -> CaptureCost | None:
    """The costs in a memory ledger; None where it holds no captured size."""
    made = sorted((each for each in sizes if each.state == "captured"), key=lambda each: each.num_tokens)
    if not made:
        return None
    return CaptureCost(
        np.array([each.num_tokens for each in made], dtype=np.int64),
        np.array([float(each.pool_bytes + (each.driver_bytes or 0)) for each in made]),
        np.array([each.capture_s + each.instantiate_s + each.first_replay_s for each in made]),
        hold,
    )
