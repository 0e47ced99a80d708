"""Rows of a tuning made by hand: times as they are told, no process behind them."""

from __future__ import annotations

import random
from collections.abc import Sequence

from mlaprof.facts import SearchFacts, Timing
from mlaprof.kernel_shapes import complete
from mlaprof.records import KernelMeasurement, KernelPoint, Outcome
from mlaprof.study import TileChoice, TuneTarget
from mlaprof.tuning.candidates import point_of

TARGET = TuneTarget(kernel="topk", shape=complete("topk", {"num_rows": 64, "width": 4096}))
DEFAULT = TileChoice(
    kernel="topk", values={"block": 4096, "num_warps": 16, "num_pieces": 1, "ambiguous": 64, "num_registers": 0}
)


def tiles(**changed: int) -> TileChoice:
    return TileChoice(kernel="topk", values={**DEFAULT.values, **changed})


def noisy(device_s: float, seed: int, *, spread: float = 0.002, rounds: int = 40) -> tuple[float, ...]:
    draw = random.Random(seed)
    return tuple(device_s * (1 + draw.gauss(0, spread)) for _ in range(rounds))


def timing(samples: Sequence[float]) -> Timing:
    return Timing(
        device_s=tuple(samples),
        submit_s=tuple(samples),
        cache="cold",
        clock="cuda_event",
        warmup_s=0.0,
        first_call_s=0.0,
    )


def final(
    point: KernelPoint, process: int, device_s: float, *, seed: int = 0, spread: float = 0.002
) -> KernelMeasurement:
    samples = noisy(device_s, seed + 100 * process, spread=spread)
    return KernelMeasurement(
        point=point, process=process, outcome=Outcome(status="ok"), emulated=False,
        recorded_at="2026-11-23T10:00:50+00:00", timing=timing(samples),
    )  # fmt: skip


def searched(choice: TileChoice, device_s: float | None, *, number: int = 0, **outcome: str) -> KernelMeasurement:
    return KernelMeasurement(
        point=point_of(TARGET, choice),
        kind="search",
        outcome=Outcome.model_validate(outcome or {"status": "ok"}),
        emulated=False,
        recorded_at=f"2026-11-23T10:00:{number:02}+00:00",
        timing=None if device_s is None else timing([device_s] * 5),
        search=SearchFacts(
            number=number, origin="model", at_s=float(number), check_s=0.1 if device_s is not None else 0.0,
            measure_s=0.1, first_device_s=device_s,
        ),
    )  # fmt: skip
