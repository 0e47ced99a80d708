"""Which jobs a study becomes, in which order, what is skipped and why, and what is left after an interruption."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from mlaprof.plan import Plan, expand
from mlaprof.records import Device, Point
from mlaprof.shapes import PRESETS
from mlaprof.study import (
    MODES,
    Axes,
    BatchSpec,
    LayerOptions,
    LayerSpec,
    MeasureSpec,
    Mode,
    Phase,
    Selector,
    Study,
    TileChoice,
)

ALTERNATIVES = tuple(TileChoice(kernel="sparse_attn", values={"block_n": block_n}) for block_n in (16, 64))


def study(
    phase: tuple[Phase, ...] = ("prefill",),
    num_tokens: tuple[int, ...] = (1, 8),
    context_len: tuple[int, ...] = (0,),
    mode: tuple[Mode, ...] = ("monolithic_eager", "full"),
    **parts: Any,
) -> Study:
    layer = parts.pop("layer", LayerSpec(preset="tiny", shape=PRESETS["tiny"]))
    axes = Axes(phase=phase, num_tokens=num_tokens, context_len=context_len, mode=mode)
    return Study(name="study", layer=layer, axes=axes, **parts)


def keys(points: tuple[Point, ...]) -> list[str]:
    return [point.key.removeprefix("tiny/") for point in points]


def jobs(plan: Plan) -> list[tuple[str, list[str]]]:
    return [(job.kind, keys(job.points)) for job in plan.jobs]


def reasons(plan: Plan) -> dict[str, str]:
    return {skip.point.key.removeprefix("tiny/"): skip.outcome.reason for skip in plan.skips}


def test_a_timing_job_holds_all_sizes_largest_first_with_their_arms_adjacent() -> None:
    """Arms of one cell are measured in one process; memory jobs follow, a mode each."""
    assert jobs(expand(study(), "cuda")) == [
        (
            "timing",
            [
                "prefill/t8/ctx0/monolithic_eager",
                "prefill/t8/ctx0/full",
                "prefill/t1/ctx0/monolithic_eager",
                "prefill/t1/ctx0/full",
            ],
        ),
        ("memory", ["prefill/t8/ctx0/monolithic_eager", "prefill/t1/ctx0/monolithic_eager"]),
        ("memory", ["prefill/t8/ctx0/full", "prefill/t1/ctx0/full"]),
    ]


def test_tiles_are_arms_of_their_mode_on_a_gpu() -> None:
    """The default tiles first, then every alternative; memory is asked for the defaults only."""
    plan = expand(study(num_tokens=(8,), tiles={"sparse_attn": ALTERNATIVES}), "cuda")
    assert keys(plan.jobs[0].points) == [
        "prefill/t8/ctx0/monolithic_eager",
        "prefill/t8/ctx0/monolithic_eager/sparse_attn=n16",
        "prefill/t8/ctx0/monolithic_eager/sparse_attn=n64",
        "prefill/t8/ctx0/full",
        "prefill/t8/ctx0/full/sparse_attn=n16",
        "prefill/t8/ctx0/full/sparse_attn=n64",
    ]
    assert all(not point.tiles for job in plan.jobs[1:] for point in job.points)


def test_tiles_are_compiled_and_never_timed_without_a_gpu() -> None:
    """One compile job at the end has every tile Point; the timing jobs have none."""
    plan = expand(study(tiles={"sparse_attn": ALTERNATIVES}), "cpu")
    assert [job.kind for job in plan.jobs] == ["timing", "memory", "memory", "compile"]
    assert all(not point.tiles for job in plan.jobs[:-1] for point in job.points)
    assert [
        f"prefill/t{size}/ctx0/{mode}/sparse_attn=n{block_n}"
        for size in (8, 1)
        for mode in ("monolithic_eager", "full")
        for block_n in (16, 64)
    ] == keys(plan.jobs[-1].points)


def test_alternatives_of_two_kernels_are_combined() -> None:
    """A Point lists a choice for each kernel that the study names."""
    tiles = {
        "sparse_attn": ALTERNATIVES,
        "index_logits": (TileChoice(kernel="index_logits", values={"num_warps": 8}),),
    }
    plan = expand(study(num_tokens=(8,), mode=("full",), tiles=tiles, measure=MeasureSpec(memory=False)), "cuda")
    assert keys(plan.points) == [
        "prefill/t8/ctx0/full",
        "prefill/t8/ctx0/full/sparse_attn=n16+index_logits=w8",
        "prefill/t8/ctx0/full/sparse_attn=n64+index_logits=w8",
    ]


@pytest.mark.parametrize(
    ("phase", "runs"),
    [
        ("prefill", {"index_logits"}),
        ("decode", {"paged_index_logits"}),
        ("mixed", {"index_logits", "paged_index_logits"}),
    ],
)
def test_a_phase_has_no_arms_for_kernels_it_does_not_run(phase: Phase, runs: set[str]) -> None:
    """Two names for one and the same run would let noise choose between them."""
    kernels = ("index_logits", "paged_index_logits")
    tiles = {kernel: (TileChoice(kernel=kernel, values={"num_warps": 8}),) for kernel in kernels}
    plan = expand(study(phase=(phase,), num_tokens=(8,), mode=("full",), tiles=tiles), "cuda")
    assert [set(), runs] == [{choice.kernel for choice in point.tiles} for point in plan.jobs[0].points]


def test_every_phase_and_context_is_a_job_of_its_own() -> None:
    """In the order of the axes, whatever the sizes."""
    plan = expand(study(phase=("decode", "prefill"), context_len=(64, 0), num_tokens=(2, 4), mode=("full",)), "cuda")
    groups = [{(point.phase, point.context_len) for point in job.points} for job in plan.jobs]
    each = [{("decode", 64)}, {("decode", 0)}, {("prefill", 64)}, {("prefill", 0)}]
    assert each + each == groups
    assert all([point.num_tokens for point in job.points] == [4, 2] for job in plan.jobs)


def test_memory_jobs_only_where_they_are_asked_for() -> None:
    """measure.memory false leaves them out."""
    plan = expand(study(measure=MeasureSpec(memory=False)), "cuda")
    assert [job.kind for job in plan.jobs] == ["timing"]


def test_jobs_carry_what_a_worker_needs() -> None:
    """Device, layer, batch and measure are the study's."""
    asked = study(batch=BatchSpec(seed=3), measure=MeasureSpec(cache="warm"))
    for job in expand(asked, "cpu").jobs:
        assert ("cpu", asked.layer, asked.batch, asked.measure) == (job.device, job.layer, job.batch, job.measure)


