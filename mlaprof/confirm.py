"""Before a comparison fails: what it finds slower is measured once more in fresh processes, and both must agree.

A weak check where it runs on the same GPU, whose errors are alike from process to process, and it says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from mlaprof.analysis.cells import Cell
from mlaprof.analysis.compare import Comparison, Delta, compare
from mlaprof.analysis.differences import elsewhere
from mlaprof.config.axes import Combination, combinations
from mlaprof.config.load import study_from_resolved
from mlaprof.config.sizes import captured_sizes
from mlaprof.errors import MachineError
from mlaprof.kernels.tiles import label
from mlaprof.machine import environment
from mlaprof.opening import DeviceChoice, Opening, new_run
from mlaprof.records import Environment, Run
from mlaprof.study import BASELINE, BOUNDED_MODES, Axes, Selector, Study, TileChoice


def confirmation(comparison: Comparison, new: Run, results: Path, *, command: Sequence[str]) -> Opening | None:
    """The run that times what is SLOWER in `new` again, under its own id in results; None where nothing is.

    Its study is that of `new` with these cells alone, each with its baseline and twin. Nothing is written yet.
    Raises MachineError where this machine or this code is not what `new` measured, ConfigError on a study that this
    mlaprof cannot read.
    """
    slower = [delta for delta in comparison.deltas if delta.verdict == "SLOWER"]
    if not slower:
        return None
    differ = [each.name for each in elsewhere(new.manifest, environment.snapshot())]
    if differ:
        raise MachineError(
            f"run {new.manifest.run_id} cannot be measured again here: {' and '.join(differ)} differ",
            where="--confirm",
            hint="compare where it was measured, with that code, or leave out --confirm",
        )
    one_run = comparison.base.run_id == comparison.new.run_id
    cells = [cell for delta in slower for cell in (delta.new, delta.base if one_run else None) if cell]
    study = _restricted(study_from_resolved(new.manifest.study_yaml), cells)
    device = DeviceChoice(new.manifest.device)
    return new_run(study, device, None, results, command=command, tuned=new.manifest.tuned)


def confirmed(comparison: Comparison, base: Run, new: Run, again: Run) -> Comparison:
    """The comparison after NEW was measured again: what is not SLOWER once more is AMBIGUOUS.

    A cell that failed this time stays SLOWER: a crash clears nobody. Two ways of one run are compared within `again`.
    """
    one_run = base.manifest == new.manifest
    second = compare(
        again if one_run else base,
        again,
        base_way=comparison.base_way,
        new_way=comparison.new_way,
        threshold=comparison.threshold,
        cross_machine=bool(comparison.crossed),
    )
    found = {delta.key: delta for delta in second.deltas}
    weakness = _weakness(new.manifest.environment, again.manifest.environment)
    return replace(
        comparison,
        deltas=tuple(
            _agreed(delta, found.get(delta.key), weakness) if delta.verdict == "SLOWER" else delta
            for delta in comparison.deltas
        ),
        again=again.manifest.run_id,
    )


def _agreed(first: Delta, second: Delta | None, weakness: str) -> Delta:
    if second is None or second.ratio is None:
        why = f"{second.verdict}: {second.reason}" if second else "it has no time"
        return replace(first, reason=f"could not be measured again: {why}")
    ratio = f"{second.ratio.median:.3f}"
    if second.verdict == "SLOWER":
        return replace(first, reason=f"confirmed: {ratio} ({weakness})")
    return replace(first, verdict="AMBIGUOUS", reason=f"not confirmed: {ratio} when measured again", rounds=None)


def _weakness(first: Environment, again: Environment) -> str:
    if not again.gpus or not first.gpus:
        return "same processor, so a weak check"
    return "same GPU, so a weak check" if first.gpus[0].uuid == again.gpus[0].uuid else "another GPU of its kind"


def _restricted(study: Study, cells: Iterable[Cell]) -> Study:
    """The study of these cells and their baselines alone, timed only; sizes are captured as the whole study's were."""
    every = tuple(cells)
    wanted = {(cell.phase, cell.num_tokens, cell.context_len, cell.mode, cell.boundary) for cell in every}
    places = {place[:3] for place in wanted}
    chosen = [
        each
        for each in combinations(study.axes, study.exclude, study.include)
        if each in wanted or (each.mode == BASELINE and each[:3] in places)
    ]
    buckets = captured_sizes(study)
    # One product of single values, and an include rule for each other combination: not one more.
    first, *others = chosen
    return study.model_copy(
        update={
            "name": f"{study.name}-confirm",
            "axes": Axes(**{axis: (value,) for axis, value in first._asdict().items()}),
            "exclude": (),
            "include": tuple(map(_selector, others)),
            "tiles": _tiles_of(study, every),
            "capture": study.capture.model_copy(update={"sizes": buckets.sizes}) if buckets else study.capture,
            "measure": study.measure.model_copy(update={"memory": False, "counts": False}),
        }
    )


def _selector(combination: Combination) -> Selector:
    boundary = combination.boundary if combination.mode in BOUNDED_MODES else None
    return Selector(**{**combination._asdict(), "boundary": boundary})


def _tiles_of(study: Study, cells: Sequence[Cell]) -> dict[str, tuple[TileChoice, ...]]:
    """The alternatives that some cell runs with; default tiles are timed beside them in any case."""
    run = {part for cell in cells for part in cell.tiles.split("+")}
    kept = {
        kernel: tuple(choice for choice in choices if f"{kernel}={label(kernel, choice.values)}" in run)
        for kernel, choices in study.tiles.items()
    }
    return {kernel: choices for kernel, choices in kept.items() if choices}
