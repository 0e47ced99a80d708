"""The oracles: one plain torch function a kernel, with the launcher's signature minus tiles and fp32 inside.

They are the CPU implementation of the ops too. So none of them waits for the device or makes a shape out of data
(either would forbid capture), each takes 0 rows, and a large intermediate is made in slices of whole rows.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

TOKENS_PER_BLOCK = 64
INDEX_DIM = 128
INDEX_BLOCK_BYTES = TOKENS_PER_BLOCK * (INDEX_DIM + 4)  # 64 rows of e4m3 codes, then their 64 fp32 scales
FP8_MAX = 448.0  # largest finite e4m3
AMAX_FLOOR = 1e-4  # keeps the scale of an all-zero row finite
GROUP_AMAX_FLOOR = 1e-10  # the same for activations, whose scales are not rounded up
SLICE_BYTES = 64 << 20  # size an fp32 intermediate may reach


class Tolerance(NamedTuple):
    """How far a kernel may be from its oracle; an element passes below relative * |want| + peak * max |want|.

    peak is a fraction of the largest finite magnitude: a sum of cancelling terms errs by the size of its terms.
    cosine bounds 1 - cosine of the angle between the two, over all finite elements.
    """

    relative: float
    peak: float
    cosine: float


# bf16: the output keeps 8 bits and the probabilities are rounded to bf16 before they meet the values.
# fp32: Hopper's e4m3 matrix unit keeps about 14 bits of a running sum.
TOLERANCE: dict[torch.dtype, Tolerance] = {
    torch.bfloat16: Tolerance(relative=2**-6, peak=2**-8, cosine=1e-5),
    torch.float32: Tolerance(relative=2**-9, peak=2**-10, cosine=1e-6),
}


def mismatch(want: Tensor, got: Tensor, tolerance: Tolerance) -> str | None:
    """Why got is not close to want, or None when it is.

    Infinities must stand at the same places with the same sign; a NaN agrees with nothing. Waits for the device.
    """
    if want.shape != got.shape:
        return f"expected shape {list(want.shape)}, got {list(got.shape)}"
    want, got = want.detach().double().cpu(), got.detach().double().cpu()
    if want.numel() == 0:
        return None
    if torch.isnan(want).any() or torch.isnan(got).any():
        return f"NaN: {int(torch.isnan(want).sum())} in the oracle, {int(torch.isnan(got).sum())} in the result"
    wrong_inf = (torch.isinf(want) | torch.isinf(got)) & (want != got)
    if wrong_inf.any():
        return f"{int(wrong_inf.sum())} infinities differ, the first at {wrong_inf.nonzero()[0].tolist()}"
    finite = torch.isfinite(want)
    want, got = torch.where(finite, want, 0.0), torch.where(finite, got, 0.0)
    error = (got - want).abs()
    excess = error - tolerance.relative * want.abs() - tolerance.peak * want.abs().max()
    if (excess > 0).any():
        worst = torch.unravel_index(excess.argmax(), excess.shape)
        at = [int(i) for i in worst]
        return (
            f"{int((excess > 0).sum())} of {want.numel()} elements beyond tolerance, the worst at {at}: "
            f"expected {float(want[worst]):.6g}, got {float(got[worst]):.6g} (largest {float(want.abs().max()):.6g})"
        )
    norms = want.norm() * got.norm()
    angle = 0.0 if norms == 0 else float(1 - (want * got).sum() / norms)
    return f"1 - cosine is {angle:.3g}, above {tolerance.cosine:g}" if angle > tolerance.cosine else None


def index_logits(q: Tensor, k: Tensor, k_scale: Tensor, weights: Tensor, ks: Tensor, ke: Tensor) -> Tensor:
    """Indexer score of every key for every query [n, m] fp32: k_scale * sum over heads of weight * relu(q . k).

    q        [n, num_heads, 128] e4m3
    k        [m, 128]            e4m3
    k_scale  [m]                 fp32   positive
    weights  [n, num_heads]      fp32   carries q's own scale
    ks, ke   [n]                 int32  a query sees keys ks .. ke-1, the others score -inf
    """
    n, num_heads, _ = q.shape
    m = k.shape[0]
    logits = torch.empty(n, m, dtype=torch.float32, device=q.device)
    if n == 0 or m == 0:
        return logits
    keys = k.float().T  # [128, m]
    position = torch.arange(m, device=q.device)
    step = _rows_per_slice(num_heads * m)
    for lo in range(0, n, step):
        part = slice(lo, lo + step)
        dots = (q[part].float() @ keys).relu_()  # [rows, num_heads, m]
        scores = (weights[part].float()[:, None] @ dots)[:, 0] * k_scale.float()  # [rows, m]
        seen = (position >= ks[part, None]) & (position < ke[part, None])
        logits[part] = torch.where(seen, scores, -torch.inf)
    return logits


def paged_index_logits(
    q: Tensor, cache: Tensor, weights: Tensor, kv_lens: Tensor, block_table: Tensor, max_len: int
) -> Tensor:
    """Indexer score of every cached position [batch * next_n, max_len] fp32; -inf beyond a row's own position.

    q            [batch, next_n, num_heads, 128] e4m3
    cache        [num_blocks, 64 * 132]          uint8  a block is 64 x 128 e4m3 codes, then 64 fp32 scales
    weights      [batch * next_n, num_heads]     fp32
    kv_lens      [batch]                         int32  length with the new tokens; query j ends at kv_len - next_n + j
    block_table  [batch, max_blocks]             int32  entries beyond the length are never followed
    """
    batch, next_n, num_heads, _ = q.shape
    logits = torch.full((batch * next_n, max_len), -torch.inf, dtype=torch.float32, device=q.device)
    num_blocks, max_blocks = cache.shape[0], block_table.shape[1]
    width = min(max_len, max_blocks * TOKENS_PER_BLOCK)
    if batch == 0 or next_n == 0 or width == 0 or num_blocks == 0:
        return logits
    codes, scales = _index_cache_views(cache)
    position = torch.arange(width, device=q.device)
    last = kv_lens.long()[:, None] - next_n + torch.arange(next_n, device=q.device)  # [batch, next_n]
    page = position // TOKENS_PER_BLOCK
    out = logits.view(batch, next_n, max_len)
    step = _rows_per_slice((INDEX_DIM + next_n * num_heads) * width)
    for lo in range(0, batch, step):
        part = slice(lo, lo + step)
        block = block_table[part].long()[:, page]  # [rows, width]
        known = (block >= 0) & (block < num_blocks)
        row = block.clamp(0, num_blocks - 1) * TOKENS_PER_BLOCK + position % TOKENS_PER_BLOCK
        keys = codes[row // TOKENS_PER_BLOCK, row % TOKENS_PER_BLOCK].float()  # [rows, width, 128]
        rows = keys.shape[0]
        dots = (q[part].reshape(rows, -1, INDEX_DIM).float() @ keys.mT).relu_()  # [rows, next_n * num_heads, width]
        heads = weights.reshape(batch, next_n, 1, num_heads)[part].float()
        scores = (heads @ dots.view(rows, next_n, num_heads, width))[:, :, 0]  # [rows, next_n, width]
        scores = scores * scales[row // TOKENS_PER_BLOCK, row % TOKENS_PER_BLOCK][:, None]
        seen = (position <= last[part, :, None]) & known[:, None]
        out[part, :, :width] = torch.where(seen, scores, -torch.inf)
    return logits


def sparse_attn(q: Tensor, cache: Tensor, indices: Tensor, scale: float, *, out: Tensor) -> None:
    """Attend each query to its selected cache rows and write the result to out; zero where it has none.

    q        [num_tokens, num_heads, kv_lora_rank + rope] bf16   absorbed query, rope part last
    cache    [num_rows, kv_lora_rank + rope]              bf16   latent rows, rope part last
    indices  [num_tokens, topk]                           int32  row numbers; outside 0 .. num_rows-1 the slot is empty
    scale                                                 of the scores, before the softmax
    out      [num_tokens, num_heads, kv_lora_rank]        bf16
    """
    num_rows, latent_dim = cache.shape
    if num_rows == 0 or indices.shape[1] == 0:
        out.zero_()
        return
    step = _rows_per_slice(indices.shape[1] * (latent_dim + q.shape[1]))
    for lo in range(0, q.shape[0], step):
        part = slice(lo, lo + step)
        valid = (indices[part] >= 0) & (indices[part] < num_rows)  # [tokens, topk]
        rows = cache[indices[part].long().clamp(0, num_rows - 1)].float()  # [tokens, topk, latent_dim]
        # An empty slot borrows some row's address; what lies there may be NaN, and 0 * NaN is NaN.
        rows = torch.where(valid[..., None], rows, 0.0)
        scores = (q[part].float() @ rows.mT) * scale  # [tokens, num_heads, topk]
        scores = torch.where(valid[:, None], scores, -torch.inf)
        peak = scores.amax(-1, keepdim=True)
        weights = torch.exp(scores - torch.where(peak == -torch.inf, 0.0, peak))
        total = weights.sum(-1, keepdim=True)
        mixed = weights @ rows[..., : out.shape[-1]]  # [tokens, num_heads, kv_lora_rank]
        out[part] = torch.where(total > 0, mixed / total, 0.0).to(out.dtype)


def act_quant(x: Tensor) -> tuple[Tensor, Tensor]:
    """Quantise rows of 128 to e4m3 codes with one power-of-two scale a row (ue8m0, rounded up).

    x [..., 128] bf16 or fp32, finite. Returns codes [..., 128] e4m3 and scale [..., 1] fp32:
    scale = 2 ** ceil(log2(max(amax, 1e-4) / 448)).
    """
    rows = x.float()
    amax = rows.abs().amax(-1, keepdim=True).clamp(min=AMAX_FLOOR)
    # 448 is 1.75 * 2**8, so amax / 448 rounds up from the exponent alone: no logarithm, and exact powers stay.
    bits = amax.view(torch.int32)
    exponent = (bits >> 23) - 8 + ((bits & 0x7FFFFF) > 0x600000).int()
    scale = (exponent << 23).view(torch.float32)
    codes = (rows / scale).clamp(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn)
    return codes, scale


def update_index_cache(k: Tensor, k_scale: Tensor, slot_fp8: Tensor, slot_scale: Tensor, cache: Tensor) -> None:
    """Write n keys and their scales at byte offsets of the indexer's cache.

    k           [n, 128]               e4m3
    k_scale     [n, 1]                 fp32
    slot_fp8    [n]                    int64  block * 8448 + pos * 128, distinct
    slot_scale  [n]                    int64  block * 8448 + 8192 + pos * 4, distinct
    cache       [num_blocks, 64 * 132] uint8

    Raises IndexError on an offset outside the cache (on the CPU).
    """
    cache.view(-1, INDEX_DIM).index_copy_(0, slot_fp8 // INDEX_DIM, k.view(torch.uint8))
    cache.view(-1).view(torch.float32).index_copy_(0, slot_scale // 4, k_scale[:, 0])


def gather_index_cache(cache: Tensor, slot_fp8: Tensor, slot_scale: Tensor) -> tuple[Tensor, Tensor]:
    """Read n keys [n, 128] e4m3 and scales [n, 1] fp32 from byte offsets of the indexer's cache.

    Arguments as in update_index_cache; offsets may repeat.
    """
    k = cache.view(-1, INDEX_DIM).index_select(0, slot_fp8 // INDEX_DIM).view(torch.float8_e4m3fn)
    k_scale = cache.view(-1).view(torch.float32).index_select(0, slot_scale // 4)
    return k, k_scale[:, None]


def convert_indices(
    topk: Tensor, block_table: Tensor, req_idx: Tensor, stride_factor: int, layer_offset: int
) -> Tensor:
    """Turn request-local token numbers into rows of the pool [num_tokens, topk] int32; -1 where there is none.

    topk         [num_tokens, topk]           int32  request-local positions, -1 is empty
    block_table  [num_requests, max_blocks]   int32  negative where no block is mapped
    req_idx      [num_tokens]                 int32  the request of each token
    row = block * stride_factor + position % 64 + layer_offset
    """
    num_requests, max_blocks = block_table.shape
    if num_requests == 0 or max_blocks == 0:
        return torch.full_like(topk, -1)
    tokens, request = topk.long(), req_idx.long()[:, None]
    page = tokens.clamp(min=0) // TOKENS_PER_BLOCK
    mapped = (tokens >= 0) & (page < max_blocks) & (request >= 0) & (request < num_requests)
    block = block_table.long()[request.clamp(0, num_requests - 1), page.clamp(max=max_blocks - 1)]
    row = block * stride_factor + tokens % TOKENS_PER_BLOCK + layer_offset
    mapped = mapped & (block >= 0) & (row <= torch.iinfo(torch.int32).max)
    return torch.where(mapped, row, -1).int()


def group_quant(x: Tensor, ue8m0: bool = False) -> tuple[Tensor, Tensor]:
    """Quantise activations to e4m3 with one fp32 scale per 128 values of a row.

    x [m, k] bf16, finite. Returns codes [m, k] e4m3 and scale [m, k / 128] fp32, column-major, a column at a multiple
    of 4: scale = max(amax, 1e-10) / 448, with ue8m0 the power of two at or above it; codes = e4m3(x * (1 / scale)).
    """
    m, k = x.shape
    groups = x.float().unflatten(1, (k // INDEX_DIM, INDEX_DIM))
    amax = groups.abs().amax(-1).clamp(min=GROUP_AMAX_FLOOR)
    if ue8m0:
        bits = amax.view(torch.int32)
        exponent = (bits >> 23) - 8 + ((bits & 0x7FFFFF) > 0x600000).int()
        scale = (exponent << 23).view(torch.float32)
    else:
        # By a tensor: CUDA divides by a number through its reciprocal, which is off by a bit.
        scale = amax / torch.full_like(amax, FP8_MAX)
    inverse = torch.ones_like(scale) / scale
    codes = (groups * inverse[..., None]).clamp(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn).flatten(1)
    columns = torch.empty(scale.shape[1], -(-m // 4) * 4, dtype=torch.float32, device=x.device)
    columns[:, :m] = scale.T
    return codes, columns.T[:m]


def block_gemm(a: Tensor, a_scale: Tensor, b: Tensor, b_scale: Tensor, *, out: Tensor | None = None) -> Tensor:
    """Product of activations and transposed weights [m, n] bf16, both e4m3 with scales, summed in fp32.

    a        [m, k]                       e4m3
    a_scale  [m, k / 128]                 fp32   one per token and 128 of k
    b        [n, k]                       e4m3
    b_scale  [ceil(n / 128), k / 128]     fp32   one per 128 x 128 block
    """
    (m, k), n = a.shape, b.shape[0]
    total = torch.zeros(m, n, dtype=torch.float32, device=a.device)
    for block in range(k // INDEX_DIM):
        part = slice(block * INDEX_DIM, (block + 1) * INDEX_DIM)
        weight_scale = b_scale[:, block].repeat_interleave(INDEX_DIM)[:n]  # [n]
        total += (a[:, part].float() @ b[:, part].float().T) * (a_scale[:, block, None] * weight_scale)
    if out is None:
        return total.bfloat16()
    out.copy_(total)
    return out


def topk(logits: Tensor, starts: Tensor | None, ends: Tensor, k: int) -> Tensor:
    """Request-local positions [n, k] int32 of the k largest logits of each row, in any order; the tail is -1.

    logits  [n, width] fp32   -inf and NaN are never selected
    starts  [n]        int32  first column of a row's request; None is column 0; below 0 counts as 0
    ends    [n]        int32  a row chooses among the columns starts .. ends-1 that exist
    """
    n, width = logits.shape
    found = torch.full((n, k), -1, dtype=torch.int32, device=logits.device)
    if n == 0 or width == 0 or k == 0:
        return found
    column = torch.arange(width, device=logits.device)
    first = torch.zeros_like(ends) if starts is None else starts.clamp(min=0)
    inside = (column >= first[:, None]) & (column < ends[:, None])
    values = torch.where(inside & ~logits.isnan(), logits, -torch.inf)
    best = values.topk(min(k, width), dim=1)
    local = best.indices.int() - first[:, None]
    found[:, : best.indices.shape[1]] = torch.where(best.values > -torch.inf, local, -1)
    return found


def _index_cache_views(cache: Tensor) -> tuple[Tensor, Tensor]:
    """The codes [num_blocks, 64, 128] e4m3 and scales [num_blocks, 64] fp32 inside the cache, as views."""
    codes_bytes = TOKENS_PER_BLOCK * INDEX_DIM
    codes = cache[:, :codes_bytes].view(torch.float8_e4m3fn).unflatten(1, (TOKENS_PER_BLOCK, INDEX_DIM))
    return codes, cache[:, codes_bytes:].view(torch.float32)


def _rows_per_slice(floats_per_row: int) -> int:
    return max(1, SLICE_BYTES // (4 * max(floats_per_row, 1)))
