"""Two runs joined by key: a verdict a cell, a geometric mean a way, and what differs around them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal
from zlib import crc32

from mlaprof.analysis.cells import Cell, Summary
from mlaprof.analysis.stats import Bootstrap, Estimate, bootstrap, geometric_mean, quotient
from mlaprof.analysis.stored import stored_study
from mlaprof.analysis.summary import summarize
from mlaprof.records import Environment, Manifest, Run

Verdict = Literal["SLOWER", "FASTER", "SAME", "AMBIGUOUS", "INCORRECT", "FAILED", "MISSING", "NEW"]
VERDICTS: tuple[Verdict, ...] = (
    "INCORRECT",
    "FAILED",
    "MISSING",
    "SLOWER",
    "AMBIGUOUS",
    "FASTER",
    "SAME",
    "NEW",
)  # what to read first

MIN_SAMPLES = 6  # below it the interval of a median does not reach 95 % whatever the samples are


@dataclass(frozen=True)
class Delta:
    """One key in both runs. ratio is new / base of the device medians: above 1 is slower."""

    key: str
    way: str
    verdict: Verdict
    base: Cell | None
    new: Cell | None
    ratio: Estimate | None = None
    reason: str = ""

    @property
    def regression(self) -> bool:
        """The new run is worse: slower, wrong, or without a time where the base had one."""
        if self.verdict in ("FAILED", "MISSING"):
            return self.base is not None and self.base.timed
        return self.verdict in ("SLOWER", "INCORRECT")


@dataclass(frozen=True)
class Difference:
    """A fact that the two runs do not share, e.g. name `driver`."""

    name: str
    base: str
    new: str


@dataclass(frozen=True)
class Comparison:
    """deltas in the base's plan order; mismatches forbid a comparison, notes explain one."""

    base: Summary
    new: Summary
    threshold: float
    deltas: tuple[Delta, ...]
    means: Mapping[str, Estimate]  # geometric mean of the ratios of each way; n counts cells
    mismatches: tuple[Difference, ...]
    notes: tuple[Difference, ...]

    @property
    def worst(self) -> Literal[0, 1, 3, 4]:
        """4 the runs are of different kinds; 1 a regression; 3 something ambiguous; 0 neither."""
        if self.mismatches:
            return 4
        if any(delta.regression for delta in self.deltas):
            return 1
        return 3 if any(delta.verdict == "AMBIGUOUS" for delta in self.deltas) else 0


def compare(base: Run, new: Run, *, threshold: float = 0.01) -> Comparison:
    """Join two runs by key and judge each cell by the interval of its ratio of medians.

    SLOWER, FASTER: the whole interval lies beyond the threshold; SAME: it lies inside; AMBIGUOUS: neither. A cell
    that neither run could time is left out. Raises ValueError on a threshold outside (0, 1).
    """
    if not 0 < threshold < 1:
        raise ValueError(f"threshold: expected a ratio between 0 and 1, got {threshold}")
    before, after = summarize(base), summarize(new)
    base_cells = {cell.key: cell for cell in before.cells}
    new_cells = {cell.key: cell for cell in after.cells}
    ratios = _ratios(_samples(base, "base"), _samples(new, "new"))

    deltas = []
    for key in dict.fromkeys([*base_cells, *new_cells]):
        delta = _delta(key, base_cells.get(key), new_cells.get(key), ratios.get(key), threshold)
        if delta is not None:
            deltas.append(delta)
    return Comparison(
        base=before,
        new=after,
        threshold=threshold,
        deltas=tuple(deltas),
        means=_means(deltas, ratios),
        mismatches=tuple(_mismatches(before, after)),
        notes=tuple(_notes(base.manifest, new.manifest)),
    )


def verdict(change: Estimate, threshold: float) -> Verdict:
    """The verdict on a ratio new / base: by its whole interval, never by its median."""
    if change.n < MIN_SAMPLES:
        return "AMBIGUOUS"
    if change.ci_low > 1 + threshold:
        return "SLOWER"
    if change.ci_high < 1 - threshold:
        return "FASTER"
    if change.ci_low >= 1 - threshold and change.ci_high <= 1 + threshold:
        return "SAME"
    return "AMBIGUOUS"


def _samples(run: Run, name: str) -> dict[str, Bootstrap]:
    """Key -> device time, where every sample is positive; the two runs draw from different seeds."""
    return {
        measurement.point.key: bootstrap(
            measurement.timing.device_s, seed=crc32(f"{name} {measurement.point.key}".encode())
        )
        for measurement in run.measurements
        if measurement.kind == "timing" and measurement.outcome.usable
        if measurement.timing and measurement.timing.device_s and min(measurement.timing.device_s) > 0
    }


