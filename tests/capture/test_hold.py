"""Strong and weak hold of what crosses a segment: what each costs, and what goes wrong when a tensor is let go too
early."""

from __future__ import annotations

import weakref

import pytest
import torch
from torch import nn

from mlaprof.capture.graphs import GraphMaker

pytestmark = pytest.mark.usefixtures("mode")
HOLDS = ("strong", "weak")
SIZES = (64, 7, 2)


def careless(graphs: GraphMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let go of what a piece returns as soon as it is captured, not after its last reader."""
    capture = graphs.capture

    def dropping(fn):
        graph, result = capture(fn)
        return graph, graphs.disown(result)

    monkeypatch.setattr(graphs, "capture", dropping)


def wrong_runs(runner, module, buffers, batch, reload, churn) -> list[int]:
    """Sizes at which runs, interleaved, differ from eager ones."""
    wrong = []
    for num_tokens in (64, 2, 64, 7, 7, 2, 64):
        reload(num_tokens)
        churn()
        batch.num_tokens = num_tokens
        got = runner.run(num_tokens).clone()
        if not torch.equal(module(*buffers.slice(num_tokens)), got):
            wrong.append(num_tokens)
    return wrong


@pytest.mark.parametrize("hold", HOLDS)
@pytest.mark.parametrize("name", ["full", "piecewise", "breakable"])
def test_trap_a_larger_size_replayed_after_a_smaller_one_was_captured_is_right(
    make_runner, name, hold, stack, buffers, batch, reload, churn
):
    """The smaller capture may take blocks of the larger one, but none that a later piece of the larger one reads."""
    runner = make_runner(name, hold=hold)
    for num_tokens in SIZES:
        batch.num_tokens = num_tokens  # a full graph keeps that of its capture
        runner.prepare([num_tokens])
        assert torch.equal(stack(*buffers.slice(num_tokens)), runner.run(num_tokens))
    assert wrong_runs(runner, stack, buffers, batch, reload, churn) == []


class Crossing(nn.Module):
    """The piece behind the boundary writes new tensors before it reads those of the piece before."""

    def forward(self, x, position_ids):
        q = x * 2
        output = torch.empty_like(x)
        torch.ops.toy.attend(q, x, output)
        thrice, fourfold = x * 3, x * 4
        return output + q - thrice * fourfold


@pytest.mark.parametrize("hold", HOLDS)
def test_trap_a_tensor_that_a_later_piece_reads_is_held_until_then(make_runner, hold, buffers, batch, reload, churn):
    runner = make_runner("piecewise", Crossing(), hold=hold)
    runner.prepare(SIZES)
    assert wrong_runs(runner, Crossing(), buffers, batch, reload, churn) == []


def test_trap_a_tensor_let_go_before_its_last_reader_shows(
    make_runner, buffers, batch, reload, churn, graphs, monkeypatch
):
    """The twin: the later piece is given the very blocks it was still to read."""
    careless(graphs, monkeypatch)
    runner = make_runner("piecewise", Crossing(), hold="weak")
    runner.prepare(SIZES)
    assert wrong_runs(runner, Crossing(), buffers, batch, reload, churn) != []


def test_weak_hold_needs_no_more_memory_for_smaller_sizes_and_strong_hold_does(make_runner, graphs, device):
    """What weak hold is for: later captures live where earlier ones did."""
    if device == "cuda":
        pytest.skip("these graphs are smaller than the 2 MiB in which a GPU's pool grows")
    for name in ("piecewise", "breakable"):
        grown = {}
        for hold in HOLDS:
            runner = make_runner(name, hold=hold)
            runner.prepare(SIZES[:1])
            before = graphs.pool_bytes()
            runner.prepare(SIZES)
            grown[hold] = graphs.pool_bytes() - before
            del runner
        assert grown["weak"] == 0 < grown["strong"], name


def test_a_weak_capture_holds_one_layer_at_a_time(make_runner, make_stack, graphs, device):
    """Values go after their last reader, as in the module's own frame: depth costs nothing. Strong hold pays for it."""
    if device == "cuda":
        pytest.skip("these graphs are smaller than the 2 MiB in which a GPU's pool grows")
    used: dict[tuple[str, int], int] = {}
    for hold in HOLDS:
        for num_layers in (3, 6):
            runner = make_runner("piecewise", make_stack(num_layers), hold=hold)
            runner.prepare([64])
            used[hold, num_layers] = graphs.pool_bytes()
            del runner
            assert graphs.pool_bytes() == 0
    assert used["weak", 3] == used["weak", 6]
    assert used["strong", 6] > used["strong", 3] > used["weak", 3]


def test_a_walk_lets_a_result_go_after_its_last_reader(piecewise, make_runner, make_stack, device, buffers):
    """The number of results alive does not grow with the pieces walked."""
    partition = make_runner("piecewise", make_stack(5).to(device)).partition
    made: list[weakref.ref[torch.Tensor]] = []
    alive = []

    def execute(call):
        result = call.forward(*call.args)
        parts = result if isinstance(result, (tuple, list)) else [result]
        made.extend(weakref.ref(part) for part in parts if part is not None)
        alive.append(sum(ref() is not None for ref in made))
        return result, [None] * len(parts)

    assert partition.walk(partition.traced.arguments(buffers.slice(7)), execute) == [None]
    captured = [count for count, segment in zip(alive, partition.segments, strict=True) if segment.captured]
    assert len(set(captured[2:-1])) == 1 and len(captured) == 6
