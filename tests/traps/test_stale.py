"""What a graph goes on reading after it has moved, what it froze, and what it only seems to do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from mlaprof.capture.cpu_graph import CpuGraphs
from mlaprof.capture.cuda_graph import CudaGraphs
from mlaprof.layer.buffers import Twin
from mlaprof.layer.metadata import AttnMetadata
from mlaprof.layer.mla import MLA

MAKERS = (CpuGraphs, CudaGraphs)
ADDRESSED = ("split_piecewise", "breakable", "full")
KEPT: list[Tensor] = []  # the memory that was left: still readable, so nothing faults


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    yield
    KEPT.clear()


def reallocate_metadata(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each step puts its metadata into new device buffers instead of copying it into those of the capture."""
    upload = Twin.upload

    def fresh(twin: Twin, values: Tensor) -> None:
        KEPT.append(twin.device)
        twin.device = twin.device.clone()
        upload(twin, values)

    monkeypatch.setattr(Twin, "upload", fresh)


def test_trap_stale_metadata_is_caught(bench, monkeypatch):
    """On other pages the graph reads and writes those of its capture."""
    reallocate_metadata(monkeypatch)
    planted = bench(3, phase="decode", context_len=100)
    assert "other pages: differing bytes vs eager" in planted.wrong(planted.arm("full"))


def test_trap_stale_slots_of_the_caches_are_caught(bench, monkeypatch):
    """A captured Op 1 that writes the caches needs no more than the slots to be stale."""
    reallocate_metadata(monkeypatch)
    planted = bench()
    arm = planted.arm("split_piecewise", boundary="cache_update")
    assert "other pages: differing bytes vs eager" in planted.wrong(arm)


def test_trap_stale_metadata_goes_unseen_without_other_batches(bench, monkeypatch, without):
    """The old buffers describe the batch of the capture, and no tensor of module or inputs has moved."""
    reallocate_metadata(monkeypatch)
    without.other_batches()
    decode, prefill = bench(3, phase="decode", context_len=100), bench()
    assert decode.wrong(decode.arm("full")) == []
    assert prefill.wrong(prefill.arm("split_piecewise", boundary="cache_update")) == []


def replace_input(planted: Any) -> None:
    """The hidden states get another buffer once graphs have been captured, and batches are loaded there."""
    buffers = planted.rig.buffers
    KEPT.append(buffers.tensors["hidden_states"])
    buffers._tensors["hidden_states"] = KEPT[-1].clone()
    buffers._views.clear()


def replace_weight(planted: Any) -> None:
    """A weight is loaded anew once graphs have been captured: the values are the same, the place is not."""
    for layer in planted.rig.stack.decoder_layers:
        KEPT.append(layer.self_attn.o_proj.weight)
        layer.self_attn.o_proj.weight = torch.nn.Parameter(KEPT[-1].clone(), requires_grad=False)


@pytest.mark.parametrize("mode", ADDRESSED)
@pytest.mark.parametrize(
    ("replace", "name"), [(replace_input, "input hidden_states"), (replace_weight, "o_proj.weight")]
)
def test_trap_graph_captured_before_the_final_allocation_is_caught(bench, mode, replace, name):
    planted = bench()
    arm = planted.arm(mode)
    replace(planted)
    wrong = planted.wrong(arm)
    assert wrong and all(name in each and "which is at 0x" in each for each in wrong)


def test_trap_weight_loaded_after_capture_goes_unseen_without_the_address_check(bench, without):
    """As long as nobody else takes the old place, it holds the same values."""
    without.address_check()
    planted = bench()
    arm = planted.arm("breakable")
    replace_weight(planted)
    assert planted.wrong(arm) == []


def test_trap_input_allocated_after_capture_goes_unseen_without_addresses_and_other_batches(bench, without):
    """The graph reads what the old buffer was last given: its own batch."""
    without.address_check()
    without.other_batches()
    planted = bench()
    arm = planted.arm("breakable")
    replace_input(planted)
    assert planted.wrong(arm) == []


