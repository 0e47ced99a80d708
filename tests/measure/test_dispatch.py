"""The custom-op tax: one empty body, three ways to call it."""

from __future__ import annotations

import gc
import itertools
import sys

import pytest
import torch

from mlaprof.layer import ops
from mlaprof.measure import dispatch
from mlaprof.measure.dispatch import dispatch_tax

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.mark.parametrize("device", DEVICES)
def test_each_way_takes_time_and_registering_again_fails_nowhere(device):
    """A second call in the same process finds the operators registered; one call of each is enough for a median."""
    for calls in (11, 1):
        tax = dispatch_tax(device, calls=calls)
        assert tax.calls == calls
        assert min(tax.bare_s, tax.define_s, tax.custom_op_s) > 0.0


def test_the_operators_have_op_2s_arguments():
    """Names, types and the mutated output are those of the layer's operator, or another tax would be measured."""
    dispatch_tax("cpu", calls=1)
    wanted = torch.ops.mlaprof.mla_dsa_attn_inplace.default._schema
    assert wanted.name == ops.ATTN
    for packet in dispatch._operators()[1:]:
        got = packet.default._schema
        assert [(each.name, str(each.type)) for each in got.arguments] == [
            (each.name, str(each.type)) for each in wanted.arguments
        ]
        written = [each.name for each in got.arguments if each.alias_info is not None and each.alias_info.is_write]
        assert written == ["output"]
        assert got.returns == wanted.returns == []


def test_all_three_ways_reach_the_same_body():
    """The tax is of dispatch alone: one empty function is called with the same arguments each time."""
    dispatch_tax("cpu", calls=1)
    reached = []

    def watch(frame, event, _):
        if event == "call" and frame.f_code is dispatch._attn.__code__:
            reached.append((frame.f_locals["layer_idx"], len(frame.f_locals["indexer_intermediates"])))

    with torch.inference_mode():
        arguments = dispatch._arguments(torch.device("cpu"))
        before = sys.getprofile()
        sys.setprofile(watch)
        try:
            for way in (dispatch._attn, *dispatch._operators()[1:]):
                way(*arguments)
        finally:
            sys.setprofile(before)
    assert reached == [("0", 4)] * 3


def test_ways_are_interleaved_in_random_order_with_the_collector_off():
    """No way enjoys a fixed neighbour, and no collection falls into one of them."""
    calls: list[str] = []
    collecting = set()

    def way(name):
        def call(number):
            assert number == 5
            calls.append(name)
            if len(calls) > 3 * dispatch.WARMUP_CALLS:
                collecting.add(gc.isenabled())

        return call

    ways = {name: way(name) for name in "abc"}
    medians_s = dispatch._medians_s(ways, (5,), calls=60, seed=3)

    timed = calls[3 * dispatch.WARMUP_CALLS :]
    rounds = {tuple(timed[i : i + 3]) for i in range(0, len(timed), 3)}
    assert rounds == set(itertools.permutations("abc"))
    assert len(timed) == 180
    assert set(medians_s) == set("abc")
    assert collecting == {False}


@pytest.mark.parametrize("calls", [0, -3])
def test_no_calls_have_no_median(calls):
    with pytest.raises(ValueError, match=f"calls: expected at least 1, got {calls}"):
        dispatch_tax("cpu", calls=calls)
