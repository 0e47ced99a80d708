"""The registered operators: two and a monolith, what their schemas promise, how they find their layer."""

from __future__ import annotations

import gc
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves

from mlaprof.layer.context import ForwardContext, current
from mlaprof.layer.kernel_ops import SCHEMAS
from mlaprof.layer.linear import linear
from mlaprof.layer.mla import MLA
from mlaprof.layer.ops import OPS
from mlaprof.shapes import PRESETS

MIXED = {"contexts": [(5, 0), (3, 70)], "generations": [(1, 130), (1, 64)]}
BODIES = ("dsa_proj", "dsa_attn", "forward_impl")


def op1(bench: Any, hidden: Tensor, positions: Tensor, *, compiled: bool = False) -> list[Tensor]:
    with bench.context(compiled=compiled):
        return OPS.mla_dsa_proj(hidden, positions, "0")


def op2(bench: Any, parts: list[Tensor], positions: Tensor, output: Tensor) -> None:
    with bench.context():
        OPS.mla_dsa_attn_inplace(*parts[:4], parts[4:], positions, "0", output)


def new_output(bench: Any, rows: int) -> Tensor:
    return torch.full((rows, bench.shape.num_heads * bench.shape.v_head_dim), 7.0, dtype=torch.bfloat16)


def bits(tensors: list[Tensor]) -> list[Tensor]:
    return [tensor.contiguous().view(torch.uint8).clone() for tensor in tensors]


def unchanged(before: list[Tensor], tensors: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(before, bits(tensors), strict=True))


