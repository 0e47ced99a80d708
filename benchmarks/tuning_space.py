"""A space of tile configurations measured whole, as a file that searches are replayed against.

python benchmarks/tuning_space.py RUN FOLDER     a file FOLDER/<kernel>-<n>.json a target of a run that was made by
                                                 `mlaprof tune CONFIG --exhaust`
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

from mlaprof import store  # noqa: E402
from mlaprof.records import KernelMeasurement, Run  # noqa: E402
from mlaprof.study import TileChoice  # noqa: E402
from mlaprof.tuning.candidates import form_of  # noqa: E402
from mlaprof.tuning.plan import Search, has_hopper_forms, plan_search, rows_of  # noqa: E402
from mlaprof.tuning.study import tune_study_from_resolved  # noqa: E402
from mlaprof.tuning.summary import first_time_s  # noqa: E402

KEPT = ("triton", "torch", "nvidia-cuda-runtime", "nvidia-cuda-runtime-cu12")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("folder", type=Path)
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    for number, found in enumerate(spaces(store.load(given.run))):
        path = given.folder / f"space-{found['kernel']}-{number}.json"
        path.write_text(json.dumps(found, indent=None, separators=(",", ":")) + "\n")
        left = found["legal"] - len(found["rows"])
        print(f"{path}: {len(found['rows'])} of {found['legal']} configurations{f', {left} MISSING' if left else ''}")
    return 0


def spaces(run: Run) -> list[dict[str, Any]]:
    """A document a target of the run."""
    manifest = run.manifest
    study = tune_study_from_resolved(manifest.study_yaml)
    hopper = has_hopper_forms(manifest.environment, manifest.device)
    packages = manifest.environment.packages
    found = []
    for target in study.targets:
        search = plan_search(target, hopper=hopper)
        rows = rows_of(target, run.kernels, "search")
        legal = len(search.space.space.configurations)
        found.append(
            {
                "kernel": target.kernel,
                "shape": target.shape,
                "launch": target.launch,
                "cache": study.measure.cache,
                "processor": manifest.environment.processor(manifest.device),
                "emulated": manifest.device == "cpu",
                "date": manifest.created_at,
                "command": list(manifest.command),
                "packages": {name: packages[name] for name in KEPT if name in packages},
                "forms": list(search.forms),
                "fields": list(search.space.fields),
                "declared": search.space.declared,
                "legal": legal,
                "complete": len(rows) == legal,
                "wall_s": max((row.search.at_s for row in rows if row.search), default=0.0),
                "seeds": [list(search.space.values(choice)) for choice in search.seeds],
                "rows": [_row(search, row) for row in rows],
            }
        )
    return found


def _row(search: Search, row: KernelMeasurement) -> dict[str, Any]:
    """values as a search sees them; seen_s what its first samples said, device_s the best that is known of it."""
    values = search.space.values(TileChoice(kernel=form_of(row.point), values=row.point.tiles or {}))
    timing = row.timing
    found: dict[str, Any] = {"values": list(values), "status": row.outcome.status}
    if row.outcome.status != "ok":
        found |= {"stage": row.outcome.stage, "reason": row.outcome.reason.splitlines()[0][:120]}
    if row.search is not None and row.search.twin_of:
        found["twin"] = True
    if timing is not None and timing.device_s:
        found |= {"seen_s": first_time_s(row), "device_s": median(timing.device_s), "samples": len(timing.device_s)}
    return found


def launched(row: Mapping[str, Any]) -> bool:
    """Whether a search would have launched it: what the compiler rules out costs no evaluation."""
    return row["status"] == "ok" or row.get("stage") in ("verify", "measure")


if __name__ == "__main__":
    sys.exit(main())