def test_exclude_drops_what_agrees_with_every_field() -> None:
    """A field that is not given agrees with everything."""
    rules = (Selector(mode="full", num_tokens=8), Selector(num_tokens=1))
    assert keys(expand(study(exclude=rules), "cuda").points) == ["prefill/t8/ctx0/monolithic_eager"]


def test_include_adds_and_takes_missing_fields_from_the_axes() -> None:
    """Values outside of the axes are welcome, and nothing is measured twice."""
    rules = (Selector(phase="decode", num_tokens=4), Selector(num_tokens=8), Selector(mode="split_eager", num_tokens=2))
    plan = expand(study(include=rules), "cuda")
    assert keys(plan.points) == [
        "prefill/t8/ctx0/monolithic_eager",
        "prefill/t8/ctx0/full",
        "prefill/t2/ctx0/split_eager",
        "prefill/t1/ctx0/monolithic_eager",
        "prefill/t1/ctx0/full",
        "decode/t4/ctx0/monolithic_eager",
        "decode/t4/ctx0/full",
    ]


def test_include_brings_back_what_exclude_dropped() -> None:
    """Excluding comes first."""
    plan = expand(study(exclude=(Selector(mode="full"),), include=(Selector(mode="full", num_tokens=8),)), "cuda")
    assert {"prefill/t8/ctx0/full"} == {key for key in keys(plan.points) if key.endswith("full")}


