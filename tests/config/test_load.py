"""Study files: what loads, what every mistake is answered with, and that nothing but ConfigError comes out."""

from __future__ import annotations

import json
import math
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlaprof import study
from mlaprof.buckets import Buckets
from mlaprof.checkpoint import checkpoint_problem, weight_shapes
from mlaprof.config import hf
from mlaprof.config.load import load_study, resolved_yaml, study_from_resolved
from mlaprof.config.sizes import captured_sizes
from mlaprof.config.yamltext import MAX_BYTES, dump, parse
from mlaprof.errors import ConfigError
from mlaprof.plan import expand
from mlaprof.shapes import PRESETS
from mlaprof.study import DEFAULT_MODES, MODES, Axes, BudgetSpec, CaptureSpec, MeasureSpec, Preset, Study

OF_KERNELS = ("kernels", "tune-v3.2", "exhaust-v3.2")
CONFIGS = sorted(path for path in (Path(__file__).parents[2] / "configs").glob("*.yaml") if path.stem not in OF_KERNELS)
QUICKSTART = next(path for path in CONFIGS if path.stem == "quickstart")

GOOD = """\
name: study
preset: tiny
sweep:
  num_tokens: [1, 8]
"""

Load = Callable[..., Study]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Write a text as study.yaml and load it."""

    def load(text: str | bytes, **options: Any) -> Study:
        path = tmp_path / "study.yaml"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return load_study(path, **options)

    return load


def complaint(load: Load, text: str | bytes, **options: Any) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load(text, **options)
    return caught.value


# (what is wrong, text of the file, line, start of the message, a phrase of the remedy)
BAD: list[tuple[str, str, int, str, str]] = [
    ("empty file", "", 1, "is empty", "quickstart"),
    ("only comments", "# nothing\n", 1, "is empty", "quickstart"),
    ("a list", "- name\n", 1, "holds a list", "quickstart"),
    ("text", "hello\n", 1, "holds 'hello'", "quickstart"),
    ("tab", "name: study\n\tpreset: tiny\n", 2, "is not valid YAML", "indentation"),
    ("open bracket", "name: study\nsweep: [1\n", 3, "is not valid YAML", "brackets"),
    ("two documents", GOOD + "---\nname: again\n", 5, "is not valid YAML", "indentation"),
    ("control character", "name: study\npreset: ti\x07ny\n", 2, "is not valid YAML", "check"),
    ("duplicate key", GOOD + "name: again\n", 5, "name: appears twice", "line 1"),
    ("duplicate in a flow", GOOD + "batch: {seed: 1, seed: 2}\n", 5, "batch.seed: appears twice", "keep one"),
    ("merge key", "a: &a {x: 1}\nb:\n  <<: *a\n", 3, "b: merge keys", "write the keys out"),
    ("tag", GOOD + "mlp: !!python/name:os.system x\n", 5, "", "use plain text"),
    ("tag on a list", GOOD + "mlp: !!set {a, b}\n", 5, "mlp: the tag", "remove the tag"),
    ("number as key", GOOD + "7: x\n", 5, "a key must be text, got 7", "names"),
    ("infinity", GOOD + "measure:\n  warmup_s: .inf\n", 6, "measure.warmup_s: '.inf' is not", "finite"),
    ("huge integer", GOOD + "batch:\n  seed: " + "9" * 5000 + "\n", 6, "batch.seed: '999", "64 bits"),
    ("half a character", GOOD + 'mlp: "\\ud800"\n', 5, "mlp: holds half a character", "real characters"),
    ("bad escape", GOOD + 'mlp: "\\UFFFFFFFF"\n', 1, "is not valid YAML", "escapes"),
    ("deep nesting", "a: " + "[" * 40 + "]" * 40 + "\n", 1, "is nested too deeply", "levels"),
    ("very deep nesting", "a: " + "[" * 900, 1, "is nested too deeply", "levels"),
    ("alias of itself", "a: &a [*a]\n", 1, "is nested too deeply", "levels"),
    (
        "alias bomb",
        "a: &a [x, x, x, x, x, x, x, x, x, x]\n"
        + "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 10)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)),
        1,
        "has more than 100,000 values",
        "aliases",
    ),
    ("unknown key", GOOD + "swep: 1\n", 5, "swep: unknown key", "did you mean sweep? the keys here are batch, budget"),
    ("unknown sweep key", GOOD + "  tokens: 1\n", 5, "sweep.tokens: unknown key", "num_tokens"),
    ("unknown measure key", GOOD + "measure: {min_sample: 50}\n", 5, "measure.min_sample: unknown key", "min_samples"),
    ("unknown rule key", GOOD + "  exclude: [{modes: full}]\n", 5, "sweep.exclude[0].modes: unknown", "mode?"),
    ("no name", GOOD.replace("name: study\n", ""), 1, "name: is missing", "give it"),
    ("no sweep", "name: study\npreset: tiny\n", 1, "sweep: is missing", "give it"),
    ("no num_tokens", "name: x\npreset: tiny\nsweep:\n  mode: full\n", 3, "sweep.num_tokens: is missing", "phase"),
    ("name with a slash", GOOD.replace("study", "a/b"), 1, "name: 'a/b' cannot be a name", "letters"),
    ("name as number", GOOD.replace("study", "7"), 1, "name: expected text, got 7", "text"),
    ("no shape", "name: x\nsweep: {num_tokens: 1}\n", 1, "preset: is missing", "v3.2-tp8"),
    ("both shapes", GOOD + "shape: {}\n", 5, "shape: stands beside preset", "keep one"),
    ("unknown preset", GOOD.replace("tiny", "tinny"), 2, "preset: 'tinny' is not a preset", "did you mean tiny?"),
    ("preset as list", GOOD.replace("tiny", "[tiny]"), 2, "preset: a list is not a preset", "the presets are"),
    ("shape as text", "name: x\nshape: big\nsweep: {num_tokens: 1}\n", 2, "shape: expected a mapping", "hf_config"),
    ("text for a number", GOOD + "num_layers: two\n", 5, "num_layers: expected an integer, got 'two'", "integer"),
    ("bool for a number", GOOD + "num_layers: true\n", 5, "num_layers: expected an integer, got true", "integer"),
    ("quoted number", GOOD + "num_layers: '2'\n", 5, "num_layers: expected an integer, got '2'", "integer"),
    ("fraction for a count", GOOD + "num_layers: 1.5\n", 5, "num_layers: expected an integer, got 1.5", "integer"),
    ("number for a switch", GOOD + "layer:\n  skip_indexer_for_short_seqs: 1\n", 6, "layer.skip", "true or false"),
    ("nothing for a block", GOOD + "measure:\n", 5, "measure: expected a mapping, got nothing", "mapping"),
    ("no layers", GOOD + "num_layers: 0\n", 5, "num_layers: 0 is less than 1", "use 1 or more"),
    ("unknown mlp", GOOD + "mlp: danse\n", 5, "mlp: 'danse' is not known here", "did you mean dense?"),
    ("no mlp", GOOD + "mlp:\n", 5, "mlp: expected text, got nothing", "none, dense"),
    ("too few samples", GOOD + "measure: {min_samples: 5}\n", 5, "measure.min_samples: 5 is less than 6", "6 or"),
    ("next_n", GOOD + "batch: {next_n: 5}\n", 5, "batch.next_n: 5 is more than 4", "4 or less"),
    ("timeout", GOOD + "measure: {point_timeout_s: 0}\n", 5, "measure.point_timeout_s: 0", "above 0"),
    ("samples at odds", GOOD + "measure:\n  min_samples: 600\n", 6, "measure.min_samples: max_samples 500", "raise"),
    ("empty axis", GOOD.replace("[1, 8]", "[]"), 4, "sweep.num_tokens: the axis is empty", "at least one"),
    ("token count 0", GOOD.replace("[1, 8]", "\n    - 1\n    - 0"), 6, "sweep.num_tokens[1]: 0 is less than 1", "1 or"),
    ("scalar token count -3", GOOD.replace("[1, 8]", "-3"), 4, "sweep.num_tokens: -3 is less than 1", "1 or more"),
    ("text token count", GOOD.replace("8]", "many]"), 4, "sweep.num_tokens[1]: expected an integer", "an integer"),
    ("no token count", GOOD.replace("[1, 8]", ""), 4, "sweep.num_tokens: expected an integer, got nothing", "integer"),
    ("duplicate value", GOOD.replace("8]", "1]"), 4, "sweep.num_tokens[1]: 1 appears twice", "keep one"),
    ("negative context", GOOD + "  context_len: -1\n", 5, "sweep.context_len: -1 is less than 0", "0 or more"),
    ("unknown mode", GOOD + "  mode: [ful]\n", 5, "sweep.mode[0]: 'ful' is not known here", "did you mean full?"),
    ("unknown phase", GOOD + "  phase: decoding\n", 5, "sweep.phase: 'decoding' is not known", "did you mean decode?"),
    ("unknown generator", GOOD.replace("[1, 8]", "{pow3: [1, 9]}"), 4, "sweep.num_tokens: 'pow3' is not", "pow2"),
    (
        "two generators",
        GOOD.replace("[1, 8]", "{pow2: [1, 8], values: [3]}"),
        4,
        "sweep.num_tokens: expected one",
        "use",
    ),
    ("no power of two", GOOD.replace("[1, 8]", "{pow2: [1, 100]}"), 4, "sweep.num_tokens: pow2: 100 is not", "use"),
    ("pow2 of one end", GOOD.replace("[1, 8]", "{pow2: [8]}"), 4, "sweep.num_tokens: pow2: expected 2", "use"),
    ("falling range", GOOD.replace("[1, 8]", "{range: [9, 1, 2]}"), 4, "sweep.num_tokens: first 9 is above", "swap"),
    ("standing range", GOOD.replace("[1, 8]", "{range: [1, 9, 0]}"), 4, "sweep.num_tokens: step 0 is not", "use 1"),
    (
        "endless range",
        GOOD.replace("[1, 8]", "{range: [1, 99999999999, 1]}"),
        4,
        "sweep.num_tokens: more than",
        "larger",
    ),
    ("values no list", GOOD.replace("[1, 8]", "{values: 8}"), 4, "sweep.num_tokens: values: expected a list", "use"),
    (
        "too large a matrix",
        GOOD.replace("[1, 8]", "{range: [1, 9999, 1]}") + "  context_len: {range: [0, 99, 1]}\n",
        3,
        "sweep: 3,999,600 combinations",
        "at most",
    ),
    ("unknown boundary", GOOD + "  boundary: [projj]\n", 5, "sweep.boundary[0]: 'projj' is not known", "mean proj?"),
    ("boundary twice", GOOD + "  boundary: [proj, proj]\n", 5, "sweep.boundary[1]: proj appears twice", "keep one"),
    (
        "rule about no boundary",
        GOOD + "  exclude:\n    - {mode: full, boundary: proj}\n",
        6,
        "sweep.exclude[0].boundary: full has no boundary",
        "split_piecewise or breakable",
    ),
    ("rule of no boundary", GOOD + "  include: [{boundary: half}]\n", 5, "sweep.include[0].boundary: 'half'", "proj"),
    ("unknown capture key", GOOD + "capture: {size: [1]}\n", 5, "capture.size: unknown key", "did you mean sizes?"),
    ("capture size 0", GOOD + "capture:\n  sizes: [8, 0]\n", 6, "capture.sizes[1]: 0 is less than 1", "1 or more"),
    ("capture size twice", GOOD + "capture:\n  sizes: [8, 8]\n", 6, "capture.sizes[1]: 8 appears twice", "keep one"),
    ("no capture sizes", GOOD + "capture:\n  sizes: []\n", 6, "capture.sizes: there are no sizes", "leave sizes out"),
    ("capture size as text", GOOD + "capture: {sizes: [all]}\n", 5, "capture.sizes[0]: expected an integer", "integer"),
    ("odd capture sizes", GOOD + "capture: {sizes: {pow2: [1, 9]}}\n", 5, "capture.sizes: pow2: 9 is not a", "use"),
    ("unknown hold", GOOD + "capture: {hold: week}\n", 5, "capture.hold: 'week' is not known here", "mean weak?"),
    ("unknown streams", GOOD + "capture: {multi_stream: on}\n", 5, "capture.multi_stream: 'on' is not", "off, graphs"),
    ("short requests", GOOD + "capture: {max_seq_len: 1}\n", 5, "capture.max_seq_len: 1 is less than 2", "2 or more"),
    (
        "half a ceiling",
        GOOD + "capture:\n  sizes: [8]\n  max_batch_size: 4\n",
        7,
        "capture.max_batch_size: without max_seq_len there is no ceiling",
        "give max_seq_len, too, or leave max_batch_size out",
    ),
    (
        "other half of a ceiling",
        GOOD + "capture:\n  max_seq_len: 4\n",
        6,
        "capture.max_seq_len: without max_batch_size there is no ceiling",
        "give max_batch_size, too",
    ),
    (
        "no size within the limit",
        GOOD + "capture:\n  max_num_tokens: 4\n  sizes: [8, 16]\n",
        7,
        "capture.sizes: nothing is left to capture: every size is above max_num_tokens 4",
        "at most 4",
    ),
    (
        "no token count within the limit",
        GOOD.replace("[1, 8]", "[8, 16]") + "capture:\n  max_num_tokens: 4\n",
        6,
        "capture.max_num_tokens: nothing is left to capture",
        "at most 4",
    ),
    ("nothing for capture", GOOD + "capture:\n", 5, "capture: expected a mapping, got nothing", "mapping"),
    ("unknown budget", GOOD + "budget: {sync: 0}\n", 5, "budget.sync: unknown key", "did you mean syncs?"),
    ("negative budget", GOOD + "budget:\n  d2h: -1\n", 6, "budget.d2h: -1 is less than 0", "use 0 or more"),
    ("budget as text", GOOD + "budget: {syncs: none}\n", 5, "budget.syncs: expected an integer, got 'none'", "integer"),
    ("rule for everything", GOOD + "  exclude:\n    - {}\n", 6, "sweep.exclude[0]: a rule without fields", "at least"),
    ("nothing left", GOOD + "  exclude: [{phase: prefill}]\n", 5, "sweep.exclude: nothing is left", "exclude less"),
    (
        "list in a rule",
        GOOD + "  exclude: [{num_tokens: [1]}]\n",
        5,
        "sweep.exclude[0].num_tokens: expected an int",
        "",
    ),
    ("unknown kernel", GOOD + "tiles: {sparse_atn: [{block_n: 32}]}\n", 5, "tiles.sparse_atn: unknown", "sparse_attn?"),
    ("tiles no list", GOOD + "tiles:\n  sparse_attn: {block_n: 32}\n", 6, "tiles.sparse_attn: expected a list", "list"),
    (
        "tiles of a kernel study",
        GOOD + "tiles: {block_gemm: [{block_m: 64}]}\n",
        5,
        "tiles.block_gemm: block_gemm takes tiles in a kernel study only",
        "leave it out",
    ),
    ("no alternatives", GOOD + "tiles: {sparse_attn: []}\n", 5, "tiles.sparse_attn: no alternatives", "at least one"),
    ("tile of nothing", GOOD + "tiles: {sparse_attn: [{}]}\n", 5, "tiles.sparse_attn[0]: gives no field", "block_n"),
    (
        "unknown tile field",
        GOOD + "tiles:\n  sparse_attn:\n    - {blockn: 32}\n",
        7,
        "tiles.sparse_attn[0].blockn: unknown key",
        "did you mean block_n?",
    ),
    ("tile field as text", GOOD + "tiles: {sparse_attn: [{block_n: big}]}\n", 5, "tiles.sparse_attn[0].block_n", "int"),
    ("odd tile", GOOD + "tiles: {sparse_attn: [{block_n: 48}]}\n", 5, "tiles.sparse_attn[0]: ", "use one of 16"),
    ("negative tile", GOOD + "tiles: {sparse_attn: [{block_n: -64}]}\n", 5, "tiles.sparse_attn[0]: ", ""),
    ("no warps", GOOD + "tiles: {sparse_attn: [{num_warps: 0}]}\n", 5, "tiles.sparse_attn[0]: ", ""),
    (
        "tile beyond shared memory",
        GOOD + "tiles:\n  sparse_attn:\n    - {block_n: 32}\n    - {block_n: 256, num_stages: 4}\n",
        8,
        "tiles.sparse_attn[1]: ",
        "shared",
    ),
    (
        "one tile twice",
        GOOD + "tiles:\n  sparse_attn:\n    - {block_n: 32}\n    - {block_n: 32}\n",
        8,
        "tiles.sparse_attn[1]: is the same configuration as tiles.sparse_attn[0]",
        "keep one",
    ),
    ("missing checkpoint", GOOD + "weights: {safetensors: none}\n", 5, "weights.safetensors: /", "folder"),
    ("checkpoint and seed", GOOD + "weights: {safetensors: none, seed: 1}\n", 5, "weights.seed: stands beside", "keep"),
    ("layer of nothing", GOOD + "weights: {layer: 1}\n", 5, "weights.layer: random weights", "safetensors"),
    ("llama 4", GOOD + "layer: {llama_4_scaling: true}\n", 5, "layer.llama_4_scaling: llama_4_scaling is not", "false"),
    (
        "missing config.json",
        "name: x\nshape:\n  hf_config: none.json\nsweep: {num_tokens: 1}\n",
        3,
        "shape.hf_config: /",
        "",
    ),
]


@pytest.mark.parametrize(("text", "line", "message", "remedy"), [row[1:] for row in BAD], ids=[row[0] for row in BAD])
def test_bad_study_is_answered_with_line_key_and_remedy(
    load: Load, tmp_path: Path, text: str, line: int, message: str, remedy: str
) -> None:
    """One line: the file, the line that is wrong, the key, what is wrong with it, and what to do."""
    error = complaint(load, text)
    assert f"{tmp_path / 'study.yaml'}:{line}" == error.where
    assert error.message.startswith(message)
    assert remedy in str(error)
    assert error.hint
    assert "\n" not in str(error)


def test_all_mistakes_are_reported_together_in_the_order_of_the_file(load: Load) -> None:
    """The first complaint is the exception, the others are its notes."""
    error = complaint(load, "name: x\npreset: tny\nnum_layers: 0\nsweep:\n  num_tokens: [0, 1]\n  phase: no\nmlp: 3\n")
    lines = [str(error), *error.__notes__]
    assert [line.split("study.yaml:")[1].split(":")[0] for line in lines] == ["2", "3", "5", "6", "7"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"name: \xff\n", "is not UTF-8 text"),
        (b"name: x\n# " + b"x" * MAX_BYTES, "is larger than 1 MiB"),
        (b"\x00" * 100, "is not valid YAML"),
        (b"SQLite format 3\x00" + bytes(range(256)), "is not UTF-8 text"),
    ],
    ids=["latin", "large", "zeros", "binary"],
)
def test_files_that_are_no_text_are_refused(load: Load, content: bytes, message: str) -> None:
    """Bytes of anything are answered with the file and a line."""
    error = complaint(load, content)
    assert error.message.startswith(message)
    assert ".yaml:" in error.where


@pytest.mark.parametrize("path", ["missing.yaml", ".", "a\0b"])
def test_unreadable_path_is_a_config_error(path: str) -> None:
    """A missing file, a folder and an impossible name are the user's mistakes."""
    with pytest.raises(ConfigError, match="cannot be read"):
        load_study(Path(path))


