"""Numbers to text: seconds, bytes, hertz and ratios, one unit a table."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from mlaprof.analysis.stats import Estimate


@dataclass(frozen=True)
class Unit:
    """`name` is `scale` base units, e.g. us is 1e-6 s."""

    name: str
    scale: float

    def text(self, value: float) -> str:
        """The number alone, about four significant digits."""
        return significant(value / self.scale)


SECONDS = (Unit("ns", 1e-9), Unit("us", 1e-6), Unit("ms", 1e-3), Unit("s", 1.0))
BYTES = (Unit("B", 1.0), Unit("KiB", 2.0**10), Unit("MiB", 2.0**20), Unit("GiB", 2.0**30))


def time_unit(values: Iterable[float]) -> Unit:
    """The unit in which the geometric mean of `values` (seconds) lies between 1 and 1000."""
    return _unit_of(values, SECONDS)


def size_unit(values: Iterable[float]) -> Unit:
    """The unit in which the geometric mean of `values` (bytes) lies between 1 and 1024."""
    return _unit_of(values, BYTES)


def seconds(value: float) -> str:
    """`123.4 us`."""
    unit = time_unit([value])
    return f"{unit.text(value)} {unit.name}"


def size(value: float) -> str:
    """`1.250 GiB`; whole bytes below 1 KiB."""
    unit = size_unit([value])
    return f"{int(value)} B" if unit.name == "B" else f"{unit.text(value)} {unit.name}"


def megahertz(value: float) -> str:
    """`1980 MHz`."""
    return f"{value / 1e6:.0f} MHz"


def significant(value: float) -> str:
    """Four significant digits without an exponent; whole numbers from 1000 up."""
    magnitude = abs(value)
    decimals = 0 if magnitude >= 1000 else 1 if magnitude >= 100 else 2 if magnitude >= 10 else 3
    return f"{value:.{decimals}f}"


def plus_minus(estimate: Estimate, sign: str = "±") -> str:
    """The interval's half width as a share of the median: `±0.4%`."""
    percent = 100 * estimate.half_width
    return f"{sign}{percent:.0f}%" if percent >= 10 else f"{sign}{percent:.1f}%"


def share(value: float | None) -> str:
    """`97.2%`, rounded down: 100.0% is all of it."""
    return "" if value is None else f"{math.floor(1000 * value) / 10:.1f}%"


def percent(value: float) -> str:
    """`97%`; `<1%` and `>99%` where 0% and 100% would not be exact."""
    return "<1%" if 0 < value < 0.005 else ">99%" if 0.995 <= value < 1 else f"{value:.0%}"


def signed(value: float, unit: Unit) -> str:
    """`+12.34`, `-12.34`; a bare 0 for nothing."""
    return f"{'+' if value > 0 else ''}{unit.text(value)}" if value else "0"


def times(ratio: float) -> str:
    """`7.3x`; whole numbers from 100 up."""
    return f"{ratio:.0f}x" if ratio >= 99.95 else f"{ratio:.1f}x"


def faster(ratio: float) -> str:
    """A speed-up (above 1 is faster) in words: `1.12x faster`, `1.05x slower`, `same` where two digits show none."""
    if ratio <= 0 or not math.isfinite(ratio):
        raise ValueError(f"ratio: expected a positive number, got {ratio}")
    factor, word = (ratio, "faster") if ratio >= 1 else (1 / ratio, "slower")
    return "same" if factor < 1.005 else f"{factor:.2f}x {word}"


def change(ratio: float) -> str:
    """A ratio new / base of times in words: below 1 is faster."""
    return faster(1 / ratio)


def _unit_of(values: Iterable[float], units: tuple[Unit, ...]) -> Unit:
    logs = [math.log(value) for value in values if value > 0]
    if not logs:
        return units[0]
    # 0.9995 shows as 1.000, so it belongs to the larger unit already.
    centre = math.exp(sum(logs) / len(logs)) * 1.0005
    return max((unit for unit in units if unit.scale <= centre), key=lambda unit: unit.scale, default=units[0])
