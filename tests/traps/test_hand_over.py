"""What passes from Op 1 to Op 2, and from Op 2 to the captured piece behind it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from mlaprof.capture.cpu_graph import CpuGraphs
from mlaprof.capture.cuda_graph import CudaGraphs
from mlaprof.layer.context import current
from mlaprof.layer.mla import MLA
from mlaprof.worker import arms

PIECES = ("split_piecewise", "breakable")
FRESH = "mlaproftraps::attn_fresh"
LIBRARY = torch.library.Library("mlaproftraps", "DEF")
LIBRARY.define(
    "attn_fresh(Tensor q, Tensor compressed_kv, Tensor k_pe, Tensor latent_cache, Tensor[] rest, "
    "Tensor position_ids, str layer_idx) -> Tensor"
)
KEPT: list[Tensor] = []  # what planted operators allocate: the old places stay readable, so nothing faults


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    yield
    KEPT.clear()


def stash_on_self(monkeypatch: pytest.MonkeyPatch) -> None:
    """Op 1 leaves its tensors on the layer, Op 2 takes them from there: those of the last Op 1 that ran in Python."""
    proj, attn = MLA.dsa_proj, MLA.dsa_attn

    def leave(layer: MLA, *args: Any) -> list[Tensor]:
        layer.__dict__["stash"] = proj(layer, *args)
        return layer.__dict__["stash"]

    def take(layer: MLA, *args: Any) -> None:
        stash = layer.__dict__["stash"]
        attn(layer, *stash[:4], stash[4:], *args[5:])

    monkeypatch.setattr(MLA, "dsa_proj", leave)
    monkeypatch.setattr(MLA, "dsa_attn", take)


@pytest.mark.parametrize("mode", PIECES)
def test_trap_stash_on_self_is_caught(bench, monkeypatch, mode):
    """An eager run in between leaves other tensors on the layer than those that the graph writes."""
    stash_on_self(monkeypatch)
    planted = bench()
    wrong = planted.wrong(planted.arm(mode))
    assert "fewer tokens: differing bytes vs eager" in wrong


@pytest.mark.parametrize("mode", PIECES)
def test_trap_stash_on_self_goes_unseen_without_other_batches(bench, monkeypatch, without, mode):
    """Right behind its capture, with its own batch, the graph writes what Op 2 still holds."""
    stash_on_self(monkeypatch)
    without.other_batches()
    planted = bench()
    assert planted.wrong(planted.arm(mode)) == []


@pytest.fixture
def crowded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The piece behind Op 2 takes many blocks of its residual's size before it reads that residual."""
    forward = MLA.forward

    def crowd(layer: MLA, *args: Any) -> Tensor:
        projected = forward(layer, *args)
        return torch.stack([projected * 0.5 for _ in range(128)]).amax(0) * 2

    monkeypatch.setattr(MLA, "forward", crowd)


def drop_what_crosses(monkeypatch: pytest.MonkeyPatch) -> None:
    """A piece's results are let go at the end of its capture, not after their last reader: the next piece is captured
    onto the residual that it has yet to read."""
    for maker in (CpuGraphs, CudaGraphs):
        monkeypatch.setattr(maker, "capture", _dropping(maker.capture))


def _dropping(capture: Callable[..., Any]) -> Callable[..., Any]:
    def drop(graphs: Any, fn: Callable[[], Any]) -> Any:
        graph, result = capture(graphs, fn)
        return graph, graphs.disown(result)

    return drop


@pytest.mark.usefixtures("crowded")
def test_trap_weak_outputs_dropped_too_early_are_caught(bench, monkeypatch):
    drop_what_crosses(monkeypatch)
    planted = bench(9, 70, num_layers=2, hold="weak")
    assert "own batch: differing bytes vs eager" in planted.wrong(planted.arm("split_piecewise", 70))


@pytest.mark.usefixtures("crowded")
def test_trap_weak_outputs_dropped_too_early_go_unseen_without_bits(bench, monkeypatch, without):
    """The wrong output is finite and of the right shape."""
    drop_what_crosses(monkeypatch)
    without.bits()
    planted = bench(9, 70, num_layers=2, hold="weak")
    assert planted.wrong(planted.arm("split_piecewise", 70)) == []