# What loads


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_config_loads_and_expands(path: Path) -> None:
    """configs/*.yaml of the layer are legal, named as their files, and survive being stored with a run."""
    study = load_study(path)
    assert path.stem == study.name
    assert study == study_from_resolved(resolved_yaml(study))
    assert expand(study, "cuda").jobs


def test_quickstart_covers_the_default_modes_four_sizes_and_two_tiles() -> None:
    """What the readers of its results count on."""
    study = load_study(QUICKSTART)
    assert study.axes.mode == DEFAULT_MODES
    assert len(study.axes.num_tokens) == 4
    assert sum(len(choices) for choices in study.tiles.values()) == 2


def test_defaults_of_a_minimal_study(load: Load) -> None:
    """Name, preset and token counts are enough."""
    study = load(GOOD)
    assert ("tiny", PRESETS["tiny"], 1) == (study.layer.preset, study.layer.shape, study.layer.num_layers)
    assert study.axes == Axes(
        phase=("prefill",), num_tokens=(1, 8), context_len=(0,), mode=DEFAULT_MODES, boundary=("index_quant",)
    )
    assert (study.capture, study.budget) == (CaptureSpec(), BudgetSpec())
    assert study.capture == CaptureSpec(
        sizes=None, hold="strong", multi_stream="off", max_num_tokens=None, max_batch_size=None, max_seq_len=None
    )


