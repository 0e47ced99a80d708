"""A kernel study in YAML: kernels, their shapes, providers and tiles; everything wrong with it is said at once."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from mlaprof import kernel_shapes
from mlaprof.config.axes import values
from mlaprof.config.draft import Draft, did_you_mean
from mlaprof.config.settings import drafted
from mlaprof.config.shape import check_name
from mlaprof.config.yamltext import KeyPath, dump
from mlaprof.errors import ConfigError
from mlaprof.kernels import tiles
from mlaprof.study import KernelStudy, KernelSweep, Launch, MeasureSpec, Part, Preset, StageLimits, TileChoice

MAX_POINTS = 100_000


class _Kernel(Part):
    shapes: tuple[dict[str, tuple[int, ...]], ...]
    provider: tuple[str, ...] | None = None
    tiles: dict[str, tuple[dict[str, int], ...]] = Field(default={})


class _KernelFile(Part):
    name: str
    seed: Annotated[int, Field(ge=0)] = 0
    launch: tuple[Launch, ...] = ("eager",)
    kernels: dict[str, _Kernel]
    measure: MeasureSpec = MeasureSpec()


_KEYS: dict[str, Sequence[str]] = {
    "": tuple(_KernelFile.model_fields),
    "kernels": tuple(_Kernel.model_fields),
    "measure": tuple(MeasureSpec.model_fields),
    "measure.limits_s": tuple(StageLimits.model_fields),
}


def load_kernel_study(
    path: Path, *, settings: Sequence[str] = (), preset: Preset = "standard", only: Sequence[str] = ()
) -> KernelStudy:
    """The KernelStudy of a YAML file, with `--quick` or `--rigorous` and `--set dotted.key=value` applied.

    only    kernels to keep; empty keeps all

    Raises ConfigError: the first complaint in the order of the file, the others as its notes.
    """
    draft = drafted(path, preset, settings, example="configs/kernels.yaml")
    written = dict(draft.value)
    if isinstance(kernels := written.get("kernels"), dict):
        written["kernels"] = {name: _expanded(draft, name, kernel) for name, kernel in kernels.items()}
    check_name(draft, ("name",), written.get("name"))
    file = draft.validate(_KernelFile, written, (), _KEYS)
    draft.check()
    if file is None:
        raise ValueError("expected a complaint about the study, got none")
    for field, found in (("kernels", file.kernels), ("launch", file.launch)):
        if not found:
            draft.complain((field,), "is empty", "give at least one")
    sweeps = {name: _sweep(draft, name, kernel) for name, kernel in file.kernels.items()}
    draft.check()
    if unknown := [name for name in only if name not in sweeps]:
        hint = did_you_mean(unknown[0], sweeps, f"it has {', '.join(sweeps)}")
        raise ConfigError(f"{unknown[0]} is not a kernel of {path}", where="--only", hint=hint)
    sweeps = {name: sweep for name, sweep in sweeps.items() if not only or name in only}
    return KernelStudy(name=file.name, seed=file.seed, launch=file.launch, kernels=sweeps, measure=file.measure)


def resolved_kernel_yaml(study: KernelStudy) -> str:
    """The study as a file of its own: every shape and provider listed, nothing left to a default."""
    return dump(
        {
            "name": study.name,
            "seed": study.seed,
            "launch": list(study.launch),
            "kernels": {
                name: {
                    "shapes": list(sweep.shapes),
                    "provider": list(sweep.provider),
                    "tiles": {key: [each.values for each in choices] for key, choices in sweep.tiles.items()},
                }
                for name, sweep in study.kernels.items()
            },
            "measure": study.measure.model_dump(),
        }
    )


def _expanded(draft: Draft, name: str, kernel: Any) -> Any:
    """The kernel with every axis of its shapes as a list."""
    if not isinstance(kernel, dict) or not isinstance(kernel.get("shapes"), list):
        return kernel
    shapes = []
    for index, shape in enumerate(kernel["shapes"]):
        if not isinstance(shape, dict):
            shapes.append(shape)
            continue
        lists = {}
        for axis, written in shape.items():
            try:
                lists[axis] = values(written)
            except ValueError as error:
                wrong, _, hint = str(error).partition("; ")
                draft.complain(("kernels", name, "shapes", index, axis), wrong, hint)
                lists[axis] = []
        shapes.append(lists)
    return {**kernel, "shapes": shapes}


def _sweep(draft: Draft, name: str, kernel: _Kernel) -> KernelSweep:
    path: KeyPath = ("kernels", name)
    if name not in kernel_shapes.KERNELS:
        listed = ", ".join(kernel_shapes.KERNELS)
        draft.complain(path, "unknown kernel", did_you_mean(name, kernel_shapes.KERNELS, f"the kernels are {listed}"))
        return KernelSweep(shapes=(), provider=())
    known = kernel_shapes.KERNELS[name].providers
    provider = known if kernel.provider is None else kernel.provider
    for index, each in enumerate(provider):
        if each not in known:
            hint = did_you_mean(each, known, f"the providers of {name} are {', '.join(known)}")
            draft.complain((*path, "provider", index), f"{each!r} does not provide {name}", hint)
        elif each in provider[:index]:
            draft.complain((*path, "provider", index), f"{each} appears twice", "keep one")
    if not provider:
        draft.complain((*path, "provider"), "is empty", "give at least one, or leave the key out for all")
    shapes = tuple(_shapes(draft, name, kernel.shapes))
    if not kernel.shapes:
        draft.complain((*path, "shapes"), "is empty", "give at least one, e.g. [{num_tokens: [1, 64]}]")
    return KernelSweep(shapes=shapes, provider=provider, tiles=_tiles(draft, name, kernel, provider, shapes))


def _shapes(draft: Draft, name: str, written: Sequence[dict[str, tuple[int, ...]]]) -> Iterator[dict[str, int]]:
    """The product of each mapping, completed by the defaults; none twice."""
    names = kernel_shapes.KERNELS[name].names
    seen: list[dict[str, int]] = []
    for index, axes in enumerate(written):
        path: KeyPath = ("kernels", name, "shapes", index)
        if unknown := [axis for axis in axes if axis not in names]:
            for axis in unknown:
                draft.complain_unknown((*path, axis), names)
            continue
        for axis, found in axes.items():
            if not found:
                draft.complain((*path, axis), "the axis is empty", "give at least one value")
        for sizes in itertools.islice(itertools.product(*axes.values()), MAX_POINTS):
            given = dict(zip(axes, sizes, strict=True))
            try:
                wrong = kernel_shapes.illegal(name, given)
            except ValueError as error:
                draft.complain(path, str(error).partition(": ")[2], f"the axes of {name} are {', '.join(names)}")
                break
            if wrong:
                said, _, remedy = wrong.partition("; ")
                draft.complain(path, said, remedy)
                break
            if (shape := kernel_shapes.complete(name, given)) not in seen:
                seen.append(shape)
                yield shape


def _tiles(
    draft: Draft, name: str, kernel: _Kernel, provider: Sequence[str], shapes: Sequence[dict[str, int]]
) -> dict[str, tuple[TileChoice, ...]]:
    found: dict[str, tuple[TileChoice, ...]] = {}
    for form, alternatives in kernel.tiles.items():
        path: KeyPath = ("kernels", name, "tiles", form)
        forms = kernel_shapes.forms(name, form)
        if not forms or form not in provider:
            tiled = [each for each in provider if kernel_shapes.forms(name, each)]
            hint = f"give tiles for {' or '.join(tiled)}" if tiled else "leave tiles out"
            draft.complain(path, f"{form} takes no tiles here", hint)
            continue
        fields = [field for each in forms for field in tiles.field_names(each)]
        choices = []
        for index, chosen in enumerate(alternatives):
            here = (*path, index)
            of = next((each for each in forms if set(chosen) <= set(tiles.field_names(each))), None)
            if unknown := [field for field in chosen if field not in fields]:
                for field in unknown:
                    draft.complain_unknown((*here, field), fields)
            elif not chosen:
                draft.complain(here, "gives no field", f"give at least one of {', '.join(fields)}")
            elif of is None:
                hint = f"give only those of {' or only those of '.join(forms)}"
                draft.complain(here, f"{', '.join(chosen)} are not fields of one form", hint)
            else:
                choices.append(TileChoice(kernel=of, values=chosen))
                reasons = [tiles.illegal(of, chosen, kernel_shapes.dims(name, shape)) for shape in shapes]
                if reasons and all(reasons):  # legal for no shape; a single misfit is a skipped cell
                    wrong, _, remedy = str(reasons[0]).partition("; ")
                    draft.complain(here, wrong, remedy or "choose a tile that the kernel can run")
        found[form] = tuple(choices)
    return found
