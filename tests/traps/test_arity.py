"""What a trace takes for granted of Op 1: how many tensors it returns, and of which kind."""

from __future__ import annotations

from typing import Any

import pytest
from torch import Tensor

from mlaprof.layer.mla import MLA
from mlaprof.study import LayerOptions

SHORT_MHA = LayerOptions(short_seq_mha_threshold=64)


def short_mha_under_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    """The compile flag is not asked: for short contexts the captured Op 1 returns four tensors of eight."""
    monkeypatch.setattr(
        MLA,
        "short_mha",
        lambda layer, context, positions: 0 < context.metadata.max_ctx_kv_len <= layer.short_seq_mha_threshold,
    )


def test_trap_data_dependent_arity_is_refused(bench, monkeypatch):
    """9 tokens behind 30 are short, 70 are not: the size that fits the trace is captured, the other one named."""
    short_mha_under_compile(monkeypatch)
    bench(70, options=SHORT_MHA).arm("split_piecewise")
    error, outcome = bench(9, 70, options=SHORT_MHA).refusal("split_piecewise")
    assert "mla_dsa_proj" in error.op and "traced with 8 tensors returned, returns 4 for 9 tokens" in str(error)
    assert outcome.status == "skipped"


def test_trap_data_dependent_arity_has_no_name_without_the_fake_check(bench, monkeypatch, without):
    """Unpacking what is not there ends the worker's stage somewhere in generated code."""
    short_mha_under_compile(monkeypatch)
    without.fake_check()
    with pytest.raises(IndexError):
        bench(9, options=SHORT_MHA).arm("split_piecewise")


def wide_latent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Op 1 hands latent_cache over in fp32 where its fake kernel promises the model's dtype."""
    proj = MLA.dsa_proj

    def widen(layer: MLA, *args: Any) -> list[Tensor]:
        parts = proj(layer, *args)
        return [*parts[:3], parts[3].float(), *parts[4:]]

    monkeypatch.setattr(MLA, "dsa_proj", widen)


def test_trap_fake_kernel_that_promises_another_dtype_is_refused(bench, monkeypatch):
    wide_latent(monkeypatch)
    error, outcome = bench().refusal("split_piecewise")
    assert "tensor 3 was traced as (9, 576) torch.bfloat16, is (9, 576) torch.float32" in str(error)
    assert outcome.status == "skipped"


def test_trap_fake_kernel_that_promises_another_dtype_goes_unseen_without_the_fake_check(bench, monkeypatch, without):
    """Until something that was compiled for the promise reads it."""
    wide_latent(monkeypatch)
    without.fake_check()
    planted = bench()
    assert planted.wrong(planted.arm("split_piecewise")) == []