def count_bodies(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the bodies of the three ops, as they are called."""
    called: list[str] = []

    def counting(name: str) -> Any:
        real = getattr(MLA, name)

        def wrapper(self: MLA, *args: Any) -> Any:
            called.append(name)
            return real(self, *args)

        return wrapper

    for name in BODIES:
        monkeypatch.setattr(MLA, name, counting(name))
    return called


def test_a01_the_split_is_two_ops_and_the_monolith_their_two_bodies_behind_one(bench, monkeypatch):
    """Monolithic mode differs in packaging alone: the same bodies in the same order, the same bits."""
    hidden, positions = bench.load(bench.batch(**MIXED))
    called = count_bodies(monkeypatch)
    split = bench.forward(hidden, positions)
    assert called == ["dsa_proj", "dsa_attn"]

    called.clear()
    hidden, positions = bench.load(bench.batch(**MIXED))
    monolithic = bench.forward(hidden, positions, form="monolithic")
    assert called == ["forward_impl", "dsa_proj", "dsa_attn"]
    assert torch.equal(split, monolithic)


class Blind(ForwardContext):
    """A context that nobody may ask for the batch."""

    @property
    def metadata(self) -> Any:
        raise AssertionError("the metadata was read")


@pytest.mark.parametrize("threshold", [0, 10_000], ids="short MHA up to {}".format)
def test_a02_op1_needs_no_batch_and_touches_no_cache(bench, threshold, monkeypatch):
    """Under compile it answers for every padded row without reading metadata, even with short MHA allowed."""
    hidden, positions = bench.load(bench.batch(**MIXED), rows=64)
    monkeypatch.setattr(bench.attn, "short_seq_mha_threshold", threshold)
    before = bits(bench.pools)
    with Blind(bench.split.attention, bench.metadata, compiled=True):
        parts = OPS.mla_dsa_proj(hidden, positions, "0")
    assert {part.shape[0] for part in parts} == {64}
    assert all(bool(part.float().isfinite().all()) for part in parts)
    assert unchanged(before, bench.pools)


def test_a02_op1_rows_depend_on_nothing_but_themselves(bench):
    """Token-wise: NaN in other rows, padding or not, changes no bit of a row."""
    hidden, positions = bench.load(bench.batch(**MIXED), rows=64)
    clean = op1(bench, hidden, positions)
    hidden[1::2] = torch.nan
    dirty = op1(bench, hidden, positions)
    assert unchanged(bits([part[::2] for part in clean]), [part[::2] for part in dirty])


def test_a02_op1_takes_any_number_of_rows(bench):
    """One row, and more rows than the batch has tokens."""
    for rows in (1, 2, 63, 200):
        hidden, positions = bench.load(bench.batch([(1, 0)]), rows=rows)
        assert {part.shape[0] for part in op1(bench, hidden, positions)} == {rows}


def test_a03_op2_returns_nothing_and_changes_none_of_its_arguments_but_output(bench):
    """Schema and deed agree: `output` alone is marked, and alone is written. q, too, stays as Op 1 left it."""
    schema = OPS.mla_dsa_attn_inplace.default._schema
    assert len(schema.returns) == 0
    assert [each.name for each in schema.arguments if each.alias_info is not None] == ["output"]

    hidden, positions = bench.load(bench.batch(**MIXED))
    parts = op1(bench, hidden, positions)
    output = new_output(bench, len(hidden))
    before = bits([*parts, positions])
    op2(bench, parts, positions, output)
    assert unchanged(before, [*parts, positions])
    assert bool((output != 7.0).any(dim=-1).all())


@pytest.mark.parametrize("form", ["split", "monolithic"])
def test_a04_the_caller_owns_the_attention_output(bench, form, monkeypatch):
    """Op 2 is handed [T, heads * v_head_dim] in the model's dtype, T counting padding; o_proj reads that tensor."""
    hidden, positions = bench.load(bench.batch(**MIXED), rows=32)
    name = "dsa_attn" if form == "split" else "forward_impl"
    real, given, read = getattr(MLA, name), [], []
    monkeypatch.setattr(MLA, name, lambda self, *args: given.append(args[-1]) or real(self, *args))
    hook = bench.attn.o_proj.register_forward_pre_hook(lambda _, args: read.append(args[0]))
    bench.forward(hidden, positions, form=form)
    hook.remove()
    [output], [projected] = given, read
    assert output.shape == (32, bench.shape.num_heads * bench.shape.v_head_dim)
    assert output.dtype == hidden.dtype
    assert output.data_ptr() == projected.data_ptr()


def test_a05_everything_between_the_ops_travels_as_eight_tensors(bench):
    """Two steps of different size, interleaved op by op with churned memory between, give what they give alone."""
    want, steps = [], []
    for contexts, seed in (([(40, 0), (9, 0)], 1), ([(3, 0)], 2)):
        batch = bench.batch(contexts, seed=seed)
        hidden, positions = bench.load(batch, seed=seed)
        parts = op1(bench, hidden, positions)
        assert isinstance(parts, list) and len(parts) == 8
        output = new_output(bench, len(hidden))
        op2(bench, parts, positions, output)
        want.append(output)
        steps.append((batch, seed))

    held = []
    for batch, seed in steps:  # both Op 1 first ...
        hidden, positions = bench.load(batch, seed=seed)
        held.append((batch, seed, op1(bench, hidden, positions), positions))
        del hidden
        [torch.full((size,), torch.nan) for size in range(1, 5000, 97)]
    for (batch, seed, parts, positions), expected in zip(held, want, strict=True):  # ... then both Op 2
        bench.load(batch, seed=seed)
        output = new_output(bench, len(positions))
        op2(bench, parts, positions, output)
        assert torch.equal(expected, output)


def test_a05_a_forward_leaves_nothing_on_the_layer(bench):
    """Attributes of the layer, of the indexer and of what they hold are the same objects after two sizes."""

    def state() -> list[tuple[str, int]]:
        modules = [*bench.split.modules(), *bench.monolith.modules()]
        return [(name, id(value)) for module in modules for name, value in vars(module).items()] + [
            (name, id(value)) for module in modules for name, value in module.named_parameters()
        ]

    before = state()
    for contexts in ([(40, 0)], [(3, 5)]):
        for form in ("split", "monolithic"):
            hidden, positions = bench.load(bench.batch(contexts))
            bench.forward(hidden, positions, form=form)
    assert before == state()


@pytest.mark.parametrize("rows", [1, 3, 64])
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "under compile"])
def test_a06_op1_and_its_fake_return_eight_tensors_alike(bench, rows, compiled):
    """Count, shapes, dtypes and strides of the fake are the real ones, for every size and compiled or not."""
    hidden, positions = bench.load(bench.batch([(1, 0)]), rows=rows)
    real = op1(bench, hidden, positions, compiled=compiled)
    with torch.inference_mode(False), FakeTensorMode() as fakes:
        inputs = [fakes.from_tensor(torch.empty(t.shape, dtype=t.dtype)) for t in (hidden, positions)]
        fake = op1(bench, *inputs, compiled=compiled)

    def described(parts: list[Tensor]) -> list[Any]:
        return [(tuple(part.shape), part.dtype, part.stride(), str(part.device)) for part in parts]

    assert len(real) == 8
    assert described(real) == described(fake)