def _ratios(base: Mapping[str, Bootstrap], new: Mapping[str, Bootstrap]) -> dict[str, Bootstrap]:
    return {key: quotient(base[key], new[key]) for key in base.keys() & new.keys()}


def _delta(
    key: str,
    base: Cell | None,
    new: Cell | None,
    ratio: Bootstrap | None,
    threshold: float,
) -> Delta | None:
    known = new or base
    assert known is not None  # the key came from one of the two
    way = known.way
    if new is None or new.outcome == "missing":
        return Delta(key, way, "MISSING", base, new, reason="not in the new run") if base and base.timed else None
    if new.outcome == "incorrect":
        return Delta(key, way, "INCORRECT", base, new, reason=new.reason)
    if new.outcome == "failed":
        return Delta(key, way, "FAILED", base, new, reason=new.reason)
    if base is not None and base.timed and not new.timed:
        return Delta(key, way, "MISSING", base, new, reason=f"{new.outcome}: {new.reason}")
    if not new.timed:
        return None
    if base is None or not base.timed:
        why = f"the base is {base.outcome} here" if base else "not in the base run"
        return Delta(key, way, "NEW", base, new, reason=why)
    if ratio is None:
        return Delta(key, way, "AMBIGUOUS", base, new, reason="a sample of 0 s: the clock cannot resolve the step")
    change = ratio.estimate
    few = f"fewer than {MIN_SAMPLES} samples" if change.n < MIN_SAMPLES else ""
    return Delta(key, way, verdict(change, threshold), base, new, ratio=change, reason=few)


def _means(deltas: list[Delta], ratios: Mapping[str, Bootstrap]) -> dict[str, Estimate]:
    by_way: dict[str, list[Bootstrap]] = {}
    for delta in deltas:
        if delta.ratio is not None:
            by_way.setdefault(delta.way, []).append(ratios[delta.key])
    return {way: geometric_mean(members).estimate for way, members in by_way.items()}


def _mismatches(base: Summary, new: Summary) -> Iterator[Difference]:
    for name, before, after in (
        ("device", base.device, new.device),
        ("processor", base.processor, new.processor),
        ("capture", _capture(base), _capture(new)),
        ("cache state", _cache(base), _cache(new)),
    ):
        if before and after and before != after:
            yield Difference(name, before, after)


def _capture(summary: Summary) -> str:
    return "emulated" if summary.emulated else "real"


def _cache(summary: Summary) -> str:
    return "+".join(sorted({cell.cache for cell in summary.cells if cell.cache}))


def _notes(base: Manifest, new: Manifest) -> Iterator[Difference]:
    before, after = _facts(base), _facts(new)
    for name in dict.fromkeys([*before, *after]):
        was, is_now = before.get(name, "absent"), after.get(name, "absent")
        if was != is_now:
            yield Difference(name, was, is_now)


def _facts(manifest: Manifest) -> dict[str, str]:
    """What may explain a difference, name -> value."""
    environment = manifest.environment
    return {
        **_gpu_facts(environment),
        "nvml": environment.nvml,
        "os": environment.os,
        "python": environment.python,
        **environment.packages,
        **environment.variables,
        "mlaprof": manifest.mlaprof_version,
        "kernel source": environment.kernel_source_sha256[:12],
        "git commit": f"{environment.git_commit or 'unknown'}{' (changed)' if environment.git_dirty else ''}",
        **_study_facts(manifest.study_yaml),
    }


def _gpu_facts(environment: Environment) -> dict[str, str]:
    if not environment.gpus:
        return {}
    gpu = environment.gpus[0]
    return {
        "driver": gpu.driver,
        "GPU uuid": gpu.uuid,
        "power limit": "unknown" if gpu.power_limit_w is None else f"{gpu.power_limit_w:g} W",
    }


def _study_facts(study_yaml: str) -> dict[str, str]:
    """What changes the meaning of a key: everything stored but the name, and the axes, which the key itself holds."""
    study = stored_study(study_yaml)
    if study is None:
        return {"study": study_yaml}
    parts = {part: value for part, value in study.items() if part not in ("name", "sweep", "tiles")}
    return {name: value for part, inner in parts.items() for name, value in _leaves(str(part), inner)}


def _leaves(name: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(f"{name}.{key}", inner)
    else:
        yield name, str(value)
