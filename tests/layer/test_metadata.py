"""The metadata buffers: what prepare() writes, where, and that it never moves."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from mlaprof.layer.batch import Batch, Request
from mlaprof.layer.cache import index_slot_bytes
from mlaprof.layer.chunks import causal_bounds
from mlaprof.layer.metadata import AttnMetadata

BATCHES: list[dict[str, Any]] = [
    {"contexts": [(33, 0), (1, 100), (64, 64)]},
    {"generations": [(1, 0), (1, 63), (1, 64), (1, 300)]},
    {"generations": [(2, 62), (2, 63)]},
    {"contexts": [(7, 5)], "generations": [(3, 130), (3, 1)]},
]
VIEWS = ("kv_lens", "block_table", "req_idx_per_token", "positions", "slot_mapping_fp8", "slot_mapping_scale")
VIEWS += ("latent_rows", "cu_seqlen_ks", "cu_seqlen_ke", "visible")


@pytest.mark.parametrize("lengths", BATCHES)
def test_prepare_describes_the_batch(tiny, lengths):
    """Every buffer against the same fact told request by request."""
    batch = tiny.batch(**lengths)
    tiny.load(batch)
    metadata = tiny.metadata
    row = 0
    for number, (request, pages) in enumerate(zip(batch.requests, batch.pages, strict=True)):
        table = metadata.block_table[number].tolist()
        assert table == [*pages, *[-1] * (metadata.max_blocks_per_seq - len(pages))]
        assert int(metadata.kv_lens[number]) == request.kv_len
        for position in range(request.cached_tokens, request.kv_len):
            block, place = torch.tensor(pages[position // 64]), torch.tensor(position % 64)
            fp8, scale = index_slot_bytes(block, place)
            assert int(metadata.req_idx_per_token[row]) == number
            assert int(metadata.positions[row]) == position
            assert int(metadata.visible[row]) == position + 1
            assert int(metadata.slot_mapping_fp8[row]) == int(fp8)
            assert int(metadata.slot_mapping_scale[row]) == int(scale)
            assert int(metadata.latent_rows[row]) == pages[position // 64] * 64 + position % 64
            row += 1
    assert row == metadata.num_tokens == batch.num_tokens
    ks, ke = causal_bounds(batch.contexts)
    assert (metadata.cu_seqlen_ks.tolist(), metadata.cu_seqlen_ke.tolist()) == (list(ks), list(ke))
    counts = (metadata.num_contexts, metadata.num_generations, metadata.num_ctx_tokens)
    assert counts == (len(batch.contexts), len(batch.generations), batch.num_ctx_tokens)


@pytest.mark.parametrize("lengths", BATCHES)
def test_dense_topk_is_every_position_up_to_the_tokens_own(tiny, lengths):
    """0..position, then -1; a token with more than index_topk keys has the first ones."""
    batch = tiny.batch(**lengths)
    _, positions = tiny.load(batch)
    width = tiny.shape.index_topk
    for row, position in zip(tiny.metadata.dense_topk.tolist(), positions.tolist(), strict=False):
        want = list(range(min(position + 1, width)))
        assert row == want + [-1] * (width - len(want))


def test_a20_buffers_keep_their_addresses_and_take_prefixes(tiny):
    """Whatever the batch, no buffer is re-allocated."""
    metadata = tiny.metadata
    before = metadata.addresses()
    assert len(before) == 16
    for lengths in BATCHES:
        tiny.load(tiny.batch(**lengths))
        assert metadata.addresses() == before
        for name in VIEWS:
            view = getattr(metadata, name)
            assert view.numel() == 0 or view.data_ptr() == before[f"_{name}"]


@pytest.mark.parametrize("lengths", [*BATCHES, {}])
def test_rows_behind_the_batch_are_defined_whatever_was_there_before(tiny, lengths):
    """Captured code works on padding rows: they write to the scratch page, see no key and select nothing."""
    metadata, rows = tiny.metadata, tiny.metadata.limits.max_num_tokens
    metadata.prepare(tiny.batch([(rows, 0)], seed=2))
    metadata.prepare(tiny.batch(**lengths))
    tail = slice(metadata.num_tokens, rows)
    place = torch.arange(rows)[tail] % 64
    fp8, scale = index_slot_bytes(torch.full_like(place, tiny.caches.scratch_block), place)
    assert tiny.caches.scratch_block == tiny.caches.num_blocks
    for got, want in zip(metadata.index_slots(rows), (fp8, scale), strict=True):
        assert torch.equal(got[tail], want)
    assert torch.equal(metadata.latent_slots(rows)[tail], tiny.caches.scratch_block * 64 + place)
    for bound in metadata.causal_bounds(rows):
        assert not bool(bound[tail].any())
    assert bool((metadata.dense_selection(rows)[tail] == -1).all())
    for name in ("_req_idx_per_token", "_positions", "_visible"):
        assert not bool(getattr(metadata, name).device[tail].any())
    requests = len(tiny.batch(**lengths).requests)
    assert not bool(metadata._kv_lens.device[requests:].any())
    assert bool((metadata._block_table.device[requests:] == -1).all())


def test_no_batch_is_given_the_scratch_page(tiny):
    """A batch that takes every usable page leaves it alone, and one page more is refused."""
    blocks = tiny.caches.num_blocks
    batch = tiny.batch([(64 * 8, 0)] * (blocks // 8))
    assert {page for pages in batch.pages for page in pages} == set(range(blocks))
    with pytest.raises(ValueError, match=f"num_blocks: expected at least {blocks + 1}, got {blocks}"):
        tiny.batch([(64 * 8, 0)] * (blocks // 8), [(1, 0)])


FLOWS: dict[str, tuple[dict[str, Any], dict[str, Any], bool]] = {
    "pages alone": ({"contexts": [(33, 0), (20, 70)]}, {"contexts": [(33, 0), (20, 70)]}, True),
    "decode, other lengths": ({"generations": [(1, 200), (1, 9)]}, {"generations": [(1, 3), (1, 80)]}, True),
    "prompts cut elsewhere": ({"contexts": [(33, 0), (20, 0)]}, {"contexts": [(13, 0), (40, 0)]}, True),
    "a request more": ({"contexts": [(53, 0)]}, {"contexts": [(13, 0), (40, 0)]}, False),
    "a token fewer": ({"contexts": [(53, 0)]}, {"contexts": [(52, 0)]}, False),
    "short against long prompts": ({"contexts": [(64, 0), (64, 0)]}, {"contexts": [(65, 0), (63, 0)]}, False),
    "short against long decode": ({"generations": [(1, 9)]}, {"generations": [(1, 90)]}, False),
    "other keys to gather": ({"contexts": [(9, 70)]}, {"contexts": [(9, 71)]}, False),
    "queries of two": ({"generations": [(1, 90)] * 2}, {"generations": [(2, 90)]}, False),
    "contexts against generations": ({"contexts": [(1, 90)]}, {"generations": [(1, 90)]}, False),
}


@pytest.mark.parametrize("name", FLOWS)
def test_control_flow_is_equal_where_python_would_do_the_same(make_bench, shapes, name):
    """Counts, chunks and shortcuts decide; pages, and lengths that only the device reads, do not."""
    bench = make_bench(shapes["glm-like"])
    first, second, equal = FLOWS[name]
    flows = []
    for seed, lengths in ((1, first), (2, second)):
        bench.metadata.prepare(bench.batch(**lengths, seed=seed))
        flows.append(bench.metadata.control_flow())
    assert (flows[0] == flows[1]) is equal
    assert len(set(flows)) == (1 if equal else 2)


def test_plain_mla_s_control_flow_knows_each_prompt(plain):
    """Its dense attention goes request by request in Python."""
    flows = []
    for lengths in ([(33, 0), (20, 0)], [(20, 0), (33, 0)]):
        plain.metadata.prepare(plain.batch(lengths))
        flows.append(plain.metadata.control_flow())
    assert flows[0] != flows[1]


def test_op1_depends_on_no_batch_unless_it_selects(make_bench, shapes):
    """At logits on the shortcut for short sequences, and on whether the batch may be captured there at all."""
    bench = make_bench(shapes["glm-like"])
    flows = {}
    for name, lengths in (
        ("short", {"contexts": [(64, 0)]}),
        ("other short", {"contexts": [(20, 0), (9, 0)]}),
        ("long", {"contexts": [(65, 0)]}),
        ("cached", {"contexts": [(9, 9)]}),
        ("decode", {"generations": [(1, 9)]}),
    ):
        bench.metadata.prepare(bench.batch(**lengths))
        assert {bench.metadata.proj_control_flow(b) for b in ("proj", "index_quant", "cache_update")} == {()}
        flows[name] = bench.metadata.proj_control_flow("logits")
    assert flows["short"] == flows["other short"] != flows["long"]
    assert flows["cached"] == flows["decode"] and flows["cached"] not in (flows["short"], flows["long"])


def test_a20_context_buffers_stay_where_a_captured_graph_reads_them(tiny):
    """Full-KV slots, latent rows and chunk bounds of the next batch of the same shape are at the same addresses."""

    def addresses(seed: int) -> tuple[int, ...]:
        tiny.load(tiny.batch([(70, 90), (33, 65)], seed=seed))
        metadata = tiny.metadata
        assert metadata.prefill_chunks is not None
        bounds = [bound for chunk in metadata.prefill_chunks for bound in (chunk.ks, chunk.ke)]
        views = (metadata.slot_mapping_fp8_fullkv, metadata.slot_mapping_scale_fullkv, metadata.ctx_kv_rows, *bounds)
        return tuple(view.data_ptr() for view in views)

    first = addresses(1)
    tiny.load(tiny.batch([(100, 0)]))
    assert addresses(2) == first


def test_a20_a_tighter_limit_on_context_tokens_is_kept(tiny):
    """The context buffers need not hold every request at full length; a batch beyond them is refused."""
    limits = replace(tiny.metadata.limits, max_ctx_kv_tokens=100)
    metadata = AttnMetadata(limits, tiny.caches, tiny.device)
    metadata.prepare(tiny.batch([(40, 60)]))
    assert metadata.ctx_kv_rows.shape == (100,)
    with pytest.raises(ValueError, match="context kv_len together: expected at most 100, got 101"):
        metadata.prepare(tiny.batch([(40, 61)]))


def test_a20_every_buffer_has_its_final_size_and_dtype_from_the_start(tiny):
    """Sized by the limits: int32 for what kernels index with, int64 for byte offsets."""
    metadata, limits = tiny.metadata, tiny.metadata.limits
    tokens, requests, blocks = limits.max_num_tokens, limits.max_num_requests, -(-limits.max_seq_len // 64)
    described = {
        name.removeprefix("_"): (tuple(twin.device.shape), twin.device.dtype)
        for name, twin in vars(metadata).items()
        if hasattr(twin, "host")
    }
    assert described == {
        "kv_lens": ((requests,), torch.int32),
        "block_table": ((requests, blocks), torch.int32),
        "req_idx_per_token": ((tokens,), torch.int32),
        "positions": ((tokens,), torch.int64),
        "visible": ((tokens,), torch.int32),
        "slot_mapping_fp8": ((tokens,), torch.int64),
        "slot_mapping_scale": ((tokens,), torch.int64),
        "latent_rows": ((tokens,), torch.int64),
        "cu_seqlen_ks": ((tokens,), torch.int32),
        "cu_seqlen_ke": ((tokens,), torch.int32),
        "chunk_ks": ((tokens,), torch.int32),
        "chunk_ke": ((tokens,), torch.int32),
        "fullkv_fp8": ((requests * limits.max_seq_len,), torch.int64),
        "fullkv_scale": ((requests * limits.max_seq_len,), torch.int64),
        "ctx_kv_rows": ((requests * limits.max_seq_len,), torch.int64),
    }
    sizes = {torch.int32: 4, torch.int64: 8}
    total = sum(sizes[dtype] * torch.Size(shape).numel() for shape, dtype in described.values())
    assert metadata.num_bytes == total + tokens * limits.index_topk * 4


def test_a19_decode_requires_equal_query_lengths(tiny):
    """Two generation requests of different length are refused, and their lengths told; contexts may differ."""
    batch = tiny.batch([(3, 0), (9, 0)], [(1, 70), (2, 70)])
    with pytest.raises(ValueError, match=r"generation requests: expected equal query lengths, got \[1, 2\]"):
        tiny.metadata.prepare(batch)


@pytest.mark.parametrize(
    "lengths,complaint",
    [
        ({"contexts": [(257, 0)]}, "num_tokens: expected at most 256, got 257"),
        ({"generations": [(1, 0)] * 13}, "requests: expected at most 12, got 13"),
        ({"generations": [(1, 512)]}, "kv_len: expected at most 512, got 513"),
    ],
)
def test_a_batch_beyond_the_limits_is_refused_before_anything_is_written(tiny, lengths, complaint):
    """The metadata still describes the batch before."""
    tiny.load(tiny.batch([(5, 0)]))
    with pytest.raises(ValueError, match=complaint):
        tiny.metadata.prepare(tiny.batch(**lengths))
    assert (tiny.metadata.num_tokens, tiny.metadata.num_contexts) == (5, 1)


def test_a_batch_at_the_limits_is_taken(make_bench, shapes):
    """max_seq_len tokens in a request, to the last slot of its last block."""
    bench = make_bench(shapes["tiny"], max_seq_len=130, max_num_tokens=130)
    hidden, positions = bench.load(bench.batch([(130, 0)]))
    assert bench.metadata.block_table.shape == (1, 3)
    assert bool(bench.forward(hidden, positions).isfinite().all())


@pytest.mark.parametrize("lengths", [each for each in BATCHES if "generations" in each])
def test_a14_the_refresh_from_kv_lens_gives_what_prepare_gives(make_bench, shapes, lengths):
    """One decode step later, on the device: the same positions, slots, rows and dense table as a fresh prepare()."""
    bench = make_bench(shapes["tiny"])
    metadata: AttnMetadata = bench.metadata
    now = bench.batch(**lengths)
    step = now.generations[0].new_tokens
    grown = tuple(replace(each, cached_tokens=each.cached_tokens + step) for each in now.generations)
    first = len(now.contexts)
    spare = iter(set(range(bench.caches.num_blocks)) - {page for pages in now.pages for page in pages})
    pages = tuple(
        (*pages, *(next(spare) for _ in range(request.num_blocks - len(pages))))
        for request, pages in zip(now.contexts + grown, now.pages, strict=True)
    )
    later = Batch(now.contexts, grown, pages)
    metadata.prepare(later)
    want = [getattr(metadata, name).clone() for name in VIEWS] + [metadata.dense_topk[: now.num_tokens].clone()]
    table, kv_lens = metadata.block_table.clone(), metadata.kv_lens.clone()

    metadata.prepare(now)
    before = metadata.addresses()
    metadata.block_table.copy_(table)
    metadata.kv_lens[first:].copy_(kv_lens[first:])
    metadata.on_update_kv_lens()
    got = [getattr(metadata, name) for name in VIEWS] + [metadata.dense_topk[: now.num_tokens]]
    for name, expected, actual in zip([*VIEWS, "dense_topk"], want, got, strict=True):
        assert torch.equal(expected, actual), name
    assert metadata.addresses() == before


def test_host_values_are_plain_numbers(tiny):
    """No tensor hides among the counts: reading one would wait for the device."""
    tiny.load(tiny.batch([(5, 70)], [(2, 30)]))
    names = ("num_contexts", "num_generations", "num_ctx_tokens", "num_tokens", "max_ctx_kv_len", "max_gen_kv_len")
    assert {name: getattr(tiny.metadata, name) for name in names} == dict(zip(names, (1, 1, 5, 7, 75, 32), strict=True))
    assert all(type(getattr(tiny.metadata, name)) is int for name in (*names, "next_n"))
    assert tiny.metadata.ctx_lens == ((5, 75),)


def test_too_few_pages_are_refused():
    """A page list shorter than its request, or a list too many."""
    with pytest.raises(ValueError, match="pages: expected 2 for"):
        Batch((Request(65, 0),), (), ((1,),))
    with pytest.raises(ValueError, match="expected 1 page lists, got 2"):
        Batch((Request(65, 0),), (), ((1, 2), (3,)))


@pytest.mark.gpu
def test_a20_prepare_keeps_addresses_on_cuda_and_a_captured_graph_reads_the_new_batch(make_bench, shapes):
    """A graph over the buffers, captured once, sees what later prepare() calls upload."""
    bench = make_bench(shapes["tiny"], device="cuda")
    metadata = bench.metadata
    bench.load(bench.batch((), [(1, 70)] * 4))
    before = metadata.addresses()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        copy = metadata.slot_mapping_fp8 + 0
    for seed in (2, 3):
        bench.load(bench.batch((), [(1, 200)] * 4, seed=seed))
        torch.cuda.synchronize()
        graph.replay()
        assert torch.equal(metadata.slot_mapping_fp8, copy)
    assert metadata.addresses() == before


@pytest.mark.gpu
def test_a20_the_refresh_can_be_captured(make_bench, shapes):
    """on_update_kv_lens inside a graph, with a stale -1 in the table, neither waits nor leaves the pool."""
    bench = make_bench(shapes["tiny"], device="cuda")
    metadata = bench.metadata
    bench.load(bench.batch((), [(1, 62), (1, 63), (1, 10)]))
    metadata.on_update_kv_lens()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        metadata.on_update_kv_lens()
    metadata.kv_lens.add_(1)  # the second request now ends in a block that its table does not have
    graph.replay()
    assert metadata.positions.tolist() == [63, 64, 11]
    assert int(metadata.slot_mapping_fp8.min()) >= 0


@pytest.mark.gpu
def test_a_batch_prepared_while_the_one_before_is_still_uploading_does_not_overtake_it(make_bench, shapes):
    """The host twins are not overwritten under a copy that waits behind a busy device."""
    bench = make_bench(shapes["tiny"], device="cuda")
    metadata = bench.metadata
    batches = [bench.batch((), [(1, 100)] * 3, seed=seed) for seed in (1, 2)]
    want = []
    for batch in batches:
        metadata.prepare(batch)
        want.append(metadata.slot_mapping_fp8.tolist())
    torch.cuda._sleep(200_000_000)  # cycles: a tenth of a second
    got = []
    for batch in batches:
        metadata.prepare(batch)
        got.append(metadata.slot_mapping_fp8.clone())
    assert want[0] != want[1]
    assert want == [each.tolist() for each in got]
