"""Runs the experiments behind the measurement protocol on this machine's GPU, and writes what they found as JSON.

    python benchmarks/protocol.py [--out FILE] [EXPERIMENT ...]

Without names it runs all of experiments.py, each process of each experiment fresh, one after another.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("experiments", nargs="*", help="names of experiments.py; all of them without one")
    parser.add_argument("--out", type=Path, default=Path("protocol.json"))
    parser.add_argument("--child", nargs=2, metavar=("EXPERIMENT", "PROCESS"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        return child(given.child[0], int(given.child[1]), given.out)
    return parent(given.experiments, given.out)


def parent(wanted: list[str], out: Path) -> int:
    from experiments import EXPERIMENTS  # the children's imports too, so a mistake shows before the first one starts

    from mlaprof.machine import environment

    if unknown := sorted(set(wanted) - set(EXPERIMENTS)):
        print(f"no such experiment: {', '.join(unknown)}; there are {', '.join(EXPERIMENTS)}", file=sys.stderr)
        return 2
    found: dict[str, object] = {}
    failed = False
    for name in wanted or EXPERIMENTS:
        answers = []
        for process in range(EXPERIMENTS[name][1]):
            begin_s = time.monotonic()
            answer = out.with_suffix(f".{name}.{process}.json")
            code = subprocess.run(
                [sys.executable, __file__, "--out", str(answer), "--child", name, str(process)], check=False
            ).returncode
            print(f"{name} {process}: {time.monotonic() - begin_s:.1f} s", file=sys.stderr, flush=True)
            if code == 0:
                answers.append(json.loads(answer.read_text()))
            answer.unlink(missing_ok=True)
            failed = failed or code != 0
        found[name] = answers
        out.write_text(json.dumps(document(found, environment.snapshot().model_dump(mode="json")), indent=1) + "\n")
    return int(failed)


def document(found: dict[str, object], environment: object) -> dict[str, object]:
    return {
        "command": ["python", "benchmarks/protocol.py", *sys.argv[1:]],
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "environment": environment,
        "experiments": found,
    }


def child(name: str, process: int, out: Path) -> int:
    import torch
    from experiments import EXPERIMENTS

    with torch.inference_mode():
        answer = EXPERIMENTS[name][0](process)
    out.write_text(json.dumps(answer))
    return 0


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    raise SystemExit(main())