@pytest.mark.usefixtures("crowded")
@pytest.mark.parametrize("mode", [*PIECES, "full"])
def test_weak_outputs_held_until_their_last_reader_pass(bench, mode):
    """The control: weak hold as built, smaller captures in the blocks of the larger one."""
    sound = bench(9, 70, num_layers=2, hold="weak")
    assert sound.wrong(sound.arm(mode, 70)) == []


def _attn_fresh(
    q: Tensor, ckv: Tensor, k_pe: Tensor, latent: Tensor, rest: list[Tensor], positions: Tensor, layer_idx: str
) -> Tensor:
    context = current()
    layer: Any = context.layer(layer_idx)
    output = q.new_empty((q.shape[0], layer.shape.num_heads * layer.shape.v_head_dim))
    KEPT.append(output)
    layer.dsa_attn(q, ckv, k_pe, latent, rest, positions, context, output)
    return output


def _attn_fresh_like(q: Tensor, *args: Any) -> Tensor:
    layer: Any = current().layer(args[-1])
    return q.new_empty((q.shape[0], layer.shape.num_heads * layer.shape.v_head_dim))


for _key in ("CPU", "CUDA"):
    LIBRARY.impl("attn_fresh", _attn_fresh, _key)
torch.library.register_fake(FRESH, _attn_fresh_like, lib=LIBRARY)


def allocate_own_output(monkeypatch: pytest.MonkeyPatch) -> None:
    """Op 2 returns a tensor of its own: the piece behind it reads that of the capture for ever."""

    def forward(layer: MLA, hidden_states: Tensor, position_ids: Tensor) -> Tensor:
        parts = torch.ops.mlaprof.mla_dsa_proj(hidden_states, position_ids, layer.layer_idx)
        output = torch.ops.mlaproftraps.attn_fresh(*parts[:4], parts[4:], position_ids, layer.layer_idx)
        return layer.o_proj(output)

    monkeypatch.setattr(MLA, "forward", forward)
    monkeypatch.setattr(arms, "ATTN", FRESH)


@pytest.mark.parametrize("mode", PIECES)
def test_trap_op_that_allocates_its_own_output_is_refused(bench, monkeypatch, mode):
    allocate_own_output(monkeypatch)
    error, outcome = bench().refusal(mode)
    assert error.op.startswith(FRESH) and "let it write into a tensor allocated before it" in str(error)
    assert outcome.status == "skipped"


def follow_no_address(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that has no hand-over check keeps no account of addresses either."""
    monkeypatch.setattr("mlaprof.capture.addresses.Statics.argument", lambda *given: ())


def test_trap_op_that_allocates_its_own_output_is_wrong_without_the_hand_over_check(bench, monkeypatch, without):
    """The gate is the second line: other batches have another output than the one read."""
    allocate_own_output(monkeypatch)
    follow_no_address(monkeypatch)
    without.hand_over_check()
    planted = bench()
    assert "other pages: differing bytes vs eager" in planted.wrong(planted.arm("split_piecewise"))


def test_trap_op_that_allocates_its_own_output_goes_unseen_without_check_and_other_batches(bench, monkeypatch, without):
    """The output of the capture is that of the own batch: nothing but a batch it was not captured with can tell."""
    allocate_own_output(monkeypatch)
    follow_no_address(monkeypatch)
    without.hand_over_check()
    without.other_batches()
    planted = bench()
    assert planted.wrong(planted.arm("split_piecewise")) == []


def swap_output(monkeypatch: pytest.MonkeyPatch) -> None:
    """Op 2 returns nothing, as it should, but gives the caller's output other memory instead of writing into it."""
    attn = MLA.dsa_attn

    def swap(layer: MLA, *args: Any) -> None:
        output = args[-1]
        KEPT.append(torch.empty_like(output))
        attn(layer, *args[:-1], KEPT[-1])
        output.set_(KEPT[-1])

    monkeypatch.setattr(MLA, "dsa_attn", swap)


@pytest.mark.parametrize("mode", PIECES)
def test_trap_output_swapped_for_another_is_caught(bench, monkeypatch, mode):
    swap_output(monkeypatch)
    planted = bench()
    assert "which is at 0x" in planted.wrong(planted.arm(mode))[0]


@pytest.mark.parametrize("mode", PIECES)
def test_trap_output_swapped_for_another_goes_unseen_without_addresses_and_other_batches(
    bench, monkeypatch, without, mode
):
    swap_output(monkeypatch)
    without.address_check()
    without.other_batches()
    planted = bench()
    assert planted.wrong(planted.arm(mode)) == []
