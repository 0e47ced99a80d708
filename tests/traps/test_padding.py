"""Rows behind the batch: an engine pads up to a captured size, and what the padding holds is anybody's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mlaprof.layer.batch import Batch
from mlaprof.layer.metadata import AttnMetadata
from mlaprof.layer.mla import MLA

PIECES = ("split_piecewise", "breakable")


def scale_by_all_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Op 1 scales by the largest value of all its rows, padding included, as a per-tensor quantiser does. A power of
    two, so that sound rows come out as they went in."""
    proj = MLA.dsa_proj

    def scaled(layer: MLA, hidden_states: Tensor, *args: Any) -> list[Tensor]:
        scale = hidden_states.abs().amax().float().log2().ceil().exp2().to(hidden_states.dtype)
        return proj(layer, hidden_states / scale * scale, *args)

    monkeypatch.setattr(MLA, "dsa_proj", scaled)


@pytest.mark.parametrize("mode", PIECES)
def test_trap_padded_rows_leaking_through_a_reduction_are_caught(bench, monkeypatch, mode):
    """Replay and eager agree bit for bit, on NaN."""
    scale_by_all_rows(monkeypatch)
    planted = bench()
    wrong = planted.wrong(planted.arm(mode))
    assert "fewer tokens, layer 0: worst row error vs oracle" in wrong
    assert all(name.startswith(("fewer tokens", "eager output, fewer tokens")) for name in wrong)


@pytest.mark.parametrize("mode", PIECES)
def test_trap_padded_rows_leaking_through_a_reduction_go_unseen_without_spoilt_padding(
    bench, monkeypatch, without, mode
):
    """What the batch before left there is as large as what the batch holds."""
    scale_by_all_rows(monkeypatch)
    without.spoilt_padding()
    planted = bench()
    assert planted.wrong(planted.arm(mode)) == []


def test_trap_padded_rows_leaking_through_a_reduction_go_unseen_without_fewer_tokens(bench, monkeypatch, without):
    """A batch of just the captured size has no padding."""
    scale_by_all_rows(monkeypatch)
    without.other_batches()
    planted = bench()
    assert planted.wrong(planted.arm("split_piecewise")) == []


def add_nothing_of_the_last_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """Op 2 adds the last row that it is given to all others, times nothing, as a masked reduction does."""
    attn = MLA.dsa_attn

    def reads(layer: MLA, q: Tensor, *args: Any) -> None:
        attn(layer, q + 0 * q[-1], *args)

    monkeypatch.setattr(MLA, "dsa_attn", reads)


def test_trap_padded_rows_read_by_op_2_are_caught(bench, monkeypatch):
    add_nothing_of_the_last_row(monkeypatch)
    planted = bench()
    wrong = planted.wrong(planted.arm("split_piecewise"))
    assert "fewer tokens, layer 0: worst row error vs oracle" in wrong


def test_trap_padded_rows_read_by_op_2_go_unseen_without_spoilt_padding(bench, monkeypatch, without):
    """Nothing times any finite number is nothing."""
    add_nothing_of_the_last_row(monkeypatch)
    without.spoilt_padding()
    planted = bench()
    assert planted.wrong(planted.arm("split_piecewise")) == []


def pad_slots_with_a_real_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slots of padding rows do not lead to the scratch page but to the first cached tokens of the first request, as in
    a mapping that began as zeros."""
    prepare = AttnMetadata.prepare

    def zeroed(metadata: AttnMetadata, batch: Batch) -> None:
        prepare(metadata, batch)
        first = batch.pages[0][0] * metadata.caches.stride_factor
        padding = metadata._latent_rows.device[batch.num_tokens :]
        padding.copy_(first + torch.arange(len(padding)))

    monkeypatch.setattr(AttnMetadata, "prepare", zeroed)


@pytest.mark.parametrize("mode", PIECES)
def test_trap_padded_rows_written_to_real_pages_are_caught(bench, monkeypatch, mode):
    pad_slots_with_a_real_page(monkeypatch)
    planted = bench()
    wrong = planted.wrong(planted.arm(mode, boundary="cache_update"))
    assert "fewer tokens, layer 0: worst row error vs oracle" in wrong


def test_trap_padded_rows_written_to_real_pages_go_unseen_without_spoilt_padding(make_bench, monkeypatch, without):
    """Replay, eager and the oracle's history read one and the same overwritten token. On a CPU: a GPU writes one row
    twice in any order, so that there two runs may differ by themselves."""
    pad_slots_with_a_real_page(monkeypatch)
    without.spoilt_padding()
    without.page_check()
    planted = make_bench("cpu")
    assert planted.wrong(planted.arm("split_piecewise", boundary="cache_update")) == []


@pytest.mark.parametrize("boundary", ["proj", "index_quant"])
def test_padded_slots_do_no_harm_where_op_2_writes_the_caches(bench, monkeypatch, boundary):
    """The control: it cuts to the true token count first."""
    pad_slots_with_a_real_page(monkeypatch)
    sound = bench()
    assert sound.wrong(sound.arm("split_piecewise", boundary=boundary)) == []
