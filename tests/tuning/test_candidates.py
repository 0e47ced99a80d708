"""The space of a kernel: every form's, each configuration once, and what the launcher itself would choose inside it."""

from __future__ import annotations

import pytest

from mlaprof.errors import ConfigError
from mlaprof.kernel_choices import choices, misfit
from mlaprof.kernel_shapes import complete
from mlaprof.study import TileChoice, TuneTarget
from mlaprof.tuning.candidates import candidates, form_of, forms_on

SHAPES = {
    "sparse_attn": {"num_tokens": 64, "num_rows": 4096, "num_heads": 16},
    "index_logits": {"num_queries": 1024, "num_keys": 4096},
    "paged_index_logits": {"batch": 16, "kv_len": 4096},
    "topk": {"num_rows": 64, "width": 4096},
    "block_gemm": {"m": 64, "n": 2112, "k": 7168},
    "absorb": {"num_tokens": 64},
    "up_project": {"num_tokens": 64},
}


def target(kernel: str, **shape: int) -> TuneTarget:
    return TuneTarget(kernel=kernel, shape=complete(kernel, SHAPES[kernel] | shape))


@pytest.mark.parametrize("kernel", SHAPES)
@pytest.mark.parametrize("hopper", [True, False], ids=["on Hopper", "elsewhere"])
def test_what_the_launcher_chooses_is_in_the_space_and_survives_the_way_there_and_back(kernel, hopper):
    of = target(kernel)
    found = candidates(of, forms_on(kernel, of.shape, hopper=hopper))
    defaults = choices(kernel, of.shape, hopper=hopper)
    every = set(found.space.configurations)
    assert defaults and len(every) == len(found.space.configurations) <= found.declared
    for choice in defaults:
        assert found.values(choice) in every
        assert found.choice(found.values(choice)) == choice
        assert form_of(found.point(choice)) == choice.kernel
    assert any("@" in choice.kernel for choice in defaults) <= hopper


@pytest.mark.parametrize("kernel,tokens,form", [
    ("sparse_attn", 64, "sparse_attn@hopper_decode"), ("up_project", 64, "up_project"),
    ("up_project", 4096, "up_project@hopper"), ("absorb", 1, "absorb"), ("absorb", 1024, "absorb@hopper"),
])  # fmt: skip
def test_the_first_choice_is_the_form_that_the_launcher_takes_on_hopper(kernel, tokens, form):
    assert choices(kernel, target(kernel, num_tokens=tokens).shape, hopper=True)[0].kernel == form


def test_a_packed_cache_is_served_by_every_form():
    of = target("sparse_attn", num_tokens=64, num_heads=128, fp8_cache=1)
    assert len(forms_on("sparse_attn", of.shape, hopper=True)) == 3
    assert choices("sparse_attn", of.shape, hopper=True)[0].kernel == "sparse_attn@hopper"


def test_a_hopper_block_below_the_row_is_no_candidate():
    values = {"block": 4096, "num_warps": 8, "num_pieces": 1, "ambiguous": 64, "num_registers": 0}
    assert misfit("topk@hopper", values, target("topk").shape) is None
    assert "less than a row" in str(misfit("topk@hopper", values, target("topk", width=8192).shape))
    of = target("topk", width=8192)
    found = candidates(of, ("topk@hopper",))
    assert min(found.choice(each).values["block"] for each in found.space.configurations) == 8192


def test_a_wholly_illegal_space_is_the_users_mistake():
    of = target("topk", width=40_000)
    with pytest.raises(ConfigError, match=r"none of the 2352 tile configurations is legal.*choose another"):
        candidates(of, ("topk@hopper",))


def test_a_form_of_another_search_is_a_programmers_error():
    with pytest.raises(ValueError, match="topk@hopper"):
        candidates(target("topk"), ("topk",)).values(TileChoice(kernel="topk@hopper", values={}))