def test_a07_shapes_and_dtypes_are_those_of_the_table(bench):
    """Model dtype four times, then e4m3 twice and fp32 twice; k_scale's second dimension is the literal 1."""
    hidden, positions = bench.load(bench.batch([(1, 0)]), rows=3)
    shape, bf16, fp8, fp32 = bench.shape, torch.bfloat16, torch.float8_e4m3fn, torch.float32
    got = [(tuple(part.shape), part.dtype) for part in op1(bench, hidden, positions)]
    assert got == [
        ((3, shape.num_heads * (shape.qk_nope_head_dim + shape.qk_rope_head_dim)), bf16),
        ((3, shape.kv_lora_rank), bf16),
        ((3, shape.qk_rope_head_dim), bf16),
        ((3, shape.kv_lora_rank + shape.qk_rope_head_dim), bf16),
        ((3, shape.index_n_heads, 128), fp8),
        ((3, 128), fp8),
        ((3, 1), fp32),
        ((3, shape.index_n_heads), fp32),
    ]


@pytest.mark.parametrize("preset,num_bytes", [("v3.2", 60_036), ("glm-5", 39_428)])
def test_a07_what_one_token_keeps_alive_between_the_ops(preset, num_bytes):
    """The handed-over bytes a token on one rank, from upstream's table."""
    shape = PRESETS[preset]
    hidden = torch.empty((1, shape.hidden_size), dtype=torch.bfloat16, device="meta")
    layer = SimpleNamespace(shape=shape, boundary="index_quant")
    assert num_bytes == sum(part.nbytes for part in MLA.dsa_proj_like(layer, hidden))


def test_a07_latent_cache_is_compressed_kv_and_unrotated_k_pe(bench):
    """The fourth tensor concatenates the second and third; positions change neither, so rotation waits for Op 2."""
    hidden, positions = bench.load(bench.batch([(9, 0)]))
    here = op1(bench, hidden, positions)
    there = op1(bench, hidden, positions + 1000)
    assert torch.equal(torch.cat((here[1], here[2]), dim=-1), here[3])
    assert unchanged(bits(here[:4]), there[:4])
    assert not torch.equal(here[4].float(), there[4].float()), "the index q is rotated in Op 1"


def test_repeated_op2_is_idempotent(bench):
    """Rotation does not happen in place in q: a benchmark loop over Op 2 computes the same bits, caches included."""
    hidden, positions = bench.load(bench.batch(**MIXED))
    parts = op1(bench, hidden, positions)
    outputs, pools = [], []
    for _ in range(3):
        outputs.append(new_output(bench, len(hidden)))
        op2(bench, parts, positions, outputs[-1])
        pools.append(bits(bench.pools))
    assert torch.equal(outputs[0], outputs[1]) and torch.equal(outputs[0], outputs[2])
    assert unchanged(pools[0], bench.pools)


def test_a30_a_layer_is_found_by_its_string_index_alone(bench):
    """No module argument: the op reaches whichever layer the context knows by that string."""
    hidden, positions = bench.load(bench.batch([(3, 0)]))
    for op in (OPS.mla_dsa_proj, OPS.mla_dsa_attn_inplace, OPS.mla_custom_op_inplace):
        assert {"layer_idx": "str"}.items() <= {a.name: str(a.type) for a in op.default._schema.arguments}.items()
    with bench.context(), pytest.raises(RuntimeError, match=r"expected one of \['0'\], got '1'"):
        OPS.mla_dsa_proj(hidden, positions, "1")
    with pytest.raises(RuntimeError, match="expected `with ForwardContext"):
        OPS.mla_dsa_proj(hidden, positions, "0")


def test_a30_a_forward_goes_through_the_registered_ops_only(bench, spy):
    """Eager, too: the layer calls torch.ops, never its own bodies."""
    for form, ops in (("split", ["mla_dsa_proj", "mla_dsa_attn_inplace"]), ("monolithic", ["mla_custom_op_inplace"])):
        hidden, positions = bench.load(bench.batch([(3, 0)]))
        spy.calls.clear()
        with spy:
            bench.forward(hidden, positions, form=form)
        assert ops == [name for name in spy.names if name.startswith("mla_")]


