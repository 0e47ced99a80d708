"""A decision as an entry of the library: what is served from now on, and the evidence for it."""

from __future__ import annotations

from datetime import UTC, datetime

from mlaprof.records import Manifest
from mlaprof.study import TuneStudy
from mlaprof.tuning.conditions import conditions_of
from mlaprof.tuning.finals import Decision
from mlaprof.tuning.library import Entry


def entry_of(decision: Decision, manifest: Manifest, study: TuneStudy) -> Entry | None:
    """None where nothing was measured: no entry says less than a wrong one."""
    target = decision.target
    if decision.verdict == "not-measured" or decision.default_device_s is None:
        return None
    tuned = decision.verdict == "tuned" and decision.chosen is not None
    measured = decision.device_s or decision.default_device_s
    return Entry(
        conditions=conditions_of(
            manifest.environment, manifest.device, target.kernel, target.shape, target.launch, study.measure.cache
        ),
        shape=target.shape,
        decision="tuned" if tuned else "keep-default",
        form=decision.chosen.kernel if tuned and decision.chosen else "",
        values=decision.chosen.values if tuned and decision.chosen else None,
        device_s=measured.median,
        default_device_s=decision.default_device_s.median,
        gain=decision.gain.median if decision.gain else 1.0,
        gain_low=decision.gain.ci_low if decision.gain else 1.0,
        gain_high=decision.gain.ci_high if decision.gain else 1.0,
        confirmed_low=decision.confirmed.ci_low if decision.confirmed else None,
        confirmed_high=decision.confirmed.ci_high if decision.confirmed else None,
        floor=decision.floor,
        evaluations=decision.evaluations,
        seed=study.seed,
        date=datetime.now(UTC).date().isoformat(),
        mlaprof_version=manifest.mlaprof_version,
    )
