"""What Op 1 and Op 2 promise of their arguments, and which rows of the batch belong to which phase."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mlaprof.layer import rope
from mlaprof.layer.mla import MLA
from mlaprof.layer.ops import ATTN, OPS
from mlaprof.worker.arms import Arm


def twice(planted: Any, arm: Arm) -> tuple[Tensor, Tensor]:
    """Outputs of two runs of Op 2 on the same Op 1 outputs, as a benchmark of Op 2 makes them."""
    planted.rig.load(9)
    hidden, positions = planted.rig.buffers.slice(9)
    layer = arm.stack.attention["0"]
    with arm.context:
        parts = OPS.mla_dsa_proj(hidden, positions, "0")
        outputs = []
        for _ in range(2):
            output = hidden.new_empty((9, layer.shape.num_heads * layer.shape.v_head_dim))
            OPS.mla_dsa_attn_inplace(*parts[:4], parts[4:], positions, "0", output)
            outputs.append(output)
    return outputs[0], outputs[1]


def in_place(x: Tensor, cos_sin: Tensor, position_ids: Tensor) -> None:
    x.copy_(rope.rotate(x, cos_sin[position_ids], interleaved=True))


def rotate_q_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Op 2 rotates q where it lies, as a fused RoPE does, though its schema lists the output alone."""
    absorbed = MLA._absorbed

    def rotates(layer: MLA, q: Tensor, position_ids: Tensor, *args: Any) -> None:
        absorbed(layer, q, position_ids, *args)
        heads = q.view(len(q), layer.shape.num_heads, layer.shape.qk_head_dim)
        in_place(heads[..., layer.shape.qk_nope_head_dim :], layer.cos_sin, position_ids)

    monkeypatch.setattr(MLA, "_absorbed", rotates)


def test_trap_double_rotation_of_q_is_caught(bench, monkeypatch):
    """The step itself is right; only a second Op 2 on the same q would be wrong."""
    rotate_q_in_place(monkeypatch)
    planted = bench()
    assert planted.wrong(planted.arm("split_eager")) == [f"{ATTN}: arguments written against its schema"]


def test_trap_double_rotation_of_q_goes_unseen_without_the_contract_check(bench, monkeypatch, without):
    """Every mode runs Op 1 before Op 2; a loop over Op 2 alone would not."""
    rotate_q_in_place(monkeypatch)
    without.contract_check()
    planted = bench()
    for mode in ("split_eager", "split_piecewise", "breakable", "full"):
        assert planted.wrong(planted.arm(mode)) == []
    first, second = twice(planted, planted.arm("split_eager"))
    assert not torch.equal(first, second)


def test_op_2_may_be_repeated(bench):
    """The control: as it is, it leaves q alone."""
    sound = bench()
    assert torch.equal(*twice(sound, sound.arm("split_eager")))


def keep_rotated_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Op 2 puts the rotated k_pe into latent_cache, an argument that its schema does not call mutated."""
    attn = MLA.dsa_attn

    def keeps(layer: MLA, q: Tensor, ckv: Tensor, k_pe: Tensor, latent_cache: Tensor, *args: Any) -> None:
        attn(layer, q, ckv, k_pe, latent_cache, *args)
        latent_cache[:, layer.shape.kv_lora_rank :].neg_()

    monkeypatch.setattr(MLA, "dsa_attn", keeps)


def rotate_keys_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Op 2 rotates k_pe where it lies, on its way to the cache, as a fused append does."""
    write = MLA._write_caches

    def rotates(layer: MLA, compressed_kv: Tensor, k_pe: Tensor, position_ids: Tensor, *args: Any) -> None:
        write(layer, compressed_kv, k_pe, position_ids, *args)
        in_place(k_pe, layer.cos_sin, position_ids)

    monkeypatch.setattr(MLA, "_write_caches", rotates)


@pytest.mark.parametrize("plant", [keep_rotated_keys, rotate_keys_in_place])
def test_trap_unregistered_mutation_is_caught(bench, monkeypatch, plant):
    plant(monkeypatch)
    planted = bench()
    assert planted.wrong(planted.arm("split_eager")) == [f"{ATTN}: arguments written against its schema"]


@pytest.mark.parametrize("plant", [keep_rotated_keys, rotate_keys_in_place])
def test_trap_unregistered_mutation_goes_unseen_without_the_contract_check(bench, monkeypatch, without, plant):
    """Nothing behind reads the argument, so the output is right, until an optimizer trusts the schema."""
    plant(monkeypatch)
    without.contract_check()
    planted = bench()
    for mode in ("split_eager", "split_piecewise", "breakable"):
        assert planted.wrong(planted.arm(mode)) == []


def rotate_by_the_whole_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Position ids are not cut to the phase: generation rows are rotated by the angles of the first rows."""
    absorbed = MLA._absorbed

    def uncut(
        layer: MLA, q: Tensor, position_ids: Tensor, topk: Tensor, tokens: slice, metadata: Any, *args: Any
    ) -> None:
        absorbed(layer, q, metadata.positions[: len(q)], topk, tokens, metadata, *args)

    monkeypatch.setattr(MLA, "_absorbed", uncut)


def test_trap_position_ids_not_cut_per_phase_are_caught(bench, monkeypatch):
    """Generations stand behind the contexts of a mixed batch."""
    rotate_by_the_whole_batch(monkeypatch)
    planted = bench(9, phase="mixed")
    assert "own batch, layer 0: worst row error vs oracle" in planted.wrong(planted.arm("split_eager"))


def test_trap_position_ids_not_cut_per_phase_go_unseen_without_the_oracle(bench, monkeypatch, without):
    """All modes are wrong alike."""
    rotate_by_the_whole_batch(monkeypatch)
    without.oracle()
    planted = bench(9, phase="mixed")
    for mode in ("monolithic_eager", "split_eager", "breakable"):
        assert planted.wrong(planted.arm(mode)) == []


def test_trap_position_ids_not_cut_per_phase_go_unseen_without_a_mixed_batch(bench, monkeypatch):
    """With one phase the first rows are its own."""
    rotate_by_the_whole_batch(monkeypatch)
    for phase in ("prefill", "decode"):
        planted = bench(9, phase=phase)
        assert planted.wrong(planted.arm("split_eager")) == []
