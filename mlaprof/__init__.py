"""mlaprof: profile and autotune the split MLA-DSA attention layer across CUDA-graph capture modes.

`mlaprof.load_run(path)` opens a run for notebooks and scripts (docs/python.md); everything else is the command line's.
Importing this costs nothing and never imports torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mlaprof.version import __version__

if TYPE_CHECKING:
    from mlaprof.api import LoadedRun, load_run

__all__ = ["LoadedRun", "__version__", "load_run"]


def __getattr__(name: str) -> object:
    """What the face offers, imported at first use."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from mlaprof import api

    return getattr(api, name)
