"""Multi-head latent attention with DeepSeek sparse attention, split as in TensorRT-LLM #12503.

Op 1 (`dsa_proj`) is token-wise: it works on every row it is given, padding included, reads no metadata and touches no
cache. Op 2 (`dsa_attn`) reads the batch: it cuts to the true token count, updates both caches, selects and attends.
Everything between them travels as tensors; nothing is kept on the layer.

That is the split of the PR, boundary "index_quant". The others move steps across it: "proj" leaves the whole indexer to
Op 2, "cache_update" has Op 1 write both caches, and "logits" has it select, too. What Op 1 then reads of the batch are
device buffers at fixed addresses, defined for padding rows; of Python values only what `proj_control_flow` tells.
"""

from __future__ import annotations

import copy
from functools import partial
from typing import Literal

from torch import Tensor, nn

from mlaprof.layer import attention
from mlaprof.layer.cache import Caches
from mlaprof.layer.context import ForwardContext
from mlaprof.layer.handover import CACHES_IN_OP1, empty_parts, for_indexer
from mlaprof.layer.indexer import Indexer
from mlaprof.layer.linear import Linear, RMSNorm
from mlaprof.layer.linear import linear as make_linear
from mlaprof.layer.metadata import AttnMetadata
from mlaprof.layer.ops import OPS
from mlaprof.layer.parallel import maybe_execute_in_parallel
from mlaprof.layer.tiling import LayerTiles
from mlaprof.shapes import TOKENS_PER_BLOCK, LayerShape
from mlaprof.study import PR_BOUNDARY, Boundary, LinearKind

Form = Literal["split", "monolithic"]
NUM_PROJ_TENSORS = 4  # q, compressed_kv, k_pe, latent_cache; what the boundary hands over for the indexer follows