def test_quickstart_explains_every_key() -> None:
    """Who copies it to begin a study meets all there is, with the values that leaving it out would give."""
    written = parse(QUICKSTART.read_text(), "quickstart").value
    resolved = parse(resolved_yaml(load_study(QUICKSTART)), "resolved").value
    for block in ("layer", "sweep", "batch", "capture", "budget", "measure"):
        assert written[block].keys() | {"llama_4_scaling"} == resolved[block].keys() | {"llama_4_scaling"}, block
    assert (CaptureSpec(**written["capture"]), BudgetSpec(**written["budget"])) == (CaptureSpec(), BudgetSpec())


@pytest.mark.parametrize(
    ("written", "sizes"),
    [
        ("null", None),
        ("7", (7,)),
        ("[3, 1]", (3, 1)),
        ("{pow2: [1, 8]}", (1, 2, 4, 8)),
        ("{range: [1, 9, 4]}", (1, 5, 9)),
    ],
)
def test_capture_sizes_are_written_as_an_axis(load: Load, written: str, sizes: tuple[int, ...] | None) -> None:
    """Or null: those of the sweep."""
    assert sizes == load(GOOD + f"capture: {{sizes: {written}}}\n").capture.sizes


def test_a_ceiling_that_clamps_every_size_leaves_one(load: Load) -> None:
    """It is reachable, so it is captured."""
    text = GOOD + "capture: {sizes: [64, 128], max_batch_size: 1, max_seq_len: 33}\n"
    assert captured_sizes(load(text)) == Buckets((32,), clamped=(64, 128))


