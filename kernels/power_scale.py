"""The power-of-two scale of a group that becomes e4m3: ue8m0, rounded up.

448, the largest e4m3 value, is 1.75 * 2**8; so ceil(log2(amax / 448)) is amax's exponent less 8, plus one when its
mantissa exceeds 1.75. Integer arithmetic on the bits: no logarithm, no division, and exact powers stay exact.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def power_scale(amax):
    """(scale, 1 / scale) fp32 of groups whose largest magnitude is amax, floored at 1e-4."""
    bits = tl.maximum(amax, 1e-4).to(tl.int32, bitcast=True)
    exponent = (bits >> 23) - 8 + ((bits & 0x7FFFFF) > 0x600000).to(tl.int32)
    return (exponent << 23).to(tl.float32, bitcast=True), ((254 - exponent) << 23).to(tl.float32, bitcast=True)
