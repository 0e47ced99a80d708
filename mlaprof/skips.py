"""Why a combination of the axes cannot run, told from the numbers alone."""

from __future__ import annotations

from mlaprof.buckets import Buckets, bucket_of
from mlaprof.config.axes import Combination
from mlaprof.study import BOUNDED_MODES, BUCKETED_MODES, SPLIT_MODES, BatchSpec, Phase, Study


def skip_reason(study: Study, combination: Combination, buckets: Buckets | None = None) -> str | None:
    """Why a combination cannot run, or None.

    buckets  the study's captured sizes, one of which a step may pad up to; None: each token count is captured as it is
    """
    phase, num_tokens, context_len, mode, boundary = combination
    batch, shape = study.batch, study.layer.shape
    if reason := _batch_problem(batch, phase, num_tokens):
        return reason
    longest = context_len + _longest_request(batch, phase, num_tokens)
    if longest > shape.max_position_embeddings:
        return f"a request of {longest} tokens exceeds max_position_embeddings {shape.max_position_embeddings}"
    if 0 < study.layer.options.max_seq_len < longest:
        return f"a request of {longest} tokens exceeds layer.max_seq_len {study.layer.options.max_seq_len}"
    if mode in SPLIT_MODES and not shape.is_dsa:
        return "the split exists only for DSA; plain MLA is one op"
    if mode in BUCKETED_MODES and phase == "decode":
        return "decode-only batches are not piecewise in the engine; use mode full"
    if mode in BOUNDED_MODES and boundary == "logits":
        rows = num_tokens if buckets is None else bucket_of(num_tokens, buckets.sizes) or num_tokens
        return _logits_problem(phase, rows, context_len, study.layer.options.indexer_max_chunk_size)
    return None


def _logits_problem(phase: Phase, rows: int, context_len: int, chunk: int) -> str | None:
    """Which operator of the indexer a batch forbids to capture, and why, or None.

    Between the quantised keys and the selection, only a batch of fresh prompts in one chunk has the shapes of its
    token count alone.
    """
    if phase == "mixed":
        return "paged_index_logits forbids boundary logits: generations begin at the batch's num_ctx_tokens"
    if context_len:
        return "gather_index_cache forbids boundary logits: its output has the batch's KV length with cached tokens"
    if rows > chunk:
        return (
            f"gather_index_cache forbids boundary logits: its output has a chunk's KV length, and {rows} tokens are "
            f"more than indexer_max_chunk_size {chunk}"
        )
    return None


def _batch_problem(batch: BatchSpec, phase: Phase, num_tokens: int) -> str | None:
    generated = batch.num_generations * batch.next_n
    if phase == "prefill" and num_tokens < batch.num_contexts:
        return f"{num_tokens} tokens are fewer than num_contexts {batch.num_contexts}"
    if phase == "decode" and num_tokens % batch.next_n:
        return f"{num_tokens} tokens are no multiple of next_n {batch.next_n}"
    if phase == "mixed" and num_tokens < generated + batch.num_contexts:
        return (
            f"{num_tokens} tokens are fewer than {batch.num_generations} generations x next_n {batch.next_n} "
            f"+ {batch.num_contexts} contexts = {generated + batch.num_contexts}"
        )
    return None


def _longest_request(batch: BatchSpec, phase: Phase, num_tokens: int) -> int:
    """New tokens of the request that has most of them."""
    if phase == "decode":
        return batch.next_n
    if phase == "prefill":
        return -(-num_tokens // batch.num_contexts)
    context_tokens = num_tokens - batch.num_generations * batch.next_n
    return max(batch.next_n, -(-context_tokens // batch.num_contexts))
