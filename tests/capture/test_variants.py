"""Captured code whose Python depends on more than the token count."""

from __future__ import annotations

import pytest
import torch

pytestmark = pytest.mark.usefixtures("mode")


@pytest.fixture(params=["full", "piecewise", "breakable"])
def runner(request, make_runner, batch):
    """Op 1 takes other kernels for long sequences, and the runner is told so."""
    return make_runner(request.param, variant=lambda: batch.lengths)


def test_each_variant_is_captured_and_replayed_apart(runner, stack, buffers, batch, reload):
    for batch.lengths in ("short", "long"):
        runner.prepare([64, 7])
    for batch.lengths in ("long", "short", "short", "long"):
        for num_tokens in (7, 64):
            reload(num_tokens)
            got = runner.run(num_tokens).clone()
            assert runner.facts(num_tokens).state == "replayed"
            assert torch.equal(stack(*buffers.slice(num_tokens)), got)


def test_trap_a_variant_without_a_graph_runs_eagerly_at_the_true_size(runner, stack, buffers, batch):
    """Not the graph of the other variant, padded or not."""
    runner.prepare([7])
    runner.run(7)
    batch.lengths = "long"
    for num_tokens in (7, 5):
        facts = runner.facts(num_tokens)
        assert (facts.num_tokens, facts.state, facts.graph_launches) == (num_tokens, "fell_back", 0)
        for run in (runner.run, runner.verified_run):
            assert torch.equal(stack(*buffers.slice(num_tokens)), run(num_tokens))
    batch.lengths = "short"
    assert runner.facts(7).state == "replayed"


def test_trap_without_the_variant_the_wrong_graph_is_replayed(captured, stack, buffers, batch):
    """The twin: a runner that is not told replays short kernels for long sequences."""
    captured.prepare([7])
    batch.lengths = "long"
    assert captured.facts(7).state == "captured"
    assert not torch.equal(stack(*buffers.slice(7)), captured.run(7))


def test_states_are_of_the_variant(runner, batch):
    runner.prepare([7])
    runner.run(7)
    batch.lengths = "long"
    [prepared] = runner.prepare([7])
    assert prepared.state == "captured"
    batch.lengths = "short"
    assert runner.prepare([7])[0].state == "replayed"


def test_a_size_of_one_variant_serves_no_padding_of_another(make_runner, batch):
    for name in ("piecewise", "breakable"):
        runner = make_runner(name, variant=lambda: batch.lengths)
        batch.lengths = "short"
        runner.prepare([64, 7])
        batch.lengths = "long"
        runner.prepare([64])
        assert runner.facts(5).num_tokens == 64
        batch.lengths = "short"
        assert runner.facts(5).num_tokens == 7
