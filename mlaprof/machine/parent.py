"""A worker must not outlive the process that started it. Standard library only."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PARENT_PID_VARIABLE = "MLAPROF_PARENT_PID"  # set for a child by machine/child.py

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def die_with_parent() -> bool:
    """Ask the kernel to kill this process when its parent ends; leave at once if the parent is already gone.

    Returns False where the kernel cannot do it (not Linux); the parent still kills its children itself then.
    """
    if not sys.platform.startswith("linux"):
        return False
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        return False
    # A parent that died before the call above sends no signal any more.
    expected = os.environ.get(PARENT_PID_VARIABLE)
    if expected is not None and expected != str(os.getppid()):
        os._exit(1)
    return True
