"""What a sweep begins with: a run that is new, or one to go on with and what is left of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from functools import partial
from pathlib import Path

from mlaprof import store
from mlaprof.analysis.differences import changes_since
from mlaprof.config.load import resolved_yaml, study_from_resolved
from mlaprof.errors import ConfigError, MachineError, RunFileError
from mlaprof.facts import TunedUse
from mlaprof.machine import environment
from mlaprof.machine.host import Host
from mlaprof.machine.seats import Seat
from mlaprof.plan import Plan, expand
from mlaprof.records import Device, Environment, Kind, Manifest, work
from mlaprof.store import Work
from mlaprof.study import Study
from mlaprof.tuning.serve import served
from mlaprof.version import __version__


class DeviceChoice(StrEnum):
    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


Part = tuple[int, int]
"""(number, of): every of-th job of a plan, from the number-th on."""

WHOLE: Part = (1, 1)

# A host has several GPUs, of which a run may take each: it is gone on with on any of them, and each time says on which.
_OF_A_SEAT = frozenset({"GPU uuid", "CUDA_VISIBLE_DEVICES"})


@dataclass(frozen=True)
class Opening:
    """A run about to be measured. Nothing is written before `writer`."""

    plan: Plan
    path: Path
    manifest: Manifest
    done: frozenset[Work] | None = None  # of a run to go on with
    forced: str = ""  # what has changed since it began

    def writer(self) -> store.RunWriter:
        """The run file, made or opened. Raises RunFileError, also where another sweep went on with it meanwhile."""
        if self.done is None:
            return store.create(self.path, self.manifest)
        writer = store.open_for_resume(self.path)
        try:
            if writer.done() != self.done:
                raise RunFileError("another sweep went on with it just now", where=str(self.path), hint="try again")
            if self.forced:
                writer.note_forced(self.forced)
        except BaseException:
            writer.finish()
            raise
        return writer


def new_run(
    study: Study,
    choice: DeviceChoice,
    out_file: Path | None,
    results: Path,
    *,
    command: Sequence[str],
    tuned: Sequence[TunedUse] | None = None,
    part: Part = WHOLE,
    hosts: Sequence[Host] = (),
) -> Opening:
    """A run of all of study, in out_file or under its id in results.

    tuned   the tuned tiles to run with; None looks them up in the study's libraries
    part    of the plan to measure; the manifest plans all of it
    hosts   that measure, alike, of which the manifest tells one; none: this machine does

    Raises MachineError, and ConfigError on a library that cannot be read.
    """
    host = hosts[0] if hosts else None
    device = device_of(choice, host)
    plan = expand(study, device)
    manifest = manifest_of(study.name, device, resolved_yaml(study), plan.planned, command=command, host=host)
    manifest = manifest.model_copy(update={"environment": _for_ranks(study, manifest.environment)})
    if tuned is None:
        tuned = served(study, plan.points, manifest.environment, device, results)
    manifest = manifest.model_copy(update={"tuned": tuple(tuned)})
    plan = plan.with_tuned(tuned)
    return Opening(plan.part(*part), out_file or store.default_path(results, manifest.run_id), manifest)


def manifest_of(
    name: str,
    device: Device,
    study_yaml: str,
    planned: Iterable[tuple[Kind, str, int]],
    *,
    command: Sequence[str],
    host: Host | None = None,
) -> Manifest:
    """The head of a run that begins now, on this machine or on the one that is given."""
    now = datetime.now(UTC)
    return Manifest(
        schema_version=store.SCHEMA_VERSION,
        run_id=store.new_run_id(name, now),
        created_at=now.isoformat(timespec="seconds"),
        mlaprof_version=__version__,
        command=tuple(command),
        device=device,
        study_yaml=study_yaml,
        environment=host.environment if host else environment.snapshot(),
        planned=tuple(work(*each) for each in planned),
    )


def resumed_run(
    run: str,
    results: Path,
    choice: DeviceChoice,
    *,
    study: Study | None,
    config: Path | None,
    force: bool = False,
    part: Part = WHOLE,
    hosts: Sequence[Host] = (),
) -> Opening:
    """What is left of a run.

    study   given beside the run and read from `config`: it must be the stored one; None takes that
    part    of the whole plan, so that parts stay what they were
    force   go on after a change of code or environment, too, and let the run say so; never on another processor
    hosts   that go on with it, of which the one that differs least from the run counts; none: this machine does

    Raises RunFileError, ConfigError or MachineError: a run goes on as it began.
    """
    path = store.resolve(run, results)
    manifest = store.resumable_manifest(path)
    if study is not None and resolved_yaml(study) != manifest.study_yaml:
        raise ConfigError(
            f"not the study of run {manifest.run_id}", where=str(config), hint="leave CONFIG out, or start a new run"
        )
    host = min(hosts, key=partial(_strangeness, manifest), default=None)
    same_machine(manifest, choice, host)
    began = study_from_resolved(manifest.study_yaml)
    if host is None:
        here = _for_ranks(began, environment.snapshot())
        changed = [str(each) for each in changes_since(manifest, here, __version__)]
    else:
        changed = _changes(manifest, host)
    if changed and not force:
        others = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        raise MachineError(
            f"run {manifest.run_id} began before a change: {changed[0]}{others}",
            where="--resume",
            hint="start a new run, or go on with --force: the run will say what it is of",
        )
    plan = expand(began, manifest.device).with_tuned(manifest.tuned)
    done = frozenset(store.done(path))
    forced = f"{_now()}, after {len(done)} measurements: {', '.join(changed)}" if changed else ""
    return Opening(plan.part(*part).without(done), path, manifest, done, forced)


def _strangeness(manifest: Manifest, host: Host) -> tuple[bool, int]:
    """How unlike the run a host is: another processor first, then how much has changed."""
    was, is_now = (each.processor(manifest.device) for each in (manifest.environment, host.environment))
    return was != is_now, len(_changes(manifest, host))


def _changes(manifest: Manifest, host: Host) -> list[str]:
    """What of code and environment is on host, whichever of its GPUs is taken, not as it was when the run began."""
    found = changes_since(manifest, host.environment, host.mlaprof_version)
    return [str(each) for each in found if each.name not in _OF_A_SEAT]


def _for_ranks(study: Study, found: Environment) -> Environment:
    """The environment as the workers of this study have it, whose ranks are given variables of their own."""
    if study.layer.tp.world == 1:
        return found
    return found.model_copy(update={"variables": {**found.variables, **environment.RANK_VARIABLES}})


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def device_of(choice: DeviceChoice, host: Host | None = None) -> Device:
    """The device that is meant; auto takes the GPU where there is one, on this machine or on host.

    Raises MachineError without a GPU asked for.
    """
    present = host.has_cuda if host else environment.cuda_present()
    if choice is DeviceChoice.cuda and not present:
        raise MachineError(
            "no CUDA GPU that torch can use", where="--device cuda", hint="see `mlaprof doctor`, or use --device cpu"
        )
    return "cuda" if choice is not DeviceChoice.cpu and present else "cpu"


def require_gpu_alone(device: Device, seats: Sequence[Seat] = ()) -> None:
    """Raises MachineError where another process has a context on a GPU that will be used; a CPU is always shared.

    seats   of the workers; none: the GPU that CUDA calls 0
    """
    if device != "cuda":
        return
    visible = [seat.gpu.uuid for seat in seats if seat.gpu]
    others = [pid for each in visible or (None,) for pid in environment.other_processes(each)]
    if not others:
        return
    name = environment.snapshot().processor(device)
    raise MachineError(
        f"also used by process {', '.join(map(str, others))}, whose work would distort every time",
        where=name,
        hint="wait for it or stop it (nvidia-smi shows it), or measure beside it with --shared-gpu",
    )


def same_machine(manifest: Manifest, choice: DeviceChoice, host: Host | None = None) -> None:
    """A run holds times of one processor only: that of this machine, or of host.

    Raises MachineError where it is another, or `choice` says so.
    """
    if choice is not DeviceChoice.auto and choice != manifest.device:
        raise MachineError(
            f"run {manifest.run_id} is of device {manifest.device}",
            where=f"--device {choice}",
            hint="leave out --device, or start a new run",
        )
    here = (host.environment if host else environment.snapshot()).processor(manifest.device)
    if here != (began := manifest.environment.processor(manifest.device)):
        raise MachineError(
            f"run {manifest.run_id} began on {began}, this is {here}",
            where="--resume",
            hint="resume it there, or start a new run",
        )
    if manifest.device == "cuda":
        device_of(DeviceChoice.cuda, host)
