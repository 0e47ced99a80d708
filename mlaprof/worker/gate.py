"""The gate before the clock, and behind it: no arm shows a time whose output is not proven.

Eager runs are compared with the fp32 oracle, or bit for bit with one that was. Every captured arm is replayed under
several metadata sets and must equal its own eager run at the same padded size, bit for bit: in its output, and in the
cache rows that later steps will read. Before each such replay everything that could hold the right answer by chance is
spoilt: the output and the cache rows of the batch are NaN, so are the padding rows of the input, freed memory has been
taken and overwritten by others, and another captured size has run in between.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mlaprof import verify
from mlaprof.capture.addresses import StaleAddress
from mlaprof.facts import Check, GateFacts
from mlaprof.layer.variations import Variation
from mlaprof.worker.arms import Arm
from mlaprof.worker.rig import Rig

LEAST_SETS = 3  # metadata sets that a captured arm is replayed with
CHURN_BYTES = tuple(2**power for power in range(9, 26, 2))  # 512 B to 32 MiB


@dataclass(frozen=True)
class _Step:
    """What one step left behind."""

    output: Tensor  # [num_tokens, hidden_size]
    cache_rows: Tensor  # what it wrote to both caches, bytes

    def same_bits(self, name: str, other: _Step) -> list[Check]:
        return [
            verify.same_bits(name, self.output, other.output),
            verify.same_bits(f"{name}, cache rows", self.cache_rows, other.cache_rows),
        ]


@dataclass(frozen=True)
class Verdict:
    """What the gate says of one arm."""

    checks: tuple[Check, ...]
    facts: GateFacts | None  # None without a graph

    @property
    def wrong(self) -> list[Check]:
        return [check for check in self.checks if not check.passed]


class Gate:
    """Checks the arms of one cell; keep one a cell. Leaves the cell's own batch loaded and the caches as they were."""

    def __init__(self, rig: Rig, num_tokens: int) -> None:
        self._rig = rig
        self._num_tokens = num_tokens
        self._proven: dict[tuple[object, ...], _Step] = {}  # eager steps that passed the oracle

    def check(self, arm: Arm) -> Verdict:
        """Every comparison that arm needs; all must pass."""
        rig = self._rig
        with arm.context:
            rig.load(self._num_tokens)  # which graph serves an arm depends on the batch in place
            verdict = self._check_replays(arm) if self._captured(arm) else self._check_eager(arm)
        return replace(verdict, checks=tuple(rig.group.worst(verdict.checks)))

    def recheck(self, arm: Arm, verdict: Verdict) -> Verdict:
        """The same arm behind its timed rounds: the own batch once more."""
        if verdict.facts is None:
            return verdict
        rig = self._rig
        with arm.context:
            rig.load(self._num_tokens)
            checks, _ = self._compare(arm, "own batch, after timing")
            rig.load(self._num_tokens)
        facts = verdict.facts.model_copy(update={"after_timing": True, "replays": verdict.facts.replays + 1})
        return Verdict((*verdict.checks, *rig.group.worst(checks)), facts)

    def _check_eager(self, arm: Arm) -> Verdict:
        """An arm without a graph for the own batch. Of one that fell back the pieces are timed, not the stack."""
        rig, rows = self._rig, self._rows(arm)
        with rig.kept_caches():
            if arm.graphs is None:
                _, checks = self._eager(arm, "own batch", rows)
            else:
                checks, _ = self._compare(arm, "own batch")
            checks += verify.undeclared_writes(arm.stack, *rig.buffers.slice(rows))
        return Verdict(tuple(checks), None)

    def _check_replays(self, arm: Arm) -> Verdict:
        rig, checks, names = self._rig, [], []
        others = [size for size in rig.capture_sizes(arm.point) if size != self._rows(arm)]
        interleaved: dict[int, None] = {}
        for number, variation in self._sets(arm):
            rig.load_variation(variation, number)
            other = others[number % len(others)] if others else None
            found, replayed = self._compare(arm, variation.name, other)
            checks += found
            if other is not None and replayed:
                interleaved[other] = None
            names.append(variation.name)
        rig.load(self._num_tokens)
        with rig.kept_caches():
            checks += verify.undeclared_writes(arm.stack, *rig.buffers.slice(self._rows(arm)))
        facts = GateFacts(
            sets=tuple(names), replays=len(names), interleaved=tuple(sorted(interleaved)), after_timing=False
        )
        return Verdict(tuple(checks), facts)

    def _sets(self, arm: Arm) -> list[tuple[int, Variation]]:
        """Metadata sets that this arm's graph serves. The own batch comes last: the graph was captured with it."""
        rig = self._rig
        smaller = [size for size in rig.capture_sizes(arm.point) if size < self._num_tokens]
        every = list(enumerate(rig.variations(self._num_tokens, below=max(smaller, default=0))))
        served = []
        for number, variation in every:
            batch = rig.load_variation(variation, number)
            if arm.runner.facts(batch.num_tokens).graph_launches:
                served.append((number, variation))
        # A full graph of one prompt serves no other lengths; its pages and inputs can be drawn again.
        own = every[0][1]
        missing = range(len(every), len(every) + LEAST_SETS - len(served))
        served += [(number, replace(own, name=f"other pages, draw {number}")) for number in missing]
        return served[1:] + served[:1]

    def _compare(self, arm: Arm, name: str, other: int | None = None) -> tuple[list[Check], bool]:
        """The arm's run against eager on the batch that is loaded, and whether another size ran just before it."""
        rig, num_tokens = self._rig, self._rig.metadata.num_tokens
        rows = arm.runner.facts(num_tokens).num_tokens
        sums = rig.cache_sums()
        rig.spoil_padding(num_tokens, rows)
        with rig.kept_caches():
            spoilt = arm.runner.run(num_tokens)
        number, variation = rig.loaded
        interleaved = other is not None and self._interleave(arm, other)
        if other is not None:
            rig.load_variation(variation, number)
        rig.spoil_padding(num_tokens, rows)
        with rig.kept_caches():
            # Captured first: memory freed by an eager run may still hold the right answer.
            spoilt.fill_(torch.nan)
            rig.poison_caches()
            churn(rig.device)
            try:
                output = arm.runner.verified_run(num_tokens).clone()
            except StaleAddress as error:
                return [Check(name=f"{name}: {error}", value=1.0, limit=0.0)], interleaved
            ran = _Step(output, rig.cache_rows())
            eager, checks = self._eager(arm, name, rows)
        checks.append(verify.same_bits(f"{name}, pages of others", sums, rig.cache_sums()))
        return [*checks, *eager.same_bits(name, ran)], interleaved

    def _interleave(self, arm: Arm, size: int) -> bool:
        """Replay another size on its own batch, if there is such a batch and a graph for it."""
        rig = self._rig
        try:
            rig.load(size)
        except ValueError:
            return False
        if not arm.runner.facts(size).graph_launches:
            return False
        with rig.kept_caches():
            arm.runner.run(size)
        return True

    def _eager(self, arm: Arm, name: str, rows: int) -> tuple[_Step, list[Check]]:
        """The eager step on the batch that is loaded, proven; the caches hold its writes afterwards."""
        rig, num_tokens = self._rig, self._rig.metadata.num_tokens
        hidden, positions = rig.buffers.slice(rows)
        # Short MHA is off under compile, so those arms compute another way when it applies.
        dense = arm.context.compiled and rig.job.layer.options.short_seq_mha_threshold > 0
        # With padding Op 1 works on more rows than Op 2, so that bits depend on where the boundary lies.
        boundary = arm.point.boundary if rows != num_tokens else None
        # Op 1 takes the tiles of all rows, Op 2 those of the real ones.
        tiles = tuple(str(arm.tiles.at(size)) for size in {rows, num_tokens})
        key = (arm.point.tiles_label, tiles, dense, boundary, rows, rig.loaded)
        rig.poison_caches()  # captures and replays have left the right rows there
        if key in self._proven:
            step = _Step(arm.stack(hidden, positions)[:num_tokens].clone(), rig.cache_rows())
            finite = verify.finite(f"eager output, {name}", step.output)
            return step, [finite, *self._proven[key].same_bits(f"eager, {name}", step)]
        whole, probes = verify.probe(arm.stack, hidden, positions)
        step = _Step(whole[:num_tokens].clone(), rig.cache_rows())
        checks = [verify.finite(f"eager output, {name}", step.output)]
        for probed, weights in zip(probes, rig.weights, strict=True):
            for check in verify.against_oracle(
                probed, weights, rig.batch, rig.caches, positions, arm.context, total=rig.group.total
            ):
                checks.append(check.model_copy(update={"name": f"{name}, {check.name}"}))
        checks = rig.group.worst(checks)
        # Only what passed: a wrong output that a later arm repeats bit for bit is wrong there too.
        if all(check.passed for check in checks):
            self._proven[key] = step
        return step, checks

    def _captured(self, arm: Arm) -> bool:
        return arm.graphs is not None and arm.runner.facts(self._num_tokens).graph_launches > 0

    def _rows(self, arm: Arm) -> int:
        return arm.runner.facts(self._num_tokens).num_tokens


def churn(device: torch.device) -> None:
    """Take blocks of many sizes, fill them with NaN and give them back, as an engine's other work does."""
    blocks = [torch.full((size // 4,), torch.nan, device=device) for size in CHURN_BYTES]
    del blocks
