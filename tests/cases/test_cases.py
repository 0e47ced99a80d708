"""Every kernel's case: inputs as promised, the oracle agrees with torch's form and with no wrong result."""

from __future__ import annotations

import dataclasses
import logging
import random
import warnings

import pytest
import torch

from mlaprof import kernel_shapes
from mlaprof.cases import CASES, Unavailable, poisoned, version
from mlaprof.cases import case as cases
from mlaprof.kernels import tiles as kernel_tiles
from mlaprof.kernels.tiles.hopper_sparse_attn import HopperSparseAttnTiles
from mlaprof.kernels.tiles.hopper_sparse_decode import HopperSparseDecodeTiles

CPU = torch.device("cpu")

TINY = {
    "index_logits": [
        {"num_queries": 5, "num_keys": 37, "causal": 1, "index_n_heads": 8},
        {"num_queries": 3, "num_keys": 1, "causal": 0, "index_n_heads": 64},
    ],
    "paged_index_logits": [
        {"batch": 2, "kv_len": 70, "next_n": 2, "index_n_heads": 8},
        {"batch": 1, "kv_len": 64, "max_len": 200, "index_n_heads": 32},
    ],
    "topk": [{"num_rows": 3, "width": 100, "k": 16}, {"num_rows": 1, "width": 7, "k": 16}],
    "sparse_attn": [
        {"num_tokens": 3, "num_rows": 50, "num_heads": 4, "topk": 8},
        {"num_tokens": 4, "num_rows": 128, "num_heads": 2, "topk": 80, "num_requests": 2, "next_n": 2},
        {"num_tokens": 2, "num_rows": 64, "num_heads": 2, "topk": 16, "fp8_cache": 1},
    ],
    "block_gemm": [{"m": 3, "n": 144, "k": 256}, {"m": 1, "n": 16, "k": 128}],
    "group_quant": [{"m": 5, "k": 256}],
    "rmsnorm": [{"m": 3, "k": 256}],
    "rmsnorm_quant": [{"m": 3, "k": 256}],
    "norm_rope": [{"num_tokens": 3}],
    "index_query": [{"num_tokens": 3, "index_n_heads": 8}],
    "query_rope": [{"num_tokens": 3, "num_heads": 4}],
    "cache_write": [{"num_tokens": 70}],
    "gather_index_cache": [{"num_tokens": 70}],
    "convert_indices": [{"num_tokens": 9, "topk": 33}],
    "absorb": [{"num_tokens": 3, "num_heads": 4}],
    "up_project": [{"num_tokens": 3, "num_heads": 4}],
    "copy": [{"bytes": 4096}],
    "matmul_bf16": [{"n": 32}],
    "matmul_fp8": [{"n": 32}],
}
SHAPES = [
    pytest.param(kernel, shape, id=f"{kernel}-{index}")
    for kernel, shapes in TINY.items()
    for index, shape in enumerate(shapes)
]


def build(kernel, shape, seed=0, device=CPU):
    complete = kernel_shapes.complete(kernel, shape)
    assert kernel_shapes.illegal(kernel, complete) is None
    return CASES[kernel](complete, seed, device)


def fresh_seed():
    seed = random.randrange(2**31)
    logging.getLogger(__name__).warning("seed %d", seed)
    return seed


def test_every_kernel_that_can_be_asked_for_has_a_case():
    assert set(CASES) == set(kernel_shapes.KERNELS) == set(TINY)


@pytest.mark.parametrize(("kernel", "shape"), SHAPES)
def test_torch_agrees_with_the_oracle(kernel, shape):
    seed = fresh_seed()
    case = build(kernel, shape, seed)
    assert case.kernel == kernel and case.work.bytes > 0
    assert (case.work.flops > 0) == (case.precision != "")
    try:
        with poisoned():
            run = case.call("torch")
            checks = case.check(run())
    except Unavailable as reason:
        assert kernel == "matmul_fp8", reason  # the one that a CPU lacks
        return
    assert checks and all(check.passed for check in checks), checks


@pytest.mark.parametrize(("kernel", "shape"), SHAPES)
def test_a_wrong_result_fails(kernel, shape):
    """Everything zero, and everything NaN where the result can be."""
    case = build(kernel, shape)
    try:
        result = case.call("torch")()
    except Unavailable:
        pytest.skip("torch has no such product on this CPU")
    for wrong in (torch.zeros_like, lambda x: torch.full_like(x, torch.nan)):
        results = result if isinstance(result, tuple) else (result,)
        if any(not x.dtype.is_floating_point for x in results) and wrong is not torch.zeros_like:
            continue
        planted = tuple(wrong(x.float()).to(x.dtype) for x in results)
        assert not all(check.passed for check in case.check(planted)), wrong


