"""Kernel studies: what loads, what it expands to, and what each mistake is answered with."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlaprof import kernel_shapes
from mlaprof.config.kernels import load_kernel_study, resolved_kernel_yaml
from mlaprof.errors import ConfigError

SHIPPED = Path(__file__).parents[2] / "configs" / "kernels.yaml"
GOOD = "name: few\nkernels:\n  topk:\n    shapes:\n      - {num_rows: [1, 3], width: 100, k: 7}\n"
TWO_FORMS = "name: few\nkernels:\n  sparse_attn:\n    shapes:\n      - {num_tokens: 8, num_rows: 4096, num_heads: 64}\n"
TWO_FORMS += "    tiles: {hopper: ["


@pytest.fixture
def load(tmp_path):
    def load(text: str, **options):
        path = tmp_path / "study.yaml"
        path.write_text(text)
        return load_kernel_study(path, **options)

    return load


def test_shapes_are_the_product_of_their_axes_completed_by_defaults(load):
    """A scalar is an axis of one value, and an axis left out has its default."""
    study = load("name: s\nkernels:\n  topk: {shapes: [{num_rows: [1, 64], width: {pow2: [128, 256]}}]}\n")
    assert study.kernels["topk"].shapes == tuple(
        {"num_rows": rows, "width": width, "k": 2048} for rows in (1, 64) for width in (128, 256)
    )


def test_every_provider_is_asked_unless_some_are_named(load):
    assert load(GOOD).kernels["topk"].provider == kernel_shapes.KERNELS["topk"].providers
    assert load(GOOD + "    provider: [torch]\n").kernels["topk"].provider == ("torch",)


def test_a_shape_that_two_mappings_give_is_measured_once(load):
    study = load(GOOD + "      - {num_rows: 3, width: [100, 200], k: 7}\n")
    assert [shape["width"] for shape in study.kernels["topk"].shapes] == [100, 100, 200]


def test_the_shipped_study_loads_and_survives_being_stored(tmp_path):
    """What a run keeps of its study is that study again."""
    study = load_kernel_study(SHIPPED)
    copy = tmp_path / "again.yaml"
    copy.write_text(resolved_kernel_yaml(study))
    assert load_kernel_study(copy) == study


def test_tiles_of_either_form_stand_under_their_provider(load, tmp_path):
    """The fields say which form is meant; what a run keeps of its study says it as well."""
    study = load(TWO_FORMS + "{persistent: 0}, {block_h: 16, num_splits: 8}]}\n")
    forms = [choice.kernel for choice in study.kernels["sparse_attn"].tiles["hopper"]]
    assert forms == ["sparse_attn@hopper", "sparse_attn@hopper_decode"]
    copy = tmp_path / "again.yaml"
    copy.write_text(resolved_kernel_yaml(study))
    assert load_kernel_study(copy) == study


def test_only_keeps_the_kernels_named(load):
    text = GOOD + "  group_quant: {shapes: [{m: 1, k: 128}]}\n"
    assert list(load(text, only=["group_quant"]).kernels) == ["group_quant"]
    with pytest.raises(ConfigError, match=r"group_quand is not a kernel.*did you mean group_quant"):
        load(text, only=["group_quand"])


@pytest.mark.parametrize(
    "text,line,message,remedy",
    [
        ("", 1, "is empty", "configs/kernels.yaml"),
        ("name: s\n", 1, "kernels: is missing", "give it"),
        ("name: s\nkernels: {}\n", 2, "kernels: is empty", "at least one"),
        ("name: s\nkernels:\n  top_k: {shapes: [{num_rows: 1}]}\n", 3, "kernels.top_k: unknown kernel", "mean topk"),
        (GOOD.replace("width", "widht"), 5, "shapes[0].widht: unknown key", "did you mean width"),
        (GOOD.replace(", width: 100", ""), 5, "width must be given", "num_rows, width, k"),
        (GOOD.replace("[1, 3]", "[]"), 5, "the axis is empty", "at least one value"),
        (GOOD.replace("[1, 3]", "[1, 0]"), 5, "num_rows: 0 is out of range", "at least 1"),
        (GOOD.replace("[1, 3]", "{pow2: [3, 8]}"), 5, "3 is not a power of two", "pow2: [1, 8192]"),
        (GOOD.replace("k: 7", "k: many"), 5, "expected an integer, got", "an integer"),
        (GOOD + "    provider: [trition]\n", 6, "'trition' does not provide topk", "did you mean triton"),
        (GOOD + "    provider: [torch, torch]\n", 6, "torch appears twice", "keep one"),
        (GOOD + "    provider: []\n", 6, "provider: is empty", "leave the key out"),
        (GOOD + "    tiles: {torch: [{block_n: 4}]}\n", 6, "torch takes no tiles here", ""),
        (TWO_FORMS + "{persistent: 0, block_h: 16}]}\n", 6, "persistent, block_h are not fields of one form", "only"),
        (TWO_FORMS + "{persistant: 0}]}\n", 6, "hopper[0].persistant: unknown key", "did you mean persistent"),
        (TWO_FORMS + "{block_h: 128}]}\n", 6, "block_h: 128 is not legal", "16, 32, 64"),
        (GOOD + "launch: []\n", 6, "launch: is empty", "at least one"),
        (GOOD + "launch: [capture]\n", 6, "'capture' is not known here", "eager, graph"),
        (GOOD + "mesure: {}\n", 6, "mesure: unknown key", "did you mean measure"),
    ],
)
def test_a_mistake_is_answered_with_line_key_and_remedy(load, text, line, message, remedy):
    with pytest.raises(ConfigError) as caught:
        load(text)
    said = str(caught.value)
    assert f"study.yaml:{line}: " in said
    assert message in said and remedy in said


def test_settings_and_presets_apply_as_to_a_study_of_the_layer(load):
    study = load(GOOD, settings=["measure.min_samples=8", "seed=3"], preset="quick")
    assert (study.measure.min_samples, study.measure.processes, study.seed) == (8, 1, 3)
