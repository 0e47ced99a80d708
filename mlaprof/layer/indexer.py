"""The lightning indexer: which index_topk cached tokens each query attends to.

Two halves with a border between them. `pre_indexer_proj` is token-wise and belongs to Op 1; `sparse_attn_indexer`
reads batch structure, updates the indexer K cache and selects, and belongs to Op 2. Other boundaries cut the second
half further (`select_fresh`) or leave both to Op 2. Source: the DSA section of the DeepSeek-V3.2
report and TensorRT-LLM #12503.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from mlaprof.layer.context import ForwardContext
from mlaprof.layer.linear import Linear, linear
from mlaprof.layer.metadata import AttnMetadata
from mlaprof.layer.ops import OPS
from mlaprof.layer.parallel import maybe_execute_in_parallel
from mlaprof.layer.tiling import LayerTiles
from mlaprof.shapes import LayerShape
from mlaprof.study import LinearKind

QUANT_BLOCK_SIZE = 128
K_NORM_EPS = 1e-6  # LayerNorm with weight and bias, unlike the layer's two RMSNorms


class Indexer(nn.Module):
    """One wq_b / wk / weights_proj set, replicated on every tensor-parallel rank."""

    def __init__(self, shape: LayerShape, weights: dict[str, Tensor], kind: LinearKind) -> None:
        super().__init__()
        self.shape = shape
        self.quant_block_size = QUANT_BLOCK_SIZE
        self.wq_b = linear(weights["indexer.wq_b.weight"], kind)  # [n_heads * 128, q_lora_rank]
        self.wk = Linear(weights["indexer.wk.weight"].float())  # [128, hidden_size]
        self.weights_proj = Linear(weights["indexer.weights_proj.weight"].float())  # [n_heads, hidden_size]
        self.k_norm_weight = nn.Parameter(weights["indexer.k_norm.weight"], requires_grad=False)
        self.k_norm_bias = nn.Parameter(weights["indexer.k_norm.bias"], requires_grad=False)
        self.wk_weights_proj: Linear | None = None

    def post_load_weights(self) -> None:
        """Fuse wk and weights_proj into one fp32 matrix [128 + n_heads, hidden_size]; run once after loading."""
        self.wk_weights_proj = Linear(torch.cat((self.wk.weight, self.weights_proj.weight)))

    def pre_indexer_proj(
        self, qr: Tensor, hidden_states: Tensor, cos_sin: Tensor, position_ids: Tensor, context: ForwardContext
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The token-wise half: quantised index q and k, and the head weights.

        qr             [T, q_lora_rank] bf16        normed compressed q
        hidden_states  [T, hidden_size] bf16
        cos_sin        [max_positions, 2, rope/2]   fp32
        position_ids   [T] int64
        returns        q_fp8 [T, n_heads, 128] e4m3, k_fp8 [T, 128] e4m3, k_scale [T, 1] fp32, weights [T, n_heads] fp32

        q's quantisation scale is folded into weights, so nothing later needs it. q and k are made beside each other
        where context allows.
        """
        index_k, weights = self.project(hidden_states)
        (q_fp8, weights), (k_fp8, k_scale) = maybe_execute_in_parallel(
            partial(self.query, qr, weights, cos_sin, position_ids),
            partial(self.key, index_k, cos_sin, position_ids),
            context,
        )
        return q_fp8, k_fp8, k_scale, weights

    def project(self, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
        """(index_k [T, 128], weights [T, n_heads]), two fp32 slices of one product."""
        assert self.wk_weights_proj is not None, "indexer: expected post_load_weights() before the first forward"
        fused = self.wk_weights_proj(hidden_states.float())
        index_k, weights = fused.split((self.shape.index_head_dim, self.shape.index_n_heads), dim=-1)
        return index_k, weights

    def key_norm(self, index_k: Tensor) -> tuple[Tensor, Tensor, Tensor, float]:
        """What the operators that make the index key take before the rotation's arguments."""
        return index_k, self.k_norm_weight, self.k_norm_bias, K_NORM_EPS

    def key(self, index_k: Tensor, cos_sin: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """(k_fp8, k_scale) of the projected index_k: normed, rotated, quantised."""
        interleaved = self.shape.indexer_rope_interleave
        codes, scale = OPS.index_key(*self.key_norm(index_k), cos_sin, position_ids, interleaved)
        return codes, scale

    def query(self, qr: Tensor, weights: Tensor, cos_sin: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """(q_fp8, weights): projected, rotated, quantised, and its scale folded into the head weights."""
        scale, interleaved = self.shape.index_weight_scale, self.shape.indexer_rope_interleave
        codes, folded = OPS.index_query(self.wq_b(qr), weights, cos_sin, position_ids, scale, interleaved)
        return codes, folded

    def check_quantiser(self) -> None:
        """The cache's rows hold one block of 128 codes each. Raises AssertionError on another block size."""
        assert self.quant_block_size == QUANT_BLOCK_SIZE, (
            f"quant_block_size: expected {QUANT_BLOCK_SIZE}, got {self.quant_block_size}"
        )

    def sparse_attn_indexer(
        self,
        metadata: AttnMetadata,
        q_fp8: Tensor,
        k_fp8: Tensor,
        k_scale: Tensor,
        weights: Tensor,
        *,
        index_k_cache: Tensor | None,
        tiles: LayerTiles,
    ) -> Tensor:
        """The batch-dependent half: select for every token, from a K cache that holds this step's keys.

        Arguments are `pre_indexer_proj`'s results cut to metadata.num_tokens; index_k_cache is this layer's pool
        [num_blocks + 1, 64 * 132] uint8, or None without a cache manager. Returns request-local positions
        [num_tokens, index_topk] int32; -1 marks an empty slot.
        """
        num_ctx, num_tokens = metadata.num_ctx_tokens, metadata.num_tokens
        topk = self._selection(num_tokens, q_fp8.device)
        if metadata.num_contexts:
            if metadata.skip_indexer_for_ctx_reqs:
                topk[:num_ctx].copy_(metadata.dense_topk[:num_ctx])
            else:
                self._select_context(
                    metadata, q_fp8[:num_ctx], k_fp8[:num_ctx], k_scale[:num_ctx], weights[:num_ctx],
                    index_k_cache, tiles, topk[:num_ctx],
                )  # fmt: skip
        if metadata.num_generations:
            if metadata.skip_indexer_for_gen_reqs:
                topk[num_ctx:].copy_(metadata.dense_topk[num_ctx:num_tokens])
            else:
                assert index_k_cache is not None, "decode: expected an indexer K cache, got None"
                self._select_generation(
                    metadata, q_fp8[num_ctx:], weights[num_ctx:], index_k_cache, tiles, topk[num_ctx:]
                )
        return topk

    def select_fresh(
        self,
        metadata: AttnMetadata,
        q_fp8: Tensor,
        k_fp8: Tensor,
        k_scale: Tensor,
        weights: Tensor,
        *,
        tiles: LayerTiles,
    ) -> Tensor:
        """Select among this step's own keys, for every row given: `pre_indexer_proj`'s results, padding included.

        Returns [T, index_topk] int32, all -1 in padding rows. Only for context-only batches in one pass and without
        cached tokens, whose keys are k_fp8 itself; AssertionError for any other.
        """
        assert metadata.num_generations == 0, (
            "boundary logits: expected contexts only, but paged_index_logits starts at num_ctx_tokens, "
            f"which differs from batch to batch: {metadata.num_generations} generations"
        )
        assert metadata.prefill_chunks is None, (
            "boundary logits: expected one pass without cached tokens, but gather_index_cache returns as many keys as "
            f"the batch has, which differs from batch to batch: {metadata.num_ctx_kv_tokens} keys in "
            f"{len(metadata.prefill_chunks or ())} chunks"
        )
        rows = q_fp8.shape[0]
        if metadata.skip_indexer_for_ctx_reqs:
            return metadata.dense_selection(rows).clone()
        topk = self._selection(rows, q_fp8.device)
        self._select_one_pass(q_fp8, k_fp8, k_scale, weights, metadata.causal_bounds(rows), tiles, topk)
        return topk

    def _selection(self, rows: int, device: torch.device) -> Tensor:
        """To be written row by row."""
        return torch.empty((rows, self.shape.index_topk), dtype=torch.int32, device=device)

    def _select_one_pass(
        self,
        q_fp8: Tensor,
        k_fp8: Tensor,
        k_scale: Tensor,
        weights: Tensor,
        bounds: tuple[Tensor, Tensor],
        tiles: LayerTiles,
        topk: Tensor,
    ) -> None:
        """Straight from the freshly quantised keys; bounds are (ks, ke) a query row."""
        logits = OPS.index_logits(q_fp8, k_fp8, k_scale.squeeze(-1), weights, *bounds, tiles.index_logits)
        OPS.topk(logits, *bounds, tiles.topk, topk)

    def _select_context(
        self,
        metadata: AttnMetadata,
        q_fp8: Tensor,
        k_fp8: Tensor,
        k_scale: Tensor,
        weights: Tensor,
        index_k_cache: Tensor | None,
        tiles: LayerTiles,
        topk: Tensor,
    ) -> None:
        if metadata.prefill_chunks is None:
            bounds = metadata.causal_bounds(metadata.num_ctx_tokens)
            self._select_one_pass(q_fp8, k_fp8, k_scale, weights, bounds, tiles, topk)
            return
        assert index_k_cache is not None, "chunked prefill: expected an indexer K cache, got None"
        for chunk in metadata.prefill_chunks:
            rows = slice(chunk.plan.q_start, chunk.plan.q_end)
            keys = slice(chunk.plan.k_start, chunk.plan.k_end)
            fp8, scale = metadata.slot_mapping_fp8_fullkv[keys], metadata.slot_mapping_scale_fullkv[keys]
            k, k_scale = OPS.gather_index_cache(index_k_cache, fp8, scale)
            logits = OPS.index_logits(
                q_fp8[rows], k, k_scale.squeeze(-1), weights[rows], chunk.ks, chunk.ke, tiles.index_logits
            )
            OPS.topk(logits, chunk.ks, chunk.ke, tiles.topk, topk[rows])

    def _select_generation(
        self,
        metadata: AttnMetadata,
        q_fp8: Tensor,
        weights: Tensor,
        index_k_cache: Tensor,
        tiles: LayerTiles,
        topk: Tensor,
    ) -> None:
        first = metadata.num_contexts
        q = q_fp8.view(metadata.num_generations, metadata.next_n, *q_fp8.shape[1:])
        # The width is always max_seq_len: a replayed graph must cover growth.
        logits = OPS.paged_index_logits(
            q, index_k_cache, weights, metadata.kv_lens[first:], metadata.block_table[first:],
            metadata.limits.max_seq_len, tiles.paged_index_logits,
        )  # fmt: skip
        OPS.topk(logits, None, metadata.visible[metadata.num_ctx_tokens :], tiles.topk, topk)
