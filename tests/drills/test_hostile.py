"""Files from strangers: studies, run files, models' configurations and checkpoints, damaged in 11,000 ways.

Each is taken, or refused in one line that names it; nothing else ever comes out, least of all a traceback.
"""

from __future__ import annotations

import io
import json
import random
import sqlite3
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

from mlaprof import store
from mlaprof.analysis.kernels import summarize_kernels
from mlaprof.analysis.summary import summarize
from mlaprof.checkpoint import INDEX, checkpoint_problem
from mlaprof.config.hf import layer_shape
from mlaprof.config.kernels import load_kernel_study
from mlaprof.config.load import load_study, resolved_yaml, study_from_resolved
from mlaprof.errors import MlaprofError
from mlaprof.facts import Check
from mlaprof.kernel_plan import expand_kernels
from mlaprof.plan import expand
from mlaprof.records import Outcome
from mlaprof.report import export
from mlaprof.report.console import print_summary
from mlaprof.report.kernels import print_kernels
from mlaprof.shapes import PRESETS

pytestmark = pytest.mark.drill

SEEDS = st.integers(0, 2**32)  # of the damage: what Hypothesis draws itself takes longer than what is tested
LEAST_POINTS = 2_000  # larger plans of legal studies are not expanded here


def tries(count: int) -> Callable[[Callable[..., None]], Callable[..., None]]:
    return settings(
        max_examples=count,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
        database=None,
    )


STUDY = """\
name: small
preset: tiny
num_layers: 1
weights: {seed: 3}
layer: {linear: bf16}
sweep:
  phase: [prefill, decode]
  num_tokens: {pow2: [1, 8]}
  mode: [monolithic_eager, full]
  exclude: [{mode: full, num_tokens: 8}]
tiles: {sparse_attn: [{block_n: 16}]}
capture: {sizes: [4, 8], max_num_tokens: 8}
measure: {cache: warm, limits_s: {compile: 60}}
"""
KERNELS = """\
name: kernels
launch: [eager]
kernels:
  topk: {shapes: [{num_tokens: [1, 8], num_keys: 4096}], provider: [triton, torch]}
  block_gemm:
    shapes: [{m: {pow2: [1, 8]}, n: 512, k: 512}]
    tiles: {triton: [{block_m: 16}]}
"""
SCRAPS = [
    *(
        b" ",
        b"\n",
        b"\t",
        b"\n  ",
        b":",
        b": ",
        b"-",
        b"- ",
        b"? ",
        b"[",
        b"]",
        b"{",
        b"}",
        b",",
        b"'",
        b'"',
        b"#",
        b"`",
    ),
    *(
        b"&a ",
        b"*a",
        b"<<: *a",
        b"!",
        b"!!int ",
        b"!!python/object/apply:os.system [true]",
        b"%YAML 1.1\n---\n",
        b"---\n",
    ),
    *(
        b"0",
        b"-1",
        b"99999999999999999999",
        b"0x",
        b"1e400",
        b".nan",
        b"-.inf",
        b"null",
        b"true",
        b"~",
        b"\x85",
        b"\xff",
    ),
    *(
        b"{pow2: [1, 4]}",
        b"{range: [1, 9, 2]}",
        b"faults: []\n",
        b"../../etc/passwd",
        b"\xef\xbb\xbf",
        b"\x00",
        b"\xe2\x80\xa8",
    ),
    *(b'"\\ud800"', b'"\\u001b[2J"', b"[[[[[[[[[[[[", b"a: &b [*b]\n", b"hf_config", b"safetensors: /dev/zero\n"),
]
WORDS: list[Any] = [
    *(None, True, False, 0, 1, -1, 2**63, 2**200, -(2**63), 1e308, 5e-324, -0.0, "", " ", "0", "NaN", "Infinity"),
    *(
        "[red]x[/red]",
        "$\\frac{",
        "<script>alert(1)</script>",
        "\x1b]0;x\x07",
        "a\nb",
        "../../x",
        "/etc/passwd",
        "%s",
        "{}",
    ),
    *("\u202e", "\ud7ff", "é" * 300, [], {}, [[]], {"": {}}, ["timing"], "timing#0 x", "latest", "; rm -rf /", "`id`"),
]