def test_a_context_keeps_neither_layers_nor_metadata_alive(make_bench, shapes):
    """Both are held weakly, and a dead one is named."""
    bench = make_bench(shapes["glm-like"])
    context = bench.context()
    bench.metadata = None
    gc.collect()
    with pytest.raises(RuntimeError, match="attention metadata: expected it to outlive"):
        _ = context.metadata
    bench.split = bench.monolith = None
    gc.collect()
    with pytest.raises(RuntimeError, match=r"expected one of \[\], got '0'"):
        context.layer("0")


def test_contexts_nest(bench):
    """Leaving a context brings back the one outside it, the same one entered twice included."""
    outer, inner = bench.context(), bench.context()
    with outer:
        with inner, outer, outer:
            assert current() is outer
        assert current() is outer
    with pytest.raises(RuntimeError):
        current()


def check_schema(op: Any, args: tuple[Any, ...]) -> None:
    """What opcheck's test_schema would say, which cannot compare e4m3: only marked arguments change, no result aliases
    an argument."""
    tensors = [leaf for leaf in tree_leaves(args) if isinstance(leaf, Tensor)]
    declared = [(each, arg) for each, arg in zip(op.default._schema.arguments, args, strict=True)]
    marked = [id(arg) for each, arg in declared if each.alias_info is not None and each.alias_info.is_write]
    for tensor in tensors:
        if id(tensor) in marked and tensor.dtype in (torch.bfloat16, torch.int32):
            tensor.fill_(7.0)  # so that writing shows, even of the very values it held
    before = bits(tensors)
    results = [leaf for leaf in tree_leaves(op.default(*args)) if isinstance(leaf, Tensor)]
    changed = [id(t) for t, old in zip(tensors, before, strict=True) if not unchanged([old], [t])]
    assert changed == [id(t) for t in tensors if id(t) in marked]
    storages = {tensor.untyped_storage().data_ptr() for tensor in tensors}
    assert not any(result.untyped_storage().data_ptr() in storages for result in results)
    assert len(results) == 0 or all(each.alias_info is None for each in op.default._schema.returns)


def test_the_model_ops_schemas_are_honest(bench):
    """For one row, too, where a contiguous view and a copy look alike."""
    for batch in (MIXED, {"contexts": [(1, 0)]}):
        hidden, positions = bench.load(bench.batch(**batch))
        parts = op1(bench, hidden, positions)
        output = new_output(bench, len(hidden))
        with bench.context():
            check_schema(OPS.mla_dsa_proj, (hidden, positions, "0"))
            check_schema(OPS.mla_dsa_attn_inplace, (*parts[:4], parts[4:], positions, "0", output))
            check_schema(OPS.mla_custom_op_inplace, (hidden, positions, "0", output))


def test_opcheck_finds_the_model_ops_fakes_true(bench):
    """torch's own comparison of real and fake outputs."""
    with torch.inference_mode(False), torch.no_grad():
        hidden, positions = bench.load(bench.batch(**MIXED))
        parts = op1(bench, hidden, positions)
        output = new_output(bench, len(hidden))
        with bench.context():
            for op, args in (
                (OPS.mla_dsa_proj, (hidden, positions, "0")),
                (OPS.mla_dsa_attn_inplace, (*parts[:4], parts[4:], positions, "0", output)),
                (OPS.mla_custom_op_inplace, (hidden, positions, "0", output)),
            ):
                torch.library.opcheck(op.default, args, test_utils="test_faketensor")


def test_the_kernel_ops_schemas_are_honest(tiny, spy):
    """Every single-kernel op, with the arguments that a mixed batch with cached contexts gives it; those of the indexer
    that Op 2 is left with, and of a step without one, too."""
    hidden, positions = tiny.load(tiny.batch([(70, 90)], [(1, 200)]))
    with spy:
        for boundary in ("index_quant", "proj"):
            tiny.cut(boundary)
            tiny.forward(hidden, positions)
        metadata = tiny.metadata
        latent = torch.randn(len(hidden), tiny.shape.latent_dim).bfloat16().split((tiny.shape.kv_lora_rank, 64), dim=1)
        tiny.attn._append_latent(*latent, positions, metadata.latent_slots(len(hidden)))
        linear(torch.randn(144, hidden.shape[1]).bfloat16(), "fp8_block")(hidden)
    tiny.cut("index_quant")
    arguments = {name.removeprefix("mlaprof::"): args for name, args, _ in spy.calls}
    assert set(SCHEMAS) < set(arguments)
    tiny.load(tiny.batch([(70, 90)], [(1, 200)]))  # the cache as it was, so that the update shows
    for name in SCHEMAS:
        check_schema(getattr(OPS, name), arguments[name])
