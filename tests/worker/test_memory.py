"""Memory jobs on a CPU."""

from __future__ import annotations

import pytest

from mlaprof.records import Job, Measurement
from mlaprof.worker.jobs import run_job

SIZES = (70, 5)


def weighed(job: Job) -> list[Measurement]:
    return [event for event in run_job(job) if isinstance(event, Measurement)]


@pytest.fixture(scope="module")
def jobs(planned) -> dict[str, Job]:
    plan = planned("sweep: {num_tokens: [5, 70], mode: [split_eager, full]}", settings=("measure.memory=true",))
    return {job.points[0].mode: job for job in plan.jobs if job.kind == "memory"}


def test_an_eager_mode_has_no_graph_pool(jobs) -> None:
    """Weights, caches and buffers are told in bytes; what a CPU cannot tell is None, not 0."""
    found = weighed(jobs["split_eager"])

    assert [each.point.num_tokens for each in found] == list(SIZES)
    for each in found:
        assert (each.outcome.status, each.kind, each.timing, each.emulated) == ("ok", "memory", None, True)
        use = each.memory
        assert use is not None and use.graph_pool_bytes == 0
        assert min(use.weights_bytes, use.caches_bytes, use.buffers_bytes) > 0
        assert use.host_peak_bytes is not None and use.host_peak_bytes > use.weights_bytes
        assert (use.allocator_peak_bytes, use.nvml_process_bytes) == (None, None)


def test_a_graph_pool_is_that_of_all_sizes_so_far(jobs) -> None:
    """Largest first into one pool, as engines capture."""
    eager, full = weighed(jobs["split_eager"]), weighed(jobs["full"])

    pools = [each.memory.graph_pool_bytes for each in full]
    assert [each.point.num_tokens for each in full] == list(SIZES)
    assert 0 < pools[0] <= pools[1] < 2 * pools[0]
    for fixed in ("weights_bytes", "caches_bytes"):
        assert len({getattr(each.memory, fixed) for each in (*eager, *full)}) == 1


def test_a_size_that_fails_leaves_the_others_weighed(jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlaprof.capture.eager import EagerRunner

    run = EagerRunner.run

    def fragile(self: EagerRunner, num_tokens: int) -> object:
        if num_tokens == SIZES[0]:
            raise MemoryError("no room")
        return run(self, num_tokens)

    monkeypatch.setattr(EagerRunner, "run", fragile)
    large, small = weighed(jobs["split_eager"])

    assert (large.outcome.status, large.outcome.reason, large.memory) == ("failed", "MemoryError: no room", None)
    assert small.outcome.status == "ok" and small.memory is not None
