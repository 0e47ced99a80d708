"""Processes that take every step together, each on a device of its own: when they meet, and what they agree on.

How many steps are taken hangs on clocks, and no two processes have the same: where one would take a step more, its
partners in a collective would never come. So every such answer is given by all of them.
"""

from __future__ import annotations


class Company:
    """One process alone: it meets nobody, and its own answer is everybody's."""

    def meet(self) -> None:
        """Return once every process has come here."""

    def line_up(self) -> None:
        """Have the device wait, on the current stream, for those of all processes; the host does not."""

    def any(self, answer: bool) -> bool:
        """Whether any process says so."""
        return answer

    def most(self, value: float) -> float:
        """The largest that any process says."""
        return value


ALONE = Company()
