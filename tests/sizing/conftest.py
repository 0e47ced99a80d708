"""Costs with planted numbers, and a trace for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from mlaprof.analysis.stats import Estimate
from mlaprof.sizing.capture_cost import CaptureCost
from mlaprof.sizing.costs import Costs
from mlaprof.sizing.curve import curve_of

MIB = 2**20
MakeCosts = Callable[..., Costs]


def exactly(value: float) -> Estimate:
    return Estimate(value, value * 0.99, value * 1.01, 30)


@pytest.fixture(scope="session")
def make_costs() -> MakeCosts:
    """Costs of these (tokens, graph seconds, eager seconds), a pool of 1 KiB a token, 2 MiB and 5 ms a further size."""

    def make(
        rows: Sequence[tuple[int, float, float]] = ((1, 1.0, 2.0), (64, 1.0, 2.0), (256, 2.0, 2.5), (1024, 8.0, 8.0)),
        *,
        padding_share: float = 1.0,
        ledger: bool = True,
    ) -> Costs:
        tokens = np.array([row[0] for row in rows])
        added = np.full(tokens.size, 2.0 * MIB)
        added[-1] = 1024.0 * tokens[-1]
        return Costs(
            way="split_piecewise",
            eager_way="split_eager",
            clock="step",
            clock_name="planted",
            graph=curve_of([(row[0], exactly(row[1])) for row in rows]),
            eager=curve_of([(row[0], exactly(row[2])) for row in rows]),
            capture=CaptureCost(tokens, added if ledger else None, np.full(tokens.size, 0.005), "strong"),
            padding_share=padding_share,
            padded_cells=0,
            layers=2,
            measured_layers=2,
            emulated=False,
        )

    return make
