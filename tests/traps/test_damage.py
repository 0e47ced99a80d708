"""Damage that the step itself does not feel: a page of somebody else, a workspace that another size left dirty."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mlaprof.layer.batch import Batch
from mlaprof.layer.metadata import AttnMetadata
from mlaprof.layer.mla import MLA

PIECES = ("split_piecewise", "breakable")


def pad_slots_with_a_page_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Slots of padding rows lead to a page that no request of the batch owns: some other user's."""
    prepare = AttnMetadata.prepare

    def foreign(metadata: AttnMetadata, batch: Batch) -> None:
        prepare(metadata, batch)
        owned = {page for pages in batch.pages for page in pages}
        page = next(page for page in range(metadata.caches.num_blocks) if page not in owned)
        padding = metadata._latent_rows.device[batch.num_tokens :]
        padding.copy_(page * metadata.caches.stride_factor + torch.arange(len(padding)))

    monkeypatch.setattr(AttnMetadata, "prepare", foreign)


@pytest.mark.parametrize("mode", PIECES)
def test_trap_padded_rows_written_to_pages_of_others_are_caught(bench, monkeypatch, mode):
    """No output of this batch shows it; the pages themselves do."""
    pad_slots_with_a_page_of_others(monkeypatch)
    planted = bench()
    wrong = planted.wrong(planted.arm(mode, boundary="cache_update"))
    assert wrong and all("pages of others" in name for name in wrong)


def test_trap_padded_rows_written_to_pages_of_others_go_unseen_without_the_page_check(bench, monkeypatch, without):
    pad_slots_with_a_page_of_others(monkeypatch)
    without.page_check()
    planted = bench()
    assert planted.wrong(planted.arm("split_piecewise", boundary="cache_update")) == []


def leave_workspace_dirty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Op 1 adds up in a workspace of the layer's that it expects to hold zeros; a small launch clears it for the next
    one, a large one does not."""
    proj = MLA.dsa_proj

    def adds(layer: MLA, hidden_states: Tensor, *args: Any) -> list[Tensor]:
        if "workspace" not in layer.__dict__:
            layer.__dict__["workspace"] = hidden_states.new_zeros(1)
        workspace = layer.__dict__["workspace"]
        q, *rest = proj(layer, hidden_states, *args)
        q = q + workspace
        workspace.fill_(float(len(hidden_states) > 16))
        return [q, *rest]

    monkeypatch.setattr(MLA, "dsa_proj", adds)


@pytest.mark.parametrize("mode", PIECES)
def test_trap_workspace_left_dirty_by_another_size_is_caught(bench, monkeypatch, mode):
    """The replay right behind one of 70 tokens is wrong, and the next one right again."""
    leave_workspace_dirty(monkeypatch)
    planted = bench(9, 70)
    assert "own batch: differing bytes vs eager" in planted.wrong(planted.arm(mode))


def test_trap_workspace_left_dirty_by_another_size_goes_unseen_without_other_sizes(bench, monkeypatch, without):
    """Alone, the size finds the workspace as it left it."""
    leave_workspace_dirty(monkeypatch)
    without.other_sizes()
    planted = bench(9, 70)
    assert planted.wrong(planted.arm("split_piecewise")) == []
