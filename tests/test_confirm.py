"""What a confirmation measures, refuses and concludes; the door to it is in test_compare_cli.py."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from mlaprof import confirm, store
from mlaprof.analysis.compare import Comparison, compare
from mlaprof.config.load import load_study, resolved_yaml, study_from_resolved
from mlaprof.errors import MachineError
from mlaprof.plan import expand
from mlaprof.records import Environment, Run

STUDY = """\
name: night
preset: v3.2-tp8
sweep:
  num_tokens: [8, 64, 256]
  mode: [monolithic_eager, split_piecewise, breakable, full]
  boundary: [index_quant, logits]
tiles:
  sparse_attn: [{block_n: 32}, {block_n: 128}]
  index_logits: [{block_n: 128}]
capture: {max_num_tokens: 128}
measure: {processes: 2}
"""


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, fake_runs: ModuleType) -> dict[str, Any]:
    """This machine is the one of the fake runs; a test may change facts of it."""
    changes: dict[str, Any] = {}

    def snapshot() -> Environment:
        return fake_runs.environment(**changes)

    monkeypatch.setattr("mlaprof.machine.environment.snapshot", snapshot)
    monkeypatch.setattr("mlaprof.machine.environment.cuda_present", lambda: True)
    return changes


def night(fake_runs: ModuleType, folder: Path, name: str, slow: dict[str, float], *, plan_of: str = STUDY) -> Run:
    """A run of all timings of the study, the keys in `slow` slower by their factors."""
    path = folder / "night.yaml"
    path.write_text(plan_of)
    study = load_study(path)
    rows = [
        fake_runs.timing(point, 1e-4 * slow.get(point.key, 1.0)).model_copy(update={"process": job.process})
        for job in expand(study, "cuda").jobs
        if job.kind == "timing"
        for point in job.points
    ]
    return fake_runs.make_run(rows, run_id=name, study_yaml=resolved_yaml(study))


SLOW = "v3.2-tp8/prefill/t64/ctx0/breakable@logits"


def test_it_times_what_is_slower_with_baseline_and_twin_and_nothing_else(
    fake_runs: ModuleType, here: dict[str, Any], tmp_path: Path
) -> None:
    """In as many fresh processes as NEW, beside the other runs, under an id of its own; nothing is written yet."""
    base, new = (night(fake_runs, tmp_path, name, slow) for name, slow in (("base", {}), ("new", {SLOW: 1.3})))
    opening = confirm.confirmation(compare(base, new), new, tmp_path, command=("mlaprof", "compare", "--confirm"))
    assert opening
    place = "v3.2-tp8/prefill/t64/ctx0"
    wanted = [f"{place}/monolithic_eager", f"{place}/monolithic_eager/aa", SLOW]
    assert [[point.key for point in job.points] for job in opening.plan.jobs] == [wanted, wanted]
    assert [(job.kind, job.process) for job in opening.plan.jobs] == [("timing", 0), ("timing", 1)]
    assert opening.plan.jobs[0].capture.sizes == (8, 64)  # as the whole study captured them
    assert "night-confirm" in opening.manifest.run_id and opening.path.parent == tmp_path
    assert opening.manifest.command == ("mlaprof", "compare", "--confirm")
    stored = study_from_resolved(opening.manifest.study_yaml)  # so it can be resumed like any other
    assert expand(stored, "cuda").planned == opening.plan.planned
    assert not list(tmp_path.glob("*.mlaprof"))


def test_a_slower_tile_configuration_is_timed_beside_its_defaults(
    fake_runs: ModuleType, here: dict[str, Any], tmp_path: Path
) -> None:
    base = night(fake_runs, tmp_path, "base", {})
    tiled = next(each.point.key for each in base.measurements if "t256/" in each.point.key and "n128" in each.point.key)
    new = night(fake_runs, tmp_path, "new", {tiled: 1.2})
    opening = confirm.confirmation(compare(base, new), new, tmp_path, command=())
    assert opening
    keys = {point.key for point in opening.plan.points}
    assert tiled in keys and {key.partition("/t")[2].split("/")[0] for key in keys} == {"256"}
    assert {point.tiles_label for point in opening.plan.points} == {"", tiled.rpartition("/")[2]}


def test_nothing_slower_measures_nothing(fake_runs: ModuleType, here: dict[str, Any], tmp_path: Path) -> None:
    base, new = (night(fake_runs, tmp_path, name, {SLOW: factor}) for name, factor in (("base", 1.0), ("new", 0.8)))
    assert confirm.confirmation(compare(base, new), new, tmp_path, command=()) is None


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"kernel_source_sha256": "cd" * 32}, "kernel source"),
        ({"git_commit": "fedcba9"}, "git commit"),
        ({"git_dirty": True}, "git commit"),
        ({"packages": {"torch": "2.15.0", "triton": "3.9.0"}}, "torch and triton"),
        ({"gpus": ()}, "processor"),
    ],
)
def test_another_machine_or_other_code_is_refused(
    fake_runs: ModuleType, here: dict[str, Any], tmp_path: Path, change: dict[str, Any], named: str
) -> None:
    """Something else would be measured than NEW was."""
    base, new = (night(fake_runs, tmp_path, name, slow) for name, slow in (("base", {}), ("new", {SLOW: 1.3})))
    here.update(change)
    with pytest.raises(MachineError, match=f"--confirm: run new cannot be measured again here: .*{named}.*; compare"):
        confirm.confirmation(compare(base, new), new, tmp_path, command=())


def concluded(fake_runs: ModuleType, folder: Path, rows: list[Any], **environment: Any) -> Comparison:
    base, new = (night(fake_runs, folder, name, slow) for name, slow in (("base", {}), ("new", {SLOW: 1.3})))
    again = fake_runs.make_run(rows, run_id="again", **environment)
    return confirm.confirmed(compare(base, new), base, new, again)


def verdict(found: Comparison) -> tuple[str, str, int]:
    (delta,) = (each for each in found.deltas if each.key == SLOW)
    return delta.verdict, delta.reason, found.exit_code()


@pytest.mark.parametrize(
    ("factor", "expected"),
    [
        (1.3, ("SLOWER", "confirmed: 1.300 (same GPU, so a weak check)", 1)),
        (1.003, ("AMBIGUOUS", "not confirmed: 1.003 when measured again", 0)),
        (0.8, ("AMBIGUOUS", "not confirmed: 0.800 when measured again", 0)),
    ],
)
def test_both_must_agree(fake_runs: ModuleType, tmp_path: Path, factor: float, expected: tuple[str, str, int]) -> None:
    at = fake_runs.point("breakable", 64, boundary="logits")
    found = concluded(fake_runs, tmp_path, [fake_runs.timing(at, 1e-4 * factor)])
    assert verdict(found) == expected and found.again == "again"
    others = [each for each in found.deltas if each.key != SLOW]
    assert len(others) > 10 and {each.verdict for each in others} == {"SAME"}


def test_another_gpu_of_the_kind_is_said_to_be_one(fake_runs: ModuleType, tmp_path: Path) -> None:
    at = fake_runs.point("breakable", 64, boundary="logits")
    other = fake_runs.H100.model_copy(update={"uuid": "GPU-1"})
    found = concluded(fake_runs, tmp_path, [fake_runs.timing(at, 1.3e-4)], gpus=(other,))
    assert verdict(found)[1] == "confirmed: 1.300 (another GPU of its kind)"


def test_a_crash_clears_nobody(fake_runs: ModuleType, tmp_path: Path) -> None:
    """What fails or stays away when measured again is as slow as it was found."""
    at = fake_runs.point("breakable", 64, boundary="logits")
    failed = concluded(fake_runs, tmp_path, [fake_runs.ended(at, "failed", "IMA")])
    assert verdict(failed) == ("SLOWER", "could not be measured again: FAILED: IMA", 1)
    assert verdict(concluded(fake_runs, tmp_path, []))[::2] == ("SLOWER", 1)


def test_two_ways_of_one_run_are_both_measured_again(
    fake_runs: ModuleType, here: dict[str, Any], tmp_path: Path
) -> None:
    run = night(fake_runs, tmp_path, "run", {"v3.2-tp8/prefill/t8/ctx0/breakable": 1.3})
    found = compare(run, run, base_way="split_piecewise", new_way="breakable")
    opening = confirm.confirmation(found, run, tmp_path, command=())
    assert opening
    ways = ["monolithic_eager", "monolithic_eager", "split_piecewise", "breakable"]
    assert [point.way for point in opening.plan.jobs[0].points] == ways
    again = fake_runs.make_run(
        [fake_runs.timing(fake_runs.point(mode, 8), 1e-4) for mode in ("split_piecewise", "breakable")], run_id="again"
    )
    (first, *_) = [each for each in confirm.confirmed(found, run, run, again).deltas if "/t8/" in each.key]
    assert (first.verdict, first.reason) == ("AMBIGUOUS", "not confirmed: 1.000 when measured again")


def test_the_latest_run_is_never_one_that_confirmed(fake_runs: ModuleType, tmp_path: Path) -> None:
    """`compare REFERENCE latest --confirm`, asked twice, is about the same run both times."""
    for name, command, at in (("night", "sweep", "01"), ("night-confirm", "compare", "02")):
        run = fake_runs.make_run([], run_id=name)
        changes = {
            "schema_version": store.SCHEMA_VERSION,
            "command": ("mlaprof", command, "a", "latest"),
            "created_at": f"2026-01-{at}T00:00:00Z",
        }
        store.create(store.default_path(tmp_path, name), run.manifest.model_copy(update=changes)).finish()
    assert store.resolve("latest", tmp_path).stem == "night"
    assert store.resolve("night-confirm", tmp_path).stem == "night-confirm"