def test_a_hold_and_budgets_are_settings(load: Load) -> None:
    """All of them can be given on the command line, too."""
    study = load(GOOD, settings=["capture.hold=weak", "capture.multi_stream=graphs", "budget={syncs: 0, d2h: 0}"])
    assert (study.capture.hold, study.capture.multi_stream) == ("weak", "graphs")
    assert study.budget == BudgetSpec(syncs=0, d2h=0)


@pytest.mark.parametrize(
    ("written", "values"),
    [
        ("7", (7,)),
        ("[3, 1, 2]", (3, 1, 2)),
        ("{values: [3, 1]}", (3, 1)),
        ("{pow2: [1, 64]}", (1, 2, 4, 8, 16, 32, 64)),
        ("{pow2: [8, 8]}", (8,)),
        ("{range: [1, 9, 4]}", (1, 5, 9)),
        ("{range: [1, 8, 4]}", (1, 5)),
        ("[010, 0x10, 1_000]", (10, 16, 1000)),
    ],
)
def test_axis_generators(load: Load, written: str, values: tuple[int, ...]) -> None:
    """Lists keep their order, generators hold both ends, integers are YAML 1.2's."""
    assert values == load(GOOD.replace("[1, 8]", written)).axes.num_tokens


def test_an_alias_repeats_a_value(load: Load) -> None:
    """Anchors are allowed; only what they unfold to is bounded."""
    text = "name: x\npreset: tiny\nsweep:\n  num_tokens: &sizes [1, 2]\n  context_len: *sizes\n"
    assert load(text).axes.context_len == (1, 2)


def test_byte_order_mark_and_windows_lines(load: Load) -> None:
    """Editors of other systems are no mistake."""
    assert load(GOOD) == load(b"\xef\xbb\xbf" + GOOD.replace("\n", "\r\n").encode())


INLINE = {"name": "x", "sweep": {"num_tokens": [1]}}


def inline_shape(**changes: Any) -> str:
    """A study with tiny's dimensions written out and some changed; a dotted name reaches into rope."""
    study = load_study(QUICKSTART)
    text: dict[str, Any] = parse(resolved_yaml(study), "tiny").value["shape"]
    del text["name"]
    for name, value in changes.items():
        block, _, key = name.rpartition("__")
        target = text[block] if block else text
        if value is ...:
            del target[key]
        else:
            target[key] = value
    return dump(INLINE | {"shape": text})


def test_inline_shape_is_named_after_the_study_or_itself(load: Load) -> None:
    """The name in the keys of results is the shape's, else the study's."""
    assert ("x", PRESETS["tiny"]) == ((layer := load(inline_shape()).layer).preset, layer.shape)
    assert load(inline_shape(name="mine")).layer.preset == "mine"


@pytest.mark.parametrize(
    ("changes", "key", "remedy"),
    [
        ({"q_lora_rank": None}, "shape.q_lora_rank: null means MLA-lite, which is not supported", "rank"),
        ({"hidden_size": ...}, "shape.hidden_size: is missing", "give it"),
        ({"hidden_sizes": 1}, "shape.hidden_sizes: unknown key", "did you mean hidden_size?"),
        ({"rope__theta2": 1}, "shape.rope.theta2: unknown key", "did you mean theta?"),
        ({"rope__theta": "x"}, "shape.rope.theta: expected a number, got 'x'", "number"),
        ({"rope": 7}, "shape.rope: expected a mapping, got 7", "mapping"),
        ({"rope__factor": 0.5}, "shape.rope.factor: 0.5 is below 1", "YaRN"),
        ({"num_heads": 0}, "shape.num_heads: 0 is not a dimension", "positive"),
        ({"index_head_dim": 64}, "shape.index_head_dim: 64 is not supported", "128"),
        ({"qk_rope_head_dim": 66}, "shape.qk_rope_head_dim: 66 is not a multiple of 4", "64"),
        ({"index_n_heads": 0}, "shape.index_n_heads: 0 index heads with index_topk > 0", "plain MLA"),
        ({"name": "a b"}, "shape.name: 'a b' cannot be a name", "letters"),
        ({"name": 7}, "shape.name: expected text, got 7", "text"),
    ],
    ids=str,
)
def test_bad_inline_shape(load: Load, changes: dict[str, Any], key: str, remedy: str) -> None:
    """Dimensions that are missing, misspelt or at odds are named with their line."""
    text = inline_shape(**changes)
    error = complaint(load, text)
    assert error.message.startswith(key)
    assert remedy in error.hint
    name = key.split(":")[0].split(".")[-1]
    if ... not in changes.values():
        assert f"{name}:" in text.splitlines()[int(error.where.rsplit(":", 1)[1]) - 1]


PLAIN = {"index_topk": 0, "index_n_heads": 0, "index_head_dim": 0}