def damaged(content: bytes, dice: random.Random) -> bytes:
    """Up to six cuts, scraps, copies and flips."""
    for _ in range(dice.randint(1, 6)):
        at = dice.randrange(len(content) + 1)
        end = min(len(content), at + dice.choice([0, 1, 2, 5, 12, 40]))
        match dice.randrange(4):
            case 0:
                content = content[:at] + content[end:]
            case 1:
                content = content[:at] + dice.choice(SCRAPS) + content[end:]
            case 2:
                content = content[:at] + content[at:end] * 2 + content[end:]
            case 3:
                content = content[:at] + bytes([dice.randrange(256)]) + content[at + 1 :]
    return content


def twisted(value: Any, dice: random.Random) -> Any:
    """The JSON with one place of it replaced, dropped or doubled."""
    if isinstance(value, dict) and value and dice.random() < 0.9:
        key = dice.choice(list(value))
        if dice.random() < 0.1:
            return {name: each for name, each in value.items() if name != key}
        return {**value, key: twisted(value[key], dice)}
    if isinstance(value, list) and value and dice.random() < 0.9:
        at = dice.randrange(len(value))
        if dice.random() < 0.2:
            return [*value[:at], *value[at:], *value[at:]]
        return [*value[:at], twisted(value[at], dice), *value[at + 1 :]]
    # Mostly of its own kind, which gets past the door.
    alike = [
        word for word in WORDS if isinstance(word, (int, float) if isinstance(value, (int, float)) else type(value))
    ]
    return dice.choice(alike if alike and dice.random() < 0.8 else WORDS)


def refused(error: MlaprofError, path: Path) -> None:
    assert "\n" not in str(error), repr(str(error))
    assert error.hint and error.where, str(error)
    assert not any(ord(letter) < 32 or 127 <= ord(letter) < 160 for letter in str(error)), repr(str(error))


@tries(3000)
@given(seed=SEEDS)
def test_a_study(tmp_path: Path, seed: int) -> None:
    path = tmp_path / "study.yaml"
    path.write_bytes(damaged(STUDY.encode(), random.Random(seed)))
    try:
        study = load_study(path)
    except MlaprofError as error:
        refused(error, path)
        return
    axes = study.axes
    if len(axes.num_tokens) * len(axes.mode) * len(axes.context_len) < LEAST_POINTS:
        expand(study, "cpu")


@tries(1000)
@given(seed=SEEDS)
def test_a_study_that_a_run_stores(tmp_path: Path, seed: int) -> None:
    """Only a resolved one is read from a run file, with no other check than its structure."""
    path = tmp_path / "study.yaml"
    if not path.exists():
        path.write_text(STUDY)
        (tmp_path / "resolved.yaml").write_text(resolved_yaml(load_study(path)))
    text = damaged((tmp_path / "resolved.yaml").read_bytes(), random.Random(seed)).decode(errors="replace")
    try:
        study_from_resolved(text)
    except MlaprofError as error:
        refused(error, path)


@tries(1000)
@given(seed=SEEDS)
def test_a_kernel_study(tmp_path: Path, seed: int) -> None:
    path = tmp_path / "kernels.yaml"
    path.write_bytes(damaged(KERNELS.encode(), random.Random(seed)))
    try:
        study = load_kernel_study(path)
    except MlaprofError as error:
        refused(error, path)
        return
    if sum(len(each.shapes) for each in study.kernels.values()) < LEAST_POINTS:
        expand_kernels(study, "cpu")


def stored(fake_runs: Any, path: Path) -> None:
    """A run of a few cells: timings, counts, memory and compile facts, one of each outcome."""
    every = fake_runs.complete(fake_runs.h100())
    at = every[0].point
    tiled = at.model_copy(update={"tiles": (fake_runs.tile(block_n=32),)})
    chosen = [
        *[each for each in every if each.kind == "timing"][:6],
        *[each for each in every if each.kind == "counts"][:3],
        fake_runs.with_ledger(fake_runs.memory(at, 12.0), fake_runs.ledger()),
        fake_runs.compiled(tiled),
    ]
    run = fake_runs.make_run(chosen, device="cuda", gpus=(fake_runs.H100,))
    manifest = run.manifest.model_copy(update={"schema_version": store.SCHEMA_VERSION})
    first, second, third, *rest = chosen
    broken = Outcome(status="failed", stage="capture", reason="words\nand words", fault="timeout")
    wrong = Outcome(status="incorrect", stage="verify", reason="far off", fault="not_finite")
    checks = (Check(name="row", value=float("nan"), limit=0.0),)
    with store.create(path, manifest) as writer:
        for each in (
            first,
            second.model_copy(update={"outcome": broken, "timing": None}),
            third.model_copy(update={"outcome": wrong, "timing": None, "checks": checks}),
            *rest,
        ):
            writer.append(each)


