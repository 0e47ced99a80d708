"""The checks before any time: green on a healthy layer, and red, each of them, for the fault it is there for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from mlaprof import verify
from mlaprof.facts import Check
from mlaprof.kernels import reference, reference_fused
from mlaprof.layer import attention, indexer, inputs, mla
from mlaprof.layer.batch import Batch, Request, place
from mlaprof.layer.build import build_stack
from mlaprof.layer.cache import allocate
from mlaprof.layer.context import ForwardContext
from mlaprof.layer.linear import through_blocks
from mlaprof.layer.metadata import AttnMetadata, MetadataLimits
from mlaprof.layer.mla import MLA
from mlaprof.layer.ops import OPS
from mlaprof.layer.tiling import layer_tiles
from mlaprof.layer.weights import random_weights
from mlaprof.shapes import PRESETS, LayerShape
from mlaprof.study import LinearKind, kernel_dims

CPU = torch.device("cpu")
NUM_BLOCKS = 64
ROW, ILLEGAL, MISS = "worst row error", "top-k future", "top-k sets missing"
LATENT, KEYS = "latent rows written", "index keys written"
PREFILL = ([(40, 0), (33, 200)], [])
DECODE = ([], [(1, 300), (1, 130), (1, 20)])
MIXED = ([(9, 150), (30, 0)], [(2, 200), (2, 126)])
BATCHES = {"prefill": PREFILL, "decode": DECODE, "mixed": MIXED}


class Subject:
    """Two layers, of which every check looks at both."""

    def __init__(self, *, short_seq_mha_threshold: int = 0, topk: int = 64, linear: LinearKind = "bf16") -> None:
        shape = replace(PRESETS["tiny"], num_heads=8, hidden_size=256, q_lora_rank=128, index_topk=topk)
        self.shape = shape
        self.caches = allocate(shape, 2, NUM_BLOCKS, CPU)
        self.weights = [random_weights(shape, seed=number, mlp=False, device=CPU) for number in range(2)]
        if linear != "bf16":
            self.weights = [through_blocks(each) for each in self.weights]
        limits = MetadataLimits(max_num_tokens=128, max_num_requests=16, max_seq_len=2048, index_topk=topk)
        self.metadata = AttnMetadata(limits, self.caches, CPU)
        self.stack = build_stack(
            shape,
            self.weights,
            caches=self.caches,
            tiles=layer_tiles(kernel_dims(shape), {}),
            form="split",
            short_seq_mha_threshold=short_seq_mha_threshold,
            linear=linear,
        )

    def checks(
        self,
        lengths: tuple[list[tuple[int, int]], list[tuple[int, int]]],
        *,
        compiled: bool = False,
        spoil: Callable[[Batch], None] | None = None,
    ) -> list[Check]:
        """All checks of one eager step; spoil breaks something after the batch is prepared."""
        contexts, generations = (tuple(Request(*each) for each in part) for part in lengths)
        batch = place(contexts, generations, num_blocks=NUM_BLOCKS, seed=1)
        inputs.fill_caches(self.caches, seed=3)
        self.metadata.prepare(batch)
        if spoil is not None:
            spoil(batch)
        hidden = inputs.hidden_states(batch.num_tokens, self.shape.hidden_size, seed=9, device=CPU)
        positions = inputs.position_ids(batch, CPU)
        with ForwardContext(self.stack.attention, self.metadata, compiled=compiled) as context:
            output, probes = verify.probe(self.stack, hidden, positions)
            checks = [verify.finite("output", output)]
            for probed, weights in zip(probes, self.weights, strict=True):
                checks += verify.against_oracle(probed, weights, batch, self.caches, positions, context)
        return checks


def red(checks: list[Check]) -> set[str]:
    """Which kinds of check failed in any layer."""
    names = (ROW, LATENT, KEYS, ILLEGAL, MISS, "non-finite")
    return {name for name in names for check in checks if name in check.name and not check.passed}


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def subject() -> Subject:
    return Subject()


@pytest.mark.parametrize("name", BATCHES)
def test_a_healthy_layer_is_green(subject, name):
    """Five checks a layer and one for the whole, and room below the limit: twice the error would still pass."""
    checks = subject.checks(BATCHES[name])
    assert len(checks) == 11 and red(checks) == set()
    for kind in (ROW, LATENT, KEYS):
        assert max(check.value / check.limit for check in checks if kind in check.name) < 0.5


@pytest.mark.parametrize("name", BATCHES)
def test_a_layer_of_block_scaled_projections_is_green(name):
    """Against an oracle that rounds what enters them, too, and with limits of its own."""
    checks = Subject(linear="fp8_block").checks(BATCHES[name])
    assert len(checks) == 11 and red(checks) == set()
    rows = [check.value for check in checks if ROW in check.name]
    assert min(rows) > verify.MAX_ROW_ERROR > max(check.value for check in checks if LATENT in check.name)


def test_a_projection_with_a_wrong_scale_is_red(monkeypatch):
    """One block of 128 x 128 of one weight, twice as large as it should be."""
    subject = Subject(linear="fp8_block")
    subject.stack.attention["0"].o_proj.weight_scale[0, 0] *= 2
    assert ROW in red(subject.checks(PREFILL))


Plant = Callable[[pytest.MonkeyPatch, Subject], Callable[[Batch], None] | None]


class _Ops:
    """OPS with faults planted: planted(real, *arguments) is called in the place of real(*arguments)."""

    def __init__(self, **planted: Callable[..., Any]) -> None:
        self._planted = planted

    def __getattr__(self, name: str) -> Any:
        real = getattr(OPS, name)
        return partial(self._planted[name], real) if name in self._planted else real


def wrong_rope_pairing(patch: pytest.MonkeyPatch, subject: Subject) -> None:
    real = reference_fused.rotated

    def halves(x: Tensor, cos_sin: Tensor, positions: Tensor, *, interleaved: bool) -> Tensor:
        return real(x, cos_sin, positions, interleaved=False)  # as the indexer of this shape does anyway

    patch.setattr(reference_fused, "rotated", halves)


def wrong_index_rope_pairing(patch: pytest.MonkeyPatch, subject: Subject) -> None:
    def other(real: Callable[..., Any], *args: Any) -> Any:
        *rest, interleaved = args
        return real(*rest, not interleaved)

    patch.setattr(indexer, "OPS", _Ops(index_query=other))
    patch.setattr(mla, "OPS", _Ops(norm_rope=other))


def double_rotation(patch: pytest.MonkeyPatch, subject: Subject) -> None:
    def twice(
        real: Callable[..., None],
        q: Tensor,
        w: Tensor,
        cos_sin: Tensor,
        positions: Tensor,
        tiles: list[int],
        out: Tensor,
    ) -> None:
        real(q, w, cos_sin, positions, tiles, out)
        pe = out[..., w.shape[1] :]
        reference_fused.query_rope(pe.clone(), cos_sin, positions, pe)

    patch.setattr(attention, "OPS", _Ops(absorb=twice))  # q_pe's; the cache write rotates k_pe


def no_mscale(patch: pytest.MonkeyPatch, subject: Subject) -> None:
    patch.setattr(LayerShape, "softmax_scale", property(lambda shape: shape.qk_head_dim**-0.5))


def off_by_one_page(patch: pytest.MonkeyPatch, subject: Subject) -> Callable[[Batch], None]:
    def spoil(batch: Batch) -> None:
        subject.metadata.block_table.copy_((subject.metadata.block_table + 1).clamp_max(NUM_BLOCKS - 1))

    return spoil


def off_by_one_slot(patch: pytest.MonkeyPatch, subject: Subject) -> Callable[[Batch], None]:
    def spoil(batch: Batch) -> None:
        subject.metadata.latent_rows.copy_(subject.metadata.latent_rows ^ 1)

    return spoil


def swapped_rows(patch: pytest.MonkeyPatch, subject: Subject) -> None:
    real = MLA.dsa_attn

    def swapped(self: MLA, *args: Any) -> None:
        real(self, *args)
        args[-1].copy_(args[-1].roll(self.caches.num_layers, dims=0))

    patch.setattr(MLA, "dsa_attn", swapped)


def stale_output(patch: pytest.MonkeyPatch, subject: Subject) -> None:
    kept: dict[int, Tensor] = {}
    real = MLA.dsa_attn

    def stale(self: MLA, *args: Any) -> None:
        real(self, *args)
        args[-1].copy_(kept.setdefault(self.layer_number, args[-1].flip(0)))

    patch.setattr(MLA, "dsa_attn", stale)


def unwritten_last_row(patch: pytest.MonkeyPatch, subject: Subject) -> None:
    real = MLA.dsa_attn

    def short(self: MLA, *args: Any) -> None:
        real(self, *args)
        args[-1][-1] = 0

    patch.setattr(MLA, "dsa_attn", short)


def nan_in_one_element(patch: pytest.MonkeyPatch, subject: Subject) -> None:
    real = MLA.dsa_attn

    def broken(self: MLA, *args: Any) -> None:
        real(self, *args)
        args[-1][0, 0] = torch.nan

    patch.setattr(MLA, "dsa_attn", broken)


def future_position(patch: pytest.MonkeyPatch, subject: Subject) -> None:
    def later(real: Callable[..., None], *args: Any) -> None:
        real(*args)
        args[-1].copy_(torch.where(args[-1] >= 0, args[-1] + 1, args[-1]))

    patch.setattr(indexer, "OPS", _Ops(topk=later))


def repeated_position(patch: pytest.MonkeyPatch, subject: Subject) -> None:
    def doubled(real: Callable[..., None], *args: Any) -> None:
        real(*args)
        args[-1][:, 1] = args[-1][:, 0]

    patch.setattr(indexer, "OPS", _Ops(topk=doubled))


def first_positions(patch: pytest.MonkeyPatch, subject: Subject) -> None:
    def in_order(
        real: Callable[..., None], logits: Tensor, starts: Tensor | None, ends: Tensor, tiles: list[int], out: Tensor
    ) -> None:
        seen = ends if starts is None else ends - starts
        column = torch.arange(out.shape[1], dtype=torch.int32)
        out.copy_(torch.where(column < seen[:, None], column, -1))

    patch.setattr(indexer, "OPS", _Ops(topk=in_order))


def latent_not_appended(patch: pytest.MonkeyPatch, subject: Subject) -> None:
    def keys_alone(real: Callable[..., None], *args: Any) -> None:
        reference.update_index_cache(*args[7:11], args[11])

    patch.setattr(mla, "OPS", _Ops(cache_write=keys_alone))


def index_keys_not_cached(patch: pytest.MonkeyPatch, subject: Subject) -> Callable[[Batch], None]:
    def spoil(batch: Batch) -> None:
        spare = sorted(set(range(NUM_BLOCKS)) - {page for pages in batch.pages for page in pages})[0]
        rows = torch.arange(batch.num_tokens)
        subject.metadata.slot_mapping_fp8.copy_(spare * 8448 + rows % 64 * 128)

    return spoil


@pytest.mark.parametrize(
    "plant,lengths,expected",
    [
        (wrong_rope_pairing, PREFILL, {ROW, LATENT}),
        (wrong_rope_pairing, DECODE, {ROW, LATENT}),
        (wrong_index_rope_pairing, PREFILL, {MISS, KEYS}),
        (wrong_index_rope_pairing, DECODE, {MISS, KEYS}),
        (double_rotation, PREFILL, {ROW}),
        (double_rotation, DECODE, {ROW}),
        (no_mscale, PREFILL, {ROW}),
        (no_mscale, DECODE, {ROW}),
        (off_by_one_page, PREFILL, {ROW}),
        (off_by_one_page, DECODE, {ROW, MISS}),
        (off_by_one_slot, PREFILL, {LATENT}),
        (off_by_one_slot, DECODE, {LATENT}),
        (swapped_rows, MIXED, {ROW}),
        (stale_output, PREFILL, {ROW}),
        (stale_output, DECODE, {ROW}),
        (unwritten_last_row, MIXED, {ROW}),
        (nan_in_one_element, PREFILL, {ROW, "non-finite"}),
        (future_position, PREFILL, {ILLEGAL}),
        (future_position, DECODE, {ILLEGAL}),
        (repeated_position, MIXED, {ILLEGAL}),
        (first_positions, PREFILL, {MISS}),
        (first_positions, DECODE, {MISS}),
        (latent_not_appended, PREFILL, {LATENT}),
        (latent_not_appended, DECODE, {LATENT}),
        (index_keys_not_cached, PREFILL, {KEYS}),
        (index_keys_not_cached, DECODE, {KEYS}),
    ],
)
def test_a_planted_fault_turns_its_check_red(subject, monkeypatch, plant: Plant, lengths, expected):
    """Each fault is seen by the checks that are there for it."""
    assert expected <= red(subject.checks(lengths, spoil=plant(monkeypatch, subject)))


def test_a_row_missing_from_a_long_context_is_seen_though_it_moves_no_output(monkeypatch):
    """One of a thousand rows changes the output by less than its limit lets through; the written rows show it."""
    subject = Subject(topk=2048)
    latent_not_appended(monkeypatch, subject)
    assert red(subject.checks(([], [(1, 1900)]))) == {LATENT}


@pytest.mark.parametrize(
    "lengths,compiled,kinds",
    [
        pytest.param(([(40, 0), (9, 30)], []), False, {ROW, LATENT, ILLEGAL}, id="dense contexts select nothing"),
        pytest.param(([(40, 0), (9, 30)], []), True, {ROW, LATENT, KEYS, ILLEGAL, MISS}, id="not so under compile"),
        pytest.param(([(40, 0)], [(1, 300)]), False, {ROW, LATENT, KEYS, ILLEGAL, MISS}, id="generations beside them"),
        pytest.param(([], [(1, 300)]), False, {ROW, LATENT, KEYS, ILLEGAL, MISS}, id="generations alone"),
    ],
)
def test_with_short_mha_each_part_is_checked_for_what_it_did(monkeypatch, lengths, compiled, kinds):
    """Dense rows have no selection to compare; whatever selects is compared, and a bad selection is red."""
    subject = Subject(short_seq_mha_threshold=100)
    checks = subject.checks(lengths, compiled=compiled)
    assert red(checks) == set()
    assert {kind for kind in (ROW, LATENT, KEYS, ILLEGAL, MISS) if any(kind in check.name for check in checks)} == kinds
    if lengths[1]:
        first_positions(monkeypatch, subject)
        assert red(subject.checks(lengths, compiled=compiled)) == {MISS}


def test_plain_mla_is_checked_for_output_and_cache(monkeypatch):
    """No indexer, no selection; a latent row not appended is red."""
    shape = replace(PRESETS["tiny"], num_heads=4, hidden_size=256, index_topk=0, index_n_heads=0, index_head_dim=0)
    caches = allocate(shape, 1, 16, CPU)
    weights = random_weights(shape, seed=0, mlp=False, device=CPU)
    metadata = AttnMetadata(MetadataLimits(64, 8, 512, 0), caches, CPU)
    tiles = layer_tiles(kernel_dims(shape), {})
    stack = build_stack(shape, [weights], caches=caches, tiles=tiles, form="monolithic")
    batch = place((Request(9, 60),), (Request(1, 100),), num_blocks=16, seed=1)
    for broken in (False, True):
        if broken:
            monkeypatch.setattr(MLA, "_append_latent", lambda self, *args: None)
        inputs.fill_caches(caches, seed=3)
        metadata.prepare(batch)
        hidden = inputs.hidden_states(10, shape.hidden_size, seed=9, device=CPU)
        positions = inputs.position_ids(batch, CPU)
        with ForwardContext(stack.attention, metadata, compiled=False) as context:
            _, [probed] = verify.probe(stack, hidden, positions)
            checks = verify.against_oracle(probed, weights, batch, caches, positions, context)
        assert [check.name.split(": ")[1] for check in checks] == ["worst row error vs oracle", LATENT]
        assert [check.passed for check in checks] == [not broken] * 2


def test_a_probe_changes_nothing_and_leaves_no_hook(subject):
    """The output with and without is the same bits; afterwards the layers are as before, after an error, too."""
    subject.checks(PREFILL)
    hidden = inputs.hidden_states(73, subject.shape.hidden_size, seed=9, device=CPU)
    positions = subject.metadata.positions.clone()
    with ForwardContext(subject.stack.attention, subject.metadata, compiled=False):
        probed, probes = verify.probe(subject.stack, hidden, positions)
        assert torch.equal(subject.stack(hidden, positions), probed)
        with pytest.raises((ValueError, RuntimeError)):
            verify.probe(subject.stack, hidden, positions[:-1])
    assert [each.attn.layer_idx for each in probes] == ["0", "1"]
    assert not any(attn._forward_hooks for attn in subject.stack.attention.values())


def test_same_bits_counts_bytes_and_takes_nan_for_itself():
    """-0.0 is not 0.0; the same NaN is the same; another shape or dtype is the caller's mistake."""
    a = torch.tensor([1.0, 0.0, torch.nan]).bfloat16()
    assert verify.same_bits("x", a, a.clone()).passed
    changed = verify.same_bits("x", a, torch.tensor([1.0, -0.0, torch.nan]).bfloat16())
    assert (changed.value, changed.limit, changed.passed) == (1.0, 0.0, False)
    for other in (a[:2], a.float()):
        with pytest.raises(ValueError, match="x: expected"):
            verify.same_bits("x", a, other)


def test_finite_counts_what_is_not():
    """Two equal NaNs would pass same_bits."""
    assert verify.finite("x", torch.tensor([1.0, torch.nan, torch.inf, -torch.inf])).value == 3
    assert verify.finite("x", torch.ones(3)).passed


@pytest.mark.parametrize("num_tokens", [1, 15, 16, 17, 100, 8192])
def test_sampled_rows_are_distinct_in_order_and_hold_both_ends(num_tokens):
    """At most sixteen."""
    rows = verify.sampled_rows(num_tokens)
    assert rows == sorted(set(rows)) and len(rows) == min(num_tokens, 16)
    assert (rows[0], rows[-1]) == (0, num_tokens - 1)


def test_a_check_of_nan_does_not_pass():
    """Nothing is below a limit that is not a number."""
    assert not Check(name="x", value=float("nan"), limit=1.0).passed
