"""Dispatch jobs: what calling an operator costs the host, for the operators that a step calls."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlaprof.config.load import load_study
from mlaprof.plan import dispatch_plan
from mlaprof.records import Measurement
from mlaprof.worker import dispatching
from mlaprof.worker.jobs import run_job

TINY = "preset: tiny"
PLAIN_MLA = """\
shape:
  {name: plain, hidden_size: 256, num_heads: 4, q_lora_rank: 128, kv_lora_rank: 64, qk_nope_head_dim: 32,
   qk_rope_head_dim: 16, v_head_dim: 32, index_n_heads: 0, index_head_dim: 0, index_topk: 0,
   indexer_rope_interleave: false, max_position_embeddings: 1024, rms_norm_eps: 1.0e-6, intermediate_size: 512}"""


def taxed(path: Path, layer: str, modes: str = "split_eager") -> Measurement:
    study = path / "study.yaml"
    study.write_text(f"name: tax\n{layer}\nnum_layers: 3\nsweep: {{num_tokens: 5, mode: [{modes}]}}\n")
    (job,) = dispatch_plan(load_study(study), "cpu").jobs
    (found,) = [event for event in run_job(job) if isinstance(event, Measurement)]
    assert found.kind == "dispatch"
    return found


@pytest.mark.parametrize(("layer", "ops"), [(TINY, 6), (PLAIN_MLA, 3)], ids=["DSA", "plain MLA"])
def test_the_price_of_a_call_is_told_by_the_way_of_registration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layer: str, ops: int
) -> None:
    """Op 1 and Op 2 a layer, or the one monolithic operator; seconds of one call, by the way it is registered."""
    monkeypatch.setattr(dispatching, "CALLS", 50)
    tax = taxed(tmp_path, layer, "monolithic_eager, full").dispatch

    assert (tax.ops_per_step, tax.calls) == (ops, 50)
    assert min(tax.bare_s, tax.define_s, tax.custom_op_s) > 0


def test_what_goes_wrong_is_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("no dispatcher")

    monkeypatch.setattr(dispatching, "dispatch_tax", broken)
    found = taxed(tmp_path, TINY)

    assert (found.outcome.status, found.outcome.reason) == ("failed", "RuntimeError: no dispatcher")
    assert found.dispatch is None
