"""Adapters of foreign packages against stand-ins with the real signatures, and packages that are not there."""

from __future__ import annotations

import sys
import types

import pytest
import torch

from mlaprof import peers
from mlaprof.peers import Unavailable, deep_gemm, flash_mla, flashinfer, package, sglang, vllm
from mlaprof.peers.package import Package

BF16, FP8 = torch.bfloat16, torch.float8_e4m3fn


@pytest.fixture
def hopper(monkeypatch):
    """Every tensor seems to live on a GPU of compute capability 9.0."""
    monkeypatch.setattr(package, "capability", lambda device: (9, 0))


@pytest.fixture
def install(monkeypatch):
    """install("a.b", f=...) makes a module importable; calls("f") is what its functions were called with."""

    def put(name, **attributes):
        parts = name.split(".")
        for end in range(1, len(parts) + 1):
            module = ".".join(parts[:end])
            if module not in sys.modules:
                monkeypatch.setitem(sys.modules, module, types.ModuleType(module))
        for key, value in attributes.items():
            setattr(sys.modules[name], key, value)

    return put


@pytest.fixture
def operators(monkeypatch):
    """operators("_C", f=...) stands in for a namespace of torch.ops."""

    def put(namespace, **functions):
        monkeypatch.setattr(torch.ops, namespace, types.SimpleNamespace(**functions), raising=False)

    return put


class Recorder:
    """Called, it keeps the arguments and answers."""

    def __init__(self, answer=None):
        self.answer, self.args, self.kwargs, self.calls = answer, (), {}, 0

    def __call__(self, *args, **kwargs):
        self.args, self.kwargs, self.calls = args, kwargs, self.calls + 1
        return self.answer


@pytest.mark.parametrize("name", peers.PEERS)
def test_what_is_not_installed_says_what_to_install(name):
    module = peers.PEERS[name]
    with pytest.raises(Unavailable) as caught:
        module.PACKAGE.load()
    assert name in caught.value.reason and "pip install" in caught.value.remedy
    assert module.PACKAGE.version() is None and name not in peers.versions()


def test_a_kernel_that_a_peer_lacks_is_unavailable():
    with pytest.raises(Unavailable, match="flashinfer has no block_gemm"):
        peers.adapter("flashinfer", "block_gemm")


def test_a_package_that_breaks_on_import_is_unavailable(tmp_path, monkeypatch):
    (tmp_path / "broken_peer.py").write_text("raise OSError('libcuda.so.1: cannot open\\nmore')")
    (tmp_path / "needy_peer.py").write_text("import tvm_ffi_that_is_absent")
    monkeypatch.syspath_prepend(tmp_path)
    for module, reason in (
        ("broken_peer", "broken_peer does not load: OSError: libcuda.so.1: cannot open"),
        ("needy_peer", "needy_peer needs tvm_ffi_that_is_absent"),
    ):
        with pytest.raises(Unavailable) as caught:
            Package("a_peer", (module,), (), "reinstall it").load()
        assert caught.value.reason == reason


def test_a_function_that_a_version_lacks_is_unavailable(install):
    install("deep_gemm")
    with pytest.raises(Unavailable, match="has no fp8_gemm_nt or gemm_fp8_fp8_bf16_nt"):
        deep_gemm.block_gemm(*[torch.zeros(1, 1)] * 4)


def test_the_version_is_the_distribution_that_carries_the_module(monkeypatch):
    def version(name):
        if name == "sgl-deep-gemm":
            return "0.1.3"
        raise package.importlib.metadata.PackageNotFoundError

    monkeypatch.setattr(package.importlib.metadata, "version", version)
    assert peers.versions() == {"deep_gemm": "sgl-deep-gemm 0.1.3"}


def test_another_gpu_is_unavailable(install):
    install("deep_gemm", fp8_gemm_nt=Recorder())
    with pytest.raises(Unavailable, match=r"compute capability 9\.0 only"):
        deep_gemm.block_gemm(*[torch.zeros(1, 1)] * 4)


