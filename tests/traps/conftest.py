"""The real layer under the real runners and the real gate, and ways to take one defence out of them.

A trap is a fault that an engine has had. Each is planted twice: once to be caught, once with its defence taken away, so
that it is the defence that catches it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from mlaprof import verify
from mlaprof.capture import piecewise, splitter
from mlaprof.capture.captured import CapturedRunner
from mlaprof.capture.graphs import CaptureError
from mlaprof.facts import Check
from mlaprof.records import BatchSpec, CaptureSpec, Job, LayerSpec, MeasureSpec, Outcome, Point
from mlaprof.shapes import PRESETS
from mlaprof.study import PR_BOUNDARY, Boundary, LayerOptions, Mode, Phase
from mlaprof.worker.arms import Arm
from mlaprof.worker.events import failure
from mlaprof.worker.gate import Gate
from mlaprof.worker.prepare import capture_size
from mlaprof.worker.rig import Rig

CONTEXT_LEN = 30  # with 9 tokens short enough for the indexer to be skipped, with 70 too long


@pytest.fixture(autouse=True)
def _as_in_a_worker() -> Iterator[None]:
    """Inference mode, and nothing traced before."""
    torch._dynamo.reset()
    with torch.inference_mode():
        yield
    torch._dynamo.reset()


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    return request.param


class Bench:
    """A layer at these token counts, the arms that run it, and the gate's word on them."""

    def __init__(
        self,
        device: str,
        sizes: tuple[int, ...],
        phase: Phase,
        context_len: int,
        num_layers: int = 1,
        options: LayerOptions | None = None,
        **capture: Any,
    ) -> None:
        self._sizes = sizes
        self._point = Point(
            preset="tiny", phase=phase, num_tokens=sizes[0], context_len=context_len, mode="split_eager"
        )
        self.rig = Rig(
            Job(
                kind="timing",
                device=device,  # type: ignore[arg-type]
                layer=LayerSpec(
                    preset="tiny",
                    shape=PRESETS["tiny"],
                    num_layers=num_layers,
                    options=options or LayerOptions(),
                ),
                batch=BatchSpec(),
                capture=CaptureSpec(sizes=sizes, **capture),
                measure=MeasureSpec(),
                points=tuple(self._point.model_copy(update={"num_tokens": size}) for size in sizes),
            )
        )

    def arm(self, mode: Mode, num_tokens: int | None = None, boundary: Boundary = PR_BOUNDARY) -> Arm:
        """Captured at every size of the bench, largest first; raises CaptureError."""
        arm = self._arm(mode, num_tokens or self._sizes[0], boundary)
        for each in sorted(self._sizes, reverse=True):
            if arm.graphs is not None:
                capture_size(self.rig, arm, each)
        return arm

    def captured_with(self, name: str, mode: Mode, boundary: Boundary = PR_BOUNDARY) -> Arm:
        """Captured with another batch of as many tokens than the one it is for."""
        size = self._sizes[0]
        arm = self._arm(mode, size, boundary)
        [(number, variation)] = [each for each in enumerate(self.rig.variations(size)) if each[1].name == name]
        self.rig.load_variation(variation, number)
        with arm.context:
            arm.runner.prepare([size])
        return arm

    def _arm(self, mode: Mode, num_tokens: int, boundary: Boundary) -> Arm:
        changes = {"num_tokens": num_tokens, "mode": mode, "boundary": boundary}
        return self.rig.arm(self._point.model_copy(update=changes))

    def wrong(self, arm: Arm) -> list[str]:
        """What the gate finds wrong with the arm, by name."""
        return [check.name for check in Gate(self.rig, arm.point.num_tokens).check(arm).wrong]

    def refusal(self, mode: Mode, boundary: Boundary = PR_BOUNDARY) -> tuple[CaptureError, Outcome]:
        """Why the mode cannot be captured, and what the worker makes of it."""
        with pytest.raises(CaptureError) as caught:
            self.arm(mode, boundary=boundary)
        return caught.value, failure(self.rig.job, self._point, "capture", caught.value).outcome


@pytest.fixture(scope="session")
def make_bench() -> Callable[..., Bench]:
    """A bench on a device; by default of 9 tokens of one prompt behind CONTEXT_LEN cached ones."""

    def make(device: str, *sizes: int, phase: Phase = "prefill", context_len: int = CONTEXT_LEN, **more: Any) -> Bench:
        return Bench(device, sizes or (9,), phase, context_len, **more)

    return make


@pytest.fixture
def bench(device: str, make_bench: Callable[..., Bench]) -> Callable[..., Bench]:
    """The same on each device in turn."""
    return functools.partial(make_bench, device)


class Without:
    """Takes one defence away, until the test ends."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._set = monkeypatch.setattr

    def other_batches(self) -> None:
        """Replay with the batch of the capture alone."""
        sets = Gate._sets
        self._set(Gate, "_sets", lambda gate, arm: sets(gate, arm)[-1:])

    def other_sizes(self) -> None:
        """Replay one size alone."""
        self._set(Gate, "_interleave", lambda gate, arm, size: False)

    def page_check(self) -> None:
        """Look at the rows of the batch alone."""
        self._set(Rig, "cache_sums", lambda rig: torch.zeros(1))

    def spoilt_output(self) -> None:
        """Whatever the graph's output holds is left there."""
        run = CapturedRunner.run
        self._set(CapturedRunner, "run", lambda runner, num_tokens: run(runner, num_tokens).clone())

    def spoilt_caches(self) -> None:
        self._set(Rig, "poison_caches", lambda rig: None)

    def spoilt_padding(self) -> None:
        """Padding rows hold what the batch before left."""
        self._set(Rig, "spoil_padding", lambda rig, num_tokens, rows: None)

    def address_check(self) -> None:
        """Run as an engine does without its debug flag."""
        self._set(CapturedRunner, "verified_run", CapturedRunner.run)

    def contract_check(self) -> None:
        """Believe what schemas say of mutation."""
        self._set(verify, "undeclared_writes", lambda stack, *inputs: [])

    def oracle(self) -> None:
        """Compare the modes with each other alone."""
        self._set(verify, "against_oracle", lambda *probed, **named: ())

    def bits(self) -> None:
        """Look at shape, type and finiteness of a replay, not at its values."""
        self._set(verify, "same_bits", _plausible)

    def fake_check(self) -> None:
        """Believe what a fake kernel says of the real one."""
        self._set(piecewise, "check_fakes", lambda *traced: None)

    def hand_over_check(self) -> None:
        """Let an excluded operator hand a new tensor to captured code."""
        self._set(splitter, "_check_hand_over", lambda *pieces: None)

    def stops(self) -> None:
        """Capture index and cumsum like any other operator."""
        self._set(piecewise, "split", functools.partial(splitter.split, stops=()))


def _plausible(name: str, expected: torch.Tensor, got: torch.Tensor) -> Check:
    sound = expected.shape == got.shape and expected.dtype == got.dtype and bool(got.isfinite().all())
    return Check(name=name, value=float(not sound), limit=0.0)


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Without:
    return Without(monkeypatch)