class MLA(nn.Module):
    """One attention layer of one tensor-parallel rank.

    form "split" goes through Op 1 and Op 2, cut at boundary; "monolithic" through the one in-place op, whatever the
    boundary. Plain MLA (no indexer) has only the monolithic form. reduces: the ranks' outputs are summed behind o_proj;
    else this rank stands alone, and its output is a part.
    """

    def __init__(
        self,
        shape: LayerShape,
        weights: dict[str, Tensor],
        *,
        layer_idx: int,
        caches: Caches,
        cos_sin: Tensor,
        tiles: LayerTiles,
        form: Form,
        boundary: Boundary = PR_BOUNDARY,
        short_seq_mha_threshold: int = 0,
        linear: LinearKind = "bf16",
        reduces: bool = False,
    ) -> None:
        super().__init__()
        self.shape = shape
        self.reduces = reduces
        self.linear: LinearKind = linear
        self._take(form, tiles, boundary)
        self.layer_number = layer_idx
        self.layer_idx = str(layer_idx)  # custom ops take strings
        self.caches = caches
        self.cos_sin = cos_sin  # [max_positions, 2, rope/2] fp32
        self.short_seq_mha_threshold = short_seq_mha_threshold
        self.kv_a_proj_with_mqa = make_linear(weights["kv_a_proj_with_mqa.weight"], linear)
        self.q_a_layernorm = RMSNorm(weights["q_a_layernorm.weight"], shape.rms_norm_eps)
        self.kv_a_layernorm = RMSNorm(weights["kv_a_layernorm.weight"], shape.rms_norm_eps)
        self.q_b_proj = make_linear(weights["q_b_proj.weight"], linear)
        self.kv_b_proj = Linear(weights["kv_b_proj.weight"])  # all heads' k_nope rows, then all heads' v rows
        self.o_proj = make_linear(weights["o_proj.weight"], linear)
        self.indexer = Indexer(shape, weights, linear) if shape.is_dsa else None
        self.k_b_proj_trans: nn.Parameter | None = None
        self.v_b_proj: nn.Parameter | None = None

    def post_load_weights(self) -> None:
        """Derive the absorbed weights and fuse the indexer's; run once after loading.

        k_b_proj_trans [H, kv_lora, nope] and v_b_proj [H, v_head_dim, kv_lora], from kv_b_proj's two halves.
        """
        shape = self.shape
        split = shape.num_heads * shape.qk_nope_head_dim
        k_b = self.kv_b_proj.weight[:split].view(shape.num_heads, shape.qk_nope_head_dim, shape.kv_lora_rank)
        v_b = self.kv_b_proj.weight[split:].view(shape.num_heads, shape.v_head_dim, shape.kv_lora_rank)
        self.k_b_proj_trans = nn.Parameter(k_b.transpose(1, 2).contiguous(), requires_grad=False)
        self.v_b_proj = nn.Parameter(v_b, requires_grad=False)  # a view: no second copy
        if self.indexer is not None:
            self.indexer.post_load_weights()

    def variant(self, *, form: Form, tiles: LayerTiles, boundary: Boundary = PR_BOUNDARY) -> MLA:
        """The same layer, weights and caches shared, run in another form, with other tiles or cut elsewhere."""
        twin = copy.copy(self)
        twin._take(form, tiles, boundary)
        return twin

    def _take(self, form: Form, tiles: LayerTiles, boundary: Boundary) -> None:
        if form == "split" and not self.shape.is_dsa:
            raise ValueError("form: expected 'monolithic' for plain MLA, got 'split'")
        self.form, self.tiles = form, tiles
        self.boundary: Boundary = boundary if form == "split" else PR_BOUNDARY

    def forward(self, hidden_states: Tensor, position_ids: Tensor) -> Tensor:
        """[T, hidden_size] bf16 to the same; T counts padding rows, whose results are undefined.

        position_ids [T] int64. The attention output is allocated here, outside the excluded op, so that inside a
        captured segment its address is stable.
        """
        width = self.shape.num_heads * self.shape.v_head_dim
        output = hidden_states.new_empty((hidden_states.shape[0], width))
        if self.form == "split":
            parts = OPS.mla_dsa_proj(hidden_states, position_ids, self.layer_idx)
            rest = for_indexer(self.boundary, parts[NUM_PROJ_TENSORS:], hidden_states)
            OPS.mla_dsa_attn_inplace(parts[0], parts[1], parts[2], parts[3], rest, position_ids, self.layer_idx, output)
        else:
            OPS.mla_custom_op_inplace(hidden_states, position_ids, self.layer_idx, output)
        projected: Tensor = self.o_proj(output)
        if self.reduces:
            OPS.all_reduce(projected)
        return projected

    def dsa_proj(self, hidden_states: Tensor, position_ids: Tensor, context: ForwardContext) -> list[Tensor]:
        """Op 1. Four tensors, then those of the boundary (handover.py); the four alone in the one case where short MHA
        covers a context-only batch, never compiled.

        q [T, H * qk_head_dim], compressed_kv [T, kv_lora], k_pe [T, rope] not yet rotated, latent_cache
        [T, kv_lora + rope]; then at proj [T, q_lora_rank], at index_quant and cache_update `Indexer.pre_indexer_proj`'s
        four, at logits [T, index_topk] int32.
        """
        assert self.indexer is not None, "mla_dsa_proj: expected a layer with an indexer, got plain MLA"
        dense = self.short_mha(context, position_ids) and context.metadata.num_generations == 0
        rows, writes_caches = len(hidden_states), self.boundary in CACHES_IN_OP1
        if dense or self.boundary == "proj":
            qr, compressed_kv, k_pe, latent_cache = self._project(self.kv_a_proj_with_mqa(hidden_states))
            parts = [self.q_b_proj(qr), compressed_kv, k_pe, latent_cache]
            if writes_caches:
                self._append_latent(compressed_kv, k_pe, position_ids, context.metadata.latent_slots(rows))
            return parts if dense else [*parts, qr]
        fused, (index_k, weights) = maybe_execute_in_parallel(
            partial(self.kv_a_proj_with_mqa, hidden_states), partial(self.indexer.project, hidden_states), context
        )
        qr, compressed_kv, k_pe, latent_cache, k_fp8, k_scale = OPS.norm_rope(
            fused,
            self.q_a_layernorm.weight,
            self.kv_a_layernorm.weight,
            self.shape.rms_norm_eps,
            *self.indexer.key_norm(index_k),
            self.cos_sin,
            position_ids,
            self.shape.indexer_rope_interleave,
        )
        q, (q_fp8, weights) = maybe_execute_in_parallel(
            partial(self.q_b_proj, qr),
            partial(self.indexer.query, qr, weights, self.cos_sin, position_ids),
            context,
        )
        parts = [q, compressed_kv, k_pe, latent_cache]
        if writes_caches:
            metadata = context.metadata
            slots = metadata.latent_slots(rows), *metadata.index_slots(rows)
            self._write_caches(compressed_kv, k_pe, position_ids, k_fp8, k_scale, *slots)
        if self.boundary == "logits":
            topk = self.indexer.select_fresh(
                context.metadata, q_fp8, k_fp8, k_scale, weights, tiles=self.tiles.at(rows)
            )
            return [*parts, topk]
        return [*parts, q_fp8, k_fp8, k_scale, weights]

    def dsa_proj_like(self, hidden_states: Tensor) -> list[Tensor]:
        """Empty tensors of Op 1's shapes and dtypes, for its fake kernel."""
        return empty_parts(self.shape, self.boundary, hidden_states)

    def dsa_attn(
        self,
        q: Tensor,
        compressed_kv: Tensor,
        k_pe: Tensor,
        latent_cache: Tensor,
        indexer_intermediates: list[Tensor],
        position_ids: Tensor,
        context: ForwardContext,
        output: Tensor,
    ) -> None:
        """Op 2: cut to the true token count, do the steps that the boundary left, attend; writes output[:num_tokens].

        Rows of output beyond num_tokens are not touched. latent_cache repeats compressed_kv and k_pe, for upstream's
        append kernel; here the cached row is built from those two. indexer_intermediates: what Op 1 returned beyond its
        first four, and at proj its hidden_states as well.
        """
        metadata = context.metadata
        num_tokens, num_ctx = metadata.num_tokens, metadata.num_ctx_tokens
        position_ids = position_ids[..., :num_tokens]
        short = metadata.num_contexts > 0 and self.short_mha(context, position_ids)
        latent = compressed_kv[:num_tokens], k_pe[:num_tokens]
        topk: Tensor | None = None
        if not (short and metadata.num_generations == 0):
            topk = self._select([part[:num_tokens] for part in indexer_intermediates], latent, position_ids, context)
        elif self.boundary not in CACHES_IN_OP1:
            self._append_latent(*latent, position_ids, metadata.latent_slots(num_tokens))
        if metadata.num_contexts:
            if short:
                self._dense_context(q[:num_ctx], position_ids[:num_ctx], metadata, output[:num_ctx])
            else:
                assert topk is not None
                self._absorbed(
                    q[:num_ctx],
                    position_ids[:num_ctx],
                    topk[:num_ctx],
                    slice(0, num_ctx),
                    metadata,
                    output[:num_ctx],
                )
        if metadata.num_generations:
            assert topk is not None
            rows = slice(num_ctx, num_tokens)
            self._absorbed(q[rows], position_ids[rows], topk[rows], rows, metadata, output[rows])

    def _select(
        self,
        intermediates: list[Tensor],
        latent: tuple[Tensor, Tensor],
        position_ids: Tensor,
        context: ForwardContext,
    ) -> Tensor:
        """Request-local positions [num_tokens, index_topk] int32, from intermediates cut to num_tokens.

        Both caches take this step's tokens first, unless Op 1 has written them: latent is compressed_kv and k_pe.
        """
        assert self.indexer is not None, "mla_dsa_attn_inplace: expected a layer with an indexer, got plain MLA"
        if self.boundary == "logits":
            [topk] = intermediates
            return topk
        if self.boundary == "proj":
            qr, hidden_states = intermediates
            intermediates = list(self.indexer.pre_indexer_proj(qr, hidden_states, self.cos_sin, position_ids, context))
        q_fp8, k_fp8, k_scale, weights = intermediates
        metadata = context.metadata
        if self.boundary not in CACHES_IN_OP1:
            slots = metadata.latent_slots(metadata.num_tokens), *metadata.index_slots(metadata.num_tokens)
            self._write_caches(*latent, position_ids, k_fp8, k_scale, *slots)
        return self.indexer.sparse_attn_indexer(
            metadata,
            q_fp8,
            k_fp8,
            k_scale,
            weights,
            index_k_cache=self.caches.index_k[self.layer_number],
            tiles=self.tiles.at(metadata.num_tokens),
        )

    def forward_impl(
        self, hidden_states: Tensor, position_ids: Tensor, context: ForwardContext, output: Tensor
    ) -> None:
        """The monolith. DSA: Op 1's and Op 2's bodies one after the other; plain MLA: dense attention."""
        if self.indexer is None:
            self._plain_mla(hidden_states, position_ids, context, output)
            return
        parts = self.dsa_proj(hidden_states, position_ids, context)
        q, compressed_kv, k_pe, latent_cache = parts[:NUM_PROJ_TENSORS]
        rest = for_indexer(self.boundary, parts[NUM_PROJ_TENSORS:], hidden_states)
        self.dsa_attn(q, compressed_kv, k_pe, latent_cache, rest, position_ids, context, output)

    def _plain_mla(self, hidden_states: Tensor, position_ids: Tensor, context: ForwardContext, output: Tensor) -> None:
        # Unlike Op 1, the non-DSA form cuts to the true token count before it projects.
        metadata = context.metadata
        num_tokens, num_ctx = metadata.num_tokens, metadata.num_ctx_tokens
        qr, compressed_kv, k_pe, _ = self._project(self.kv_a_proj_with_mqa(hidden_states[:num_tokens]))
        q = self.q_b_proj(qr)
        position_ids = position_ids[..., :num_tokens]
        self._append_latent(compressed_kv, k_pe, position_ids, metadata.latent_slots(num_tokens))
        if metadata.num_contexts:
            self._dense_context(q[:num_ctx], position_ids[:num_ctx], metadata, output[:num_ctx])
        if metadata.num_generations:
            rows = slice(num_ctx, num_tokens)
            self._absorbed(q[rows], position_ids[rows], metadata.dense_topk[rows], rows, metadata, output[rows])

    def _project(self, fused: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(normed compressed q, normed compressed_kv, k_pe, latent_cache) of the fused A product.

        Each on its own storage: a view would pin the whole product in the graph's pool.
        """
        q_weight, kv_weight = self.q_a_layernorm.weight, self.kv_a_layernorm.weight
        projected: tuple[Tensor, Tensor, Tensor, Tensor]
        projected = OPS.project_norms(fused, q_weight, kv_weight, self.shape.rms_norm_eps)
        return projected

    def short_mha(self, context: ForwardContext, position_ids: Tensor | None) -> bool:
        """Dense attention pays for short contexts. Off under compile, and tested on the total KV length: counting only
        new tokens was a bug upstream (TensorRT-LLM #11677)."""
        if context.compiled or self.short_seq_mha_threshold <= 0 or position_ids is None:
            return False
        metadata = context.metadata
        effective_len = metadata.max_ctx_kv_len or metadata.num_ctx_tokens
        return effective_len <= self.short_seq_mha_threshold

    def _append_latent(self, compressed_kv: Tensor, k_pe: Tensor, position_ids: Tensor, slots: Tensor) -> None:
        """Rotate k_pe and write these rows into the paged latent cache; slots [n] int64 are layer 0's flat rows."""
        offset = self.layer_number * TOKENS_PER_BLOCK
        OPS.append_latent(compressed_kv, k_pe, self.cos_sin, position_ids, slots, offset, self.caches.latent_rows)

    def _write_caches(
        self,
        compressed_kv: Tensor,
        k_pe: Tensor,
        position_ids: Tensor,
        k_fp8: Tensor,
        k_scale: Tensor,
        latent_slots: Tensor,
        slots_fp8: Tensor,
        slots_scale: Tensor,
    ) -> None:
        """This step's rows of both caches, in one launch. latent_slots as in `_append_latent`; the others [n] int64 are
        byte offsets of codes and scales in this layer's index pool."""
        assert self.indexer is not None
        self.indexer.check_quantiser()
        OPS.cache_write(
            compressed_kv,
            k_pe,
            self.cos_sin,
            position_ids,
            latent_slots,
            self.layer_number * TOKENS_PER_BLOCK,
            self.caches.latent_rows,
            k_fp8,
            k_scale,
            slots_fp8,
            slots_scale,
            self.caches.index_k[self.layer_number],
        )

    def _absorbed(
        self, q: Tensor, position_ids: Tensor, topk: Tensor, tokens: slice, metadata: AttnMetadata, output: Tensor
    ) -> None:
        """Attend in the latent space. q [n, H * qk_head_dim] not rotated, topk [n, index_topk] request-local, tokens
        their rows in the batch, output [n, H * v_head_dim]."""
        assert self.k_b_proj_trans is not None and self.v_b_proj is not None, (
            "MLA: expected post_load_weights() before the first forward"
        )
        rows = OPS.convert_indices(
            topk,
            metadata.block_table,
            metadata.req_idx_per_token[tokens],
            self.caches.stride_factor,
            self.layer_number * TOKENS_PER_BLOCK,
        )
        attention.absorbed(
            q,
            self.cos_sin,
            position_ids,
            rows,
            self.caches.latent_rows,
            shape=self.shape,
            k_b_proj_trans=self.k_b_proj_trans,
            v_b_proj=self.v_b_proj,
            tiles=self.tiles.at(metadata.num_tokens),
            out=output,
        )

    def _dense_context(self, q: Tensor, position_ids: Tensor, metadata: AttnMetadata, output: Tensor) -> None:
        """Dense causal attention of the context requests over their latent rows, cached ones included."""
        latent = self.caches.latent_rows.index_select(0, metadata.ctx_kv_rows + self.layer_number * TOKENS_PER_BLOCK)
        cos_sin = self.cos_sin[position_ids]
        attention.dense(q, cos_sin, latent, metadata.ctx_lens, shape=self.shape, kv_b_proj=self.kv_b_proj, out=output)
