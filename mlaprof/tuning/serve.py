"""Which tuned tiles serve a sweep: the library asked once a kernel and place, and what fired kept for the record."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from mlaprof.errors import ConfigError
from mlaprof.facts import TunedUse
from mlaprof.kernel_choices import misfit
from mlaprof.records import Device, Environment, Point
from mlaprof.shapes import TOKENS_PER_BLOCK
from mlaprof.study import Study
from mlaprof.tuning.conditions import conditions_of
from mlaprof.tuning.library import Entry, Found, entries_for, lookup, shipped
from mlaprof.tuning.targets import launch_of, layer_shapes

RESULTS_FOLDER = "tuned"  # of the library beside the runs
MORE_KEYS = 4 * TOKENS_PER_BLOCK  # that other batches of the same size may bring (layer/variations.py)


def folders_of(tuned: str, results: Path) -> tuple[Path, ...]:
    """The libraries that `tuned` of a study names, the first before the next. Raises ConfigError on no folder."""
    if tuned == "off":
        return ()
    if tuned == "auto":
        return results / RESULTS_FOLDER, shipped()
    if not Path(tuned).is_dir():
        raise ConfigError("is no folder of a library", where=f"tuned: {tuned}", hint="give one, or auto, or off")
    return (Path(tuned),)


def served(
    study: Study, points: Iterable[Point], environment: Environment, device: Device, results: Path
) -> tuple[TunedUse, ...]:
    """What the study's libraries serve each kernel of each Point's way; nothing where they have no entry for this GPU.

    Raises ConfigError on a library that cannot be read.
    """
    folders = folders_of(study.tuned, results)
    known: dict[str, tuple[Entry, ...]] = {}
    found: dict[str, TunedUse] = {}
    for point in points:
        shapes = layer_shapes(
            study.layer.shape, study.layer.options, study.batch, point.phase, point.num_tokens, point.context_len
        )
        for kernel, shape in shapes.items():
            launch = launch_of(kernel, point.mode, point.boundary)
            conditions = conditions_of(environment, device, kernel, shape, launch, study.measure.cache)
            name = conditions.model_dump_json()
            if name not in known:
                known[name] = entries_for(folders, conditions) if folders else ()
            if not known[name]:
                continue
            use = _use(point, kernel, lookup(_fitting(known[name], shape), conditions, shape))
            found.setdefault(f"{point.cell}/{point.way}/{kernel}", use)
    return tuple(found.values())


def rules_line(uses: Sequence[TunedUse]) -> list[str]:
    """A line a kernel: how often which rule fired."""
    lines = []
    for kernel in dict.fromkeys(use.kernel for use in uses):
        counted = Counter(use.rule for use in uses if use.kernel == kernel)
        lines.append(f"tuned {kernel}: " + ", ".join(f"{rule} {count}" for rule, count in sorted(counted.items())))
    return lines


def _fitting(entries: Iterable[Entry], shape: dict[str, int]) -> list[Entry]:
    """Without those whose tiles could not run this shape, or a batch of the same size with a few keys more."""
    larger = {axis: size + MORE_KEYS if axis == "width" else size for axis, size in shape.items()}
    return [each for each in entries if each.values is None or not misfit(each.form, each.values, larger)]


def _use(point: Point, kernel: str, found: Found) -> TunedUse:
    values, rule, entry = found
    return TunedUse(
        phase=point.phase,
        num_tokens=point.num_tokens,
        context_len=point.context_len,
        way=point.way,
        kernel=kernel,
        rule=rule,
        form=entry.form if entry is not None and values is not None else "",
        values=values,
    )
