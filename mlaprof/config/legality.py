"""What a well-formed Study may still get wrong: axes, dimensions, tiles, checkpoints, contradicting options."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

from mlaprof.checkpoint import FP8_BLOCK, checkpoint_problem
from mlaprof.config.axes import AXES, combinations
from mlaprof.config.draft import Draft, did_you_mean
from mlaprof.config.sizes import captured_sizes
from mlaprof.config.yamltext import KeyPath, dotted
from mlaprof.kernels.tiles import KERNELS, complete, illegal, kernel_of
from mlaprof.shapes import problems
from mlaprof.study import BOUNDED_MODES, KERNEL_STUDY_ONLY, SPLIT_MODES, Selector, Study, kernel_dims

MAX_COMBINATIONS = 200_000


def check_legality(draft: Draft, study: Study) -> None:
    """Raise ConfigError, with the other complaints as notes, when a Study cannot be swept as its draft has it."""
    _check_axes(draft, study)
    _check_shape(draft, study)
    _check_options(draft, study)
    _check_capture(draft, study)
    _check_weights(draft, study)
    draft.check()
    _check_tiles(draft, study)  # their legality needs a legal shape
    draft.check()


def _check_axes(draft: Draft, study: Study) -> None:
    count = 1
    for axis in AXES:
        path: KeyPath = ("sweep", axis)
        found: tuple[Any, ...] = getattr(study.axes, axis)
        count *= len(found)
        if not found:
            draft.complain(path, "the axis is empty", "give at least one value, or leave the key out for its default")
        seen: set[Any] = set()
        for index, value in enumerate(found):
            if value in seen:
                draft.complain((*path, index), f"{value} appears twice", "keep one")
            seen.add(value)
    draft.check()
    everything = False
    for name in ("exclude", "include"):
        for index, rule in enumerate(getattr(study, name)):
            if rule == Selector():
                everything = True
                hint = f"give at least one of {', '.join(AXES)}"
                draft.complain(("sweep", name, index), "a rule without fields matches everything", hint)
            elif rule.boundary is not None and rule.mode is not None and rule.mode not in BOUNDED_MODES:
                wrong = f"{rule.mode} has no boundary, so this rule matches nothing"
                hint = f"leave boundary out, or use {' or '.join(BOUNDED_MODES)}"
                draft.complain(("sweep", name, index, "boundary"), wrong, hint)
    if count > MAX_COMBINATIONS:
        draft.complain(("sweep",), f"{count:,} combinations", f"sweep at most {MAX_COMBINATIONS:,}")
    elif not everything and not combinations(study.axes, study.exclude, study.include):
        draft.complain(("sweep", "exclude"), "nothing is left to sweep", "exclude less")


def _check_shape(draft: Draft, study: Study) -> None:
    for name, wrong, remedy in problems(study.layer.shape):
        draft.complain(("shape", *name.split(".")), wrong, remedy)
    if study.layer.shape.is_dsa:
        return
    written = draft.value["sweep"]
    for index, mode in enumerate(study.axes.mode if "mode" in written else ()):
        if mode in SPLIT_MODES:
            wrong = f"{mode} exists only for DSA, and index_topk 0 is plain MLA: one op, nothing to split"
            draft.complain(("sweep", "mode", index), wrong, "use the monolithic modes and full")
    if "boundary" in written:
        wrong = "the boundary cuts DSA's step in two, and index_topk 0 is plain MLA: one op, nothing to split"
        draft.complain(("sweep", "boundary"), wrong, "leave boundary out")
    if study.layer.options.short_seq_mha_threshold:
        wrong = "short-sequence MHA is a branch of DSA, and index_topk 0 is plain MLA"
        draft.complain(("layer", "short_seq_mha_threshold"), wrong, "use 0")


def _check_tiles(draft: Draft, study: Study) -> None:
    dims = kernel_dims(study.layer.shape)
    for kernel, choices in study.tiles.items():
        path: KeyPath = ("tiles", kernel)
        if kernel not in KERNELS:
            known_kernels = [name for name in KERNELS if kernel_of(name) not in KERNEL_STUDY_ONLY]
            hint = did_you_mean(kernel, known_kernels, f"the kernels with tiles are {', '.join(known_kernels)}")
            draft.complain(path, "unknown kernel", hint)
            continue
        if kernel_of(kernel) in KERNEL_STUDY_ONLY:
            hint = "leave it out: the layer chooses by the shape of each product"
            draft.complain(path, f"{kernel} takes tiles in a kernel study only", hint)
            continue
        if not choices:
            draft.complain(path, "no alternatives", "give at least one tile configuration, or leave the kernel out")
        if not study.layer.shape.is_dsa:
            draft.complain(path, "tiles are swept of DSA only, and index_topk 0 is plain MLA", "leave tiles out")
            continue
        seen: list[Any] = []
        for index, choice in enumerate(choices):
            here = (*path, index)
            known = [each.name for each in fields(KERNELS[kernel].TILES)]
            if unknown := [name for name in choice.values if name not in known]:
                for name in unknown:
                    draft.complain_unknown((*here, name), known)
            elif not choice.values:
                draft.complain(here, "gives no field", f"give at least one of {', '.join(known)}")
            elif (reason := illegal(kernel, choice.values, dims)) is not None:
                wrong, _, remedy = reason.partition("; ")
                draft.complain(here, wrong, remedy or "choose a tile that the kernel can run")
            elif (tiles := complete(kernel, choice.values, dims)) in seen:
                same = dotted((*path, seen.index(tiles)))
                draft.complain(here, f"is the same configuration as {same}", "keep one")
            else:
                seen.append(tiles)


def _check_options(draft: Draft, study: Study) -> None:
    if study.layer.options.llama_4_scaling:
        wrong = "llama_4_scaling is not supported: upstream's DSA path would silently ignore it"
        draft.complain(("layer", "llama_4_scaling"), wrong, "use false")
    shape = study.layer.shape
    if study.layer.options.linear != "bf16":
        inner = {"hidden_size": shape.hidden_size, "q_lora_rank": shape.q_lora_rank}
        for name, size in (inner | {"num_heads * v_head_dim": shape.num_heads * shape.v_head_dim}).items():
            if size % FP8_BLOCK:
                wrong = f"{study.layer.options.linear} wants {name} in multiples of {FP8_BLOCK}, got {size}"
                draft.complain(("layer", "linear"), wrong, "use bf16")
    measure = study.measure
    if measure.max_samples < measure.min_samples:
        wrong = f"max_samples {measure.max_samples} is below min_samples {measure.min_samples}"
        key = "max_samples" if "max_samples" in draft.value.get("measure", {}) else "min_samples"
        draft.complain(("measure", key), wrong, "raise max_samples or lower min_samples")


def _check_capture(draft: Draft, study: Study) -> None:
    capture = study.capture
    sizes = capture.sizes or ()
    for index, size in enumerate(sizes):
        if size in sizes[:index]:
            draft.complain(("capture", "sizes", index), f"{size} appears twice", "keep one")
    pair = ("max_batch_size", "max_seq_len")
    for given, missing in (pair, pair[::-1]):
        if getattr(capture, given) is not None and getattr(capture, missing) is None:
            wrong = f"without {missing} there is no ceiling: it is max_batch_size * (max_seq_len - 1) tokens"
            draft.complain(("capture", given), wrong, f"give {missing}, too, or leave {given} out")
    if capture.sizes == ():
        hint = "give at least one, or leave sizes out to capture the token counts of the sweep"
        draft.complain(("capture", "sizes"), "there are no sizes", hint)
    elif (found := captured_sizes(study)) is not None and found.dropped and not found.sizes:
        limit = capture.max_num_tokens
        wrong = f"nothing is left to capture: every size is above max_num_tokens {limit}"
        draft.complain(("capture", "sizes" if sizes else "max_num_tokens"), wrong, f"use sizes of at most {limit}")


def _check_weights(draft: Draft, study: Study) -> None:
    weights = study.layer.weights
    written = draft.value.get("weights", {})
    if weights.safetensors is None:
        if "layer" in written:
            draft.complain(("weights", "layer"), "random weights have no layer number", "give safetensors, too")
        return
    if "seed" in written:
        draft.complain(("weights", "seed"), "stands beside safetensors", "keep one of them")
    layers = range(weights.layer, weights.layer + study.layer.num_layers)
    mlp = study.layer.mlp == "dense"
    if problem := checkpoint_problem(Path(weights.safetensors), layers, study.layer.shape, mlp=mlp):
        draft.complain(("weights", "safetensors"), *problem)
