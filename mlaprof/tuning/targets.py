"""Which kernels a step of the layer launches at which shapes, and how each is launched in a capture mode.

One function for both sides: `tune` searches what a layer will run, and the layer looks up what was found for it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from mlaprof.config.axes import combinations
from mlaprof.kernel_choices import NOPE_DIM, VALUE_DIM
from mlaprof.kernel_shapes import KV_LORA_RANK, ROPE_DIM, complete
from mlaprof.shapes import TOKENS_PER_BLOCK, LayerShape
from mlaprof.study import (
    BOUNDED_MODES,
    BatchSpec,
    Boundary,
    Launch,
    LayerOptions,
    Mode,
    Phase,
    Study,
    TuneTarget,
)

IN_OP1_AT_LOGITS = ("index_logits", "topk")  # what the last boundary moves into the captured part


def layer_shapes(
    shape: LayerShape, options: LayerOptions, batch: BatchSpec, phase: Phase, num_tokens: int, context_len: int
) -> dict[str, dict[str, int]]:
    """Kernel -> its complete shape in a step; of a mixed step the parts that its contexts and generations have.

    A step that the batch does not allow has none.
    """
    generations = _generations(batch, phase, num_tokens)
    new_context = num_tokens - generations * batch.next_n
    contexts = batch.num_contexts if phase != "decode" else 0
    if generations < 0 or new_context < contexts or (phase == "decode" and new_context):
        return {}
    heads, index_heads, topk = shape.num_heads, shape.index_n_heads, shape.index_topk
    context_keys = new_context + contexts * context_len
    kv_len = context_len + batch.next_n
    # Single kernels are tuned at V3.2's dimensions of a head; of other models' kernels they say nothing.
    found: dict[str, dict[str, int]] = {}
    if (shape.kv_lora_rank, shape.qk_nope_head_dim, shape.qk_rope_head_dim) == (KV_LORA_RANK, NOPE_DIM, ROPE_DIM):
        found["absorb"] = {"num_tokens": num_tokens, "num_heads": heads}
    if (shape.kv_lora_rank, shape.v_head_dim) == (KV_LORA_RANK, VALUE_DIM):
        found["up_project"] = {"num_tokens": num_tokens, "num_heads": heads}
    if not shape.is_dsa:
        return {kernel: complete(kernel, given) for kernel, given in found.items()}
    # As many rows a request as fit: equal shares, which the single kernel's inputs need.
    requests = generations if phase == "decode" else 1
    rows = generations * kv_len if phase == "decode" else context_keys + generations * kv_len
    if (shape.kv_lora_rank, shape.qk_rope_head_dim) == (KV_LORA_RANK, ROPE_DIM):
        found["sparse_attn"] = {
            "num_tokens": num_tokens, "num_rows": rows, "num_heads": heads, "topk": topk,
            "next_n": batch.next_n if phase == "decode" else 1, "num_requests": requests,
        }  # fmt: skip
    if contexts:
        found["index_logits"] = {
            "num_queries": new_context, "num_keys": context_keys, "causal": 1, "index_n_heads": index_heads,
        }  # fmt: skip
        found["topk"] = {"num_rows": new_context, "width": context_keys, "k": topk}
    if generations:
        width = max(options.max_seq_len, -(-kv_len // TOKENS_PER_BLOCK) * TOKENS_PER_BLOCK)
        if batch.next_n <= 2:
            found["paged_index_logits"] = {
                "batch": generations, "kv_len": kv_len, "next_n": batch.next_n, "index_n_heads": index_heads,
                "max_len": width,
            }  # fmt: skip
        if not contexts:
            found["topk"] = {"num_rows": generations * batch.next_n, "width": width, "k": topk}
    return {kernel: complete(kernel, given) for kernel, given in found.items()}


def launch_of(kernel: str, mode: Mode, boundary: Boundary) -> Launch:
    """Whether a capture mode replays this kernel in a graph or launches it: only what lies in Op 1 is captured where
    Op 2 stays out, and of the kernels with tiles that is the indexer's selection at the last boundary."""
    if mode == "full":
        return "graph"
    if mode in BOUNDED_MODES and boundary == "logits" and kernel in IN_OP1_AT_LOGITS:
        return "graph"
    return "eager"


def targets_of(study: Study, *, modes: Sequence[Mode] | None = None, launch: Launch | None = None) -> list[TuneTarget]:
    """What the steps of a study launch, each once, largest step first.

    modes    those of the study that count, by default all
    launch   instead of what the modes say
    """
    every = combinations(study.axes, study.exclude, study.include)
    found: dict[str, TuneTarget] = {}
    for each in sorted(every, key=lambda combination: -combination.num_tokens):
        if modes is not None and each.mode not in modes:
            continue
        shapes = layer_shapes(
            study.layer.shape, study.layer.options, study.batch, each.phase, each.num_tokens, each.context_len
        )
        for kernel, shape in shapes.items():
            how = launch or launch_of(kernel, each.mode, each.boundary)
            target = TuneTarget(kernel=kernel, shape=shape, launch=how)
            found.setdefault(target.model_dump_json(), target)
    return list(found.values())


def only(targets: Iterable[TuneTarget], kernels: Sequence[str]) -> Iterator[TuneTarget]:
    """Those of these kernels, all where none is named."""
    return (each for each in targets if not kernels or each.kernel in kernels)


def _generations(batch: BatchSpec, phase: Phase, num_tokens: int) -> int:
    """Requests that decode; -1 where they do not go into the step."""
    if phase == "decode":
        return num_tokens // batch.next_n if num_tokens % batch.next_n == 0 else -1
    return batch.num_generations if phase == "mixed" else 0
