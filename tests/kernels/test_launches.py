"""What a launch would compile: recorded instead of launched, and found compiled by the launch that follows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SHAPES = {
    "sparse_attn": {"num_tokens": 4, "num_rows": 256, "num_heads": 16, "topk": 64},
    "sparse_attn@hopper_decode": {"num_tokens": 4, "num_rows": 256, "num_heads": 16, "topk": 64},
    "index_logits@hopper": {"num_queries": 16, "num_keys": 64},
    "block_gemm@hopper": {"m": 64, "n": 256, "k": 256},
}


@pytest.mark.parametrize("form", SHAPES)
def test_a_launch_finds_what_another_process_compiled_for_it(form, tmp_path):
    """The same types, divisibilities, constants and options to the letter: anything else is compiled a second time."""
    kernel = form.partition("@")[0]
    environment = os.environ | {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment.pop("TRITON_INTERPRET", None)
    probe = Path(__file__).with_name("launches_probe.py")
    answer = subprocess.run(
        [sys.executable, str(probe), json.dumps([kernel, form, SHAPES[form]])],
        env=environment, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr[-2000:]
    found = json.loads(answer.stdout.splitlines()[-1])
    assert found["launches"] >= 1 and not found["reason"] and found["registers"] > 0
    assert found["hits"] and all(found["hits"])