def read_whole(path: Path) -> str:
    """All that `show` does, in every format."""
    run = store.load(path)
    text = io.StringIO()
    screen = Console(file=text, width=120, force_terminal=False)
    if run.is_of_kernels:
        print_kernels(summarize_kernels(run), run.manifest, screen)
        return text.getvalue()
    summary = summarize(run)
    print_summary(summary, screen)
    for form in (export.to_markdown, export.to_csv, export.to_json):
        text.write(form(summary))
    return text.getvalue()


@tries(2000)
@given(seed=SEEDS)
def test_the_bytes_of_a_run_file(tmp_path: Path, fake_runs, seed: int) -> None:
    """Whatever SQLite lets through is read no further than the first thing that is wrong."""
    source, path = tmp_path / "source.mlaprof", tmp_path / "run.mlaprof"
    if not source.exists():
        stored(fake_runs, source)
    content, dice = bytearray(source.read_bytes()), random.Random(seed)
    for _ in range(dice.randint(1, 30)):
        content[dice.randrange(len(content))] = dice.randrange(256)
    path.write_bytes(content[: dice.choice([len(content), len(content), dice.randrange(len(content))])])
    try:
        store.load(path)
    except MlaprofError as error:
        refused(error, path)


@tries(2000)
@given(seed=SEEDS)
def test_the_records_of_a_run_file(tmp_path: Path, fake_runs, seed: int) -> None:
    """Sound SQLite with up to three twisted records or a twisted manifest, printed in every format."""
    source, path, dice = tmp_path / "source.mlaprof", tmp_path / "run.mlaprof", random.Random(seed)
    if not source.exists():
        stored(fake_runs, source)
    path.write_bytes(source.read_bytes())
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA synchronous = OFF")
        rows = connection.execute("SELECT id, record FROM measurement").fetchall()
        for number, record in dice.sample(rows, dice.randint(1, 3)):
            text = json.dumps(twisted(json.loads(record), dice))
            connection.execute("UPDATE measurement SET record = ? WHERE id = ?", (text, number))
        if dice.random() < 0.5:
            (record,) = connection.execute("SELECT record FROM manifest").fetchone()
            connection.execute("UPDATE manifest SET record = ?", (json.dumps(twisted(json.loads(record), dice)),))
    connection.close()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a sample of 1e308 overflows in a mean; it is the file's own number
            shown = read_whole(path)
    except MlaprofError as error:
        refused(error, path)
        return
    assert "\x1b" not in shown and "\x07" not in shown


CONFIG = {
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
    "rope_theta": 10000,
    "intermediate_size": 18432,
    "rope_scaling": {"type": "yarn", "factor": 40, "original_max_position_embeddings": 4096, "beta_fast": 32},
}


@tries(1000)
@given(seed=SEEDS)
def test_a_config_json(tmp_path: Path, seed: int) -> None:
    path, dice = tmp_path / "config.json", random.Random(seed)
    content = json.dumps(twisted(CONFIG, dice)).encode()
    path.write_bytes(damaged(content, dice) if dice.random() < 0.3 else content)
    try:
        layer_shape(path, dice.choice([1, 8]))
    except MlaprofError as error:
        refused(error, path)


@tries(1000)
@given(seed=SEEDS)
def test_a_checkpoint(tmp_path: Path, seed: int) -> None:
    """Its index and the headers of its files; what they name outside of the folder is not opened."""
    dice = random.Random(seed)
    header = json.dumps(
        {"model.layers.0.input_layernorm.weight": {"dtype": "BF16", "shape": [8], "data_offsets": [0, 16]}}
    )
    whole = len(header).to_bytes(8, "little") + header.encode() + bytes(16)
    (tmp_path / "a.safetensors").write_bytes(damaged(whole, dice))
    index = {"weight_map": {"model.layers.0.input_layernorm.weight": "a.safetensors"}}
    content = json.dumps(twisted(index, dice)).encode()
    (tmp_path / INDEX).write_bytes(damaged(content, dice) if dice.random() < 0.3 else content)
    found = checkpoint_problem(tmp_path, [0], PRESETS["tiny"], mlp=False)
    assert found is not None and "\n" not in " ".join(found)
