"""A search job: propose tiles, compile them in other processes, prove each against the oracle, time what is right.

Levels of fidelity: what does not compile, spills or is another's twin is not launched; what is wrong is not timed; a
few samples rank the rest; the fastest of those are sampled once more, interleaved. Who wins is decided elsewhere, by
fresh processes. While this one measures the next configurations compile, on other cores and without the GPU; device
times do not see them, because the queue is filled before the device starts (measure/clock.py).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from statistics import median
from time import perf_counter, time

import torch

from mlaprof.cases import CASES, Case, Unavailable
from mlaprof.facts import KernelResources, SearchFacts
from mlaprof.machine.nvml import Nvml
from mlaprof.measure.clock import Clock
from mlaprof.records import Event, KernelPoint, Outcome, SearchJob, Stage, Started
from mlaprof.study import TileChoice
from mlaprof.tuning.candidates import candidates, form_of
from mlaprof.tuning.search import EXHAUSTIVE, Values, ask, settled
from mlaprof.worker.candidate import Candidate, launch_of, launches_of
from mlaprof.worker.compilers import Compiled, Compilers
from mlaprof.worker.events import failed, recover, wrong
from mlaprof.worker.health import Watch
from mlaprof.worker.kernels import Proven, kernel_measurement, prove
from mlaprof.worker.ranking import (
    few_samples,
    rounds_again,
    runs_kernels,
    timed_row,
    too_much,
    warm_up,
)
from mlaprof.worker.timing import clock_of, watch_of

AGAIN = 1.5  # within so many times of the fastest, a configuration is sampled once more at the end
MOST_AGAIN = 12


def search_job(job: SearchJob) -> Iterator[Event]:
    """Every configuration tried, until the time, the evaluations or the space are used up, or none is faster any more.

    Where no kernel can run, each is compiled and has no time. Raises ContextLost as events.recover does, ConfigError
    on an empty space.
    """
    # Signs of life: importing torch, a CUDA context and the inputs each take seconds, and no row is near.
    yield Started(kind="search", key=job.target.kernel, stage="build")
    clock = clock_of(job)
    with torch.inference_mode(), Nvml() as nvml, Compilers(job.compilers) as compilers:
        search = _Search(job, clock, compilers)
        yield Started(kind="search", key=job.target.kernel, stage="compile")
        yield from search.run()
        compilers.close()  # from here on nothing else runs
        if search.case is not None:
            yield from search.again(watch_of(job, nvml))


@dataclass
class _Search:
    job: SearchJob
    clock: Clock
    compilers: Compilers
    case: Case | None = None
    told: dict[Values, float | None] = field(default_factory=dict)
    waiting: dict[Values, Candidate] = field(default_factory=dict)  # proposed, not told yet
    ready: deque[Candidate] = field(default_factory=deque)
    programs: dict[tuple[str, Values], Values] = field(default_factory=dict)  # a binary and its launch -> who has it
    facts: dict[Values, tuple[SearchFacts, KernelResources | None]] = field(default_factory=dict)
    proposed: int = 0
    measured: int = 0
    waited_s: float = 0.0

    def __post_init__(self) -> None:
        job = self.job
        self.all = candidates(job.target, job.forms)
        for each in job.told:
            self.told[self._values(each.point)] = each.device_s
        self.proposed = len(job.told)
        self.first = [self.all.values(choice) for choice in job.first]
        if runs_kernels(job):
            self.case = CASES[job.target.kernel](job.target.shape, seed=job.seed, device=torch.device(job.device))

    def run(self) -> Iterator[Event]:
        yield from self._propose()
        if self.case is not None and self.job.device == "cuda" and self.waiting:
            point = next(iter(self.waiting.values())).point
            yield Started(kind="search", key=point.key, stage="verify")
            warm_up(self.job, self.case, point, self.clock)
        while True:
            yield from self._propose()
            if not self.waiting:
                return
            begin_s = perf_counter()
            for compiled in self.compilers.done(0.0 if self.ready else 0.25):
                yield from self._compiled(compiled)
            if not self.ready:
                self.waited_s += perf_counter() - begin_s
                if self._over():
                    return
                continue
            yield from self._evaluate(self.ready.popleft())
            if self._over():
                return

    def again(self, watch: Watch) -> Iterator[Event]:
        """The fastest, interleaved: five samples rank hundreds, and leave the first places to chance."""
        ran = sorted((seconds, values) for values, seconds in self.told.items() if seconds is not None)
        near = [values for seconds, values in ran if seconds <= AGAIN * ran[0][0] and values in self.facts]
        kept: dict[Values, Proven] = {}
        for values in near[:MOST_AGAIN]:
            point = self.all.point(self.all.choice(values))
            yield Started(kind="search", key=point.key, stage="measure")
            assert self.case is not None
            try:
                kept[values] = prove(self.job, self.case, point, self.clock)
            except Exception as error:
                yield from self._lost(self.facts[values][0], point, "measure", error, values)
        if len(kept) < 2:
            return
        begin_s = perf_counter()
        rounds = rounds_again(self.job, self.clock, list(kept.values()), watch)
        share_s = (perf_counter() - begin_s) / len(kept)
        for values, each in kept.items():
            facts, resources = self.facts[values]
            facts = facts.model_copy(update={"measure_s": facts.measure_s + share_s})
            yield timed_row(self.job, self.case, self.clock, each, rounds, facts, resources)

    def _propose(self) -> Iterator[Event]:
        """Enough on their way that every compiler has work and the one that measures does not wait."""
        most = self.job.max_evals
        while len(self.waiting) < self.job.compilers + 2 and not self._over():
            if most is not None and self.measured + len(self.waiting) >= most:
                return
            whole = len(self.all.space.configurations) if self.job.exhaust else EXHAUSTIVE
            proposal = ask(
                self.all.space, self.told, pending=self.waiting, seeds=self.first, seed=self.job.seed, exhaustive=whole
            )
            if proposal is None:
                return
            choice = self.all.choice(proposal.values)
            candidate = Candidate(proposal, choice, self.all.point(choice), self.proposed)
            self.proposed += 1
            self.waiting[proposal.values] = candidate
            try:
                launches = launches_of(self.job, self.case, candidate.point, choice)
            except Exception as error:
                yield Started(kind="search", key=candidate.point.key, stage="build")
                yield from self._lost(self._facts(candidate), candidate.point, "build", error, proposal.values)
                continue
            if launches:
                self.compilers.submit(proposal.values, launches)
            else:
                self.ready.append(candidate)

    def _compiled(self, compiled: Compiled) -> Iterator[Event]:
        """Take a compiled candidate to those that are ready, or say why it goes no further."""
        values: Values = compiled.key
        candidate = self.waiting[values]
        candidate.compile_s, candidate.built = compiled.seconds, compiled.built
        if compiled.built is None:
            yield from self._ended(candidate, Outcome(status="failed", stage="compile", reason=compiled.reason))
            return
        if values not in self.first and (reason := too_much(compiled.built)):
            yield from self._ended(candidate, Outcome(status="skipped", stage="compile", reason=reason))
            return
        if self.case is None:
            self.measured += 1
            yield from self._ended(candidate, Outcome(status="compiled", stage="compile"))
            return
        program = (compiled.built.digest, launch_of(self.all.fields, values))
        twin = self.programs.setdefault(program, values)
        if twin != values and twin in self.told and values not in self.first:
            same = self.all.point(self.all.choice(twin)).key
            outcome = Outcome(status="skipped", stage="compile", reason="compiles to the same binary as another")
            yield from self._ended(candidate, outcome, twin_of=same, seconds=self.told[twin])
            return
        self.ready.append(candidate)

    def _evaluate(self, candidate: Candidate) -> Iterator[Event]:
        point, values, case = candidate.point, candidate.proposal.values, self.case
        assert case is not None
        yield Started(kind="search", key=point.key, stage="verify")
        self.measured += 1
        begin_s = perf_counter()
        try:
            proven = prove(self.job, case, point, self.clock)
        except Unavailable as error:
            yield from self._ended(candidate, Outcome(status="skipped", stage="verify", reason=str(error)))
            return
        except Exception as error:
            facts = self._facts(candidate, check_s=perf_counter() - begin_s)
            yield from self._lost(facts, point, "verify", error, values)
            return
        check_s = perf_counter() - begin_s
        if proven.wrong:
            yield from self._ended(candidate, wrong(proven.wrong), check_s=check_s)
            return
        yield Started(kind="search", key=point.key, stage="measure")
        try:
            rounds = few_samples(self.clock, proven, fastest=min(self._times(), default=None))
        except Exception as error:
            yield from self._lost(self._facts(candidate, check_s=check_s), point, "measure", error, values)
            return
        device_s = median(rounds.arms[point.key].device_s)
        measure_s = perf_counter() - begin_s - check_s
        facts = self._facts(candidate, check_s=check_s, measure_s=measure_s, first_device_s=device_s)
        self._tell(values, device_s)
        self.facts[values] = facts, candidate.resources(self.job)
        yield timed_row(self.job, case, self.clock, proven, rounds, facts, candidate.resources(self.job))

    def _ended(
        self,
        candidate: Candidate,
        outcome: Outcome,
        *,
        twin_of: str = "",
        seconds: float | None = None,
        check_s: float = 0.0,
    ) -> Iterator[Event]:
        """A candidate without a time of its own."""
        facts = self._facts(candidate, twin_of=twin_of, check_s=check_s)
        self._tell(candidate.proposal.values, seconds)
        yield kernel_measurement(
            self.job, self.case, candidate.point, outcome, resources=candidate.resources(self.job), search=facts
        )

    def _lost(
        self, facts: SearchFacts, point: KernelPoint, stage: Stage, error: Exception, values: Values
    ) -> Iterator[Event]:
        """A candidate that raised; then what it held is freed. Raises ContextLost as events.recover."""
        self._tell(values, None)
        outcome = failed(stage, error)
        # Tensors of the failed call hang on its traceback (Triton #11174).
        error.__traceback__ = None
        yield kernel_measurement(self.job, None, point, outcome, search=facts)
        recover(self.job, error)

    def _tell(self, values: Values, seconds: float | None) -> None:
        self.told[values] = seconds
        self.waiting.pop(values, None)

    def _facts(
        self,
        candidate: Candidate,
        *,
        check_s: float = 0.0,
        measure_s: float = 0.0,
        first_device_s: float | None = None,
        twin_of: str = "",
    ) -> SearchFacts:
        waited_s, self.waited_s = self.waited_s, 0.0
        return SearchFacts(
            number=candidate.number,
            origin=candidate.proposal.origin,
            at_s=time() - self.job.began_at,
            waited_s=waited_s,
            compile_s=candidate.compile_s,
            check_s=check_s,
            measure_s=measure_s,
            first_device_s=first_device_s,
            twin_of=twin_of,
        )

    def _times(self) -> list[float]:
        return [seconds for seconds in self.told.values() if seconds is not None]

    def _over(self) -> bool:
        most = self.job.max_evals
        if most is not None and self.measured >= most:
            return True
        if time() - self.job.began_at >= self.job.search_s:
            return True
        return not self.job.exhaust and settled(self.all.space, self.told)

    def _values(self, point: KernelPoint) -> Values:
        return self.all.values(TileChoice(kernel=form_of(point), values=point.tiles or {}))
