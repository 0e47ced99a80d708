"""Faults on purpose, for mlaprof's own tests. No wheel holds this folder; in a checkout MLAPROF_DRILL=1 must allow it.

A study's `faults:` name what shall happen to whom and when; `strike.py` lets it happen inside the worker, at the real
place and, where there is one, with the real thing: a kernel that stores where it must not, an allocation that nobody
can serve, a signal. What a machine without a GPU cannot do is raised as the error that a GPU would answer with, and
its text says `emulated`.
"""