# deep_gemm


def ragged(heads=64):
    n, m = 3, 5
    bounds = torch.zeros(n, dtype=torch.int32)
    return torch.zeros(n, heads, 128), torch.zeros(m, 128), torch.ones(m), torch.ones(n, heads), bounds, bounds + m


def test_deep_gemm_ragged_logits(install, hopper):
    old, new = Recorder("logits"), Recorder("logits")
    install("deep_gemm", fp8_mqa_logits=old, fp8_fp4_mqa_logits=new)
    q, k, k_scale, weights, ks, ke = ragged()
    run = deep_gemm.index_logits(q, k, k_scale, weights, ks, ke)
    assert old.calls == 0 and run() == "logits"
    assert old.args[0] is q and old.args[1] == (k, k_scale) and old.args[2:] == (weights, ks, ke)
    assert old.kwargs == {"clean_logits": False} and new.calls == 0
    del sys.modules["deep_gemm"].fp8_mqa_logits
    deep_gemm.index_logits(q, k, k_scale, weights, ks, ke)()
    assert new.args[0] == (q, None)


def test_deep_gemm_has_two_numbers_of_heads(install, hopper):
    install("deep_gemm", fp8_mqa_logits=Recorder())
    with pytest.raises(Unavailable, match="no logits of 8 index heads"):
        deep_gemm.index_logits(*ragged(heads=8))


def test_deep_gemm_paged_logits(install, hopper):
    logits, schedule = Recorder("logits"), Recorder("schedule")
    install("deep_gemm", fp8_paged_mqa_logits=logits, get_paged_mqa_logits_metadata=schedule, get_num_sms=lambda: 132)
    q, cache = torch.zeros(2, 2, 64, 128), torch.zeros(4, 8448, dtype=torch.uint8)
    lens, table = torch.tensor([70, 64], dtype=torch.int32), torch.zeros(2, 2, dtype=torch.int32)
    weights = torch.zeros(4, 64)
    run = deep_gemm.paged_index_logits(q, cache, weights, lens, table, 128)
    ends, page, sms = schedule.args
    assert ends.tolist() == [[69, 70], [63, 64]] and ends.dtype == torch.int32 and (page, sms) == (64, 132)
    assert run() == "logits" and schedule.calls == 1
    assert (
        logits.args[0] is q and logits.args[1].shape == (4, 64, 1, 132) and logits.args[1].stride()[:2] == (8448, 132)
    )
    assert logits.args[3] is ends and logits.args[5:] == ("schedule", 128)


def test_deep_gemm_product(install, hopper):
    gemm = Recorder()
    install("deep_gemm", fp8_gemm_nt=gemm)
    a, a_scale, b, b_scale = torch.zeros(3, 256), torch.zeros(3, 2), torch.zeros(16, 256), torch.zeros(1, 2)
    out = deep_gemm.block_gemm(a, a_scale, b, b_scale)()
    assert gemm.args[:2] == ((a, a_scale), (b, b_scale)) and gemm.args[2] is out
    assert out.shape == (3, 16) and out.dtype == BF16


# flash_mla


def attention(heads, topk=128, fp8=False, tokens=4):
    cache = torch.zeros(128, 656, dtype=torch.uint8) if fp8 else torch.zeros(128, 576, dtype=BF16)
    return torch.ones(tokens, heads, 576, dtype=BF16), cache, torch.zeros(tokens, topk, dtype=torch.int32), 0.1


def test_flash_mla_prefill_pads_heads_and_drops_their_output(install, hopper):
    seen = {}

    def flash_mla_sparse_fwd(q, kv, indices, sm_scale, d_v=512, attn_sink=None, topk_length=None):
        seen.update(q=q, kv=kv, indices=indices, scale=sm_scale, d_v=d_v)
        return torch.zeros(*q.shape[:2], d_v), None, None

    install("flash_mla", flash_mla_sparse_fwd=flash_mla_sparse_fwd)
    assert flash_mla.sparse_attn(*attention(16))().shape == (4, 16, 512)
    assert seen["q"].shape == (4, 64, 576) and seen["q"][:, :16].eq(1).all() and seen["q"][:, 16:].eq(0).all()
    assert seen["kv"].shape == (128, 1, 576) and seen["indices"].shape == (4, 1, 128)
    assert (seen["scale"], seen["d_v"]) == (0.1, 512)


