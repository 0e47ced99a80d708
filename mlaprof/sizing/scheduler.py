"""Requests to steps: a model of an engine's scheduler with chunked prefill. Standard library and numpy.

In this model an iteration takes one token of every running request, then prompt tokens of waiting requests in the
order of arrival, a chunk of a prompt where not all of it fits, up to max_num_tokens in all and max_batch_size running
requests. Tokens of a prompt that the prefix cache holds are not computed. A prompt's last chunk yields its first
output token. An iteration lasts what the run measured for an eager step of as many tokens, times the model's layers;
the clock only decides which requests meet. Steps without a prompt token are left out and counted: engines run those
in graphs of generations (`full`), not in piecewise ones.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mlaprof.errors import ConfigError
from mlaprof.sizing.curve import Curve
from mlaprof.sizing.steps import Steps, steps_of

MOST_STEPS = 5_000_000


@dataclass(frozen=True)
class Request:
    """Seconds and tokens; cached_tokens of the prompt are found in the prefix cache."""

    arrival_s: float
    prompt_tokens: int
    output_tokens: int
    cached_tokens: int = 0


@dataclass(frozen=True)
class Scheduler:
    """The engine's limits, and the depth of the model that the clock runs on."""

    max_num_tokens: int
    max_batch_size: int
    layers: int

    @property
    def told(self) -> str:
        """In a sentence, for a reader."""
        return (
            f"chunked prefill, {self.max_num_tokens} tokens and {self.max_batch_size} requests at most, "
            f"clock of {self.layers} layers"
        )


def run(name: str, requests: Sequence[Request], scheduler: Scheduler, layer_step: Curve) -> Steps:
    """The steps in which an engine would serve the requests, sorted by arrival.

    layer_step  seconds of an eager step of one layer by token count

    Raises ConfigError on limits that cannot serve, on more than MOST_STEPS steps, and where no step holds a prompt.
    """
    if scheduler.max_batch_size >= scheduler.max_num_tokens:
        hint = "leave room for prompts: --max-num-tokens above --max-batch-size"
        raise ConfigError(f"{scheduler.max_batch_size} requests fill every step", where="--max-batch-size", hint=hint)
    table = (layer_step.at(np.arange(scheduler.max_num_tokens + 1)) * scheduler.layers).tolist()
    # [prompt tokens to compute, output tokens to come]; one that decodes has none of the first.
    waiting: deque[list[int]] = deque()
    ends: dict[int, int] = {}  # step at which running requests end -> how many do
    now, step, running, arrived, decode_only = 0.0, 0, 0, 0, 0
    sizes: list[int] = []
    while arrived < len(requests) or waiting or running:
        if not waiting and not running:
            now = max(now, requests[arrived].arrival_s)
        while arrived < len(requests) and requests[arrived].arrival_s <= now:
            each = requests[arrived]
            waiting.append([each.prompt_tokens - each.cached_tokens, each.output_tokens])
            arrived += 1
        decoding, room = running, scheduler.max_num_tokens - running
        prompts = 0
        while waiting and room and running < scheduler.max_batch_size:
            head = waiting[0]
            taken = min(head[0], room)
            head[0] -= taken
            room -= taken
            prompts += taken
            if head[0]:
                break
            waiting.popleft()
            if head[1] > 1:  # its first output token comes with the last chunk
                running += 1
                last = step + head[1] - 1
                ends[last] = ends.get(last, 0) + 1
        tokens = decoding + prompts
        if prompts:
            sizes.append(tokens)
        else:
            decode_only += 1
        now += table[tokens]
        running -= ends.pop(step, 0)
        step += 1
        if step > MOST_STEPS:
            raise ConfigError(f"more than {MOST_STEPS} steps", where=name, hint="take a part of the trace")
    if not sizes:
        raise ConfigError("no step holds a prompt", where=name, hint="add requests")
    return steps_of(name, sizes, decode_only=decode_only, model=scheduler.told)
