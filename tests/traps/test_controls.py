"""No fault, no alarm: what the traps are planted in passes the gate as it is."""

from __future__ import annotations

import pytest

from mlaprof.study import MODES, LayerOptions


@pytest.mark.parametrize("mode", MODES)
def test_the_layer_as_it_is_passes_in_every_mode(bench, mode):
    """Long and short contexts, replays interleaved, padding behind."""
    sound = bench(9, 70)
    assert sound.wrong(sound.arm(mode)) == []


@pytest.mark.parametrize("boundary", ["proj", "cache_update"])
def test_the_layer_as_it_is_passes_at_other_boundaries(bench, boundary):
    sound = bench(9)
    assert sound.wrong(sound.arm("split_piecewise", boundary=boundary)) == []
    assert sound.wrong(sound.arm("breakable", boundary=boundary)) == []


def test_prompts_selected_in_the_graph_pass(bench):
    sound = bench(70, context_len=0)
    assert sound.wrong(sound.arm("split_piecewise", boundary="logits")) == []


def test_a_mixed_batch_and_a_decode_batch_pass(bench):
    mixed, decode = bench(9, phase="mixed"), bench(3, phase="decode", context_len=100)
    assert mixed.wrong(mixed.arm("split_eager")) == []
    assert mixed.wrong(mixed.arm("breakable")) == []
    assert decode.wrong(decode.arm("full")) == []


def test_short_mha_switched_off_under_compile_passes(bench):
    dense = bench(9, options=LayerOptions(short_seq_mha_threshold=64))
    assert dense.wrong(dense.arm("split_eager")) == []
    assert dense.wrong(dense.arm("split_piecewise")) == []