def test_split_modes_of_plain_mla_are_refused_where_they_are_asked_for(load: Load) -> None:
    """The split exists only for DSA; default modes become skips instead."""
    text = inline_shape(**PLAIN)
    assert load(text).axes.mode == DEFAULT_MODES
    for mode in ("split_eager", "split_piecewise", "breakable"):
        error = complaint(load, text, axes={"mode": f"full,{mode}"})
        assert f"{mode} exists only for DSA" in error.message
        assert error.where == f"-a mode=full,{mode}"
    assert "plain MLA: one op" in complaint(load, text, axes={"boundary": "index_quant"}).message


def test_options_of_dsa_are_refused_for_plain_mla(load: Load) -> None:
    """Short-sequence MHA and the tiles of DSA's kernels do nothing there."""
    for setting, key in (
        ("layer.short_seq_mha_threshold=64", "layer.short_seq_mha_threshold"),
        ("tiles.sparse_attn=[{block_n: 32}]", "tiles.sparse_attn"),
    ):
        assert complaint(load, inline_shape(**PLAIN), settings=[setting]).message.startswith(key)


# The command line


@pytest.mark.parametrize(
    ("axis", "text", "field", "values"),
    [
        ("num_tokens", "3", "num_tokens", (3,)),
        ("tokens", "1,2, 4", "num_tokens", (1, 2, 4)),
        ("tokens", "1:4096:*8", "num_tokens", (1, 8, 64, 512, 4096)),
        ("tokens", "1:9:+2", "num_tokens", (1, 3, 5, 7, 9)),
        ("tokens", "5,8:32:*2", "num_tokens", (5, 8, 16, 32)),
        ("context", "0,64", "context_len", (0, 64)),
        ("capture", "full", "mode", ("full",)),
        ("modes", ",".join(MODES), "mode", MODES),
        ("phase", "decode,mixed", "phase", ("decode", "mixed")),
        ("boundary", "logits,proj", "boundary", ("logits", "proj")),
    ],
)
def test_command_line_axis_replaces_the_files(
    load: Load, axis: str, text: str, field: str, values: tuple[Any, ...]
) -> None:
    """-a axis=values under the axis' name or alias; ranges multiply or add and hold both ends."""
    assert values == getattr(load(GOOD, axes={axis: text}).axes, field)


@pytest.mark.parametrize(
    ("axes", "where", "message", "remedy"),
    [
        ({"tokens": "1,x"}, "-a tokens=1,x", "'x' is not an integer", "write"),
        ({"tokens": ""}, "-a tokens=", "an empty value", "v1,v2"),
        ({"tokens": "1,,2"}, "-a tokens=1,,2", "an empty value", "commas"),
        ({"tokens": "1:8"}, "-a tokens=1:8", "'1:8' is not a range", "1:4096:*2"),
        ({"tokens": "1:8:2"}, "-a tokens=1:8:2", "'1:8:2' is not a range", "1:4096:*2"),
        ({"tokens": "1:8:*1"}, "-a tokens=1:8:*1", "a range from 1 times 1 never grows", "2 or more"),
        ({"tokens": "0:8:*2"}, "-a tokens=0:8:*2", "a range from 0 times 2 never grows", "1 or more"),
        ({"tokens": "1:8:+0"}, "-a tokens=1:8:+0", "step 0 is not positive", "1 or more"),
        ({"tokens": "9:1:+1"}, "-a tokens=9:1:+1", "first 9 is above last 1", "swap"),
        ({"tokens": "²"}, "-a tokens=²", "'²' is not an integer", "write"),
        ({"tokens": "9" * 30}, "-a tokens=" + "9" * 30, "'999", "write"),
        ({"tokens": "0"}, "-a tokens=0", "sweep.num_tokens[0]: 0 is less than 1", "1 or more"),
        ({"tokens": "4,4"}, "-a tokens=4,4", "sweep.num_tokens[1]: 4 appears twice", "keep one"),
        ({"mode": "fll"}, "-a mode=fll", "sweep.mode[0]: 'fll' is not known here", "did you mean full?"),
        ({"token": "1"}, "-a token=1", "'token' is not an axis", "did you mean tokens?"),
        ({"preset": "v3.2"}, "-a preset=v3.2", "'preset' is not an axis", "--set"),
        ({"tokens": "1", "num_tokens": "2"}, "-a num_tokens=2", "num_tokens is already given by -a tokens", "keep"),
        ({"sparse_attn.block_n": "32"}, "-a sparse_attn.block_n=32", "tile fields are not axes", "tiles:"),
    ],
    ids=str,
)
def test_bad_axis_names_the_option(load: Load, axes: dict[str, str], where: str, message: str, remedy: str) -> None:
    """What the command line got wrong is blamed on the option, not on a line of the file."""
    error = complaint(load, GOOD, axes=axes)
    assert where == error.where
    shown = message.replace("[0]", "").replace("[1]", "")
    assert error.message.replace("[0]", "").replace("[1]", "").startswith(shown)
    assert remedy in error.hint


def test_settings_win_over_the_file_and_the_file_over_defaults(load: Load) -> None:
    """Command line, then YAML, then defaults."""
    text = GOOD + "measure: {min_samples: 40, max_samples: 400}\n"
    study = load(text, settings=["measure.min_samples=30", "num_layers=3", "batch.seed=0x10"])
    assert (study.measure.min_samples, study.measure.max_samples, study.measure.warmup_s) == (30, 400, 0.2)
    assert (study.layer.num_layers, study.batch.seed) == (3, 16)


@pytest.mark.parametrize("preset", ["quick", "standard", "rigorous"])
def test_a_preset_wins_over_the_file_and_a_setting_over_a_preset(load: Load, preset: Preset) -> None:
    """Of what it does not set, the file stays."""
    text = GOOD + "measure: {processes: 2, min_samples: 40, max_samples: 400, warmup_s: 0.5}\n"
    written = load(text).measure

    assert load(text, preset=preset).measure == written.model_copy(update=study.PRESETS[preset])
    set_too = load(text, preset=preset, settings=["measure.processes=7"]).measure
    assert set_too == written.model_copy(update={**study.PRESETS[preset], "processes": 7})
    assert load(GOOD, preset=preset).measure == MeasureSpec(**study.PRESETS[preset])


def test_presets_are_legal_and_ask_for_more_and_more() -> None:
    """Each is a MeasureSpec of its own; standard is what a study without `measure` has."""
    quick, standard, rigorous = (MeasureSpec(**study.PRESETS[each]) for each in ("quick", "standard", "rigorous"))
    assert standard == MeasureSpec()
    for name in ("processes", "min_samples", "max_samples", "cell_time_s"):
        assert getattr(quick, name) < getattr(standard, name) < getattr(rigorous, name)
    assert rigorous.ci_half_width < standard.ci_half_width and rigorous.min_clock_ratio > standard.min_clock_ratio


