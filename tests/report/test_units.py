from __future__ import annotations

import pytest

from mlaprof.analysis.stats import Estimate
from mlaprof.report.units import (
    SECONDS,
    change,
    faster,
    percent,
    plus_minus,
    seconds,
    signed,
    significant,
    size,
    size_unit,
    time_unit,
    times,
)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0.000 ns"),
        (3.2e-9, "3.200 ns"),
        (1.5e-6, "1.500 us"),
        (123.44e-6, "123.4 us"),
        (999.9e-6, "1.000 ms"),
        (20.4e-3, "20.40 ms"),
        (3725.0, "3725 s"),
    ],
)
def test_seconds_read_in_their_own_unit(value: float, text: str) -> None:
    assert seconds(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.000 KiB"), (98_304, "96.00 KiB"), (80 * 2**30, "80.00 GiB")],
)
def test_sizes_read_in_binary_units(value: int, text: str) -> None:
    assert size(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(1.004, "1.0x"), (7.33, "7.3x"), (99.94, "99.9x"), (99.96, "100x"), (146.4, "146x")],
)
def test_multiples_are_short(value: float, text: str) -> None:
    assert times(value) == text


def test_a_table_has_one_unit_from_all_its_medians() -> None:
    assert time_unit([60e-6, 20e-3]).name == "ms"
    assert time_unit([60e-6, 5e-3]).name == "us"
    assert time_unit([60e-6, 200e-6, 20e-3]).name == "us"
    assert time_unit([]).name == time_unit([0.0]).name == "ns"
    assert size_unit([2**20, 2**21]).name == "MiB"


@pytest.mark.parametrize(
    ("value", "text"), [(0.8766, "0.877"), (12.346, "12.35"), (123.46, "123.5"), (12345.6, "12346")]
)
def test_four_digits_and_never_an_exponent(value: float, text: str) -> None:
    assert significant(value) == text


@pytest.mark.parametrize(
    ("ratio", "text"),
    [
        (1.12, "1.12x faster"),
        (1 / 1.05, "1.05x slower"),
        (1.0, "same"),
        (1.004, "same"),
        (0.997, "same"),
        (8, "8.00x faster"),
    ],
)
def test_a_ratio_is_said_in_words(ratio: float, text: str) -> None:
    assert faster(ratio) == text


def test_a_longer_time_is_slower() -> None:
    assert change(2.0) == "2.00x slower"
    assert change(0.5) == "2.00x faster"


@pytest.mark.parametrize("ratio", [0.0, -1.0, float("inf"), float("nan")])
def test_what_is_no_ratio_is_refused(ratio: float) -> None:
    with pytest.raises(ValueError, match="positive"):
        faster(ratio)


def test_an_interval_is_half_its_width_in_per_cent() -> None:
    assert plus_minus(Estimate(100.0, 99.0, 101.0, 30)) == "±1.0%"
    assert plus_minus(Estimate(100.0, 80.0, 120.0, 30), "+-") == "+-20%"


@pytest.mark.parametrize(
    ("value", "text"), [(0.0, "0%"), (0.001, "<1%"), (0.666, "67%"), (0.9949, "99%"), (0.9999, ">99%"), (1.0, "100%")]
)
def test_a_percentage_of_nothing_or_all_is_exact(value: float, text: str) -> None:
    assert percent(value) == text


@pytest.mark.parametrize(("value", "text"), [(12.34e-6, "+12.34"), (-1.5e-3, "-1500"), (0.0, "0")])
def test_a_change_has_a_sign(value: float, text: str) -> None:
    assert signed(value, SECONDS[1]) == text
