"""results/reference/tuning-h100/summary.json: what each tuning came to, with the replay of the spaces beside it.

python benchmarks/tuning_summary.py FOLDER RUN...     RUNs of `mlaprof tune`; FOLDER/replay.json where there is one;
                                                      prints the table of docs/tuning.md
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

from mlaprof import store  # noqa: E402
from mlaprof.report.tuning import tuning_json  # noqa: E402
from mlaprof.tuning.summary import summarize_tuning  # noqa: E402

SHOWN = ("num_tokens", "num_rows", "num_queries", "num_keys", "batch", "kv_len", "width", "num_heads")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("run", type=Path, nargs="+")
    given = parser.parse_args()
    found = document(given.folder, given.run)
    (given.folder / "summary.json").write_text(json.dumps(found, indent=1) + "\n")
    print(table(found))
    return 0


def document(folder: Path, runs: Sequence[Path]) -> dict[str, Any]:
    """A row a target of the runs, in their order."""
    replayed = folder / "replay.json"
    replay = json.loads(replayed.read_text()) if replayed.exists() else {"budgets": [], "spaces": {}}
    targets: list[dict[str, Any]] = []
    for path in runs:
        run = store.load(path)
        told = json.loads(tuning_json(summarize_tuning(run), run.manifest))
        for target in told["targets"]:
            target["run"], target["command"] = path.name, told["command"]
            target["fraction_of_optimum"] = fraction(replay, target)
            target["gain_ci"] = target["gain"] and [target["gain"]["ci_low"], target["gain"]["ci_high"]]
            targets.append(target)
    return {"processor": told["processor"], "environment": told["environment"], "targets": targets}


def table(found: Mapping[str, Any]) -> str:
    """Markdown, a row a target."""
    lines = ["| kernel | shape | legal | launched | wall s | gain | decision |", "|---|---|---:|---:|---:|---|---|"]
    for each in found["targets"]:
        shape = ", ".join(f"{axis} {size}" for axis, size in each["shape"].items() if axis in SHOWN)
        gain = f"{each['gain']['median']:.3f} [{each['gain_ci'][0]:.3f}, {each['gain_ci'][1]:.3f}]"
        cells = (shape, each["legal"], each["evaluations"], f"{each['wall_s']:.0f}", gain, each["decision"])
        lines.append(f"| `{each['kernel']}` | {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def fraction(replay: dict[str, Any], target: dict[str, Any]) -> dict[str, float] | None:
    """Evaluations -> median fraction of the optimum that our search reaches; None where the space was not exhausted."""
    for found in replay["spaces"].values():
        if (found["kernel"], found["shape"], found["launch"]) == (target["kernel"], target["shape"], target["launch"]):
            ours = next(each for name, each in found["fraction_of_optimum"].items() if "under way" in name)
            return {str(budget): value for budget, value in zip(replay["budgets"], ours["median"], strict=True)}
    return None


if __name__ == "__main__":
    sys.exit(main())