@pytest.mark.parametrize(
    ("preset", "text", "set_too", "where"),
    [
        ("quick", GOOD, ["measure.min_samples=31"], "--quick"),
        ("rigorous", GOOD, ["measure.max_samples=99"], "--set measure.max_samples=99"),
        ("quick", GOOD + "measure: 3\n", [], "--quick"),
    ],
    ids=["quick", "rigorous", "no block"],
)
def test_a_preset_that_does_not_fit_names_its_option(
    load: Load, preset: Preset, text: str, set_too: list[str], where: str
) -> None:
    error = complaint(load, text, preset=preset, settings=set_too)
    assert error.where == where and error.message.startswith("measure.") and error.hint


def test_a_later_setting_wins_and_may_reach_into_an_earlier_one(load: Load) -> None:
    """Options are applied from left to right."""
    study = load(GOOD, settings=["batch={seed: 1, next_n: 2}", "batch.seed=2", "num_layers=5", "num_layers=6"])
    assert (study.batch.seed, study.batch.next_n, study.layer.num_layers) == (2, 2, 6)


def test_setting_a_preset_takes_the_place_of_a_shape(load: Load) -> None:
    """And setting a shape that of a preset: exactly one is left."""
    assert load(inline_shape(), settings=["preset=glm-5"]).layer.preset == "glm-5"
    shape = parse(inline_shape(), "x").value["shape"]
    assert load(GOOD, settings=[f"shape={json.dumps(shape)}"]).layer.preset == "study"


@pytest.mark.parametrize(
    ("setting", "message", "remedy"),
    [
        ("num_layers", "expected dotted.key=value", "--set measure.min_samples=30"),
        ("=3", "expected dotted.key=value", "--set"),
        ("measure..x=3", "expected dotted.key=value", "--set"),
        ("num_layers=0", "num_layers: 0 is less than 1", "1 or more"),
        ("num_layers=", "num_layers: expected an integer, got nothing", "integer"),
        ("num_layers=[", "is not valid YAML", "brackets"),
        ("num_layer=1", "num_layer: unknown key", "did you mean num_layers?"),
        ("measure.cache=hot", "measure.cache: 'hot' is not known here", "cold"),
        ("measure.min=1", "measure.min: unknown key", "min_samples"),
        ("name.first=x", "name.first: name is 'study', not a mapping", "as a whole"),
        ("measure.min_samples=900", "measure.min_samples: max_samples 500 is below", "raise"),
    ],
)
def test_bad_setting_names_the_option(load: Load, setting: str, message: str, remedy: str) -> None:
    """A setting is checked as the file is, and blamed by its own words."""
    error = complaint(load, GOOD, settings=[setting])
    assert f"--set {setting}" == error.where
    assert error.message.startswith(message)
    assert remedy in error.hint


# Hugging Face files

V3_2_JSON: dict[str, Any] = {
    "model_type": "deepseek_v32",
    "hidden_size": 7168,
    "num_attention_heads": 128,
    "num_key_value_heads": 128,
    "q_lora_rank": 1536,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "index_n_heads": 64,
    "index_head_dim": 128,
    "index_topk": 2048,
    "max_position_embeddings": 163840,
    "rms_norm_eps": 1e-6,
    "intermediate_size": 18432,
    "rope_theta": 10000,
    "rope_scaling": {
        "type": "yarn",
        "factor": 40,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "original_max_position_embeddings": 4096,
        "beta_fast": 32,
        "beta_slow": 1,
    },
    "attention_bias": False,
}
GLM_5_JSON: dict[str, Any] = {
    **V3_2_JSON,
    "model_type": "glm_moe_dsa",
    "hidden_size": 6144,
    "num_attention_heads": 64,
    "num_key_value_heads": 64,
    "q_lora_rank": 2048,
    "qk_nope_head_dim": 192,
    "qk_head_dim": 256,
    "v_head_dim": 256,
    "index_n_heads": 32,
    "max_position_embeddings": 202752,
    "rms_norm_eps": 1e-5,
    "intermediate_size": 12288,
    "rope_theta": None,
    "rope_scaling": None,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1000000},
}


def write_json(path: Path, values: Any) -> Path:
    path.write_text(json.dumps(values))
    return path


@pytest.mark.parametrize(
    ("values", "tp_size", "preset"),
    [
        (V3_2_JSON, 1, "v3.2"),
        (V3_2_JSON, 8, "v3.2-tp8"),
        (GLM_5_JSON, 1, "glm-5"),
        (GLM_5_JSON, 8, "glm-5-tp8"),
        (V3_2_JSON | {"rope_theta": None, "rope_parameters": {"rope_theta": 1e4}}, 1, "v3.2"),
    ],
    ids=["v3.2", "v3.2-tp8", "glm-5", "glm-5-tp8", "theta moved"],
)
def test_hf_config_gives_the_preset(tmp_path: Path, values: dict[str, Any], tp_size: int, preset: str) -> None:
    """The published config.json and the preset are the same layer; rope may stand in the old or the new place."""
    assert PRESETS[preset] == hf.layer_shape(write_json(tmp_path / "config.json", values), tp_size)


