"""A tuning as work: a search a target, told what is known already, and the finalists behind it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

from mlaprof.errors import ConfigError
from mlaprof.kernel_choices import choices, misfit
from mlaprof.records import Device, Environment, KernelMeasurement, Kind, SearchJob, Told
from mlaprof.study import MeasureSpec, TileChoice, TuneStudy, TuneTarget
from mlaprof.tuning.candidates import Candidates, candidates, forms_on

SEARCH_SHARE = 0.5  # of the budget; what is left goes to two fresh processes and their starts
CELL_SHARE = 0.07  # of the budget may the finalists' rounds take in one process
SILENCE_S = 60.0  # of a searching worker at most: a start from a cold disk, or one hung configuration


@dataclass(frozen=True)
class Search:
    """One target made ready to be searched."""

    target: TuneTarget
    forms: tuple[str, ...]
    default: TileChoice
    deployed: TileChoice | None
    seeds: tuple[TileChoice, ...]
    space: Candidates

    @property
    def label(self) -> str:
        """`sparse_attn/num_tokens=64,...@graph`"""
        sizes = ",".join(f"{axis}={size}" for axis, size in self.target.shape.items())
        return f"{self.target.kernel}/{sizes}{'@graph' if self.target.launch == 'graph' else ''}"


def plan_search(target: TuneTarget, *, hopper: bool) -> Search:
    """Raises ConfigError where a target has no legal configuration, or none that its launcher would choose."""
    forms = forms_on(target.kernel, target.shape, hopper=hopper)
    space = candidates(target, forms)
    defaults = choices(target.kernel, target.shape, hopper=hopper)
    if not defaults:
        raise ConfigError(
            "no form serves this shape", where=target.kernel, hint="choose another shape; see `mlaprof list kernels`"
        )
    deployed = target.deployed
    if deployed is not None and (
        deployed.kernel not in forms or misfit(deployed.kernel, deployed.values, target.shape)
    ):
        deployed = None
    return Search(target, forms, defaults[0], deployed, (*((deployed,) if deployed else ()), *defaults), space)


def has_hopper_forms(environment: Environment, device: Device) -> bool:
    """Whether Hopper's forms count: on such a GPU, and without a GPU where they are compiled for one.

    Triton's interpreter, which knows nothing of them, runs the portable forms alone.
    """
    if device == "cpu":
        return environment.variables.get("TRITON_INTERPRET") != "1"
    gpus = environment.gpus
    return bool(gpus) and gpus[environment.used_gpu or 0].compute_capability.startswith("9")


def search_job(
    search: Search,
    study: TuneStudy,
    device: Device,
    rows: Sequence[KernelMeasurement],
    *,
    began_at: float,
    compilers: int,
) -> SearchJob:
    """What is left of a search, rows being what is known."""
    return SearchJob(
        device=device,
        seed=study.seed,
        measure=study.measure.model_copy(update={"point_timeout_s": min(study.measure.point_timeout_s, SILENCE_S)}),
        target=search.target,
        forms=search.forms,
        first=search.seeds,
        told=tuple(_told(rows)),
        began_at=began_at,
        search_s=search_time_s(study),
        max_evals=None if study.max_evals is None else max(0, study.max_evals - evaluated(rows)),
        exhaust=study.exhaust,
        compilers=compilers,
    )


def search_time_s(study: TuneStudy) -> float:
    """Wall time of a search: what is left of the budget goes to the finalists. Of a whole space they are an extra."""
    return study.budget_s if study.exhaust else SEARCH_SHARE * study.budget_s


def final_measure(study: TuneStudy) -> MeasureSpec:
    """How the finalists are measured: as the study has it, within the budget."""
    cell_time_s = min(study.measure.cell_time_s, CELL_SHARE * study.budget_s)
    return study.measure.model_copy(update={"cell_time_s": cell_time_s, "processes": 1})


def evaluated(rows: Iterable[KernelMeasurement]) -> int:
    """Configurations that a search has launched, or only compiled where nothing can be launched."""
    return sum(1 for each in rows if each.outcome.status == "compiled" or (each.search and each.search.check_s > 0))


def elapsed_s(rows: Iterable[KernelMeasurement]) -> float:
    """Wall time that a search had taken when its last row was known."""
    return max((each.search.at_s for each in rows if each.search), default=0.0)


def rows_of(target: TuneTarget, rows: Iterable[KernelMeasurement], kind: Kind) -> list[KernelMeasurement]:
    """Those of a kind that are about a target, in the order given."""
    return [
        each
        for each in rows
        if each.kind == kind
        and each.point.kernel == target.kernel
        and each.point.shape == target.shape
        and each.point.launch == target.launch
    ]


def _told(rows: Iterable[KernelMeasurement]) -> Iterable[Told]:
    known = {each.point.key: each for each in rows}
    for each in known.values():
        source = known.get(each.search.twin_of, each) if each.search else each
        seconds = median(source.timing.device_s) if source.timing and source.timing.device_s else None
        yield Told(point=each.point, device_s=seconds)
