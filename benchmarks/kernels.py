"""Makes the artifact, the tables and the figure of single kernels from the run file of a GPU.

python benchmarks/kernels.py RUN     copies RUN to results/reference/kernels-h100.mlaprof without paths of its machine
python benchmarks/kernels.py         kernels-h100.json, kernels-h100.png and the tables of docs/kernels.md, of that copy
"""

from __future__ import annotations

import argparse
import json
import shutil
import sqlite3
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

from kernel_plot import draw  # noqa: E402
from kernel_rows import artifact_of  # noqa: E402
from kernel_tables import fill  # noqa: E402

from mlaprof import store  # noqa: E402

REFERENCE = ROOT / "results" / "reference"
RUN = REFERENCE / "kernels-h100.mlaprof"
ARTIFACT = RUN.with_suffix(".json")
FIGURE = RUN.with_suffix(".png")
PEERS = REFERENCE / "peers-h100.json"
DOCS = ROOT / "docs" / "kernels.md"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, nargs="?", help="a run file of `mlaprof kernels configs/kernels.yaml`")
    given = parser.parse_args()
    if given.run:
        keep(given.run, RUN)
    found = document()
    ARTIFACT.write_text(text_of(found))
    draw(found, FIGURE)
    DOCS.write_text(fill(DOCS.read_text(), found))
    return 0


def document() -> dict[str, Any]:
    """What is committed, of the run file that is committed."""
    run = store.load(RUN)
    environment = run.manifest.environment.model_dump(mode="json")
    return {
        "command": list(run.manifest.command),
        "date": run.manifest.created_at,
        "commit": environment["git_commit"],
        "processor": run.manifest.environment.gpus[0].name,
        "environment": environment,
        "providers": {
            each.point.provider: each.version for each in run.kernels if each.outcome.status == "ok" and each.version
        },
        **artifact_of(run, json.loads(PEERS.read_text())),
    }


def text_of(found: dict[str, Any]) -> str:
    """JSON with a line for every row."""
    rows = ",\n  ".join(json.dumps(row) for row in found["rows"])
    head = json.dumps({**found, "rows": []}, indent=1)
    return head.replace('"rows": []', f'"rows": [\n  {rows}\n ]') + "\n"


def keep(run: Path, copy: Path) -> None:
    """Copies a run file; of paths in its command the file names stay, variables that hold others than /usr's go."""
    shutil.copyfile(run, copy)
    copy.chmod(0o644)
    with closing(sqlite3.connect(copy)) as connection:
        (text,) = connection.execute("SELECT record FROM manifest").fetchone()
        record = json.loads(text)
        record["command"] = [Path(each).name if each.startswith("/") else each for each in record["command"]]
        variables = record["environment"]["variables"]
        record["environment"]["variables"] = {
            name: value for name, value in variables.items() if not value.startswith("/") or value.startswith("/usr/")
        }
        connection.execute("UPDATE manifest SET record = ?", (json.dumps(record, separators=(",", ":")),))
        connection.commit()
        connection.execute("VACUUM")  # the old record is in no free page either


if __name__ == "__main__":
    raise SystemExit(main())