@pytest.mark.parametrize("kernel", TINY)
def test_a_seed_is_the_inputs(kernel):
    case, again, other = (build(kernel, TINY[kernel][0], seed) for seed in (1, 1, 2))
    try:
        results = [each.call("torch")() for each in (case, again, other)]
    except Unavailable:
        pytest.skip("torch has no such product on this CPU")
    first, same, different = (each if isinstance(each, tuple) else (each,) for each in results)

    def bits(tensors):
        return [x.contiguous().view(torch.uint8) for x in tensors]

    assert all(torch.equal(a, b) for a, b in zip(bits(first), bits(same), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(bits(first), bits(different), strict=True))


@pytest.mark.parametrize("kernel", TINY)
def test_a_provider_that_is_not_here_is_unavailable_with_its_name(kernel):
    case = build(kernel, TINY[kernel][0])
    for provider in kernel_shapes.PROVIDERS:
        if provider == "torch":
            continue
        with pytest.raises(Unavailable) as caught:
            case.call(provider)
        if provider in kernel_shapes.KERNELS[kernel].providers and provider not in kernel_shapes.OWN:
            assert provider in caught.value.reason and caught.value.remedy


def test_illegal_tiles_are_refused(monkeypatch):
    monkeypatch.setattr(cases, "need_device", lambda provider, device: None)
    case = build("sparse_attn", TINY["sparse_attn"][0])
    with pytest.raises(ValueError, match="block_n"):
        case.call("triton", {"block_n": 7})
    with pytest.raises(ValueError, match="expected fields among"):
        case.call("triton", {"block_z": 7})
    with pytest.raises(ValueError, match="takes no tiles"):
        build("rmsnorm", {"m": 1, "k": 128}).call("triton", {"block_n": 64})


def test_fields_say_which_form_of_a_provider_is_meant(monkeypatch):
    """Hopper has two forms of sparse attention."""
    monkeypatch.setattr(cases, "need_device", lambda provider, device: None)
    case = build("sparse_attn", TINY["sparse_attn"][0] | {"num_heads": 64})
    tiles = [cases.own_tiles(case, "hopper", given, CPU, {}) for given in ({"persistent": 0}, {"num_splits": 2})]
    assert [type(each) for each in tiles] == [HopperSparseAttnTiles, HopperSparseDecodeTiles]
    with pytest.raises(ValueError, match="expected fields among"):
        cases.own_tiles(case, "hopper", {"persistent": 0, "num_splits": 2}, CPU, {})


def test_a_form_that_does_not_serve_a_shape_is_unavailable(monkeypatch):
    """Tiles that a user names and are not legal are an error; what a form chooses and cannot run is a gap."""
    monkeypatch.setattr(cases, "need_device", lambda provider, device: None)
    case = build("sparse_attn", TINY["sparse_attn"][0])

    def tiles(chosen):
        return cases.own_tiles(case, "triton", None, CPU, {"triton": lambda form: chosen(form.TILES)})

    legal = tiles(lambda form: kernel_tiles.default("sparse_attn", kernel_shapes.dims(case.kernel, case.shape)))
    assert legal == kernel_tiles.default("sparse_attn", kernel_shapes.dims(case.kernel, case.shape))
    with pytest.raises(Unavailable, match=r"does not serve this shape$"):
        tiles(lambda form: None)
    with pytest.raises(Unavailable, match="does not serve this shape: block_n: 7 is not legal"):
        tiles(lambda form: dataclasses.replace(legal, block_n=7))
    with pytest.raises(Unavailable, match="group_quant has no hopper form"):
        cases.own_tiles(build("group_quant", TINY["group_quant"][0]), "hopper", None, CPU, {})


def test_topk_counts_repeats_strangers_and_gaps():
    case = build("topk", {"num_rows": 1, "width": 100, "k": 16})
    right = case.logits.topk(16).indices
    ties = case.logits.clone()
    ties[0, right[0, -1]] = ties[0].topk(17).values[-1]  # the 16th and the 17th are equal: either will do
    either = dataclasses.replace(case, logits=ties)
    other = right.clone()
    other[0, -1] = case.logits.topk(17).indices[0, -1]
    for picked in (right, other, right.flip(1)):
        assert all(check.passed for check in either.check(picked))
    for place, value in ((0, int(right[0, 1])), (0, -1), (0, 100), (0, int(case.logits.argmin()))):
        wrong = right.clone()
        wrong[0, place] = value
        assert not all(check.passed for check in case.check(wrong)), value


def test_rows_that_no_token_selects_are_nan():
    for fp8_cache in (0, 1):
        case = build("sparse_attn", {**TINY["sparse_attn"][2], "fp8_cache": fp8_cache, "num_rows": 128})
        used = torch.zeros(128, dtype=torch.bool)
        used[case.indices.flatten().long()] = True
        assert not used.all()
        rows = case.cache if not fp8_cache else case.cache[:, 512:528].contiguous().view(torch.float32)
        assert rows[~used].isnan().all() and rows[used].isfinite().all()


def test_requests_select_in_their_own_rows():
    case = build("sparse_attn", TINY["sparse_attn"][1])
    owner = torch.tensor([0, 0, 1, 1])[:, None]
    picked = case.indices
    assert ((picked // 64 == owner) | (picked == -1)).all()
    assert (picked == -1).sum() == 4 * (80 - 64)  # a request has 64 rows
    assert all(len(row[row >= 0].unique()) == 64 for row in picked)


def test_memory_is_poisoned_inside_only():
    with poisoned():
        assert torch.empty(64).isnan().all()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            torch.zeros(4).index_add_(0, torch.tensor([0]), torch.ones(1))
    assert not torch.are_deterministic_algorithms_enabled()


def test_versions_name_the_package():
    assert version("torch") == f"torch {torch.__version__}"
    assert version("triton") == version("hopper") != version("torch")


@pytest.mark.gpu
@pytest.mark.parametrize(("kernel", "shape"), SHAPES)
def test_every_provider_that_is_here_agrees_with_the_oracle(kernel, shape):
    seed = fresh_seed()
    case = build(kernel, shape, seed, torch.device("cuda"))
    for provider in kernel_shapes.KERNELS[kernel].providers:
        try:
            with poisoned():
                run = case.call(provider)
                checks = case.check(run())
        except Unavailable:
            continue
        assert checks and all(check.passed for check in checks), (provider, checks)
