"""Which token counts a study captures, by the engine's rule."""

from __future__ import annotations

from mlaprof.buckets import Buckets, effective_sizes, reachable_ceiling
from mlaprof.config.axes import combinations
from mlaprof.study import BUCKETED_MODES, Study


def captured_sizes(study: Study) -> Buckets | None:
    """What the engine makes of capture.sizes, or of the sweep's own token counts where only its limits are given.

    None without sizes and limits: each token count of the sweep is captured as it is.
    """
    capture = study.capture
    ceiling = reachable_ceiling(capture.max_batch_size, capture.max_seq_len)
    if capture.sizes is None and capture.max_num_tokens is None and ceiling is None:
        return None
    requested = capture.sizes
    if requested is None:
        found = combinations(study.axes, study.exclude, study.include)
        # Decode-only batches are never padded to a bucket.
        requested = tuple(each.num_tokens for each in found if each.mode in BUCKETED_MODES and each.phase != "decode")
    return effective_sizes(requested, max_num_tokens=capture.max_num_tokens, ceiling=ceiling)