def test_flash_mla_takes_hoppers_kernels_from_behind_their_argument(install, hopper):
    seen = []

    def flash_mla_sparse_fwd(q, kv, indices, sm_scale, d_v=512, use_legacy=False):
        seen.append(use_legacy)
        return (torch.zeros(*q.shape[:2], d_v),)

    install("flash_mla", flash_mla_sparse_fwd=flash_mla_sparse_fwd, has_legacy=lambda: True)
    flash_mla.sparse_attn(*attention(64))()
    assert seen == [True]
    install("flash_mla", has_legacy=lambda: False)
    with pytest.raises(Unavailable, match="built without its Hopper kernels"):
        flash_mla.sparse_attn(*attention(64))


@pytest.mark.parametrize("is_old", [False, True], ids=["schedule", "tensors"])
def test_flash_mla_decode_makes_its_schedule_before(install, hopper, is_old):
    asked, seen = [], []

    def old(cache_seqlens, num_q_tokens_per_head_k, num_heads_k, num_heads_q=None, is_fp8_kvcache=False, topk=None):
        asked.append((cache_seqlens.tolist(), num_q_tokens_per_head_k, num_heads_k, num_heads_q, is_fp8_kvcache, topk))
        return "schedule", "splits"

    def new(*args, **kwargs):
        asked.append(args)
        return "schedule", None

    def flash_mla_with_kvcache(
        q,
        k_cache,
        block_table,
        cache_seqlens,
        head_dim_v,
        tile_scheduler_metadata,
        num_splits=None,
        softmax_scale=None,
        causal=False,
        is_fp8_kvcache=None,
        indices=None,
    ):
        seen.append((q.shape, k_cache.shape, indices.shape, tile_scheduler_metadata, num_splits, is_fp8_kvcache))
        return torch.zeros(*q.shape[:3], head_dim_v), None

    install("flash_mla", get_mla_metadata=old if is_old else new, flash_mla_with_kvcache=flash_mla_with_kvcache)
    run = flash_mla.sparse_attn(*attention(16, fp8=True), next_n=2)
    assert len(seen) == 1 and run().shape == (4, 16, 512)
    splits = "splits" if is_old else None
    assert seen[0] == seen[1] == ((2, 2, 64, 576), (2, 64, 1, 656), (2, 2, 128), "schedule", splits, True)
    assert asked == [([128, 128], 128, 1, 64, True, 128) if is_old else ()]


@pytest.mark.parametrize(("heads", "topk", "reason"), [(200, 128, "at most 128 heads"), (64, 100, "a multiple of 128")])
def test_flash_mla_shapes_it_does_not_serve(install, hopper, heads, topk, reason):
    install("flash_mla", flash_mla_sparse_fwd=lambda q: None)
    with pytest.raises(Unavailable, match=reason):
        flash_mla.sparse_attn(*attention(heads, topk))


# sglang, flashinfer


def test_sglang_topk(install, hopper):
    select = Recorder("picked")
    install("sgl_kernel", fast_topk_v2=select)
    logits, ends = torch.zeros(2, 9), torch.tensor([9, 9])
    assert sglang.topk(logits, ends, 2048)() == "picked" and select.args == (logits, ends, 2048)
    with pytest.raises(Unavailable, match="selects 2048, not 512"):
        sglang.topk(logits, ends, 512)


