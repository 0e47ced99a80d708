"""Tensor parallel ranks in a study: whose share the shape is, and complaints with line and remedy."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlaprof.analysis.differences import notes
from mlaprof.config.load import load_study, resolved_yaml, study_from_resolved
from mlaprof.config.ranks import require_gpus
from mlaprof.errors import ConfigError
from mlaprof.opening import DeviceChoice, new_run, resumed_run
from mlaprof.study import Study

STUDY = "name: x\npreset: {preset}\nsweep: {{num_tokens: 3}}\ntp: {tp}\n"


def written(folder: Path, tp: str = "{world: 2}", preset: str = "tiny") -> Path:
    path = folder / "study.yaml"
    path.write_text(STUDY.format(tp=tp, preset=preset))
    return path


@pytest.mark.parametrize(
    ("preset", "world", "heads"), [("tiny", 1, 16), ("tiny", 2, 8), ("v3.2", 8, 16), ("v3.2-tp8", 8, 16)]
)
def test_a_rank_holds_its_share(tmp_path: Path, preset: str, world: int, heads: int) -> None:
    """Of a whole layer; what is a share already is taken as it is. The stored study says the same."""
    study = load_study(written(tmp_path, f"{{world: {world}}}", preset))

    assert (study.layer.shape.num_heads, study.layer.tp.world) == (heads, world)
    assert study_from_resolved(resolved_yaml(study)) == study


@pytest.mark.parametrize(
    ("tp", "preset", "wrong", "remedy"),
    [
        ("{world: 3}", "tiny", "3 ranks do not share 16 heads and an MLP of 1024 evenly", "divides both"),
        ("{world: 0}", "tiny", "0 is less than 1", "use 1 or more"),
        ("{world: 16}", "tiny", "16 is more than 8", "use 8 or less"),
        ("{world: two}", "tiny", "expected an integer, got 'two'", "give an integer"),
        ("{world: 2}", "v3.2-tp8", "2 ranks, and the shape is what one of 8 holds", "use 8"),
        ("{word: 2}", "tiny", "unknown key", "did you mean world?"),
        ("2", "tiny", "expected a mapping", "give a mapping"),
    ],
)
def test_a_layer_that_cannot_be_shared_out_is_refused(
    tmp_path: Path, tp: str, preset: str, wrong: str, remedy: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_study(written(tmp_path, tp, preset))

    said = str(caught.value)
    assert "study.yaml:4: tp" in said and wrong in said and remedy in said and "\n" not in said


def test_fewer_gpus_than_ranks_are_refused_where_the_ranks_are_asked_for(tmp_path: Path) -> None:
    path = written(tmp_path)
    require_gpus(path, (), 2, visible=2)

    with pytest.raises(ConfigError, match=r"study.yaml:4: tp.world: 2 ranks want a GPU each, and 1 is visible; use 1"):
        require_gpus(path, (), 2, visible=1)
    with pytest.raises(ConfigError, match=r"--set tp.world=4: tp.world: 4 ranks .* 0 are visible"):
        require_gpus(path, ("tp.world=4",), 4, visible=0)


def test_the_manifest_says_what_ranks_run_under(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NVLink multicast is off, whatever the shell says; and a run goes on under a shell that says nothing."""
    monkeypatch.delenv("NCCL_NVLS_ENABLE", raising=False)
    opening = opened(load_study(written(tmp_path)), tmp_path)
    alone = opened(load_study(written(tmp_path, "{world: 1}")), tmp_path)

    assert opening.manifest.environment.variables["NCCL_NVLS_ENABLE"] == "0"
    assert "NCCL_NVLS_ENABLE" not in alone.manifest.environment.variables
    opening.writer().finish()
    assert resumed_run(str(opening.path), tmp_path, DeviceChoice.cpu, study=None, config=None).plan.jobs
    monkeypatch.setenv("NCCL_NVLS_ENABLE", "1")
    again = opened(load_study(written(tmp_path)), tmp_path)
    assert again.manifest.environment.variables["NCCL_NVLS_ENABLE"] == "0"


def test_a_comparison_tells_of_another_world(tmp_path: Path) -> None:
    """As of every other difference of the layer; a run of before there were ranks is one of a rank alone."""
    two, one = (opened(load_study(written(tmp_path, tp)), tmp_path).manifest for tp in ("{world: 2}", "{world: 1}"))
    before = one.model_copy(update={"study_yaml": one.study_yaml.replace("tp:\n  world: 1\n", "")})
    assert "tp" not in before.study_yaml.replace("tp_size", "")

    assert not list(notes(before, one))
    assert {str(each) for each in notes(before, two)} >= {"tp.world 1 -> 2", "shape.num_heads 16 -> 8"}


def opened(study: Study, folder: Path):
    return new_run(study, DeviceChoice.cpu, None, folder, command=("mlaprof",), tuned=())
