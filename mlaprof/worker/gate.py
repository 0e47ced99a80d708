"""The gate before the clock: no arm is timed whose output is not proven.

The first arm of each tile configuration is compared with the oracle; every other eager arm with that one, bit for
bit; every captured arm with its own eager run at the same padded size, under inputs it was not captured with and with
its output poisoned before the replay.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mlaprof import verify
from mlaprof.layer.batch import Batch
from mlaprof.records import Check
from mlaprof.worker.rig import INPUT_SETS, Arm, Rig


class Gate:
    """Checks the arms of one cell; keep one a cell."""

    def __init__(self, rig: Rig, batch: Batch) -> None:
        self._rig = rig
        self._batch = batch
        self._proven: dict[tuple[str, bool], list[Tensor]] = {}  # eager outputs, an input set each

    def check(self, arm: Arm) -> tuple[Check, ...]:
        """Every comparison that arm needs; all must pass."""
        rig, num_tokens = self._rig, arm.point.num_tokens
        with arm.context:
            # Captured first: memory freed by an eager run may still hold the right answer.
            captured = self._captured_outputs(arm) if arm.graphs is not None else []
            eager = []
            for number in range(INPUT_SETS):
                rig.load_hidden(number, num_tokens)
                eager.append(arm.stack(*rig.buffers.slice(self._rows(arm)))[:num_tokens].clone())
            rig.load_hidden(0, num_tokens)
            checks = self._prove_eager(arm, eager)
            for number, got in enumerate(captured):
                checks.append(verify.same_bits(f"input set {number}", eager[number], got))
        return tuple(checks)

    def _captured_outputs(self, arm: Arm) -> list[Tensor]:
        outputs = []
        for number in reversed(range(INPUT_SETS)):  # captured with set 0, so set 1 is the first to replay
            self._rig.load_hidden(number, arm.point.num_tokens)
            output = arm.runner.run(arm.point.num_tokens)
            output.fill_(torch.nan)
            outputs.append(arm.runner.run(arm.point.num_tokens).clone())
        return outputs[::-1]

    def _prove_eager(self, arm: Arm, eager: list[Tensor]) -> list[Check]:
        rig = self._rig
        # Short MHA is off under compile, so those arms compute another way when it applies.
        dense = arm.context.compiled and rig.job.layer.options.short_seq_mha_threshold > 0
        key = (arm.point.tiles_label, dense)
        if key in self._proven:
            pairs = zip(self._proven[key], eager, strict=True)
            return [verify.same_bits(f"eager, input set {i}", want, got) for i, (want, got) in enumerate(pairs)]
        checks = [verify.finite("eager output", output) for output in eager]
        hidden, positions = rig.buffers.slice(arm.point.num_tokens)
        _, probes = verify.probe(arm.stack, hidden, positions)
        for probed, weights in zip(probes, rig.weights, strict=True):
            checks += verify.against_oracle(probed, weights, self._batch, rig.caches, positions, arm.context)
        # Only what passed: a wrong output that a later arm repeats bit for bit is wrong there too.
        if all(check.passed for check in checks):
            self._proven[key] = eager
        return checks

    def _rows(self, arm: Arm) -> int:
        return arm.runner.facts(arm.point.num_tokens).num_tokens