def test_sglang_decodes_bf16_with_pages_of_one_row(install, hopper):
    seen = {}

    def flash_attn_with_kvcache(q, k_cache, v_cache, k=None, v=None, qv=None, **options):
        seen.update(q=q, k=k_cache, v=v_cache, qv=qv, **options)
        return torch.zeros(*q.shape[:2], 512)

    install("sgl_kernel.flash_attn", flash_attn_with_kvcache=flash_attn_with_kvcache)
    q, cache, indices, scale = attention(4, topk=3, tokens=2)
    indices.copy_(torch.tensor([[5, -1, 7], [1, 2, 3]]))
    assert sglang.sparse_attn(q, cache, indices, scale, is_decode=True)().shape == (2, 4, 512)
    assert seen["q"].shape == (2, 4, 64) and seen["qv"].shape == (2, 4, 512)
    assert seen["k"].shape == (128, 1, 1, 64) and seen["v"].shape == (128, 1, 1, 512)
    assert seen["k"].data_ptr() == cache[:, 512:].data_ptr() and seen["v"].data_ptr() == cache.data_ptr()
    assert seen["page_table"].tolist() == [[5, 7, 0], [1, 2, 3]] and seen["cache_seqlens"].tolist() == [2, 3]
    assert seen["cu_seqlens_q"].tolist() == [0, 1, 2] and seen["max_seqlen_q"] == 1
    assert seen["softmax_scale"] == scale and seen["causal"] is False


def test_sglang_quantises_into_aligned_columns(install, hopper):
    quantise = Recorder()
    install("sgl_kernel", sgl_per_token_group_quant_8bit=quantise)
    x = torch.zeros(5, 256, dtype=BF16)
    codes, scale = sglang.group_quant(x)()
    assert quantise.args == (x, codes, scale, 128, 1e-10, -448.0, 448.0)
    assert codes.dtype == FP8 and scale.shape == (5, 2) and scale.stride() == (1, 8)


def test_sglang_product_wants_whole_blocks(install, hopper):
    gemm = Recorder("product")
    install("sgl_kernel", fp8_blockwise_scaled_mm=gemm)
    a, a_scale, b, b_scale = torch.zeros(3, 256), torch.zeros(2, 4).t()[:3], torch.zeros(128, 256), torch.zeros(1, 2)
    assert sglang.block_gemm(a, a_scale, b, b_scale)() == "product"
    assert gemm.args[1].shape == (256, 128) and gemm.args[3].shape == (2, 1) and gemm.args[4] == BF16
    assert gemm.args[2].shape == (3, 2) and gemm.args[2].stride() == (1, 3)
    with pytest.raises(Unavailable, match="blocks of 128, not 2112"):
        sglang.block_gemm(a, a_scale, torch.zeros(2112, 256), b_scale)


def test_flashinfer(install, hopper):
    select, norm = Recorder("picked"), Recorder()
    install("flashinfer", top_k_ragged_transform=select)
    install("flashinfer.norm", rmsnorm=norm)
    logits, ends = torch.zeros(2, 9), torch.tensor([9, 8], dtype=torch.int32)
    assert flashinfer.topk(logits, ends, 4)() == "picked"
    assert select.args[0] is logits and select.args[1].tolist() == [0, 0] and select.args[2:] == (ends, 4)
    x, weight = torch.zeros(2, 128), torch.ones(128)
    out = flashinfer.rmsnorm(x, weight, 1e-6)()
    assert norm.args[:3] == (x, weight, 1e-6) and norm.args[3] is out


# vllm


@pytest.mark.parametrize(
    ("rows", "width", "k", "name"),
    [
        (32, 4096, 2048, "cooperative_topk"),
        (33, 4096, 2048, "persistent_topk"),
        (1, 4095, 512, "persistent_topk"),
        (1, 4096, 100, "top_k_per_row_decode"),
    ],
)
def test_vllm_topk_is_what_its_indexer_would_choose(install, operators, hopper, rows, width, k, name):
    named = {each: Recorder() for each in ("cooperative_topk", "persistent_topk", "top_k_per_row_decode")}
    install("vllm._custom_ops")
    operators("_C", **named)
    logits, ends = torch.zeros(rows, width), torch.full((rows,), width, dtype=torch.int32)
    out = vllm.topk(logits, ends, k)()
    assert [each for each, recorder in named.items() if recorder.calls] == [name]
    args = named[name].args
    if name == "top_k_per_row_decode":
        assert args[:3] == (logits, 1, ends) and args[3] is out and args[4:] == (rows, width, 1, k)
    else:
        assert args[:2] == (logits, ends) and args[2] is out and args[3].dtype == torch.uint8 and args[4:] == (k, width)


