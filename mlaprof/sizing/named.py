"""Traces by name: requests drawn from stated distributions with a fixed seed, and plain distributions of steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from mlaprof.sizing.scheduler import Request
from mlaprof.sizing.steps import Steps, steps_of

SEED = 20261123


@dataclass(frozen=True)
class Kind:
    """One sort of request: medians and spreads (sigma of the logarithm) of log-normal lengths, in tokens."""

    share: float
    prompt: int
    prompt_sigma: float
    output: int
    output_sigma: float
    cached: tuple[float, float] = (0.0, 0.0)  # the share of the prompt in the prefix cache lies between, uniformly


@dataclass(frozen=True)
class Workload:
    """Requests that arrive as a Poisson process."""

    told: str
    per_s: float
    requests: int
    kinds: Sequence[Kind]
    longest: int  # tokens of a prompt


NAMED: dict[str, Workload] = {
    "chat": Workload(
        "short chat: prompts around 90 tokens, no prefix cache",
        12.0,
        6000,
        (Kind(1, 90, 0.9, 120, 0.7),),
        4096,
    ),
    "long-cached": Workload(
        "long prompts around 9,000 tokens of which the prefix cache holds 60 to 98 %",
        1.5,
        3000,
        (Kind(1, 9000, 0.6, 200, 0.6, (0.60, 0.98)),),
        65_536,
    ),
    "agentic": Workload(
        "mixed agentic: 70 % tool turns on a cached history, 20 % new tasks, 10 % short questions",
        4.0,
        5000,
        (
            Kind(0.7, 12_000, 0.5, 60, 0.8, (0.95, 0.995)),
            Kind(0.2, 3000, 0.7, 400, 0.6, (0.0, 0.3)),
            Kind(0.1, 60, 0.8, 40, 0.8),
        ),
        65_536,
    ),
}


def requests_of(workload: Workload) -> tuple[Request, ...]:
    """The workload's requests, the same on every machine."""
    draw = np.random.default_rng(SEED)
    arrivals = np.cumsum(draw.exponential(1 / workload.per_s, workload.requests))
    places = draw.choice(len(workload.kinds), workload.requests, p=[kind.share for kind in workload.kinds])
    found = []
    for arrival, place in zip(arrivals.tolist(), places.tolist(), strict=True):
        kind = workload.kinds[place]
        prompt = _length(draw, kind.prompt, kind.prompt_sigma, workload.longest)
        output = _length(draw, kind.output, kind.output_sigma, 4096)
        cached = min(int(prompt * draw.uniform(*kind.cached)), prompt - 1)
        found.append(Request(arrival, prompt, output, cached))
    return tuple(found)


def _length(draw: np.random.Generator, median: int, sigma: float, most: int) -> int:
    return int(np.clip(round(draw.lognormal(np.log(median), sigma)), 1, most))


def _uniform(largest: int) -> Steps:
    return steps_of("uniform", range(1, largest + 1))


def _log_uniform(largest: int) -> Steps:
    return steps_of("log-uniform", range(1, largest + 1), (1 / tokens for tokens in range(1, largest + 1)))


DISTRIBUTIONS: dict[str, Callable[[int], Steps]] = {"uniform": _uniform, "log-uniform": _log_uniform}
"""Of token counts from 1 to what the run measured: every count alike, and every factor alike."""
