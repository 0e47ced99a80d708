"""results/reference/tuning-h100/summary.json: what each tuning came to, with the replay of the spaces beside it.

python benchmarks/tuning_summary.py FOLDER RUN...     RUNs of `mlaprof tune`; FOLDER/replay.json where there is one
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

from mlaprof import store  # noqa: E402
from mlaprof.report.tuning import tuning_json  # noqa: E402
from mlaprof.tuning.summary import summarize_tuning  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("run", type=Path, nargs="+")
    given = parser.parse_args()
    replayed = given.folder / "replay.json"
    replay = json.loads(replayed.read_text()) if replayed.exists() else {"budgets": [], "spaces": {}}
    targets: list[dict[str, Any]] = []
    for path in given.run:
        run = store.load(path)
        told = json.loads(tuning_json(summarize_tuning(run), run.manifest))
        for target in told["targets"]:
            target["run"], target["command"] = path.name, told["command"]
            target["fraction_of_optimum"] = fraction(replay, target)
            target["gain_ci"] = target["gain"] and [target["gain"]["ci_low"], target["gain"]["ci_high"]]
            targets.append(target)
    document = {"processor": told["processor"], "environment": told["environment"], "targets": targets}
    (given.folder / "summary.json").write_text(json.dumps(document, indent=1) + "\n")
    return 0


def fraction(replay: dict[str, Any], target: dict[str, Any]) -> dict[str, float] | None:
    """Evaluations -> median fraction of the optimum that our search reaches; None where the space was not exhausted."""
    for found in replay["spaces"].values():
        if (found["kernel"], found["shape"], found["launch"]) == (target["kernel"], target["shape"], target["launch"]):
            ours = next(each for name, each in found["fraction_of_optimum"].items() if "under way" in name)
            return {str(budget): value for budget, value in zip(replay["budgets"], ours["median"], strict=True)}
    return None


if __name__ == "__main__":
    sys.exit(main())
