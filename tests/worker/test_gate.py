"""The gate before the clock: an arm whose output is not that of its own eager run, now, is not timed."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from mlaprof.capture.program import Prepared
from mlaprof.records import Check, Job, Point
from mlaprof.shapes import PRESETS
from mlaprof.study import BatchSpec, LayerSpec, MeasureSpec, Mode
from mlaprof.worker.gate import Gate
from mlaprof.worker.rig import Arm, Rig

NUM_TOKENS = 9
MODES: tuple[Mode, ...] = ("monolithic_eager", "split_eager", "full")


class Faulty:
    """A runner that spoils what the one inside returns."""

    def __init__(self, inside: object, spoil: Callable[[Callable[[], Tensor]], Tensor]) -> None:
        self._inside = inside
        self._spoil = spoil

    def facts(self, num_tokens: int) -> Prepared:
        return self._inside.facts(num_tokens)

    def run(self, num_tokens: int) -> Tensor:
        return self._spoil(lambda: self._inside.run(num_tokens))


class Stale:
    """Computes once and returns that result for ever."""

    def __init__(self) -> None:
        self.kept: Tensor | None = None

    def __call__(self, run: Callable[[], Tensor]) -> Tensor:
        if self.kept is None:
            self.kept = run().clone()
        return self.kept.clone()


class Untouched:
    """Returns the buffer without running anything: after the gate's poison it holds NaN."""

    def __init__(self) -> None:
        self.buffer: Tensor | None = None

    def __call__(self, run: Callable[[], Tensor]) -> Tensor:
        if self.buffer is None:
            self.buffer = run()
        return self.buffer


def one_bit_off(run: Callable[[], Tensor]) -> Tensor:
    output = run().clone()
    output.view(torch.int16)[0, 0] ^= 1
    return output


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module")
def rig() -> Rig:
    points = tuple(
        Point(preset="tiny", phase="prefill", num_tokens=NUM_TOKENS, context_len=70, mode=mode) for mode in MODES
    )
    job = Job(
        kind="timing",
        device="cpu",
        layer=LayerSpec(preset="tiny", shape=PRESETS["tiny"]),
        batch=BatchSpec(),
        measure=MeasureSpec(),
        points=points,
    )
    with torch.inference_mode():
        return Rig(job)


@pytest.fixture
def gate(rig) -> Gate:
    return Gate(rig, rig.load(rig.job.points[0]))


@pytest.fixture
def arms(rig, gate) -> dict[Mode, Arm]:
    """Prepared on the batch that the gate knows."""
    found = {point.mode: rig.arm(point) for point in rig.job.points}
    for arm in found.values():
        with arm.context:
            arm.runner.prepare([NUM_TOKENS])
    return found


def failed(checks: tuple[Check, ...]) -> list[str]:
    return [check.name for check in checks if not check.passed]


def test_sound_arms_pass(gate, arms):
    """The first meets the oracle, the second its bits, the captured one its own eager run on both input sets."""
    checks = {mode: gate.check(arm) for mode, arm in arms.items()}
    assert [(mode, failed(each)) for mode, each in checks.items()] == [(mode, []) for mode in MODES]
    assert any("oracle" in check.name for check in checks["monolithic_eager"])
    assert {check.name for check in checks["full"]} >= {f"input set {n}: differing bytes vs eager" for n in (0, 1)}


@pytest.mark.parametrize("make_fault", [Stale, Untouched, lambda: one_bit_off], ids=["stale", "untouched", "one bit"])
def test_a_captured_arm_that_returns_something_else_is_caught(gate, arms, make_fault):
    """An old result, a buffer nobody wrote, a single wrong bit: the captured arm is incorrect."""
    arm = arms["full"]
    faulty = Arm(arm.point, arm.stack, Faulty(arm.runner, make_fault()), arm.graphs, arm.context)
    assert failed(gate.check(faulty))
    assert failed(gate.check(arm)) == []


def test_a_stale_arm_is_caught_by_the_inputs_it_was_not_captured_with(gate, arms):
    """The result kept is right for one input set only."""
    arm = arms["full"]
    names = failed(gate.check(Arm(arm.point, arm.stack, Faulty(arm.runner, Stale()), arm.graphs, arm.context)))
    assert names == ["input set 0: differing bytes vs eager"]


def test_an_eager_arm_that_differs_from_the_proven_one_is_caught(rig, gate, arms, monkeypatch):
    """The second eager arm is held to the first one's bits."""
    gate.check(arms["monolithic_eager"])
    attn = arms["split_eager"].stack.attention["0"]
    monkeypatch.setattr(type(attn), "dsa_proj", _scaled(type(attn).dsa_proj))
    assert failed(gate.check(arms["split_eager"]))


def _scaled(real: Callable[..., list[Tensor]], factor: float = 1.01) -> Callable[..., list[Tensor]]:
    def wrong(self: object, *args: object) -> list[Tensor]:
        q, *rest = real(self, *args)
        return [q * factor, *rest]

    return wrong


def test_the_first_eager_arm_meets_the_oracle(gate, arms, monkeypatch):
    """Wrong from the start, alike in every mode: only the oracle can tell."""
    attn = arms["monolithic_eager"].stack.attention["0"]
    monkeypatch.setattr(type(attn), "_append_latent", lambda self, *args: None)
    assert "layer 0: latent rows written" in failed(gate.check(arms["monolithic_eager"]))


def test_an_arm_that_repeats_a_wrong_output_bit_for_bit_is_wrong_too(gate, arms, monkeypatch):
    """Only what passed the oracle is a yardstick for the next arm, eager or captured."""
    attn = arms["monolithic_eager"].stack.attention["0"]
    monkeypatch.setattr(type(attn), "dsa_proj", _scaled(type(attn).dsa_proj, 2.0))
    for mode in ("monolithic_eager", "split_eager", "monolithic_eager"):
        assert "layer 0: worst row error vs oracle" in failed(gate.check(arms[mode])), mode
