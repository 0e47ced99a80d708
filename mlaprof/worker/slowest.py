"""The samples of all ranks as one row: a step is done when its slowest rank is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import TypeVar

import torch

from mlaprof.facts import RankFacts
from mlaprof.measure.clock import Burst, Sample
from mlaprof.measure.rounds import ArmSamples, Rounds
from mlaprof.worker.arms import Arm
from mlaprof.worker.group import Group

R = TypeVar("R")
Chosen = Mapping[str, str]
"""Kernel -> what a rank runs it with."""


def slowest(every: Sequence[Rounds[R]]) -> Rounds[R]:
    """Round by round and clock by clock the slowest rank's time; the readings beside them are the first rank's.

    Each clock has a maximum of its own: device time and submit time of one round may be of two ranks. A sample is
    filled where it is on every rank.
    """
    first = every[0]
    return replace(first, arms={name: _slowest_arm([each.arms[name] for each in every]) for name in first.arms})


def _slowest_arm(every: Sequence[ArmSamples[R]]) -> ArmSamples[R]:
    samples = zip(*(each.samples for each in every), strict=True)
    bursts = zip(*(each.bursts for each in every), strict=True)
    return replace(
        every[0],
        samples=tuple(replace(_longest(each), filled=all(one.filled for one in each)) for each in samples),
        bursts=tuple(_longest(each) for each in bursts),
    )


Times = TypeVar("Times", Sample, Burst)


def _longest(every: Sequence[Times]) -> Times:
    times = [each.name for each in fields(every[0]) if each.name.endswith("_s")]
    return replace(every[0], **{name: max(getattr(each, name) for each in every) for name in times})


def rank_facts(every: Sequence[Rounds[R]], chosen: Sequence[Mapping[str, Chosen]], key: str) -> RankFacts:
    """What the ranks saw of the arm `key`; chosen: a rank, what each arm's kernels run with."""
    return RankFacts(
        device_s=tuple(each.arms[key].device_s for each in every),
        disagreement=disagreement([each[key] for each in chosen]),
    )


def disagreement(every: Sequence[Chosen]) -> tuple[str, ...]:
    """Kernels that not all ranks run with the same tiles."""
    names = dict.fromkeys(name for chosen in every for name in chosen)
    return tuple(name for name in names if len({chosen.get(name) for chosen in every}) > 1)


def chosen_tiles(arm: Arm) -> dict[str, str]:
    """What this rank runs each kernel of the arm with: its tiles, or that the launcher chooses, and for which GPU."""
    tiles = arm.tiles.at(arm.point.num_tokens)
    return {
        each.name: str(found) if (found := getattr(tiles, each.name)) else f"the launcher's choice for {_device()}"
        for each in fields(tiles)
        if each.name != "by_tokens"
    }


def _device() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "a CPU"


def gathered(group: Group, rounds: Rounds[R], arms: Sequence[Arm]) -> tuple[Rounds[R], dict[str, RankFacts]]:
    """The row of all ranks, and what each of them saw, by key; nothing of the latter where there is one alone."""
    if group.world == 1:
        return rounds, {}
    every = group.gather((rounds, {arm.point.key: chosen_tiles(arm) for arm in arms}))
    of_ranks, chosen = [each for each, _ in every], [each for _, each in every]
    return slowest(of_ranks), {arm.point.key: rank_facts(of_ranks, chosen, arm.point.key) for arm in arms}
