"""The configurations that a search may propose: those of every form of a kernel, as plain numbers of one width."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mlaprof.errors import ConfigError
from mlaprof.kernel_choices import misfit, serves
from mlaprof.kernel_shapes import dims, forms
from mlaprof.kernels import tiles
from mlaprof.records import KernelPoint
from mlaprof.study import TileChoice, TuneTarget
from mlaprof.tuning.search import Space, Values

ABSENT = 0  # of a field that a form lacks; no legal value is 0 except as a switch, which the form's number tells apart


@dataclass(frozen=True)
class Candidates:
    """A search's space; the first number of a configuration says which form, the others are all forms' fields."""

    target: TuneTarget
    forms: tuple[str, ...]
    fields: tuple[str, ...]
    space: Space
    declared: int  # configurations that the forms list, legal or not

    def choice(self, values: Values) -> TileChoice:
        form = self.forms[values[0]]
        given = dict(zip(self.fields, values[1:], strict=True))
        return TileChoice(kernel=form, values={name: given[name] for name in tiles.field_names(form)})

    def values(self, choice: TileChoice) -> Values:
        """Raises ValueError on a form that is not among these."""
        if choice.kernel not in self.forms:
            raise ValueError(f"form: expected one of {', '.join(self.forms)}, got {choice.kernel}")
        return (self.forms.index(choice.kernel), *(choice.values.get(name, ABSENT) for name in self.fields))

    def point(self, choice: TileChoice) -> KernelPoint:
        return point_of(self.target, choice)


def point_of(target: TuneTarget, choice: TileChoice) -> KernelPoint:
    """The Point that measures a choice of tiles for a target."""
    return KernelPoint(
        kernel=target.kernel,
        shape=target.shape,
        provider=provider_of(choice.kernel),
        launch=target.launch,
        tiles=choice.values,
    )


def provider_of(form: str) -> str:
    """`hopper` of `sparse_attn@hopper_decode`, `triton` of `sparse_attn`."""
    return form.partition("@")[2].partition("_")[0] or "triton"


def form_of(point: KernelPoint) -> str:
    """The form whose tiles a Point of a search has."""
    fields = set(point.tiles or {})
    return next(form for form in forms(point.kernel, point.provider) if set(tiles.field_names(form)) == fields)


def forms_on(kernel: str, shape: Mapping[str, int], *, hopper: bool) -> tuple[str, ...]:
    """The forms whose tiles can be searched for this shape; Hopper's on such a GPU alone."""
    providers = ("triton", "hopper") if hopper else ("triton",)
    return tuple(form for each in providers for form in forms(kernel, each) if serves(form, shape))


def candidates(target: TuneTarget, searched: Sequence[str]) -> Candidates:
    """Every legal configuration of these forms. Raises ConfigError where there is none."""
    given = dims(target.kernel, target.shape)
    fields = tuple(dict.fromkeys(name for form in searched for name in tiles.field_names(form)))
    found: list[Values] = []
    declared = 0
    for number, form in enumerate(searched):
        count = 1
        for choices in tiles.KERNELS[form].CHOICES.values():
            count *= len(choices)
        declared += count
        if tiles.illegal(form, {}, given) and form != target.kernel:
            continue  # a form that does not serve these dimensions refuses its own default, too
        for each in tiles.space(form, given):
            values = tiles.as_values(each)
            if misfit(form, values, target.shape):
                continue
            found.append((number, *(values.get(name, ABSENT) for name in fields)))
    if not found:
        label = ",".join(f"{axis}={size}" for axis, size in target.shape.items())
        raise ConfigError(
            f"none of the {declared} tile configurations is legal for {label}",
            where=target.kernel,
            hint="choose another shape or kernel; `mlaprof list kernels` shows those that take tiles",
        )
    return Candidates(target, tuple(searched), fields, Space.of(found), declared)