PLAIN = replace(PRESETS["tiny"], index_topk=0, index_n_heads=0, index_head_dim=0)
SKIPS: list[tuple[str, dict[str, Any], dict[str, str]]] = [
    (
        "too few tokens for the prompts",
        {"num_tokens": (2, 3), "mode": ("full",), "batch": BatchSpec(num_contexts=3)},
        {"prefill/t2/ctx0/full": "2 tokens are fewer than num_contexts 3"},
    ),
    (
        "odd tokens at two a request",
        {"phase": ("decode",), "num_tokens": (3, 4), "mode": ("full",), "batch": BatchSpec(next_n=2)},
        {"decode/t3/ctx0/full": "3 tokens are no multiple of next_n 2"},
    ),
    (
        "mixed batch too small",
        {
            "phase": ("mixed",),
            "num_tokens": (9, 10),
            "mode": ("full",),
            "batch": BatchSpec(num_contexts=2, num_generations=4, next_n=2),
        },
        {"mixed/t9/ctx0/full": "9 tokens are fewer than 4 generations x next_n 2 + 2 contexts = 10"},
    ),
    (
        "prompt beyond the last position",
        {"num_tokens": (4096, 4097), "mode": ("full",)},
        {"prefill/t4097/ctx0/full": "a request of 4097 tokens exceeds max_position_embeddings 4096"},
    ),
    (
        "prompts that share the tokens",
        {"num_tokens": (8192, 8193), "mode": ("full",), "batch": BatchSpec(num_contexts=2)},
        {"prefill/t8193/ctx0/full": "a request of 4097 tokens exceeds max_position_embeddings 4096"},
    ),
    (
        "generation beyond the last position",
        {"phase": ("decode",), "num_tokens": (8,), "context_len": (4095, 4096), "mode": ("full",)},
        {"decode/t8/ctx4096/full": "a request of 4097 tokens exceeds max_position_embeddings 4096"},
    ),
    (
        "chunk beyond the last position",
        {"phase": ("mixed",), "num_tokens": (100, 101), "context_len": (4000,), "mode": ("full",)},
        {"mixed/t101/ctx4000/full": "a request of 4097 tokens exceeds max_position_embeddings 4096"},
    ),
    (
        "logits narrower than a request",
        {
            "num_tokens": (64, 65),
            "mode": ("full",),
            "layer": LayerSpec(preset="tiny", shape=PRESETS["tiny"], options=LayerOptions(max_seq_len=64)),
        },
        {"prefill/t65/ctx0/full": "a request of 65 tokens exceeds layer.max_seq_len 64"},
    ),
    (
        "decode in pieces",
        {"phase": ("decode",), "num_tokens": (8,), "mode": MODES},
        {
            f"decode/t8/ctx0/{mode}": "decode-only batches are not piecewise in the engine; use mode full"
            for mode in ("monolithic_piecewise", "split_piecewise")
        },
    ),
    (
        "split of plain MLA",
        {"num_tokens": (8,), "mode": MODES, "layer": LayerSpec(preset="tiny", shape=PLAIN)},
        {
            f"prefill/t8/ctx0/{mode}": "the split exists only for DSA; plain MLA is one op"
            for mode in ("split_eager", "split_piecewise")
        },
    ),
]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize(("parts", "expected"), [row[1:] for row in SKIPS], ids=[row[0] for row in SKIPS])
def test_a_skip_has_its_reason_and_its_neighbour_runs(
    device: Device, parts: dict[str, Any], expected: dict[str, str]
) -> None:
    """What the numbers rule out is a row with a reason, in no job; the last legal value is measured."""
    plan = expand(study(**parts), device)
    assert expected == reasons(plan)
    assert all(skip.outcome.status == "skipped" and skip.outcome.stage == "plan" for skip in plan.skips)
    assert all(skip.kind == "timing" and skip.emulated == (device == "cpu") for skip in plan.skips)
    measured = {key for job in plan.jobs for key in keys(job.points)}
    assert measured
    assert not measured & expected.keys()