def test_hf_config_path_is_relative_to_the_file_and_of_an_option_to_the_working_directory(
    load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A study can be moved together with what it names."""
    write_json(tmp_path / "config.json", V3_2_JSON)
    study = load("name: x\nshape: {hf_config: config.json, tp_size: 8, name: ds}\nsweep: {num_tokens: 1}\n")
    assert ("ds", PRESETS["v3.2-tp8"]) == (study.layer.preset, study.layer.shape)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    write_json(Path("other.json"), GLM_5_JSON)
    assert PRESETS["glm-5"] == load(GOOD, settings=["shape.hf_config=other.json"]).layer.shape


def test_indexer_rope_interleave_may_be_given(tmp_path: Path) -> None:
    """The key wins over the model's default, and saves an unknown model_type."""
    values = GLM_5_JSON | {"model_type": "new", "indexer_rope_interleave": False}
    expected = replace(PRESETS["glm-5"], indexer_rope_interleave=False)
    assert expected == hf.layer_shape(write_json(tmp_path / "config.json", values))


def test_hf_config_of_plain_mla(tmp_path: Path) -> None:
    """DeepSeek-V3 has no indexer."""
    values = {key: value for key, value in V3_2_JSON.items() if not key.startswith("index")}
    shape = hf.layer_shape(write_json(tmp_path / "config.json", values | {"model_type": "deepseek_v3"}))
    assert (shape.is_dsa, shape.index_n_heads, shape.index_head_dim) == (False, 0, 0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": ...}, "hidden_size: is missing"),
        ({"hidden_size": None}, "hidden_size: is null"),
        ({"hidden_size": "7168"}, "hidden_size: expected a number, got '7168'"),
        ({"hidden_size": True}, "hidden_size: expected a number, got 'True'"),
        ({"hidden_size": 71.5}, "hidden_size: expected an integer, got 71.5"),
        ({"hidden_size": 10**400}, "hidden_size: expected a number"),
        ({"hidden_size": 0}, "hidden_size: 0 is not a dimension"),
        ({"q_lora_rank": None}, "q_lora_rank: null means MLA-lite"),
        ({"q_lora_rank": ...}, "q_lora_rank: is missing"),
        ({"qk_head_dim": 128}, "qk_head_dim: 128 disagrees with qk_nope_head_dim + qk_rope_head_dim = 192"),
        ({"num_key_value_heads": 8}, "num_key_value_heads: 8 disagrees with num_attention_heads = 128"),
        ({"num_attention_heads": 0, "num_key_value_heads": 0}, "num_attention_heads: 0 is not a dimension"),
        ({"attention_bias": True}, "attention_bias: biases are not modelled"),
        ({"index_kpool": 4}, "index_kpool: pooled index keys are not plain DSA"),
        ({"index_topk": ...}, "index_topk: is missing"),
        ({"index_head_dim": 64}, "index_head_dim: 64 is not supported"),
        ({"model_type": "new"}, "indexer_rope_interleave: is missing, and model_type 'new'"),
        ({"model_type": ["new"]}, "indexer_rope_interleave: is missing, and model_type"),
        ({"indexer_rope_interleave": 1}, "indexer_rope_interleave: expected true or false, got '1'"),
        ({"rope_theta": ...}, "rope_theta: is missing"),
        ({"rope_theta": 0}, "rope_theta: 0.0 is not above 1.0"),
        ({"rope_scaling": "yarn"}, "rope_scaling: expected an object"),
        ({"rope_scaling": {"type": "linear", "factor": 2}}, "rope_scaling.type: 'linear' is not supported"),
        ({"rope_scaling": {"type": "yarn"}}, "factor: is missing"),
        ({"rope_scaling": {"type": "yarn", "rope_type": "default"}}, "rope_scaling.type: disagrees"),
        ({"rope_parameters": {"factor": 4}}, "rope_parameters.factor: disagrees with rope_scaling.factor"),
        ({"rope_parameters": {"rope_theta": 5}}, "rope_parameters.rope_theta: disagrees with rope_theta"),
    ],
    ids=str,
)
def test_bad_hf_config_names_the_file_and_the_key(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    """What is missing, of the wrong type or at odds in a config.json."""
    values = {key: value for key, value in (V3_2_JSON | changes).items() if value is not ...}
    path = write_json(tmp_path / "config.json", values)
    with pytest.raises(ConfigError) as caught:
        hf.layer_shape(path)
    assert str(path) == caught.value.where
    assert caught.value.message.startswith(message)
    assert caught.value.hint


def test_a_bad_config_json_is_blamed_on_the_line_of_the_study_that_names_it(load: Load, tmp_path: Path) -> None:
    """Both files stand in the message."""
    path = write_json(tmp_path / "config.json", V3_2_JSON | {"hidden_size": None})
    error = complaint(load, "name: x\nshape:\n  hf_config: config.json\nsweep: {num_tokens: 1}\n")
    assert f"{tmp_path / 'study.yaml'}:3" == error.where
    assert f"shape.hf_config: {path}: hidden_size: is null" == error.message


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ("{hf_config: config.json, tp_size: 3}", "shape.hf_config: "),
        ("{hf_config: config.json, tp_size: 0}", "shape.tp_size: 0 is not a number of ranks"),
        ("{hf_config: config.json, tp_size: x}", "shape.tp_size: 'x' is not a number of ranks"),
        ("{hf_config: config.json, hidden_size: 5}", "shape.hidden_size: stands beside hf_config"),
        ("{hf_config: config.json, tp: 5}", "shape.tp: unknown key"),
        ("{hf_config: 5}", "shape.hf_config: expected text, got 5"),
        ("{hf_config: .}", "shape.hf_config: "),
    ],
)
def test_bad_use_of_hf_config(load: Load, tmp_path: Path, shape: str, message: str) -> None:
    """tp_size must divide, and nothing else may stand beside."""
    write_json(tmp_path / "config.json", V3_2_JSON)
    assert complaint(load, f"name: x\nshape: {shape}\nsweep: {{num_tokens: 1}}\n").message.startswith(message)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000, b"1" * (1 << 21)])
def test_config_json_that_is_none(tmp_path: Path, content: bytes) -> None:
    """Whatever stands in the file, the answer is a ConfigError that names it."""
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"config\.json"):
        hf.layer_shape(path)


# Checkpoints


