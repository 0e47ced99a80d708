"""Where both forms of topk cut a row: two thresholds around the k-th largest element, with few elements between.

A normal distribution of the row's mean and deviation gives two thresholds around it, and counting the elements above
each narrows them. No sort, no histogram, no atomics: equal inputs give equal outputs.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOWEST: tl.constexpr = tl.constexpr(-3.4028234663852886e38)  # below it only -inf, which cannot be chosen


@triton.jit
def sortable(value):
    """fp32 as int32 of the same order; -0 counts as 0."""
    bits = (value + 0.0).to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def unsortable(key):
    """What sortable() made a key of."""
    return (key ^ ((key >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def named(value, name):
    """Both in one number."""
    return (value.to(tl.int32, bitcast=True).to(tl.int64) << 32) | name.to(tl.int64)


@triton.jit
def order(pair):
    """A number that is larger for the larger value, and of equal ones for the smaller name."""
    value = (pair >> 32).to(tl.int32).to(tl.float32, bitcast=True)
    return (sortable(value).to(tl.int64) << 32) | (0x7FFFFFFF - (pair & 0x7FFFFFFF))


@triton.jit
def window(starts_ptr, ends_ptr, row, width):
    """The columns that a row chooses among, whatever its bounds say."""
    start = 0
    end = width
    if starts_ptr is not None:
        start = tl.minimum(tl.maximum(tl.load(starts_ptr + row), 0), width)
    if ends_ptr is not None:
        end = tl.minimum(tl.maximum(tl.load(ends_ptr + row), start), width)
    return start, end


@triton.jit
def _tail(p):
    """Where a normal distribution has a share p above, in deviations, to 0.003; and its density there."""
    t = tl.sqrt(-1.3862944 * tl.log2(tl.minimum(p, 1.0 - p)))
    z = t - (2.30753 + 0.27061 * t) / (1.0 + t * (0.99229 + 0.04481 * t))
    return tl.where(p < 0.5, z, -z), 0.39894 * tl.exp2(-0.72134752 * z * z)


@triton.jit
def piece(row_ptr, first, length, C: tl.constexpr, R: tl.constexpr, STEP: tl.constexpr):
    """R elements a thread, STEP apart: neighbouring threads hold neighbouring columns."""
    cols = first + tl.arange(0, C)[:, None] + tl.arange(0, R)[None, :] * STEP
    return tl.load(row_ptr + cols, mask=cols < length, other=float("-inf"))


@triton.jit
def pieces(row_ptr, length, C, R, PIECES):
    """The first C * R * PIECES elements of a row, in groups that are worked on one after the other."""
    x = ()
    for i in tl.static_range(PIECES):
        x += (piece(row_ptr, i * C, length, C, R, C * PIECES),)
    return x


@triton.jit
def _add3(a0, a1, a2, b0, b1, b2):
    return a0 + b0, a1 + b1, a2 + b2


@triton.jit
def _outer(a0, a1, b0, b1):
    return tl.minimum(a0, b0), tl.maximum(a1, b1)


@triton.jit
def _moments_of(x):
    y = tl.where(x >= LOWEST, x, 0.0)
    return tl.sum(tl.where(x >= LOWEST, 1.0, 0.0), 1), tl.sum(y, 1), tl.sum(y * y, 1)


@triton.jit
def _counts_of(x, a, b):
    return tl.sum(tl.where(x >= a, 1.0, 0.0), 1), tl.sum(tl.where(x >= b, 1.0, 0.0), 1)


@triton.jit
def _extremes_of(x, bottom, top):
    inside = (x >= bottom) & ~(x >= top)
    return tl.min(tl.where(inside, x, float("inf")), 1), tl.max(tl.where(inside, x, float("-inf")), 1)


@triton.jit
def _moments(x, row_ptr, length, C: tl.constexpr, R: tl.constexpr, LONG: tl.constexpr):
    """Each thread's number of elements that can be chosen, their sum, and the sum of their squares."""
    n, s1, s2 = _moments_of(x[0])
    for i in tl.static_range(1, len(x)):
        more_n, more_s1, more_s2 = _moments_of(x[i])
        n, s1, s2 = n + more_n, s1 + more_s1, s2 + more_s2
    if LONG:
        for first in range(C * R * len(x), length, C * R):
            more_n, more_s1, more_s2 = _moments_of(piece(row_ptr, first, length, C, R, C))
            n, s1, s2 = n + more_n, s1 + more_s1, s2 + more_s2
    return n, s1, s2


@triton.jit
def _counts(x, row_ptr, length, a, b, C: tl.constexpr, R: tl.constexpr, LONG: tl.constexpr):
    """Each thread's number of elements >= a, and >= b."""
    of_a, of_b = _counts_of(x[0], a, b)
    for i in tl.static_range(1, len(x)):
        more_a, more_b = _counts_of(x[i], a, b)
        of_a, of_b = of_a + more_a, of_b + more_b
    if LONG:
        for first in range(C * R * len(x), length, C * R):
            more_a, more_b = _counts_of(piece(row_ptr, first, length, C, R, C), a, b)
            of_a, of_b = of_a + more_a, of_b + more_b
    return of_a, of_b


