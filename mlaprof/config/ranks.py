"""Tensor parallel ranks as a study asks for them: whether the layer can be shared out, and whether each has a GPU."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mlaprof.config.draft import Draft
from mlaprof.config.settings import drafted
from mlaprof.shapes import LayerShape, tensor_parallel

WORLD = ("tp", "world")


def rank_share(draft: Draft, shape: LayerShape, world: int) -> LayerShape:
    """What one of world ranks holds of a layer; a shape that is such a share already, as v3.2-tp8's, is taken as it is.

    Complains where the layer cannot be shared out so, and answers with shape.
    """
    if world == 1 or shape.tp_size == world:
        return shape
    if shape.tp_size > 1:
        wrong = f"{world} ranks, and the shape is what one of {shape.tp_size} holds"
        draft.complain(WORLD, wrong, f"use {shape.tp_size}, or the shape of the whole layer (preset v3.2 or glm-5)")
        return shape
    try:
        return tensor_parallel(shape, world)
    except ValueError:
        wrong = f"{world} ranks do not share {shape.num_heads} heads and an MLP of {shape.intermediate_size} evenly"
        draft.complain(WORLD, wrong, "use a number that divides both")
        return shape


def require_gpus(path: Path, settings: Sequence[str], world: int, visible: int) -> None:
    """Raise ConfigError at the line or option that asks for more ranks than there are GPUs visible."""
    if world <= visible:
        return
    draft = drafted(path, "standard", settings, example="configs/quickstart.yaml")
    wrong = f"{world} ranks want a GPU each, and {visible} {'is' if visible == 1 else 'are'} visible"
    hint = f"use {max(visible, 1)} or less, make more visible (CUDA_VISIBLE_DEVICES), or add --device cpu to emulate"
    draft.complain(WORLD, wrong, hint)
    draft.check()
