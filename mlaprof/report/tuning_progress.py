"""A tuning as it goes: best so far, evaluations, time left, failures by kind; a line a change without a screen."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.live import Live
from rich.text import Text

from mlaprof.kernels.tiles import label
from mlaprof.records import KernelMeasurement, Started
from mlaprof.report.lines import print_line
from mlaprof.report.tuning import decision_line
from mlaprof.report.units import seconds
from mlaprof.tune import Begun, Decided, TuneEvent
from mlaprof.tuning.candidates import form_of
from mlaprof.tuning.summary import failure_kind, first_time_s

Show = Callable[[TuneEvent], None]


@contextmanager
def tuning_progress(
    total: int, budget_s: float, console: Console, now: Callable[[], float] = time.monotonic
) -> Iterator[Show]:
    """Shows `total` targets being tuned; `console` is usually the one of stderr."""
    state = _State(total, budget_s, console, now)
    if not console.is_terminal:
        yield state.tell
        return
    with Live(state, console=console, refresh_per_second=4, transient=True):
        yield state.tell


class _State:
    """What is known of the target under way; renders as one line."""

    def __init__(self, total: int, budget_s: float, console: Console, now: Callable[[], float]) -> None:
        self._total, self._budget_s, self._console, self._now = total, budget_s, console, now
        self._done = 0
        self._label = self._stage = ""
        self._best_s: float | None = None
        self._evaluations = 0
        self._failures: Counter[str] = Counter()
        self._began_s = now()

    def tell(self, event: TuneEvent) -> None:
        if isinstance(event, Begun):
            self._clear(event.search.label)
            space = len(event.search.space.space.configurations)
            known = f", {event.known} known" if event.known else ""
            self._say(f"[{event.number + 1}/{self._total}] {event.search.label}: {space} legal configurations{known}")
        elif isinstance(event, Decided):
            self._done += 1
            self._stage = ""
            self._say(f"[{self._done}/{self._total}] {decision_line(event.decision)}")
        elif isinstance(event, Started):
            self._stage = event.stage if event.kind == "search" else "finalists"
        elif isinstance(event, KernelMeasurement):
            self._row(event)

    def __rich__(self) -> Text:
        left_s = max(0.0, self._budget_s - (self._now() - self._began_s))
        parts = [
            f"{self._done + 1}/{self._total} {self._label}",
            f"best {seconds(self._best_s)}" if self._best_s else "",
            f"{self._evaluations} evaluated",
            ", ".join(f"{count} {kind}" for kind, count in sorted(self._failures.items())),
            f"{left_s:.0f} s left",
            self._stage,
        ]
        return Text(" | ".join(part for part in parts if part), no_wrap=True, overflow="ellipsis")

    def _row(self, row: KernelMeasurement) -> None:
        if row.kind != "search":
            if row.outcome.status in ("failed", "incorrect"):
                self._say(f"finalist {row.point.way} {row.outcome.status}: {_first_line(row.outcome.reason)}")
            return
        if kind := failure_kind(row):
            self._failures[kind] += 1
            if row.outcome.status == "failed" and self._failures[kind] == 1:  # the others of its kind are counted
                self._say(f"{row.point.way} {kind}: {_first_line(row.outcome.reason)}")
        self._evaluations += row.outcome.status == "compiled" or (row.search is not None and row.search.check_s > 0)
        found = first_time_s(row) if row.outcome.usable else None
        if found is not None and (self._best_s is None or found < self._best_s):
            self._best_s = found
            stamp = " emulated" if row.emulated else ""
            tiles = label(form_of(row.point), row.point.tiles or {})
            at_s = row.search.at_s if row.search else 0.0
            self._say(f"best {seconds(found)}{stamp} by {row.point.provider} {tiles} after {at_s:.1f} s")

    def _say(self, text: str) -> None:
        print_line(text, self._console)

    def _clear(self, label: str) -> None:
        self._label, self._stage = label, ""
        self._best_s, self._evaluations = None, 0
        self._failures = Counter()
        self._began_s = self._now()


def _first_line(text: str) -> str:
    return text.splitlines()[0] if text else ""
