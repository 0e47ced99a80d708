"""The same key for the same kernel in every process, so that what one compiled is found by the next.

Triton 3.6 and 3.7 merge the constants that a callee reads before they have looked at the callee, so the key of a kernel
depends on what else was hashed earlier in the process (triton #10494 mends it; 3.9 has it). Launches of a search then
compile a second time, 1 to 4 s each, and so do those of the next process.
"""

from __future__ import annotations

from typing import Any

from triton.runtime import jit


def make_keys_stable() -> None:
    """Once a process, before its first launch. Changes nothing where Triton has no such order; may be called again."""
    finder: Any = getattr(jit, "DependenciesFinder", None)
    if finder is None or not hasattr(finder, "_update_hash") or hasattr(finder._update_hash, "__wrapped__"):
        return
    merge = finder._update_hash

    def look_first(self: Any, callee: Any) -> None:
        _ = callee.cache_key  # fills callee.used_global_vals, which merge reads
        merge(self, callee)

    look_first.__wrapped__ = merge  # type: ignore[attr-defined]
    finder._update_hash = look_first
