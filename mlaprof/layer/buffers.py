"""The metadata's device buffers: allocated once, at the largest size, and never moved.

Captured code reads them at fixed addresses and works on every row it is given, padding included. So the rows behind a
batch are defined after every upload: their writes go to the scratch page, and they select nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mlaprof.layer import cache
from mlaprof.shapes import TOKENS_PER_BLOCK


class Twin:
    """A device buffer of fixed size and address with its pinned host twin.

    Rows that no value was uploaded for hold those of `tail`: captured code works on more rows than a batch has.
    """

    def __init__(self, tail: Tensor, device: torch.device) -> None:
        self.tail = tail
        self.host = torch.empty(tail.shape, dtype=tail.dtype, pin_memory=device.type == "cuda")
        self.host.copy_(tail)
        self.device = torch.empty(tail.shape, dtype=tail.dtype, device=device)
        self.device.copy_(tail)
        self._used = 0  # rows that hold something else than tail

    def upload(self, values: Tensor) -> None:
        """Copy values into the prefix of the host twin, and from there into the device buffer; rows of an earlier,
        longer upload are tail again."""
        count, size = values.shape[0], self.host.shape[0]
        if count > size:
            raise ValueError(f"metadata buffer: expected at most {size} rows, got {count}")
        stale = max(count, self._used)
        self.host[:count].copy_(values)
        self.host[count:stale].copy_(self.tail[count:stale])
        self.device[:stale].copy_(self.host[:stale], non_blocking=True)
        self._used = count

    def rows(self, count: int) -> Tensor:
        """The first count rows on the device, used or not. Raises ValueError where there are fewer."""
        if count > self.device.shape[0]:
            raise ValueError(f"metadata buffer: expected at most {self.device.shape[0]} rows, got {count}")
        return self.device[:count]


class FixedBuffers:
    """Every buffer of a batch, with views for captured code: `rows` counts padding, and ValueError where there are
    fewer."""

    def __init__(
        self,
        caches: cache.Caches,
        device: torch.device,
        *,
        tokens: int,
        requests: int,
        blocks_per_seq: int,
        ctx_kv_tokens: int,
        topk_width: int,
    ) -> None:
        self.caches = caches
        self.device = device

        def twin(*size: int, dtype: torch.dtype, tail: int = 0) -> Twin:
            return Twin(torch.tensor(tail, dtype=dtype).expand(size), device)

        # Padding rows are spread over the scratch page, so that neighbours do not write to one place.
        in_block = torch.arange(tokens) % TOKENS_PER_BLOCK
        scratch = torch.full_like(in_block, caches.scratch_block)
        fp8, scale = cache.index_slot_bytes(scratch, in_block)
        self._slot_mapping_fp8 = Twin(fp8, device)
        self._slot_mapping_scale = Twin(scale, device)
        self._latent_rows = Twin(cache.latent_slot_rows(scratch, in_block, caches.stride_factor), device)
        self._kv_lens = twin(requests, dtype=torch.int32)
        self._block_table = twin(requests, blocks_per_seq, dtype=torch.int32, tail=-1)
        self._req_idx_per_token = twin(tokens, dtype=torch.int32)
        self._positions = twin(tokens, dtype=torch.int64)
        self._visible = twin(tokens, dtype=torch.int32)
        self._cu_seqlen_ks = twin(tokens, dtype=torch.int32)
        self._cu_seqlen_ke = twin(tokens, dtype=torch.int32)
        self._chunk_ks = twin(tokens, dtype=torch.int32)
        self._chunk_ke = twin(tokens, dtype=torch.int32)
        self._fullkv_fp8 = twin(ctx_kv_tokens, dtype=torch.int64)
        self._fullkv_scale = twin(ctx_kv_tokens, dtype=torch.int64)
        self._ctx_kv_rows = twin(ctx_kv_tokens, dtype=torch.int64)
        self.dense_topk = torch.full((tokens, topk_width), -1, dtype=torch.int32, device=device)

    def index_slots(self, rows: int) -> tuple[Tensor, Tensor]:
        """(codes, scales) [rows] int64: byte offsets that take these rows' index keys; padding goes to scratch."""
        return self._slot_mapping_fp8.rows(rows), self._slot_mapping_scale.rows(rows)

    def latent_slots(self, rows: int) -> Tensor:
        """[rows] int64: flat latent rows of layer 0; padding goes to scratch."""
        return self._latent_rows.rows(rows)

    def causal_bounds(self, rows: int) -> tuple[Tensor, Tensor]:
        """(ks, ke) [rows] int32 of the context tokens; padding sees keys [0, 0), that is none."""
        return self._cu_seqlen_ks.rows(rows), self._cu_seqlen_ke.rows(rows)

    def dense_selection(self, rows: int) -> Tensor:
        """[rows, index_topk] int32: 0..position, then -1; padding selects nothing."""
        if rows > len(self.dense_topk):
            raise ValueError(f"metadata buffer: expected at most {len(self.dense_topk)} rows, got {rows}")
        return self.dense_topk[:rows]

    @property
    def num_bytes(self) -> int:
        """Device bytes of the fixed buffers."""
        twins = [twin.device for twin in vars(self).values() if isinstance(twin, Twin)]
        return sum(buffer.nbytes for buffer in (*twins, self.dense_topk))

    def addresses(self) -> dict[str, int]:
        """Device address of every fixed buffer: equal before and after any prepare()."""
        found = {name: twin.device.data_ptr() for name, twin in vars(self).items() if isinstance(twin, Twin)}
        return found | {"dense_topk": self.dense_topk.data_ptr()}
