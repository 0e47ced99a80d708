"""Which jobs a study becomes, in which order, what is skipped and why, and what is left after an interruption."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from mlaprof.buckets import Buckets
from mlaprof.plan import Plan, dispatch_plan, expand, inspection
from mlaprof.records import Device, Point
from mlaprof.shapes import PRESETS
from mlaprof.study import (
    BOUNDARIES,
    MODES,
    Axes,
    BatchSpec,
    CaptureSpec,
    LayerOptions,
    LayerSpec,
    MeasureSpec,
    Mode,
    Phase,
    Selector,
    Study,
    TileChoice,
)


def once(**measure: Any) -> MeasureSpec:
    """Timed in one process."""
    return MeasureSpec(processes=1, **measure)


ALONE = once(twin=False)
TIMING = once(memory=False, counts=False, twin=False)
EVERY_PHASE = ("sparse_attn", "topk", "absorb", "up_project")  # kernels that contexts and generations run
ALTERNATIVES = tuple(TileChoice(kernel="sparse_attn", values={"block_n": block_n}) for block_n in (16, 64))


def study(
    phase: tuple[Phase, ...] = ("prefill",),
    num_tokens: tuple[int, ...] = (1, 8),
    context_len: tuple[int, ...] = (0,),
    mode: tuple[Mode, ...] = ("monolithic_eager", "full"),
    **parts: Any,
) -> Study:
    """A study without twins, unless `measure` says otherwise."""
    layer = parts.pop("layer", LayerSpec(preset="tiny", shape=PRESETS["tiny"]))
    axes = Axes(
        phase=phase,
        num_tokens=num_tokens,
        context_len=context_len,
        mode=mode,
        boundary=parts.pop("boundary", ("index_quant",)),
    )
    return Study(name="study", layer=layer, axes=axes, measure=parts.pop("measure", ALONE), **parts)


def keys(points: tuple[Point, ...]) -> list[str]:
    return [point.key.removeprefix("tiny/") for point in points]


def jobs(plan: Plan) -> list[tuple[str, list[str]]]:
    return [(job.kind, keys(job.points)) for job in plan.jobs]


def reasons(plan: Plan) -> dict[str, str]:
    return {skip.point.key.removeprefix("tiny/"): skip.outcome.reason for skip in plan.skips}


def test_a_timing_job_holds_all_sizes_largest_first_with_their_arms_adjacent() -> None:
    """Arms of one cell are measured in one process; memory jobs follow, a mode each, then counts of every arm."""
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
        (
            "counts",
            [
                "prefill/t8/ctx0/monolithic_eager",
                "prefill/t8/ctx0/full",
                "prefill/t1/ctx0/monolithic_eager",
                "prefill/t1/ctx0/full",
            ],
        ),
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
    assert [job.kind for job in plan.jobs] == ["timing", "memory", "memory", "counts", "compile"]
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
    plan = expand(study(num_tokens=(8,), mode=("full",), tiles=tiles, measure=once(memory=False, twin=False)), "cuda")
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
    kernels = ("index_logits", "paged_index_logits", *EVERY_PHASE)
    tiles = {kernel: (TileChoice(kernel=kernel, values={"num_warps": 8}),) for kernel in kernels}
    plan = expand(study(phase=(phase,), num_tokens=(8,), mode=("full",), tiles=tiles), "cuda")
    assert [set(), {*runs, *EVERY_PHASE}] == [
        {choice.kernel for choice in point.tiles} for point in plan.jobs[0].points
    ]


def test_each_cell_times_its_baseline_twice() -> None:
    """The twin stands behind the baseline with its default tiles, in the timing job alone."""
    asked = study(mode=("full", "monolithic_eager"), tiles={"sparse_attn": ALTERNATIVES[:1]}, measure=once())
    for device, tiled in (("cuda", True), ("cpu", False)):
        plan = expand(asked, device)
        assert keys(plan.jobs[0].points) == [
            f"prefill/t{size}/ctx0/{arm}"
            for size in (8, 1)
            for arm in (
                "full",
                *(["full/sparse_attn=n16"] if tiled else []),
                "monolithic_eager",
                "monolithic_eager/aa",
                *(["monolithic_eager/sparse_attn=n16"] if tiled else []),
            )
        ]
        assert [point.twin for point in plan.jobs[0].points].count(True) == 2
        assert not any(point.twin for job in plan.jobs[1:] for point in job.points)
        assert len(plan) == len(plan.planned) == len(set(plan.planned))


@pytest.mark.parametrize(
    ("parts", "twins"),
    [
        ({"mode": ("full", "split_eager")}, ["prefill/t8/ctx0/full/aa", "prefill/t1/ctx0/full/aa"]),
        ({"phase": ("decode",), "mode": ("breakable", "full"), "num_tokens": (8,)}, ["decode/t8/ctx0/full/aa"]),
        (
            {"mode": ("split_piecewise",), "boundary": ("proj", "index_quant"), "num_tokens": (8,)},
            ["prefill/t8/ctx0/split_piecewise@proj/aa"],
        ),
        ({"num_tokens": (8, 5000)}, ["prefill/t8/ctx0/monolithic_eager/aa"]),
        (
            {"exclude": (Selector(mode="monolithic_eager", num_tokens=1),)},
            ["prefill/t8/ctx0/monolithic_eager/aa", "prefill/t1/ctx0/full/aa"],
        ),
        ({"mode": ("breakable",), "phase": ("decode",)}, []),
    ],
    ids=["no baseline", "first way skipped", "boundaries", "cell skipped", "baseline excluded", "all skipped"],
)
def test_the_twin_is_of_the_first_way_that_can_run(parts: dict[str, Any], twins: list[str]) -> None:
    """Where the baseline of the speed-ups is not there; a skipped cell has none."""
    for device in ("cpu", "cuda"):
        plan = expand(study(**parts, measure=once()), device)
        assert twins == keys(tuple(point for point in plan.points if point.twin))


def test_a_twin_is_its_baseline_but_for_the_key() -> None:
    """The same step of the same cell, so that the worker gives both one runner."""
    plan = expand(study(num_tokens=(8,), measure=once()), "cuda")
    baseline, twin, _ = plan.jobs[0].points
    assert twin == baseline.model_copy(update={"twin": True})
    assert (twin.cell, twin.way, twin.tiles_label) == (baseline.cell, baseline.way, baseline.tiles_label)
    assert twin.key == f"{baseline.key}/aa"


def test_no_twin_where_the_study_wants_none() -> None:
    plan = expand(study(measure=once(twin=False)), "cuda")
    assert not any(point.twin for point in plan.points)


def test_resume_measures_a_cell_again_that_lacks_its_twin_alone() -> None:
    """Two timings say nothing of each other unless they were taken round by round."""
    plan = expand(study(measure=once(memory=False, counts=False)), "cuda")
    twin = ("timing", "tiny/prefill/t1/ctx0/monolithic_eager/aa", 0)
    left = plan.without(set(plan.planned) - {twin})
    arms = [f"prefill/t1/ctx0/{arm}" for arm in ("monolithic_eager", "monolithic_eager/aa", "full")]
    assert jobs(left) == [("timing", arms)]


def test_every_phase_and_context_is_a_job_of_its_own() -> None:
    """In the order of the axes, whatever the sizes."""
    plan = expand(study(phase=("decode", "prefill"), context_len=(64, 0), num_tokens=(2, 4), mode=("full",)), "cuda")
    groups = [{(point.phase, point.context_len) for point in job.points} for job in plan.jobs]
    each = [{("decode", 64)}, {("decode", 0)}, {("prefill", 64)}, {("prefill", 0)}]
    assert each * 3 == groups
    assert all([point.num_tokens for point in job.points] == [4, 2] for job in plan.jobs)


@pytest.mark.parametrize(
    ("measure", "kinds"),
    [
        (once(memory=False, twin=False), ["timing", "counts"]),
        (once(counts=False, twin=False), ["timing", "memory", "memory"]),
        (TIMING, ["timing"]),
    ],
    ids=["no memory", "no counts", "neither"],
)
def test_memory_and_counts_jobs_only_where_they_are_asked_for(measure: MeasureSpec, kinds: list[str]) -> None:
    for device in ("cpu", "cuda"):
        assert kinds == [job.kind for job in expand(study(measure=measure), device).jobs]


def test_jobs_carry_what_a_worker_needs() -> None:
    """Device, layer, batch and measure are the study's."""
    asked = study(batch=BatchSpec(seed=3), measure=once(cache="warm"))
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
            for mode in ("monolithic_piecewise", "split_piecewise", "breakable")
        },
    ),
    (
        "split of plain MLA",
        {"num_tokens": (8,), "mode": MODES, "layer": LayerSpec(preset="tiny", shape=PLAIN)},
        {
            f"prefill/t8/ctx0/{mode}": "the split exists only for DSA; plain MLA is one op"
            for mode in ("split_eager", "split_piecewise", "breakable")
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
    expected = [("timing", skip.point.key, 0) for skip in plan.skips]
    expected += [(job.kind, point.key, 0) for job in plan.jobs for point in job.points]
    assert expected == list(plan.planned)
    assert len(plan) == len(plan.planned) == len(set(plan.planned))
    assert Counter(key for _, key, _ in plan.planned).keys() == {point.key for point in plan.points}


def test_nothing_is_left_when_all_is_done() -> None:
    """And everything when nothing is."""
    plan = expand(study(num_tokens=(1, 5000), tiles={"sparse_attn": ALTERNATIVES}), "cpu")
    assert plan == plan.without(set())
    assert len(plan.without(set(plan.planned))) == 0
    assert plan.without(set(plan.planned)).jobs == ()


def test_resume_keeps_the_kind_apart_from_the_key() -> None:
    """A Point that was timed may still lack its memory."""
    plan = expand(study(), "cuda")
    left = plan.without({each for each in plan.planned if each[0] == "timing"})
    assert [job.kind for job in left.jobs] == ["memory", "memory", "counts"]


def test_resume_measures_a_cell_with_all_its_arms() -> None:
    """Samples of arms are paired round by round: half a cell is measured again, a finished one is not."""
    plan = expand(study(measure=TIMING), "cuda")
    left = plan.without(
        {
            ("timing", "tiny/prefill/t8/ctx0/monolithic_eager", 0),
            ("timing", "tiny/prefill/t8/ctx0/full", 0),
            ("timing", "tiny/prefill/t1/ctx0/full", 0),
        }
    )
    assert jobs(left) == [("timing", ["prefill/t1/ctx0/monolithic_eager", "prefill/t1/ctx0/full"])]


def test_resume_measures_memory_of_a_mode_with_all_its_sizes() -> None:
    """Smaller graphs reuse the pool of larger ones: alone they would weigh something else."""
    plan = expand(study(mode=("full",), measure=once(counts=False, twin=False)), "cuda")
    done = {("memory", "tiny/prefill/t8/ctx0/full", 0)}
    assert plan.jobs == plan.without(done).jobs


def test_resume_counts_only_what_is_missing() -> None:
    """A step is counted by itself, whatever its cell's other arms do."""
    plan = expand(study(measure=once(memory=False, twin=False)), "cuda")
    done = {each for each in plan.planned if each[0] == "timing" or each[1].endswith("/full")}
    left = plan.without(done)
    assert jobs(left) == [("counts", ["prefill/t8/ctx0/monolithic_eager", "prefill/t1/ctx0/monolithic_eager"])]
    assert left.buckets == plan.buckets


def test_resume_compiles_only_what_is_missing() -> None:
    """Compile facts do not depend on each other."""
    plan = expand(study(num_tokens=(8,), mode=("full",), tiles={"sparse_attn": ALTERNATIVES}), "cpu")
    left = plan.without({("compile", "tiny/prefill/t8/ctx0/full/sparse_attn=n16", 0)})
    assert keys(left.jobs[-1].points) == ["prefill/t8/ctx0/full/sparse_attn=n64"]


def test_twelve_thousand_points_share_one_job() -> None:
    """A large sweep is one process a (phase, context_len), and every key is its own."""
    plan = expand(study(num_tokens=tuple(range(1, 2001)), mode=MODES, measure=TIMING), "cuda")
    assert (len(plan.jobs), len(plan)) == (1, 12_000)
    assert len({point.key for point in plan.jobs[0].points}) == 12_000


# Processes


def thrice(**measure: Any) -> Study:
    return study(num_tokens=(1, 8, 5000), context_len=(0, 7), measure=MeasureSpec(processes=3, **measure))


def test_every_process_does_all_timing_before_the_next_one() -> None:
    """What a machine does slowly falls on all jobs alike; memory, counts, compiling and skips are done once."""
    plan = expand(thrice(), "cuda")
    order = [(job.kind, job.process, job.points[0].context_len) for job in plan.jobs]
    assert order == [
        *(("timing", process, context_len) for process in range(3) for context_len in (0, 7)),
        *(("memory", 0, context_len) for context_len in (0, 7) for _ in ("monolithic_eager", "full")),
        *(("counts", 0, context_len) for context_len in (0, 7)),
    ]
    assert {job.points for job in plan.jobs[0:6:2]} == {plan.jobs[0].points}
    assert [skip.process for skip in plan.skips] == [0] * 4
    tiled = study(tiles={"sparse_attn": ALTERNATIVES}, measure=MeasureSpec(processes=2, memory=False, counts=False))
    assert [(job.kind, job.process) for job in expand(tiled, "cpu").jobs] == [
        *(("timing", 0), ("timing", 1), ("compile", 0)),
    ]


def test_each_process_answers_for_every_point() -> None:
    """The same arms with their twins, so that its rounds can be paired."""
    plan = expand(thrice(), "cuda")
    timed = [(key, process) for kind, key, process in plan.planned if kind == "timing" and "t5000" not in key]
    assert len(plan) == len(plan.planned) == len(set(plan.planned))
    assert len(timed) == 3 * 2 * 2 * 3
    assert {key for key, process in timed if process == 0} == {key for key, process in timed if process == 2}


def test_resume_goes_on_process_by_process() -> None:
    """A cell that one process did not finish is measured whole in that process, and stays in the others."""
    plan = expand(thrice(memory=False, counts=False, twin=False), "cuda")
    lost = ("timing", "tiny/prefill/t8/ctx7/full", 1)

    (left,) = plan.without(set(plan.planned) - {lost}).jobs

    assert (left.process, keys(left.points)) == (1, ["prefill/t8/ctx7/monolithic_eager", "prefill/t8/ctx7/full"])
    assert plan.without({each for each in plan.planned if each[2] < 2}).jobs == plan.jobs[4:]


def test_other_work_of_a_point_finishes_no_process_of_it() -> None:
    plan = expand(thrice(twin=False), "cuda")
    done = {each for each in plan.planned if each[0] != "timing"} | {each for each in plan.planned if each[2] == 0}
    assert [job.process for job in plan.without(done).jobs] == [1, 1, 2, 2]


# Boundaries


def test_each_boundary_of_a_mode_is_an_arm_of_its_own() -> None:
    """Beside the modes that have none, once a cell; a memory job a way, and all of them in one counts job."""
    asked = study(num_tokens=(8,), mode=("monolithic_eager", "breakable", "full"), boundary=("proj", "index_quant"))
    ways = ["monolithic_eager", "breakable@proj", "breakable", "full"]
    arms = [f"prefill/t8/ctx0/{way}" for way in ways]

    for device in ("cpu", "cuda"):
        plan = expand(asked, device)
        assert jobs(plan) == [("timing", arms), *(("memory", [arm]) for arm in arms), ("counts", arms)]


def test_modes_without_a_boundary_appear_once_whatever_the_axis_says() -> None:
    """Also where the axis lacks the boundary that their Points carry."""
    plan = expand(study(num_tokens=(8,), mode=MODES, boundary=("logits", "cache_update"), measure=TIMING), "cuda")

    assert [point.way for point in plan.points] == [
        *("monolithic_eager", "monolithic_piecewise", "split_eager"),
        *("split_piecewise@logits", "split_piecewise@cache_update", "breakable@logits", "breakable@cache_update"),
        "full",
    ]


@pytest.mark.parametrize(
    ("rules", "ways"),
    [
        ({"exclude": (Selector(boundary="index_quant"),)}, ["full", "breakable@proj"]),
        ({"exclude": (Selector(boundary="proj", mode="breakable"),)}, ["full", "breakable"]),
        ({"exclude": (Selector(mode="full"),)}, ["breakable", "breakable@proj"]),
        ({"include": (Selector(boundary="logits"),)}, ["full", "breakable", "breakable@proj", "breakable@logits"]),
        (
            {"include": (Selector(mode="split_piecewise", boundary="cache_update"),)},
            ["full", "breakable", "breakable@proj", "split_piecewise@cache_update"],
        ),
    ],
    ids=["every mode with one", "one mode", "a mode without", "added to those with one", "added with its mode"],
)
def test_a_rule_that_names_a_boundary_is_about_modes_that_have_one(rules: dict[str, Any], ways: list[str]) -> None:
    """Dropping the PR's boundary leaves the baseline where it is."""
    asked = study(num_tokens=(8,), mode=("full", "breakable"), boundary=("index_quant", "proj"), **rules)
    assert ways == [point.way for point in expand(asked, "cuda").points]


CHUNKED = LayerSpec(preset="tiny", shape=PRESETS["tiny"], options=LayerOptions(indexer_max_chunk_size=64))


@pytest.mark.parametrize(
    ("parts", "skipped", "reason"),
    [
        (
            {"context_len": (0, 5)},
            "prefill/t8/ctx5",
            "gather_index_cache forbids boundary logits: its output has the b",
        ),
        ({"phase": ("prefill", "mixed")}, "mixed/t8/ctx0", "paged_index_logits forbids boundary logits: generations"),
        (
            {"num_tokens": (64, 65), "layer": CHUNKED},
            "prefill/t65/ctx0",
            "gather_index_cache forbids boundary logits: its output has a chunk's KV length, and 65 tokens are more "
            "than indexer_max_chunk_size 64",
        ),
        (
            {"num_tokens": (40, 41), "layer": CHUNKED, "capture": CaptureSpec(sizes=(40, 100))},
            "prefill/t41/ctx0",
            "gather_index_cache forbids boundary logits: its output has a chunk's KV length, and 100 tokens are more",
        ),
        (
            {"num_tokens": (64, 101), "layer": CHUNKED, "capture": CaptureSpec(sizes=(64, 100))},
            "prefill/t101/ctx0",
            "gather_index_cache forbids boundary logits: its output has a chunk's KV length, and 101 tokens are more",
        ),
    ],
    ids=["cached tokens", "mixed", "chunks", "padded into chunks", "chunks above the largest size"],
)
def test_boundary_logits_is_skipped_with_the_op_that_forbids_it(
    parts: dict[str, Any], skipped: str, reason: str
) -> None:
    """And the other boundaries of the same batch, and its neighbour, run."""
    asked = study(**{"num_tokens": (8,)} | parts, mode=("split_piecewise", "breakable", "full"), boundary=BOUNDARIES)
    plan = expand(asked, "cuda")

    found = reasons(plan)
    assert list(found) == [f"{skipped}/split_piecewise@logits", f"{skipped}/breakable@logits"]
    assert all(text.startswith(reason) for text in found.values())
    run = {key for job in plan.jobs for key in keys(job.points)}
    assert {f"{skipped}/{way}" for way in ("full", "breakable", "breakable@proj", "breakable@cache_update")} <= run
    assert any(key.endswith("breakable@logits") for key in run)


# Capture sizes


def sizes(plan: Plan) -> set[tuple[int, ...] | None]:
    return {job.capture.sizes for job in plan.jobs}


def test_jobs_carry_the_study_s_capture_settings() -> None:
    """Without sizes and limits each token count of the job is captured, as it is."""
    capture = CaptureSpec(hold="weak", multi_stream="always")
    plan = expand(study(capture=capture), "cuda")
    assert {job.capture for job in plan.jobs} == {capture}
    assert plan.buckets is None


def test_jobs_carry_the_sizes_that_the_engine_would_capture() -> None:
    """Clamped to the reachable ceiling, without what exceeds max_num_tokens; the plan says what became of each."""
    capture = CaptureSpec(sizes=(512, 64, 128, 256), max_num_tokens=256, max_batch_size=1, max_seq_len=128)
    plan = expand(study(capture=capture), "cpu")

    assert sizes(plan) == {(64, 127)}
    assert plan.buckets == Buckets((64, 127), clamped=(128, 256), dropped=(512,))
    assert plan.without({plan.planned[0]}).buckets == plan.buckets


def test_limits_without_sizes_are_those_of_the_sweep() -> None:
    """Of the steps that an engine pads: no mode without buckets, no decode-only batch."""
    capture = CaptureSpec(max_num_tokens=8)
    rules = (Selector(num_tokens=3, mode="breakable"), Selector(num_tokens=4, mode="full"))
    asked = study(phase=("prefill",), num_tokens=(2, 8, 16), mode=("full", "breakable"), include=rules, capture=capture)
    assert expand(asked, "cuda").buckets == Buckets((2, 3, 8), dropped=(16,))
    decode = asked.model_copy(update={"axes": asked.axes.model_copy(update={"phase": ("decode",)})})
    assert expand(decode, "cuda").buckets == Buckets(())


# What `mlaprof graph` looks at


def test_an_inspection_counts_one_size_in_every_way() -> None:
    """The largest of each phase and context length, default tiles, no time; whatever measure asks for."""
    asked = study(
        num_tokens=(1, 8),
        context_len=(0, 7),
        mode=("monolithic_eager", "breakable", "full"),
        boundary=("index_quant", "logits"),
        exclude=(Selector(context_len=7, num_tokens=8),),
        tiles={"sparse_attn": ALTERNATIVES},
        measure=TIMING,
    )
    plan = inspection(asked, "cpu")

    assert jobs(plan) == [
        ("counts", [f"prefill/t8/ctx0/{way}" for way in ("monolithic_eager", "breakable", "breakable@logits", "full")]),
        ("counts", [f"prefill/t1/ctx7/{way}" for way in ("monolithic_eager", "breakable", "full")]),
    ]
    assert list(reasons(plan)) == ["prefill/t1/ctx7/breakable@logits"]
    assert {skip.kind for skip in plan.skips} == {"counts"}
    assert {("counts", point.key, 0) for point in plan.points} == set(plan.planned)


def test_an_inspection_takes_a_size_of_its_own() -> None:
    """In the study or not; a mode that the study excludes at a size is not looked at there."""
    asked = study(num_tokens=(1, 8), exclude=(Selector(mode="full", num_tokens=8),))
    assert jobs(inspection(asked, "cuda", 8)) == [("counts", ["prefill/t8/ctx0/monolithic_eager"])]
    assert jobs(inspection(asked, "cuda", 5)) == [
        ("counts", ["prefill/t5/ctx0/monolithic_eager", "prefill/t5/ctx0/full"])
    ]
    assert list(reasons(inspection(asked, "cuda", 5000))) == [
        f"prefill/t5000/ctx0/{mode}" for mode in ("monolithic_eager", "full")
    ]


def test_the_dispatch_tax_is_one_eager_step_with_the_layer_s_operators() -> None:
    """Op 1 and Op 2 where the layer has them; nothing where nothing can run."""
    asked = study(phase=("decode", "prefill"), mode=("full", "breakable"), boundary=("proj",))
    assert jobs(dispatch_plan(asked, "cpu")) == [("dispatch", ["decode/t8/ctx0/split_eager"])]
    assert jobs(dispatch_plan(asked, "cpu", 3)) == [("dispatch", ["decode/t3/ctx0/split_eager"])]
    plain = study(layer=LayerSpec(preset="tiny", shape=PLAIN))
    assert jobs(dispatch_plan(plain, "cpu")) == [("dispatch", ["prefill/t8/ctx0/monolithic_eager"])]
    assert len(dispatch_plan(study(), "cpu", 5000)) == 0
