"""The paged caches: byte formulas of a slot, and the bounds check that never waits for a GPU."""

from __future__ import annotations

import ast
import inspect
from contextlib import nullcontext

import pytest
import torch

from mlaprof.layer import cache
from mlaprof.layer.cache import allocate, checked_blocks, index_slot_bytes, latent_slot_rows, slots

TABLE = torch.tensor([[5, 0, 9], [3, -1, -1]], dtype=torch.int32)


@pytest.mark.parametrize(
    "request_id,position,fp8,scale",
    [
        (0, 0, 5 * 8448, 5 * 8448 + 8192),
        (0, 63, 5 * 8448 + 63 * 128, 5 * 8448 + 8192 + 63 * 4),
        (0, 64, 0, 8192),
        (0, 127, 63 * 128, 8192 + 252),
        (0, 130, 9 * 8448 + 2 * 128, 9 * 8448 + 8192 + 8),
        (1, 1, 3 * 8448 + 128, 3 * 8448 + 8192 + 4),
    ],
)
def test_a14_slot_bytes_follow_the_formula(request_id, position, fp8, scale):
    """block * 8448 + pos * 128 for the codes, block * 8448 + 8192 + pos * 4 for the scale; int64."""
    block, place = slots(TABLE, torch.tensor([request_id]), torch.tensor([position]))
    got = index_slot_bytes(block, place)
    assert [each.dtype for each in (block, place, *got)] == [torch.int64] * 4
    assert [each.tolist() for each in got] == [[fp8], [scale]]


def test_a14_offsets_beyond_32_bits_do_not_wrap():
    """A pool of 300,000 blocks has byte offsets above 2^31."""
    table = torch.tensor([[300_000]], dtype=torch.int32)
    fp8, scale = index_slot_bytes(*slots(table, torch.tensor([0]), torch.tensor([7])))
    assert fp8.tolist() == [300_000 * 8448 + 7 * 128]
    assert scale.tolist() == [300_000 * 8448 + 8192 + 28]


def test_a14_every_byte_of_a_block_belongs_to_one_slot():
    """64 x (128 + 4) bytes: data of all tokens first, then their scales, neither overlap nor gap."""
    place = torch.arange(64)
    fp8, scale = index_slot_bytes(torch.zeros(64, dtype=torch.int64), place)
    taken = [byte for start in fp8.tolist() for byte in range(start, start + 128)]
    taken += [byte for start in scale.tolist() for byte in range(start, start + 4)]
    assert sorted(taken) == list(range(8448))
    assert max(fp8.tolist()) < 8192 <= min(scale.tolist())


def test_latent_rows_are_interleaved_by_layer_inside_a_block():
    """Flat row = block * (layers * 64) + position; layer l adds l * 64."""
    assert latent_slot_rows(torch.tensor([4, 0]), torch.tensor([63, 1]), 3 * 64).tolist() == [4 * 192 + 63, 1]


def test_pools_have_the_bytes_a_token_of_the_model(shapes):
    """bf16 latent rows and 132 index bytes, a token and layer, in the pages asked for and one of scratch."""
    caches = allocate(shapes["tiny"], 2, 3, torch.device("cpu"))
    assert caches.latent.shape == (4, 2, 64, 576) and caches.latent.dtype == torch.bfloat16
    assert caches.latent.nbytes + sum(pool.nbytes for pool in caches.index_k) == 4 * 64 * 2 * (1152 + 132)
    assert caches.latent_rows.shape == (4 * 2 * 64, 576)
    assert caches.latent_rows.data_ptr() == caches.latent.data_ptr()
    assert caches.stride_factor == 2 * 64
    assert (caches.num_blocks, caches.scratch_block) == (3, 3)


@pytest.mark.parametrize("number", [3, -1, 1 << 40])
def test_a13_a_block_outside_on_the_cpu_is_an_assertion_that_names_it(number):
    """Where prepare() computes the mapping, the maximum and the offending value are told."""
    with pytest.raises(AssertionError, match=rf"expected 0\.\.2, got {number}$"):
        checked_blocks(torch.tensor([0, number, 2]), 3)


def test_a13_blocks_inside_pass_as_they_are():
    """The edges included, and no blocks at all."""
    for blocks in (torch.tensor([0, 2, 1]), torch.tensor([], dtype=torch.int64)):
        assert checked_blocks(blocks, 3) is blocks


def test_a13_off_the_cpu_the_check_reads_no_value():
    """A tensor without values shows it: on the meta device a look would raise, and the clamp does not."""
    assert checked_blocks(torch.empty(5, dtype=torch.int64, device="meta"), 3).shape == (5,)


def test_a28_the_assertion_is_guarded_by_device_and_nothing_else():
    """No capture guard: eager GPU code must not wait either. The one early return asks for the device, and asserts
    stand behind it."""
    tree = ast.parse(inspect.getsource(checked_blocks))
    text = ast.unparse(tree)
    assert "is_current_stream_capturing" not in inspect.getsource(cache)
    guard = next(node for node in ast.walk(tree) if isinstance(node, ast.If))
    assert ast.unparse(guard.test) == "block_indices.device.type != 'cpu'"
    assert text.index("clamp") < text.index("assert")


@pytest.mark.gpu
@pytest.mark.parametrize("capturing", [False, True], ids=["eager", "in a capture"])
def test_a13_on_cuda_blocks_are_clamped_without_waiting(capturing):
    """Stale mappings, negative or beyond, come out inside the table; torch raises on any synchronisation."""
    stale = torch.tensor([-7, 0, 2, 3, 1 << 40], device="cuda")
    checked_blocks(stale, 3)  # whatever a first call loads is loaded
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph) if capturing else nullcontext():
        torch.cuda.set_sync_debug_mode("error")
        try:
            got = checked_blocks(stale, 3)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    if capturing:
        graph.replay()
    assert got.tolist() == [0, 0, 2, 2, 2]
