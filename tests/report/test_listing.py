"""Plans, choices and warnings in the terminal."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from mlaprof.config.load import load_study
from mlaprof.machine import environment
from mlaprof.machine.checks import Warning_
from mlaprof.plan import Plan, expand
from mlaprof.records import Gpu
from mlaprof.report import listing
from mlaprof.store import RunEntry

Printed = Callable[..., Any]
REQUIRED = ("name", "uuid", "driver", "compute_capability", "memory_bytes", "compute_pids")


def plan(folder: Path, sweep: str, *more: str, device: str = "cpu", twin: bool = False, processes: int = 1) -> Plan:
    path = folder / "study.yaml"
    path.write_text("\n".join(["name: study", "preset: tiny", f"sweep: {{{sweep}}}", *more]) + "\n")
    switches = {"memory": False, "counts": False, "twin": twin, "processes": processes}
    settings = [f"measure.{name}={str(value).lower()}" for name, value in switches.items()]
    return expand(load_study(path, settings=settings), device)  # type: ignore[arg-type]


def lines_of(shown: Plan, printed: Printed, width: int = 200) -> list[str]:
    console, text = printed(width)
    listing.print_plan(shown, console)
    return [" ".join(line.split()) for line in text().splitlines()]


def test_sizes_with_the_same_arms_are_one_line(tmp_path: Path, printed: Printed) -> None:
    """Every Point of the plan is told, and none is told twice."""
    _, first, second, _, total = lines_of(
        plan(tmp_path, "num_tokens: [1, 8], context_len: [0, 64], mode: [full, split_eager]"), printed
    )
    assert first == "1 timing 4 tiny/prefill/ctx0, tokens 8 1: full, split_eager"
    assert second == "2 timing 4 tiny/prefill/ctx64, tokens 8 1: full, split_eager"
    assert total == "8 measurements in 2 worker processes; nothing was run"


def test_sizes_with_arms_of_their_own_have_lines_of_their_own(tmp_path: Path, printed: Printed) -> None:
    _, first, second, _, total = lines_of(
        plan(tmp_path, "num_tokens: [1, 8], mode: [full, split_eager], exclude: [{mode: full, num_tokens: 8}]"), printed
    )
    assert first == "1 timing 3 tiny/prefill/ctx0, tokens 8: split_eager"
    assert second == "tiny/prefill/ctx0, tokens 1: full, split_eager"
    assert total == "3 measurements in 1 worker process; nothing was run"


def test_processes_that_do_the_same_are_one_line(tmp_path: Path, printed: Printed) -> None:
    """What several of them are is told below; what one of them left undone is a job with its number."""
    whole = plan(tmp_path, "num_tokens: [1, 8], mode: [full, split_eager]", processes=3)
    _, first, how, total = lines_of(whole, printed)
    assert first == "1 timing x3 4 tiny/prefill/ctx0, tokens 8 1: full, split_eager"
    rounds = "20 to 500 rounds each, until medians are known to 0.5% or 15 s are over"
    assert how == f"timing x3: 3 fresh processes time each cell, {rounds}"
    assert total == "12 measurements in 3 worker processes; nothing was run"

    left = whole.without(set(whole.planned) - {("timing", "tiny/prefill/t8/ctx0/full", 1)})
    _, first, how, total = lines_of(left, printed)
    assert how.startswith("timing: 20 to 500 rounds a cell, until")
    assert first == "1 timing#2 2 tiny/prefill/ctx0, tokens 8: full, split_eager"
    assert total == "2 measurements in 1 worker process; nothing was run"


def test_tiles_are_told_once_for_the_modes_that_share_them(tmp_path: Path, printed: Printed) -> None:
    """On a GPU beside the defaults; without one as compile jobs of their own."""
    study = ("num_tokens: 8, mode: [full, split_eager]", "tiles: {sparse_attn: [{block_n: 16}, {block_n: 64}]}")
    on_gpu = lines_of(plan(tmp_path, *study, device="cuda"), printed)
    on_cpu = lines_of(plan(tmp_path, *study), printed)
    tiles = "sparse_attn=n16, sparse_attn=n64"
    assert on_gpu[1] == f"1 timing 6 tiny/prefill/ctx0, tokens 8: full, split_eager, each with default tiles, {tiles}"
    assert on_cpu[2] == f"2 compile 4 tiny/prefill/ctx0, tokens 8: full, split_eager, each with {tiles}"


def test_what_is_left_of_a_product_is_told_arm_by_arm(tmp_path: Path, printed: Printed) -> None:
    """A resumed compile job may lack any of its Points."""
    whole = plan(
        tmp_path, "num_tokens: 8, mode: [full, split_eager]", "tiles: {sparse_attn: [{block_n: 16}, {block_n: 64}]}"
    )
    left = whole.without({("compile", "tiny/prefill/t8/ctx0/full/sparse_attn=n16", 0)})
    rest = "full/sparse_attn=n64, split_eager/sparse_attn=n16, split_eager/sparse_attn=n64"
    assert lines_of(left, printed)[2] == f"2 compile 3 tiny/prefill/ctx0, tokens 8: {rest}"


def test_the_twins_are_told_behind_the_arms(tmp_path: Path, printed: Printed) -> None:
    """As one line with the sizes that share it, and without breaking up a product of tiles."""
    sizes = plan(tmp_path, "num_tokens: [1, 8], mode: [full, split_eager]", twin=True)
    tiled = plan(
        tmp_path, "num_tokens: 8, mode: [full]", "tiles: {sparse_attn: [{block_n: 16}]}", device="cuda", twin=True
    )
    arms = "full, each with default tiles, sparse_attn=n16; full/aa"
    assert lines_of(sizes, printed)[1] == "1 timing 6 tiny/prefill/ctx0, tokens 8 1: full, split_eager; full/aa"
    assert lines_of(tiled, printed)[1] == f"1 timing 3 tiny/prefill/ctx0, tokens 8: {arms}"


def test_another_boundary_is_another_arm(tmp_path: Path, printed: Printed) -> None:
    job = plan(tmp_path, "num_tokens: 8, mode: full").jobs[0]
    points = tuple(
        job.points[0].model_copy(update={"mode": "breakable", "boundary": boundary})
        for boundary in ("index_quant", "logits")
    )
    counts = Plan(jobs=(job.model_copy(update={"kind": "counts", "points": points}),), skips=())
    assert lines_of(counts, printed)[1] == "1 counts 2 tiny/prefill/ctx0, tokens 8: breakable, breakable@logits"


def test_the_boundaries_are_listed_with_the_default(printed: Printed) -> None:
    console, text = printed(200)
    listing.print_boundaries(console)
    rows = [line.split(maxsplit=1)[0] for line in text().splitlines()]
    assert rows == ["boundary", "proj", "index_quant", "cache_update", "logits"]
    assert "index_quant (default)" in text() and text().count("default") == 1


def test_skips_are_counted_by_reason(tmp_path: Path, printed: Printed) -> None:
    lines = lines_of(plan(tmp_path, "phase: decode, num_tokens: [1, 8], mode: [full, split_piecewise]"), printed)
    assert "skipped 2: decode-only batches are not piecewise in the engine; use mode full" in lines


def test_runs_have_a_file_column_where_a_file_has_another_name(fake_runs: ModuleType, printed: Printed) -> None:
    manifest = fake_runs.make_run([]).manifest
    own, other = RunEntry(Path(f"r/{manifest.run_id}.mlaprof"), manifest, 0), RunEntry(Path("r/x.mlaprof"), manifest, 0)
    for entries, column in (([own], False), ([own, other], True)):
        console, text = printed(80)
        listing.print_runs(entries, console)
        assert ("file" in text()) == ("x.mlaprof" in text()) == column


def test_a_warning_is_one_line_that_ends_with_what_to_do(printed: Printed) -> None:
    """However narrow the terminal and whatever brackets are in it."""
    console, text = printed(30)
    listing.print_warnings([Warning_("code", "A [1] is set", "times mean nothing", "unset A")], console)
    assert text() == "warning: A [1] is set: times mean nothing; next: unset A\n"


def test_the_machine_is_told_with_what_may_change_a_number(printed: Printed) -> None:
    """Only what is known; a GPU beside the one in use is told to be idle here."""
    gpu = Gpu(
        name="H100",
        uuid="GPU-a",
        driver="580",
        compute_capability="9.0",
        memory_bytes=2**36,
        sm_count=132,
        sm_clock_hz=3.45e8,
        sm_clock_max_hz=1.98e9,
        sm_clock_set_hz=1.59e9,
        sm_clock_default_hz=1.98e9,
        persistence=True,
        mig=False,
        numa_node=0,
    )
    bare = gpu.model_copy(update=dict.fromkeys(type(gpu).model_fields.keys() - {*REQUIRED}))
    there = environment.snapshot().model_copy(
        update={"gpus": (bare, gpu), "used_gpu": 1, "cuda_driver": "13.0", "container": "c3" * 32, "load_average": 1.25}
    )
    console, text = printed(160)

    listing.print_environment(there, (), console)

    lines = [" ".join(line.split()) for line in text().splitlines()]
    assert lines[:4] == [
        "GPU (not used) H100, 64.00 GiB, sm 9.0, driver 580",
        "GPU H100, 64.00 GiB, sm 9.0, 132 SMs, driver 580",
        "clocks SM 345 MHz, max 1980 MHz, SM set to 1590 MHz",
        "switches persistence on, MIG off, NUMA node 0",
    ]
    assert (
        "CUDA up to 13.0" in lines[4] and lines[5].endswith("load 1.2") and lines[6].endswith("container c3c3c3c3c3c3")
    )


def test_no_listing_is_wider_than_80_columns(printed: Printed) -> None:
    for show in (listing.print_presets, listing.print_modes, listing.print_boundaries, listing.print_kernels):
        console, text = printed(80)
        show(console)
        assert max(map(len, text().splitlines())) <= 80
        assert "…" not in text()
