"""kill -9 at any instant, of the sweep or of its worker: at most the cell in flight is lost, none is done twice."""

from __future__ import annotations

import json
import random
import signal
import time
from pathlib import Path

import pytest

from mlaprof import store
from mlaprof.records import work

pytestmark = pytest.mark.drill

SHARES, TRIALS = 4, 60  # in all 240; a share a process of pytest
REAL = """\
name: real
preset: tiny
sweep: {num_tokens: [6, 5, 4, 3, 2, 1], mode: [monolithic_eager, split_eager]}
measure: {cache: warm, processes: 1, min_samples: 20, max_samples: 20, warmup_s: 0.3, memory: false, counts: false}
"""
KILLS = 5


@pytest.mark.parametrize("share", range(SHARES))
def test_a_sweep_killed_at_a_random_instant_goes_on(place, share: int) -> None:
    """With a worker that answers at once; the instants are spread over the whole sweep, and most of them strike."""
    seed = random.randrange(2**32)  # another one each time; the message names it
    program = (str(Path(__file__).with_name("killed.py")),)

    ended = place.run(place.folder / "killed", seed, TRIALS, program=program)

    assert ended.code == 0, ended.err
    trials = [json.loads(line) for line in ended.out.splitlines()]
    wrong = [trial for trial in trials if trial["wrong"]]
    assert len(trials) == TRIALS and wrong == [], f"seed {seed}"
    struck = [trial for trial in trials if trial["struck"]]
    assert len(struck) >= TRIALS / 3
    # Otherwise the drill has become one of the beginning or of the end alone.
    assert len({trial["stored"] for trial in struck if trial["whom"] == "sweep"}) >= 5


def test_a_real_sweep_killed_five_times_over_its_run_ends_whole(place) -> None:
    """With the worker that measures; each resumed sweep is killed again, a little after its first new measurement."""
    (place.folder / "study.yaml").write_text(REAL)
    path = place.folder / "run.mlaprof"
    arguments: tuple[object, ...] = ("sweep", "study.yaml", "--device", "cpu", "--out", path)
    done: set[tuple[str, str, int]] = set()
    kept = 0
    for _ in range(KILLS):
        process = place.start(*arguments)
        assert process.stderr is not None
        for line in process.stderr:
            if " ok " in line:
                break
        else:
            pytest.fail("the sweep ended before it was killed")
        time.sleep(random.uniform(0.0, 0.6))
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
        place.assert_clean()
        measurements = store.load(path).measurements
        assert len(measurements) > kept
        # What a cell lost is measured again with the rest of it; a whole cell never is.
        assert all(each.outcome.usable for each in measurements)
        assert {each[:2] for each in done} <= {(each.kind, each.point.key) for each in measurements}
        kept, done = len(measurements), store.done(path)
        arguments = ("sweep", "--resume", path)

    ended = place.run(*arguments)

    assert ended.code == 0, ended.err
    run = store.load(path)
    assert sorted(work(m.kind, m.point.key, m.process) for m in run.measurements) == sorted(run.manifest.planned)
    assert {m.outcome.status for m in run.measurements} == {"ok"}
    assert f"/{len(run.measurements)}]" not in ended.err  # not all of it was left to do