def test_a_combination_that_is_skipped_is_skipped_with_all_its_tiles() -> None:
    """A row for every Point, never a hole."""
    for device in ("cpu", "cuda"):
        plan = expand(study(num_tokens=(5000,), mode=("full",), tiles={"sparse_attn": ALTERNATIVES}), device)
        assert 3 == len(reasons(plan)) == len(plan)
        assert plan.jobs == ()


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_planned_lists_every_measurement_once_in_run_order(device: Device) -> None:
    """The skips, then the jobs as they are."""
    plan = expand(study(num_tokens=(1, 8, 5000), mode=MODES, tiles={"sparse_attn": ALTERNATIVES}), device)
    expected = [("timing", skip.point.key) for skip in plan.skips]
    expected += [(job.kind, point.key) for job in plan.jobs for point in job.points]
    assert expected == list(plan.planned)
    assert len(plan) == len(plan.planned) == len(set(plan.planned))
    assert Counter(key for _, key in plan.planned).keys() == {point.key for point in plan.points}


def test_nothing_is_left_when_all_is_done() -> None:
    """And everything when nothing is."""
    plan = expand(study(num_tokens=(1, 5000), tiles={"sparse_attn": ALTERNATIVES}), "cpu")
    assert plan == plan.without(set())
    assert len(plan.without(set(plan.planned))) == 0
    assert plan.without(set(plan.planned)).jobs == ()


def test_resume_keeps_the_kind_apart_from_the_key() -> None:
    """A Point that was timed may still lack its memory."""
    plan = expand(study(), "cuda")
    left = plan.without({(kind, key) for kind, key in plan.planned if kind == "timing"})
    assert [job.kind for job in left.jobs] == ["memory", "memory"]


def test_resume_measures_a_cell_with_all_its_arms() -> None:
    """Samples of arms are paired round by round: half a cell is measured again, a finished one is not."""
    plan = expand(study(measure=MeasureSpec(memory=False)), "cuda")
    left = plan.without(
        {
            ("timing", "tiny/prefill/t8/ctx0/monolithic_eager"),
            ("timing", "tiny/prefill/t8/ctx0/full"),
            ("timing", "tiny/prefill/t1/ctx0/full"),
        }
    )
    assert jobs(left) == [("timing", ["prefill/t1/ctx0/monolithic_eager", "prefill/t1/ctx0/full"])]


def test_resume_measures_memory_of_a_mode_with_all_its_sizes() -> None:
    """Smaller graphs reuse the pool of larger ones: alone they would weigh something else."""
    plan = expand(study(mode=("full",)), "cuda")
    done = {("memory", "tiny/prefill/t8/ctx0/full")}
    assert plan.jobs == plan.without(done).jobs


def test_resume_compiles_only_what_is_missing() -> None:
    """Compile facts do not depend on each other."""
    plan = expand(study(num_tokens=(8,), mode=("full",), tiles={"sparse_attn": ALTERNATIVES}), "cpu")
    left = plan.without({("compile", "tiny/prefill/t8/ctx0/full/sparse_attn=n16")})
    assert keys(left.jobs[-1].points) == ["prefill/t8/ctx0/full/sparse_attn=n64"]


def test_ten_thousand_points_share_one_job() -> None:
    """A large sweep is one process a (phase, context_len), and every key is its own."""
    plan = expand(study(num_tokens=tuple(range(1, 2001)), mode=MODES, measure=MeasureSpec(memory=False)), "cuda")
    assert (len(plan.jobs), len(plan)) == (1, 10_000)
    assert len({point.key for point in plan.jobs[0].points}) == 10_000
