"""Which tiles a layer is run with: the library's where it has an entry that fits, on record, and never over a pin."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlaprof.config.load import load_study, resolved_yaml, study_from_resolved
from mlaprof.errors import ConfigError
from mlaprof.kernels.tiles import pack
from mlaprof.layer.tiling import tuned_tiles
from mlaprof.machine import environment
from mlaprof.plan import expand
from mlaprof.study import kernel_dims
from mlaprof.tuning.conditions import conditions_of
from mlaprof.tuning.library import Entry, path_of, save
from mlaprof.tuning.serve import folders_of, rules_line, served
from mlaprof.tuning.targets import launch_of, layer_shapes, targets_of

STUDY = """\
name: few
preset: v3.2-tp8
sweep: {phase: prefill, num_tokens: [64, 100, 1024], mode: [split_piecewise, full]}
"""
TILES = {"block_m": 16, "block_n": 64, "block_k": 64, "num_warps": 4, "num_stages": 3}


@pytest.fixture
def study(tmp_path):
    (tmp_path / "few.yaml").write_text(STUDY)
    return load_study(tmp_path / "few.yaml")


@pytest.fixture(scope="module")
def here():
    return environment.snapshot()


def stored(folder: Path, here, study, *, kernel="absorb", form="absorb", values=TILES, num_tokens=64, launch="eager"):
    """An entry of this machine in a library."""
    shape = layer_shapes(study.layer.shape, study.layer.options, study.batch, "prefill", num_tokens, 0)[kernel]
    entry = Entry(
        conditions=conditions_of(here, "cpu", kernel, shape, launch, study.measure.cache),
        shape=shape, decision="tuned" if values else "keep-default", form=form if values else "", values=values,
        device_s=1e-5, default_device_s=1.1e-5, gain=1.1, gain_low=1.08, gain_high=1.12, evaluations=1, seed=0,
        date="2026-11-23", mlaprof_version="0",
    )  # fmt: skip
    save(path_of(folder, entry.conditions), [entry])
    return entry


def uses(study, here, results):
    return served(study, expand(study, "cpu").points, here, "cpu", results)


def test_an_empty_library_serves_nothing_and_says_nothing(study, here, tmp_path):
    assert uses(study, here, tmp_path) == () and rules_line(()) == []


def test_the_rule_is_on_record_for_each_size_and_way(study, here, tmp_path):
    stored(tmp_path / "tuned", here, study)
    found = {(use.num_tokens, use.way): use for use in uses(study, here, tmp_path)}
    assert {size: found[size, "split_piecewise"].rule for size in (64, 100, 1024)} == {
        64: "exact", 100: "bucket", 1024: "default",
    }  # fmt: skip
    assert {found[size, "full"].rule for size in (64, 100, 1024)} == {"default"}  # graphs have no entry
    assert found[64, "split_piecewise"].values == TILES and found[1024, "split_piecewise"].values is None
    assert rules_line(list(found.values())) == ["tuned absorb: bucket 1, default 4, exact 1"]


def test_graphs_are_served_by_entries_of_graphs_alone(study, here, tmp_path):
    stored(tmp_path / "tuned", here, study, launch="graph")
    assert {use.way for use in uses(study, here, tmp_path) if use.values} == {"full"}
    assert launch_of("topk", "split_piecewise", "logits") == "graph"
    assert launch_of("topk", "split_piecewise", "index_quant") == "eager" == launch_of("absorb", "breakable", "logits")


def test_a_study_may_ignore_the_library_or_name_another(study, here, tmp_path):
    stored(tmp_path / "tuned", here, study)
    off, other = (study.model_copy(update={"tuned": each}) for each in ("off", str(tmp_path / "tuned")))
    assert uses(off, here, tmp_path) == () and len(uses(other, here, tmp_path / "elsewhere")) == 6
    assert study_from_resolved(resolved_yaml(off)).tuned == "off"
    with pytest.raises(ConfigError, match="is no folder of a library"):
        folders_of(str(tmp_path / "none"), tmp_path)


@pytest.mark.parametrize("written,read", [("auto", "auto"), ("off", "off"), ("false", "off")])
def test_the_study_file_says_so(tmp_path, written, read):
    (tmp_path / "few.yaml").write_text(f"{STUDY}tuned: {written}\n")
    assert load_study(tmp_path / "few.yaml").tuned == read
    (tmp_path / "few.yaml").write_text(f"{STUDY}tuned: mine\n")
    assert load_study(tmp_path / "few.yaml").tuned == str(tmp_path / "mine")


def test_tiles_that_could_not_run_a_slightly_longer_batch_do_not_serve(study, here, tmp_path):
    """The Hopper form of topk takes rows of one block: 1024 columns fit, those of another batch might not."""
    values = {"block": 1024, "num_warps": 4, "num_pieces": 1, "ambiguous": 64, "num_registers": 0}
    stored(tmp_path / "tuned", here, study, kernel="topk", form="topk@hopper", values=values, num_tokens=1024)
    assert {use.rule for use in uses(study, here, tmp_path)} == {"default"}
    stored(tmp_path / "tuned", here, study, kernel="topk", form="topk@hopper", values=values | {"block": 2048},
           num_tokens=1024)  # fmt: skip
    assert "exact" in {use.rule for use in uses(study, here, tmp_path)}


def test_jobs_are_told_what_serves_their_points(study, here, tmp_path):
    stored(tmp_path / "tuned", here, study)
    plan = expand(study, "cpu").with_tuned(uses(study, here, tmp_path))
    for job in plan.jobs:
        assert [(use.num_tokens, use.rule) for use in job.tuned] == [(64, "exact"), (100, "bucket")] or [
            (use.num_tokens, use.rule) for use in job.tuned
        ] == [(100, "bucket"), (64, "exact")]


def test_a_pinned_kernel_keeps_its_tiles_and_the_others_are_tuned(study):
    dims = kernel_dims(study.layer.shape)
    pinned = {"absorb": {"block_n": 128}}
    up = {**TILES, "block_n": 32}
    tiles = tuned_tiles(dims, pinned, [(64, "absorb", TILES), (64, "up_project", up)])
    assert tiles.at(64).absorb == tiles.at(65).absorb != []
    assert tiles.at(65).up_project == [] and tiles.at(64).up_project[1:] == list(up.values())
    assert tiles.at(65) is tiles and pack(None) == tiles.sparse_attn


def test_a_step_of_the_layer_names_kernels_of_its_own_dimensions_alone(study):
    kernels = {target.kernel for target in targets_of(study)}
    assert kernels == {"absorb", "up_project", "sparse_attn", "index_logits", "topk"}
    other = study.layer.model_copy(update={"shape": study.layer.shape.__class__(**{
        **study.layer.shape.__dict__, "v_head_dim": 256})})  # fmt: skip
    assert "up_project" not in {each.kernel for each in targets_of(study.model_copy(update={"layer": other}))}


def test_a_comparison_is_told_that_one_run_had_tuned_tiles(study, here, tmp_path, fake_runs):
    from mlaprof.analysis.differences import notes

    stored(tmp_path / "tuned", here, study)
    plain = fake_runs.make_run([]).manifest
    told = list(notes(plain, plain.model_copy(update={"tuned": uses(study, here, tmp_path)})))
    assert [(each.name, each.base) for each in told] == [("tuned tiles", "none")]
    assert "absorb m16.n64" in told[0].new and "t64 split_piecewise" in told[0].new


@pytest.mark.parametrize("name", ["tune-v3.2", "exhaust-v3.2", "kernels", "v3.2-tp8-decode", "quickstart"])
def test_every_shipped_study_can_be_tuned_and_stored(name):
    """Kernel studies and layers alike: each target has a space that holds the launcher's own choice."""
    from mlaprof.tuning.plan import plan_search
    from mlaprof.tuning.study import load_tune_study, resolved_tune_yaml, tune_study_from_resolved

    path = Path(__file__).parents[2] / "configs" / f"{name}.yaml"
    asked = load_tune_study(path)
    assert asked.targets and tune_study_from_resolved(resolved_tune_yaml(asked)) == asked
    one_of_each = {target.kernel: target for target in asked.targets}
    for target in one_of_each.values():
        search = plan_search(target, hopper=True)
        assert search.space.values(search.default) in search.space.space.configurations
