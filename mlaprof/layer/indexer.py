"""The lightning indexer: which index_topk cached tokens each query attends to.

Two halves with a border between them. `pre_indexer_proj` is token-wise and belongs to Op 1; `sparse_attn_indexer`
reads batch structure, updates the indexer K cache and selects, and belongs to Op 2. Other boundaries cut the second
half further (`update_k_cache`, `select_fresh`) or leave both to Op 2. Source: the DSA section of the DeepSeek-V3.2
report and TensorRT-LLM #12503.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mlaprof.layer.context import ForwardContext
from mlaprof.layer.linear import Linear
from mlaprof.layer.metadata import AttnMetadata
from mlaprof.layer.ops import OPS
from mlaprof.layer.parallel import maybe_execute_in_parallel
from mlaprof.layer.rope import rotate
from mlaprof.layer.tiling import LayerTiles
from mlaprof.shapes import LayerShape

QUANT_BLOCK_SIZE = 128
K_NORM_EPS = 1e-6  # LayerNorm with weight and bias, unlike the layer's two RMSNorms


class Indexer(nn.Module):
    """One wq_b / wk / weights_proj set, replicated on every tensor-parallel rank."""

    def __init__(self, shape: LayerShape, weights: dict[str, Tensor]) -> None:
        super().__init__()
        self.shape = shape
        self.quant_block_size = QUANT_BLOCK_SIZE
        self.wq_b = Linear(weights["indexer.wq_b.weight"])  # [n_heads * 128, q_lora_rank]
        self.wk = Linear(weights["indexer.wk.weight"].float())  # [128, hidden_size]
        self.weights_proj = Linear(weights["indexer.weights_proj.weight"].float())  # [n_heads, hidden_size]
        self.k_norm_weight = nn.Parameter(weights["indexer.k_norm.weight"], requires_grad=False)
        self.k_norm_bias = nn.Parameter(weights["indexer.k_norm.bias"], requires_grad=False)
        self.wk_weights_proj: Linear | None = None

    def post_load_weights(self) -> None:
        """Fuse wk and weights_proj into one fp32 matrix [128 + n_heads, hidden_size]; run once after loading."""
        self.wk_weights_proj = Linear(torch.cat((self.wk.weight, self.weights_proj.weight)))

    def pre_indexer_proj(
        self, qr: Tensor, hidden_states: Tensor, cos_sin: Tensor, context: ForwardContext
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The token-wise half: quantised index q and k, and the head weights.

        qr             [T, q_lora_rank] bf16        normed compressed q
        hidden_states  [T, hidden_size] bf16
        cos_sin        [T, 2, rope/2] fp32          rotation at each token's position
        returns        q_fp8 [T, n_heads, 128] e4m3, k_fp8 [T, 128] e4m3, k_scale [T, 1] fp32, weights [T, n_heads] fp32

        q's quantisation scale is folded into weights, so nothing later needs it. q and k are quantised beside each
        other where context allows.
        """
        assert self.wk_weights_proj is not None, "indexer: expected post_load_weights() before the first forward"
        n_heads, head_dim = self.shape.index_n_heads, self.shape.index_head_dim
        fused = self.wk_weights_proj(hidden_states.float())  # [T, 128 + n_heads]
        index_k, weights = fused.split((head_dim, n_heads), dim=-1)
        k_weight, k_bias = self.k_norm_weight, self.k_norm_bias
        k = F.layer_norm(index_k.to(hidden_states.dtype), (head_dim,), k_weight, k_bias, K_NORM_EPS)
        q = self.wq_b(qr).view(-1, n_heads, head_dim)

        (q_fp8, q_scale), (k_fp8, k_scale) = maybe_execute_in_parallel(
            partial(self._quantise, q, cos_sin), partial(self._quantise, k, cos_sin), context
        )
        weights = weights * q_scale.squeeze(-1) * self.shape.index_weight_scale
        return q_fp8, k_fp8, k_scale, weights

    def _quantise(self, x: Tensor, cos_sin: Tensor) -> tuple[Tensor, Tensor]:
        codes, scale = OPS.act_quant(self._rotate_head(x, cos_sin))
        return codes, scale

    def _rotate_head(self, x: Tensor, cos_sin: Tensor) -> Tensor:
        # Order inside an index head is [rope | nope], the opposite of the main q.
        rope = self.shape.qk_rope_head_dim
        rotated = rotate(x[..., :rope], cos_sin, interleaved=self.shape.indexer_rope_interleave)
        return torch.cat((rotated, x[..., rope:]), dim=-1)

    def update_k_cache(
        self, k_fp8: Tensor, k_scale: Tensor, slots: tuple[Tensor, Tensor], index_k_cache: Tensor
    ) -> None:
        """Write n keys [n, 128] and scales [n, 1] at (codes, scales) byte offsets of this layer's pool."""
        assert self.quant_block_size == QUANT_BLOCK_SIZE, (
            f"quant_block_size: expected {QUANT_BLOCK_SIZE}, got {self.quant_block_size}"
        )
        OPS.update_index_cache(k_fp8, k_scale, *slots, index_k_cache)

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
        updated: bool = False,
    ) -> Tensor:
        """The batch-dependent half: update the K cache for the whole batch, unless Op 1 has, then select.

        Arguments are `pre_indexer_proj`'s results cut to metadata.num_tokens; index_k_cache is this layer's pool
        [num_blocks + 1, 64 * 132] uint8, or None without a cache manager. Returns request-local positions
        [num_tokens, index_topk] int32; -1 marks an empty slot.
        """
        if index_k_cache is not None and not updated:
            # Before any gather, so that this step's chunks see this step's keys.
            self.update_k_cache(k_fp8, k_scale, metadata.index_slots(metadata.num_tokens), index_k_cache)
        num_ctx, num_tokens = metadata.num_ctx_tokens, metadata.num_tokens
        topk = self._nothing_selected(num_tokens, q_fp8.device)
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
        topk = self._nothing_selected(rows, q_fp8.device)
        self._select_one_pass(q_fp8, k_fp8, k_scale, weights, metadata.causal_bounds(rows), tiles, topk)
        return topk

    def _nothing_selected(self, rows: int, device: torch.device) -> Tensor:
        return torch.full((rows, self.shape.index_topk), -1, dtype=torch.int32, device=device)

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
        select_topk(logits, bounds[0], out=topk)

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
            select_topk(logits, chunk.ks, out=topk[rows])

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
        select_topk(logits, None, out=topk)


def select_topk(logits: Tensor, ks: Tensor | None, *, out: Tensor) -> None:
    """Write the request-local positions of the largest logits of each row into out; the tail stays -1.

    logits  [n, width] fp32; -inf outside a row's keys
    ks      [n] int32        first key of each row's request; None when rows start at key 0
    out     [n, index_topk] int32, filled with -1
    """
    width = min(out.shape[1], logits.shape[1])
    values, index = logits.topk(width, dim=-1, sorted=False)
    local = index.to(torch.int32)
    if ks is not None:
        local = local - ks[:, None]
    out[:, :width].copy_(local.masked_fill(values == float("-inf"), -1))