@triton.jit
def _extremes(x, row_ptr, length, bottom, top, C: tl.constexpr, R: tl.constexpr, LONG: tl.constexpr):
    """The smallest and the largest element of bottom <= x < top."""
    low, high = _extremes_of(x[0], bottom, top)
    for i in tl.static_range(1, len(x)):
        other_low, other_high = _extremes_of(x[i], bottom, top)
        low, high = tl.minimum(low, other_low), tl.maximum(high, other_high)
    if LONG:
        for first in range(C * R * len(x), length, C * R):
            other_low, other_high = _extremes_of(piece(row_ptr, first, length, C, R, C), bottom, top)
            low, high = tl.minimum(low, other_low), tl.maximum(high, other_high)
    return tl.reduce((low, high), 0, _outer)


@triton.jit
def bracket(
    x,
    row_ptr,
    length,
    k,
    C: tl.constexpr,
    R: tl.constexpr,
    LONG: tl.constexpr,
    SHIFT: tl.constexpr,
    AMBIGUOUS: tl.constexpr,
):
    """bottom < top around the k-th largest, the counts of elements >= each, and each thread's share of these counts.

    At most AMBIGUOUS elements lie between, or all between are equal, or exactly k or fewer are >= bottom. A thread's
    share comes as one number: its elements >= top, and SHIFT bits up those between.
    """
    PACKED: tl.constexpr = tl.int64 if SHIFT == 32 else tl.int32
    LOW_BITS: tl.constexpr = (1 << SHIFT) - 1
    kf = k.to(tl.float32)
    nf = length.to(tl.float32)
    z, density = _tail(kf / nf)
    inverse = 1.0 / nf
    valid, s1, s2 = _moments(x, row_ptr, length, C, R, LONG)
    n, s1, s2 = tl.reduce((valid, s1, s2), 0, _add3)
    if n != nf:
        nf = n
        z, density = _tail(kf / nf)
        inverse = 1.0 / nf
    bottom = n * 0.0 + LOWEST
    top = n * 0.0 + float("nan")  # nothing is >= NaN
    c_bottom = n.to(tl.int32)
    c_top = c_bottom * 0
    per_bottom = valid.to(PACKED)
    per_top = per_bottom * 0
    each = inverse / density  # deviations from one element to the next, around z
    # The guess errs by about a third of the root of n: one turn where few enough lie that close, else a safe two.
    spread = tl.sqrt(nf)
    half = tl.where(0.36 * spread < 0.42 * AMBIGUOUS, 0.42 * AMBIGUOUS, 0.65 * spread) * each
    mean = s1 * inverse
    deviation = tl.sqrt(s2 * inverse - mean * mean)
    a = mean + (z - half) * deviation
    b = mean + (z + half) * deviation
    each *= deviation
    turn = 0
    tied = n < 0.0
    while (c_bottom - c_top > AMBIGUOUS) & (c_bottom > k) & ~tied:
        turn += 1
        if (turn % 4 == 0) | ~(a <= b):
            # Guesses from the values fail for some distributions; a third of what floats there are cannot.
            low, high = _extremes(x, row_ptr, length, bottom, top, C, R, LONG)
            tied = low == high
            lowest = sortable(low)
            highest = sortable(high)
            third = tl.maximum(((highest >> 1) - (lowest >> 1)) // 3 * 2, 1)
            bottom = low
            top = unsortable(highest + 1)
            a = unsortable(tl.minimum(lowest + third, highest))
            b = tl.maximum(unsortable(highest + 1 - third), a)
        of_a, of_b = _counts(x, row_ptr, length, a, b, C, R, LONG)
        per = of_a.to(PACKED) + (of_b.to(PACKED) << SHIFT) if LONG else (of_a + 65536.0 * of_b).to(tl.int32)
        total = tl.sum(per, 0)
        c_a = (total & LOW_BITS).to(tl.int32)
        c_b = ((total >> SHIFT) & LOW_BITS).to(tl.int32)
        if c_b >= k:
            bottom = b
            c_bottom = c_b
            per_bottom = per >> SHIFT
        elif c_a >= k:
            bottom = a
            c_bottom = c_a
            per_bottom = per & LOW_BITS
            top = b
            c_top = c_b
            per_top = per >> SHIFT
        else:
            top = a
            c_top = c_a
            per_top = per & LOW_BITS
        over = (c_bottom - k).to(tl.float32)
        under = (k - c_top).to(tl.float32)
        if (bottom > LOWEST) & (top == top):
            each = (top - bottom) / (over + under)
            margin = 1.6 * tl.sqrt(tl.minimum(over, under)) + 4.0
            a = tl.maximum(bottom + (over - margin) * each, bottom)
            b = tl.minimum(bottom + (over + margin) * each, top)
        else:
            far = tl.where(bottom > LOWEST, over, -under)
            margin = 2.0 * tl.sqrt(tl.abs(far)) + 2.0
            edge = tl.where(bottom > LOWEST, bottom, top)
            near = (far - margin) * each
            beyond = (far + margin) * each
            a = edge + near * tl.where(near > 0.0, 0.8, 1.3)
            b = edge + beyond * tl.where(beyond > 0.0, 1.3, 0.8)
            each *= 2.0
    return bottom, top, c_bottom, c_top, per_top + ((per_bottom - per_top) << SHIFT)
