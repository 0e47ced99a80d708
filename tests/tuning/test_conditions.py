"""The key of a tuned entry: what changes it, and what leaves it alone."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import mlaprof.kernels
from mlaprof.tuning import conditions
from mlaprof.tuning.conditions import source_sha256

KERNELS = Path(mlaprof.kernels.__file__).resolve().parent


@pytest.fixture
def copy(tmp_path, monkeypatch):
    """A copy of kernels/ that the hash is taken of."""
    folder = tmp_path / "kernels"
    shutil.copytree(KERNELS, folder, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(mlaprof.kernels, "__file__", str(folder / "__init__.py"))
    tiles = conditions.tiles.KERNELS
    for module in tiles.values():
        monkeypatch.setattr(module, "__file__", str(folder / "tiles" / Path(module.__file__).name))
    source_sha256.cache_clear()
    yield folder
    source_sha256.cache_clear()


@pytest.mark.parametrize(
    "file,changes",
    [
        ("sparse_attn.py", True),
        ("sparse_combine.py", True),
        ("hopper/sparse_roles.py", True),
        ("tiles/hopper_sparse_decode.py", True),
        ("reference.py", False),
        ("tiles/topk.py", False),
        ("index_logits.py", False),
    ],
)
def test_the_hash_covers_what_a_launch_reaches_and_no_more(copy, file, changes):
    before = source_sha256("sparse_attn")
    (copy / file).write_text((copy / file).read_text() + "\n# another line\n")
    source_sha256.cache_clear()
    assert (source_sha256("sparse_attn") != before) == changes


def test_kernels_have_hashes_of_their_own():
    kernels = ("sparse_attn", "topk", "index_logits", "paged_index_logits", "block_gemm", "absorb", "up_project")
    assert len({source_sha256(kernel) for kernel in kernels}) == len(kernels)