def test_vllm_attention_by_flash_mlas_operators(install, operators, hopper):
    prefill = Recorder((torch.zeros(4, 64, 512), None, None))
    decode = Recorder((torch.zeros(2, 2, 64, 512), None, "schedule", "splits"))
    install("vllm._flashmla_C")
    operators("_flashmla_C", sparse_prefill_fwd=prefill, sparse_decode_fwd=decode)
    assert vllm.sparse_attn(*attention(16))().shape == (4, 16, 512)
    assert prefill.args[3:] == (0.1, 512, None, None, None)
    run = vllm.sparse_attn(*attention(16, fp8=True), next_n=2)
    assert decode.calls == 1 and decode.args[5:7] == (None, None)
    assert run().shape == (4, 16, 512)
    assert decode.args[5:7] == ("schedule", "splits") and decode.args[7:] == (None, None, None, 512, 0.1, None)


def test_vllm_products_and_norms_by_operators(install, operators, hopper):
    gemm, quantise, norm, norm_quant = (Recorder() for _ in range(4))
    install("vllm._custom_ops")
    operators(
        "_C",
        cutlass_scaled_mm=gemm,
        per_token_group_fp8_quant=quantise,
        rms_norm=norm,
        rms_norm_per_block_quant=norm_quant,
    )
    a, a_scale, b, b_scale = torch.zeros(3, 256), torch.zeros(3, 2), torch.zeros(128, 256), torch.zeros(1, 2)
    out = vllm.block_gemm(a, a_scale, b, b_scale)()
    assert gemm.args[0] is out and gemm.args[2].shape == (256, 128) and gemm.args[4].shape == (2, 1)
    assert gemm.args[3].shape == (3, 2) and gemm.args[3].stride() == (1, 3)
    x, weight = torch.zeros(3, 256, dtype=BF16), torch.ones(256)
    codes, scale = vllm.group_quant(x)()
    assert quantise.args == (x, codes, scale, 128, 1e-10, -448.0, 448.0, False, True, True)
    assert vllm.rmsnorm(x, weight, 1e-6)() is norm.args[0] and norm.args[1:] == (x, weight, 1e-6)
    codes, scale = vllm.rmsnorm_quant(x, weight, 1e-6)()
    assert norm_quant.args == (codes, x, weight, scale, 1e-6, None, None, 128, True) and scale.stride() == (1, 3)


def test_vllm_gathers_one_request(install, operators, hopper):
    gather = Recorder()
    install("vllm._custom_ops")
    operators("_C_cache_ops", cp_gather_indexer_k_quant_cache=gather)
    keys, scale = vllm.gather_index_cache(
        torch.zeros(3, 8448, dtype=torch.uint8), torch.zeros(1, 2, dtype=torch.int32), 70
    )()
    assert gather.args[0].shape == (3, 64, 132) and gather.args[4].tolist() == [0, 70]
    assert keys.shape == (70, 128) and keys.dtype == FP8 and scale.shape == (70, 1) and scale.dtype == torch.float32


def test_vllm_logits_are_its_own_deep_gemm(install, hopper):
    logits = Recorder("logits")
    install("vllm.third_party.deep_gemm", fp8_mqa_logits=logits)
    assert vllm.index_logits(*ragged())() == "logits"
    install("deep_gemm", fp8_mqa_logits=Recorder("another"))
    assert vllm.index_logits(*ragged())() == "logits"
