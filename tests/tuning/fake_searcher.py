"""A worker of `mlaprof tune` without torch: it answers searches and finals with planted times, and dies as told.

    fake_searcher.py MODE --fd N

MODE  ok; crash: the third configuration kills every process that tries it; mute: never says anything; loser: what the
      search finds fast is slow in the fresh process
"""

# ruff: noqa: T201

import json
import os
import signal
import sys
import time


def main() -> None:
    mode, pipe = sys.argv[1], os.fdopen(int(sys.argv[sys.argv.index("--fd") + 1]), "w", buffering=1)
    job = json.load(sys.stdin)
    print("a worker", flush=True)
    if mode == "mute":
        time.sleep(600)
    if job["kind"] == "search":
        search(mode, job, pipe)
    else:
        finals(mode, job, pipe)


def search(mode: str, job, pipe) -> None:
    told = {json.dumps(each["point"]["tiles"], sort_keys=True) for each in job["told"]}
    values = {"block": 4096, "num_warps": 16, "num_pieces": 1, "ambiguous": 64, "num_registers": 0}
    for number, changed in enumerate(({}, {"num_warps": 8}, {"num_warps": 4}, {"num_pieces": 2}, {"ambiguous": 32})):
        tiles = values | changed
        if json.dumps(tiles, sort_keys=True) in told:
            continue
        point = {"kernel": "topk", "shape": job["target"]["shape"], "provider": "triton", "launch": "eager"}
        point |= {"tiles": tiles, "twin": False}
        pipe.write(json.dumps({"started": {"kind": "search", "key": key(point), "stage": "verify"}}) + "\n")
        if mode == "crash" and number == 2:
            print("CUDA error: an illegal memory access was encountered", flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        pipe.write(json.dumps(row(job, point, seconds(tiles), "search", number)) + "\n")


def finals(mode: str, job, pipe) -> None:
    for point in job["points"]:
        slow = 1.3 if mode == "loser" and job["process"] == 1 and point["tiles"] else 1.0
        pipe.write(json.dumps(row(job, point, slow * seconds(point["tiles"] or {}), "kernel", None)) + "\n")


def seconds(tiles) -> float:
    return 1e-5 * (0.8 if tiles.get("num_warps") == 8 else 1.0)


def row(job, point, device_s: float, kind: str, number):
    samples = [device_s * (1 + 0.001 * (place % 5)) for place in range(30)]
    facts = number is not None and {
        "number": number, "origin": "seed", "at_s": 1.0 + number, "check_s": 0.1, "first_device_s": device_s,
    }  # fmt: skip
    return {
        "point": point, "kind": kind, "process": job["process"], "outcome": {"status": "ok"}, "emulated": True,
        "recorded_at": "2026-11-23T10:00:00+00:00", "search": facts or None,
        "timing": {"device_s": samples, "submit_s": samples, "cache": "cold", "clock": "perf_counter", "warmup_s": 0,
                   "first_call_s": 0},
    }  # fmt: skip


def key(point) -> str:
    shape = ",".join(f"{axis}={size}" for axis, size in point["shape"].items())
    tiles = ",".join(f"{name}={value}" for name, value in point["tiles"].items())
    return f"{point['kernel']}/{shape}/{point['provider']}:{tiles}"


if __name__ == "__main__":
    main()
