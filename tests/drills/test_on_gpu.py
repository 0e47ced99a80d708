"""The drills of a real GPU, as benchmarks/drills.py makes them for results/reference."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytestmark = [pytest.mark.drill, pytest.mark.gpu]


@pytest.mark.timeout(590)
def test_every_fault_of_a_gpu_costs_its_own_cell(place, checkout: Path) -> None:
    """Memory of the GPU is where it was, too."""
    ended = place.run(
        "--out", place.folder / "drills.json", program=(str(checkout / "benchmarks" / "drills.py"),), limit_s=580.0
    )

    assert ended.code == 0, ended.out
    assert json.loads((place.folder / "drills.json").read_text())["wrong"] == []
