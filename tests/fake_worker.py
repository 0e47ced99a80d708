"""A worker without torch, for tests of the sweep: it speaks the protocol, and fails as told.

    fake_worker.py MODE [TARGET] --mark M --fd N

MODE    ok, or steady; or what happens at TARGET, a number of tokens: signal, exit, hang, rubbish, torn, stranger,
        twice, chatter, build, marked, runaway; hold, until the file go is in the folder $FAKE_HOLD, where it leaves a
        file with its process number, and a line of `measured` for each Point that it answers; lost, where TARGET is
        the GPU that is; or what happens before any Point: dead, mute, rubbish-first; or at the end: linger
Standard library only, so that hundreds of them start in seconds.
"""

# ruff: noqa: T201  a worker may print what it likes

import json
import os
import signal
import sys
import time


def main() -> None:
    mode = sys.argv[1]
    target = int(sys.argv[2]) if not sys.argv[2].startswith("--") else 0
    pipe = os.fdopen(int(sys.argv[sys.argv.index("--fd") + 1]), "w", buffering=1)
    job = json.load(sys.stdin)
    print(f"worker {os.getpid()} of parent {os.getppid()}", flush=True)
    if mode == "dead":
        print("no kernel image for this device", file=sys.stderr)
        sys.exit(7)
    if mode == "mute":
        sleep_with_a_grandchild()
    if mode == "rubbish-first":
        pipe.write("Segmentation fault\n")
    if mode == "build" and any(point["num_tokens"] == target for point in job["points"]):
        first = key(job["points"][0])
        pipe.write(json.dumps({"started": {"kind": job["kind"], "key": first, "stage": "build"}}) + "\n")
        os.kill(os.getpid(), getattr(signal, os.environ.get("FAKE_SIGNAL", "SIGKILL")))
    if mode == "lost" and os.environ["CUDA_VISIBLE_DEVICES"] == f"GPU-{target}":
        pipe.write(
            json.dumps({"started": {"kind": job["kind"], "key": key(job["points"][0]), "stage": "measure"}}) + "\n"
        )
        print("CUDA error: uncorrectable ECC error encountered", file=sys.stderr, flush=True)
        os.abort()
    for point in job["points"]:
        pipe.write(json.dumps({"started": {"kind": job["kind"], "key": key(point), "stage": "build"}}) + "\n")
        pipe.write(json.dumps({"started": {"kind": job["kind"], "key": key(point), "stage": "capture"}}) + "\n")
        line = json.dumps(measurement(job, point))
        if mode == "marked" and any(each["num_tokens"] == target for each in job["points"]):
            # The stage of the first is begun for all; the one whose turn it was breaks.
            pipe.write(json.dumps({"started": {"kind": job["kind"], "key": key(point), "stage": "measure"}}) + "\n")
            guilty = next(each for each in job["points"] if each["num_tokens"] == target)
            os.pwrite(int(sys.argv[sys.argv.index("--mark") + 1]), f"{key(guilty)}\n".encode(), 0)
            os.abort()
        if point["num_tokens"] == target:
            misbehave(mode, pipe, line)
        if mode == "steady":  # so that a kill finds it between any two Points
            time.sleep(0.002)
        if mode == "hold":
            with open(os.path.join(os.environ["FAKE_HOLD"], "measured"), "a") as measured:
                measured.write(f"{job['kind']}#{job['process']} {key(point)}\n")
        pipe.write(line + "\n")
    if mode == "linger":
        pipe.close()
        sleep_with_a_grandchild()


def misbehave(mode: str, pipe, line: str) -> None:
    if mode == "signal":
        print("CUDA error: an illegal memory access was encountered", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGABRT)
    elif mode == "exit":
        sys.exit(3)
    elif mode == "hang":
        sleep_with_a_grandchild()
    elif mode == "hold":
        folder = os.environ["FAKE_HOLD"]
        with open(os.path.join(folder, f"held-{os.getpid()}"), "w"):
            pass
        while not os.path.exists(os.path.join(folder, "go")):
            time.sleep(0.02)
    elif mode == "runaway":
        if os.fork() == 0:
            os.setsid()  # out of the group and the session
            print(f"runaway {os.getpid()}", flush=True)
            time.sleep(600)
        time.sleep(0.2)
        os.abort()
    elif mode == "rubbish":
        pipe.write('{"half": a record\n')
    elif mode == "torn":
        pipe.write(line[: len(line) // 2])
        pipe.flush()
        os._exit(0)
    elif mode == "stranger":
        pipe.write(line.replace('"num_tokens": ', '"num_tokens": 9') + "\n")
    elif mode == "twice":
        pipe.write(line + "\n")
    elif mode == "chatter":
        for number in range(20_000):  # far more than a pipe holds
            print(f"\x1b[31mwarning {number}\x1b[0m")
        sys.stdout.flush()
        os.abort()


def sleep_with_a_grandchild() -> None:
    """Hang, and leave a process in the group that holds every descriptor open."""
    if os.fork() == 0:
        print(f"grandchild {os.getpid()}", flush=True)
    time.sleep(600)


def key(point: dict) -> str:
    """The key of a Point with default tiles."""
    boundary = "" if point["boundary"] == "index_quant" else f"@{point['boundary']}"
    twin = "/aa" if point["twin"] else ""
    return "{preset}/{phase}/t{num_tokens}/ctx{context_len}/{mode}".format_map(point) + boundary + twin


def measurement(job: dict, point: dict) -> dict:
    return {
        "point": point,
        "kind": job["kind"],
        "process": job["process"],
        "outcome": {"status": "ok", "stage": "measure", "reason": ""},
        "emulated": job["device"] == "cpu",
        "recorded_at": "2026-11-23T10:15:00+00:00",
    }


if __name__ == "__main__":
    main()
