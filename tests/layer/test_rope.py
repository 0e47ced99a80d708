"""Rotary tables against known values and a derivation of their own; the two pairings."""

from __future__ import annotations

import cmath
import math
from dataclasses import replace

import pytest
import torch

from mlaprof.layer.rope import cos_sin_table, inverse_frequencies, rotate
from mlaprof.shapes import PRESETS, RopeShape

CPU = torch.device("cpu")
YARN, PLAIN = PRESETS["v3.2"].rope, PRESETS["glm-5"].rope


def yarn_by_wavelength(rope: RopeShape, dim: int) -> list[float]:
    """The YaRN paper's rule in its own terms, by how often each pair turns within the original context: above beta_fast
    turns a pair keeps its speed, below beta_slow it is slowed by factor; DeepSeek ramps over whole pair numbers."""
    speeds = [rope.theta ** (-2 * pair / dim) for pair in range(dim // 2)]
    turns = [rope.original_max_positions * speed / (2 * math.pi) for speed in speeds]
    last_fast = max(pair for pair, count in enumerate(turns) if count >= rope.beta_fast)
    first_slow = min(pair for pair, count in enumerate(turns) if count <= rope.beta_slow)
    mixed = []
    for pair, speed in enumerate(speeds):
        share = min(max((pair - last_fast) / (first_slow - last_fast), 0.0), 1.0)
        mixed.append(speed * (1 - share) + speed / rope.factor * share)
    return mixed


def test_yarn_frequencies_agree_with_the_paper_counted_in_turns():
    """A second derivation: pairs 0..10 fast, 23.. slowed 40 times, a ramp between."""
    got = inverse_frequencies(YARN, 64)
    assert torch.allclose(got.double(), torch.tensor(yarn_by_wavelength(YARN, 64), dtype=torch.float64), rtol=1e-6)
    base = torch.tensor([10_000.0 ** (-2 * pair / 64) for pair in range(32)])
    ratio = (base / got).tolist()
    assert ratio[:11] == pytest.approx([1.0] * 11, rel=1e-6)
    assert ratio[23:] == pytest.approx([40.0] * 9, rel=1e-5)
    assert ratio[10:24] == sorted(ratio[10:24])


def test_plain_frequencies_are_powers_of_theta():
    """GLM-5: theta 1e6, no scaling; the first pair turns one radian a token."""
    got = inverse_frequencies(PLAIN, 64).tolist()
    assert got == pytest.approx([1_000_000.0 ** (-pair / 32) for pair in range(32)], rel=1e-6)
    assert got[0] == 1.0


@pytest.mark.parametrize(
    "preset,scale", [("v3.2", 0.135234), ("v3.2-tp8", 0.135234), ("glm-5", 0.0625), ("tiny", 0.135234)]
)
def test_softmax_scale_is_mscale_squared_over_the_root_of_the_unabsorbed_head(preset, scale):
    """V3.2: 1.36889^2 / sqrt(192); GLM-5 without YaRN: 1 / sqrt(256) exactly."""
    assert PRESETS[preset].softmax_scale == pytest.approx(scale, abs=1e-6)


def test_mscale_of_v3_2():
    """0.1 * ln(40) + 1, and 1 wherever the context is not stretched."""
    assert YARN.softmax_mscale == pytest.approx(1.36889, abs=1e-5)
    assert PLAIN.softmax_mscale == 1.0
    assert replace(PLAIN, mscale_all_dim=1.0).softmax_mscale == 1.0


def test_the_table_holds_cosines_then_sines():
    """[positions, 2, dim/2] fp32; position 0 turns nothing; the magnitude is 1 where both mscales agree."""
    table = cos_sin_table(YARN, 64, 70, CPU)
    assert table.shape == (70, 2, 32) and table.dtype == torch.float32
    assert torch.equal(table[0], torch.stack((torch.ones(32), torch.zeros(32))))
    speeds = yarn_by_wavelength(YARN, 64)
    want = torch.tensor([[[math.cos(p * s) for s in speeds], [math.sin(p * s) for s in speeds]] for p in range(70)])
    assert torch.allclose(want, table, atol=1e-5)


def test_the_tables_magnitude_is_the_ratio_of_the_two_mscales():
    """mscale 1 over mscale_all_dim 0 leaves 1.36889 in the table and none in the softmax scale."""
    rope = replace(YARN, mscale_all_dim=0.0)
    table = cos_sin_table(rope, 64, 3, CPU)
    assert table[0, 0].tolist() == pytest.approx([1.36889] * 32, abs=1e-5)
    assert rope.softmax_mscale == 1.0


@pytest.mark.parametrize("interleaved", [True, False], ids=["pairs (2i, 2i+1)", "halves (i, i + dim/2)"])
@pytest.mark.parametrize("heads", [(), (3,)], ids=["no heads", "heads"])
def test_rotation_is_multiplication_by_a_unit_complex_number(interleaved, heads):
    """Element by element with Python's own complex numbers."""
    x = torch.randn(4, *heads, 8)
    table = cos_sin_table(PLAIN, 8, 100, CPU)[torch.tensor([0, 1, 50, 99])]
    got = rotate(x, table, interleaved=interleaved)
    assert got.dtype == x.dtype and got.shape == x.shape
    rows, results = x.reshape(4, -1, 8), got.reshape(4, -1, 8)
    for token, position in enumerate((0, 1, 50, 99)):
        for head in range(rows.shape[1]):
            for pair in range(4):
                a, b = (2 * pair, 2 * pair + 1) if interleaved else (pair, pair + 4)
                angle = position * 1_000_000.0 ** (-pair / 4)
                turned = complex(rows[token, head, a], rows[token, head, b]) * cmath.exp(1j * angle)
                assert complex(results[token, head, a], results[token, head, b]) == pytest.approx(turned, abs=2e-5)


@pytest.mark.parametrize("interleaved", [True, False])
def test_products_depend_on_the_distance_only(interleaved):
    """What rotary embeddings are for: q at p against k at p - d is the same for every p."""
    q, k = torch.randn(1, 64), torch.randn(1, 64)
    table = cos_sin_table(PLAIN, 64, 600, CPU)
    dots = [
        float(
            (
                rotate(q, table[p : p + 1], interleaved=interleaved)
                * rotate(k, table[p - 17 :][:1], interleaved=interleaved)
            ).sum()
        )
        for p in (17, 40, 599)
    ]
    assert dots == pytest.approx([dots[0]] * 3, abs=1e-2)