def freeze_branches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody tells the runner what captured Python reads of the batch: it replays its graph for any other."""
    monkeypatch.setattr(AttnMetadata, "control_flow", lambda metadata: None)
    monkeypatch.setattr(AttnMetadata, "proj_control_flow", lambda metadata, boundary: None)


def prompts(bench: Callable[..., Any]) -> tuple[Any, Any]:
    """70 tokens of one prompt, long; captured as an engine warms up, with several short ones. Op 1 selects."""
    made = bench(70, context_len=0)
    return made, made.captured_with("other lengths", "split_piecewise", boundary="logits")


def generations(bench: Callable[..., Any]) -> tuple[Any, Any]:
    """Three long requests; of a decode graph the worker captures the short variant first, then this one."""
    made = bench(3, phase="decode", context_len=100)
    return made, made.arm("full")


@pytest.mark.parametrize("batch", [prompts, generations])
def test_trap_branch_frozen_at_capture_is_caught(bench, monkeypatch, batch):
    """The graph takes every key there is room for, as is right for short sequences alone."""
    freeze_branches(monkeypatch)
    planted, arm = batch(bench)
    assert "own batch: differing bytes vs eager" in planted.wrong(arm)


def test_trap_branch_frozen_at_capture_is_not_replayed_by_a_runner_that_is_told(bench):
    """The defence: long prompts run eagerly, and the size says that it fell back; long generations have a graph."""
    prefill, arm = prompts(bench)
    prefill.rig.load(70)
    assert arm.runner.facts(70).state == "fell_back" and prefill.wrong(arm) == []
    decode, arm = generations(bench)
    decode.rig.load(3)
    assert arm.runner.facts(3).graph_launches == 1 and decode.wrong(arm) == []


def test_trap_branch_frozen_at_capture_goes_unseen_without_other_batches(bench, monkeypatch, without):
    """Captured and replayed with one batch, the graph has the right branch."""
    freeze_branches(monkeypatch)
    without.other_batches()
    planted = bench(70, context_len=0)
    assert planted.wrong(planted.arm("split_piecewise", boundary="logits")) == []


def write_no_cache_in_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """A guard meant for warm-ups: nothing is written to the caches while a capture runs, so no replay does."""
    capturing: list[bool] = []
    write = MLA._write_caches
    for maker in MAKERS:
        monkeypatch.setattr(maker, "capture", _flagged(maker.capture, capturing))
    monkeypatch.setattr(MLA, "_write_caches", lambda layer, *args: None if capturing else write(layer, *args))


def _flagged(capture: Callable[..., Any], capturing: list[bool]) -> Callable[..., Any]:
    def flag(graphs: Any, fn: Callable[[], Any]) -> Any:
        capturing.append(True)
        try:
            return capture(graphs, fn)
        finally:
            capturing.clear()

    return flag


def test_trap_cache_not_written_by_the_graph_is_caught(bench, monkeypatch):
    write_no_cache_in_graphs(monkeypatch)
    planted = bench()
    arm = planted.arm("split_piecewise", boundary="cache_update")
    assert "own batch: differing bytes vs eager" in planted.wrong(arm)


def test_trap_cache_not_written_by_the_graph_goes_unseen_without_spoilt_caches_and_other_batches(
    bench, monkeypatch, without
):
    """The warm-ups have left the right rows there."""
    write_no_cache_in_graphs(monkeypatch)
    without.other_batches()
    without.spoilt_caches()
    planted = bench()
    assert planted.wrong(planted.arm("split_piecewise", boundary="cache_update")) == []


def replay_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A launch that fails without a word: after its first replay the graph does nothing."""
    for maker in MAKERS:
        monkeypatch.setattr(maker, "capture", _lost(maker.capture))


def _lost(capture: Callable[..., Any]) -> Callable[..., Any]:
    def lose(graphs: Any, fn: Callable[[], Any]) -> Any:
        graph, result = capture(graphs, fn)
        launch, launches = graph.replay, []
        graph.replay = lambda: None if launches else launches.append(launch())
        return graph, result

    return lose


def test_trap_replay_that_does_nothing_is_caught(bench, monkeypatch, without):
    """By its own batch alone: the output was spoilt before."""
    replay_once(monkeypatch)
    without.other_batches()
    planted = bench()
    assert planted.wrong(planted.arm("split_piecewise")) == ["own batch: differing bytes vs eager"]


def test_trap_replay_that_does_nothing_goes_unseen_without_a_spoilt_output(bench, monkeypatch, without):
    """The first replay left the right output there."""
    replay_once(monkeypatch)
    without.other_batches()
    without.spoilt_output()
    planted = bench()
    assert planted.wrong(planted.arm("split_piecewise")) == []