def safetensors(path: Path, *layers: int, missing_bytes: int = 0) -> Path:
    """The header of decoder layers of the tiny preset, with a dense MLP, and a hole in place of their bf16 tensors."""
    header, end = {}, 0
    for layer in layers:
        for name, size in weight_shapes(PRESETS["tiny"], mlp=True).items():
            begin, end = end, end + 2 * math.prod(size)
            header[f"model.layers.{layer}.{name}"] = {"dtype": "BF16", "shape": size, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    os.truncate(path, 8 + len(text) + end - missing_bytes)
    return path


Q_A = "model.layers.3.self_attn.q_a_proj.weight"


def test_checkpoint_file_or_folder_is_accepted(load: Load, tmp_path: Path) -> None:
    """A file, a folder of one file, a folder with an index; the path is absolute in the Study."""
    folder = tmp_path / "model"
    folder.mkdir()
    file = safetensors(folder / "a.safetensors", 3)
    for path in ("model", "model/a.safetensors"):
        study = load(GOOD + f"weights: {{safetensors: {path}, layer: 3}}\n")
        assert (str(tmp_path / path), 3) == (study.layer.weights.safetensors, study.layer.weights.layer)
    safetensors(folder / "b.safetensors", 4)
    names = [f"model.layers.3.{name}" for name in weight_shapes(PRESETS["tiny"], mlp=True)]
    places = dict.fromkeys(names, file.name) | {"model.layers.4.input_layernorm.weight": "gone"}
    write_json(folder / "model.safetensors.index.json", {"weight_map": places})
    assert checkpoint_problem(folder, [3], PRESETS["tiny"], mlp=True) is None


@pytest.mark.parametrize(
    ("make", "wrong"),
    [
        (lambda path: None, "cannot be read: No such file"),
        (lambda path: path.mkdir(), "holds no *.safetensors"),
        (lambda path: path.write_bytes(b""), "is not a safetensors file, or is cut short"),
        (lambda path: path.write_bytes(b"\xff" * 100), "is not a safetensors file"),
        (lambda path: path.write_bytes(struct.pack("<Q", 4) + b"nope"), "has no safetensors header"),
        (lambda path: path.write_bytes(struct.pack("<Q", 8) + b'{"a": 1}'), "has no safetensors header"),
        (lambda path: safetensors(path, 3, missing_bytes=1), "is cut short"),
        (lambda path: safetensors(path, 30), f"has no tensor {Q_A}"),
        (
            lambda path: (
                path.mkdir(),
                safetensors(path / "a.safetensors"),
                safetensors(path / "b.safetensors"),
            ),
            "holds 2 *.safetensors and no model.safetensors.index.json",
        ),
        (lambda path: (path.mkdir(), write_json(path / "model.safetensors.index.json", [])), "is not a weight index"),
        (
            lambda path: (
                path.mkdir(),
                write_json(path / "model.safetensors.index.json", {"weight_map": {Q_A: "gone"}}),
            ),
            "cannot be read: No such file",
        ),
    ],
)
def test_bad_checkpoint(load: Load, tmp_path: Path, make: Callable[[Path], Any], wrong: str) -> None:
    """A missing, cut, foreign or incomplete checkpoint is found before anything starts."""
    make(tmp_path / "weights")
    error = complaint(load, GOOD + "weights:\n  safetensors: weights\n  layer: 3\n")
    assert f"{tmp_path / 'study.yaml'}:6" == error.where
    assert error.message.startswith("weights.safetensors: ")
    assert wrong in error.message


def test_a_checkpoint_serves_every_rank_and_every_layer(tmp_path: Path) -> None:
    """Heads of all ranks are cut to this rank's; every layer of a stack must be there, in the study's shape."""
    file = safetensors(tmp_path / "weights", 3, 4)
    tiny = PRESETS["tiny"]
    half = replace(tiny, num_heads=tiny.num_heads // 2, intermediate_size=tiny.intermediate_size // 2, tp_size=2)

    assert checkpoint_problem(file, [3, 4], half, mlp=True) is None
    for layers, shape, wrong in (
        ([3, 4, 5], tiny, "has no tensor model.layers.5.self_attn.q_a_proj.weight"),
        ([3], replace(half, tp_size=1), "holds model.layers.3.self_attn.q_b_proj.weight as [3072, 256]"),
        (
            [3],
            replace(tiny, kv_lora_rank=256),
            "kv_a_proj_with_mqa.weight as [576, 512], the study's shape needs [320, 512]",
        ),
    ):
        problem = checkpoint_problem(file, layers, shape, mlp=True)
        assert problem is not None and wrong in problem[0] and problem[1]


# Stored studies


def test_resolved_study_is_a_study_file_of_its_own(load: Load, tmp_path: Path) -> None:
    """What a run stores can be swept again as it stands."""
    safetensors(tmp_path / "weights", 2)
    text = GOOD + (
        "  mode: [full, split_eager]\n  exclude: [{mode: full, num_tokens: 8}]\n  include: [{phase: decode}]\n"
        "  boundary: [proj, logits]\n"
        "weights: {safetensors: weights, layer: 2}\nmlp: dense\nlayer: {short_seq_mha_threshold: 3}\n"
        "tiles: {sparse_attn: [{block_n: 32, num_warps: 4}]}\nbatch: {next_n: 2}\nmeasure: {warmup_s: 1e-3}\n"
        "capture: {sizes: [8, 1], hold: weak, max_num_tokens: 64, max_batch_size: 2, max_seq_len: 9}\n"
        "budget: {eager_launches: 40}\n"
    )
    study = load(text)
    assert study == study_from_resolved(resolved_yaml(study))
    assert study == load(resolved_yaml(study))


def test_stored_study_loads_where_its_checkpoint_is_not(load: Load, tmp_path: Path) -> None:
    """A shared run file is read on machines without the weights."""
    file = safetensors(tmp_path / "weights", 0)
    study = load(GOOD + "weights: {safetensors: weights}\n")
    text = resolved_yaml(study)
    file.unlink()
    assert study == study_from_resolved(text)


def test_a_study_stored_before_there_were_boundaries_loads(load: Load) -> None:
    """What it lacks has its default."""
    study = load(GOOD)
    stored = parse(resolved_yaml(study), "stored").value
    del stored["capture"], stored["budget"], stored["sweep"]["boundary"], stored["measure"]["counts"]
    assert study == study_from_resolved(dump(stored))


@pytest.mark.parametrize("text", ["", "name: x\n", "{", "[]"])
def test_a_text_that_is_no_stored_study(text: str) -> None:
    """Rubbish in a run file is a ConfigError, too."""
    with pytest.raises(ConfigError, match="stored study"):
        study_from_resolved(text)


def test_reading_a_study_needs_no_torch() -> None:
    """config and plan answer at once and leave the GPU alone."""
    code = "import sys, mlaprof.config.load, mlaprof.plan; sys.exit('torch' in sys.modules or 'scipy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=False).returncode == 0


# Hostile files

SCRAPS = st.sampled_from(
    [
        *(" ", "\n", "\t", "\n  ", ":", ": ", "-", "- ", "? ", "[", "]", "{", "}", ",", "'", '"', "#", "`", "@", "~"),
        *("&a ", "*a", "<<: ", "!", "!!int ", "%YAML 1.1\n---\n", "---\n", "...\n", "|", ">", "\\", "\\x", '"\\ud800"'),
        *("0", "-1", "99999999999999999999", "0x", "0o9", "1e400", ".nan", "-.inf", "null", "true", "num_tokens"),
        *("{pow2: [1, 8]}", "{range: [1, 9, 2]}", "{values: [", "\x85", "\u2028", "\ufeff", "é"),
    ]
)
EDITS = st.lists(st.tuples(st.floats(0, 1), st.integers(0, 12), SCRAPS | st.text(max_size=4)), min_size=1, max_size=6)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(edits=EDITS)
def test_a_damaged_study_loads_or_is_a_config_error(load: Load, edits: list[tuple[float, int, str]]) -> None:
    """Characters cut from the quickstart and scraps of YAML put in their place never raise anything else."""
    text = QUICKSTART.read_text()
    for place, cut, scrap in edits:
        start = int(place * len(text))
        text = text[:start] + scrap + text[start + cut :]
    try:
        study = load(text.encode("utf-8", "surrogatepass"))
    except ConfigError as error:
        assert "study.yaml:" in error.where
        assert "\n" not in str(error)
    else:
        assert study == study_from_resolved(resolved_yaml(study))


LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(MODES)
JSON = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["values", "pow2", "mode", "x"]), inner)
    ),
    max_leaves=6,
)
KEYS = ["name", "preset", "shape", "num_layers", "mlp", "weights", "layer", "sweep", "tiles", "batch", "measure"]
KEYS += ["sweep.num_tokens", "sweep.mode", "sweep.exclude", "sweep.include", "tiles.sparse_attn", "shape.hf_config"]
KEYS += ["capture", "budget", "capture.sizes", "capture.hold", "capture.max_seq_len", "budget.syncs", "sweep.boundary"]
KEYS += ["weights.safetensors", "measure.cache", "layer.llama_4_scaling", "shape.rope", "sweep.phase", "batch.next_n"]


@settings(max_examples=200, deadline=None)
@given(changes=st.lists(st.tuples(st.sampled_from(KEYS), JSON), min_size=1, max_size=3))
def test_any_value_at_any_key_loads_or_is_a_config_error(changes: list[tuple[str, Any]]) -> None:
    """Every type in every place, given by --set."""
    try:
        load_study(QUICKSTART, settings=[f"{key}={json.dumps(value)}" for key, value in changes])
    except ConfigError as error:
        assert error.where
