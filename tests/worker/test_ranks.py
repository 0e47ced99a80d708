"""A tensor parallel layer on a CPU: real ranks over gloo, proven and sampled together, and faults that cost a cell."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from mlaprof.capture.graphs import CaptureError
from mlaprof.facts import Check
from mlaprof.layer.weights import random_weights
from mlaprof.machine import descendants
from mlaprof.measure.clock import Burst, Sample
from mlaprof.measure.rounds import ArmSamples, Rounds
from mlaprof.records import Job, Measurement
from mlaprof.shapes import PRESETS, tensor_parallel
from mlaprof.study import DRILL_VARIABLE, MODES, FaultSpec, StageLimits, TpSpec
from mlaprof.sweep import spawn_worker, sweep
from mlaprof.wire import decode, encode
from mlaprof.worker.events import ContextLost, RankFailed, recover
from mlaprof.worker.group import Group, RankPlace, group_of
from mlaprof.worker.rig import Rig
from mlaprof.worker.slowest import disagreement, rank_facts, slowest

LIMIT_S = 8.0  # of the stage that hangs; a tiny stage takes a tenth of it on a busy machine
CPU = torch.device("cpu")


def job_of(planned, *lines: str) -> Job:
    (job,) = planned(*lines, "tp: {world: 2}").jobs
    return job


def swept(job: Job) -> dict[str, Measurement]:
    """What a sweep of this job alone makes of each Point, by key; and nothing of any rank is left behind."""
    tokens: list[str] = []

    def spawn(each: Job):
        child = spawn_worker(each)
        tokens.append(child._keeper.token)
        return child

    found = list(sweep(SimpleNamespace(jobs=(job,), skips=()), spawn=spawn, keep=lambda kept: None))
    assert not [pid for token in tokens for pid in descendants.living(token)]
    return {each.point.key: each for each in found if isinstance(each, Measurement)}


def test_every_mode_of_two_ranks_is_proven_and_sampled_on_both(planned) -> None:
    """The gate holds the sum to the sum of the oracle's parts, and replays to eager runs bit for bit; each rank's
    samples are kept, and the row is the slowest's."""
    job = job_of(planned, "sweep: {num_tokens: 3, context_len: 70, mode: [" + ", ".join(MODES) + "]}", "mlp: dense")

    found = swept(job)

    assert {each.point.mode: each.outcome.reason for each in found.values()} == dict.fromkeys(MODES, "")
    for each in found.values():
        assert each.ranks is not None and each.timing is not None
        assert [len(series) for series in each.ranks.device_s] == [20, 20]
        assert each.timing.device_s == tuple(map(max, zip(*each.ranks.device_s, strict=True)))
        assert each.ranks.device_s[0] != each.ranks.device_s[1] and min(each.ranks.spread_s) >= 0
        assert each.ranks.disagreement == ()
        assert decode(encode(each)) == each
    by_mode = {each.point.mode: each for each in found.values()}
    assert any("vs oracle" in check.name for check in by_mode["monolithic_eager"].checks)
    assert by_mode["full"].graph.state == "replayed" and by_mode["split_piecewise"].gate.after_timing


@pytest.mark.drill
def test_a_rank_that_dies_and_one_that_hangs_cost_a_cell_each(planned, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever rank it is, the fault has its name, its stage and its cell; the rest goes on in a fresh group."""
    monkeypatch.setenv(DRILL_VARIABLE, "1")
    job = job_of(planned, "sweep: {num_tokens: [3, 5], mode: [monolithic_eager, split_eager]}")
    dies, hangs = "tiny/prefill/t5/ctx0/split_eager", "tiny/prefill/t3/ctx0/monolithic_eager"
    faults = (
        FaultSpec(fault="sigkill", at="measure", key=dies, rank=1),
        FaultSpec(fault="hang", at="verify", key=hangs, rank=1),
    )
    measure = job.measure.model_copy(update={"limits_s": StageLimits(verify=LIMIT_S)})

    found = swept(job.model_copy(update={"faults": faults, "measure": measure}))

    bad = {key: (each.outcome.stage, each.outcome.fault) for key, each in found.items() if not each.outcome.usable}
    assert bad == {dies: ("measure", "killed"), hangs: ("verify", "timeout")}
    assert len(found) == 4 and "rank 1 ended: killed by SIGKILL" in found[dies].outcome.reason


def test_the_ranks_parts_sum_to_the_whole_layer(planned) -> None:
    """Heads and MLP are shared out, the rest is the same on all ranks: what they add up to is the unsharded layer."""
    whole_job = planned("sweep: {num_tokens: 5, context_len: 70, mode: monolithic_eager}").jobs[0]
    parts = []
    with torch.inference_mode():
        whole = stepped(Rig(whole_job))
        for rank in range(2):
            group = Group()
            group.rank, group.world, group.reduce = rank, 2, lambda partial: None
            rig = Rig(job_of(planned, "sweep: {num_tokens: 5, context_len: 70, mode: monolithic_eager}"), group)
            parts.append(stepped(rig))

    assert (parts[0] - parts[1]).norm() > 0.5 * whole.norm()
    assert (parts[0] + parts[1] - whole).norm() < 0.02 * whole.norm()


def stepped(rig: Rig) -> torch.Tensor:
    """What attention adds to the hidden states, or a rank's part of it."""
    arm = rig.arm(rig.job.points[0])
    with arm.context:
        output = arm.runner.run(5).float()
    return output - rig.buffers.slice(5)[0].float()


@pytest.mark.parametrize("world", [2, 4])
def test_a_rank_draws_its_own_heads_of_the_whole_layers_weights(world: int) -> None:
    whole = PRESETS["tiny"]
    shape = tensor_parallel(whole, world)
    drawn = random_weights(whole, seed=4, mlp=True, device=CPU)
    ranks = [random_weights(shape, seed=4, mlp=True, device=CPU, rank=rank) for rank in range(world)]

    for name, dim in {"q_b_proj.weight": 0, "o_proj.weight": 1, "mlp.down_proj.weight": 1}.items():
        assert torch.equal(torch.cat([each[name] for each in ranks], dim), drawn[name])
    for name in ("kv_a_proj_with_mqa.weight", "indexer.wq_b.weight", "input_layernorm.weight"):
        assert all(torch.equal(each[name], drawn[name]) for each in ranks)


@pytest.fixture
def another_rank(planned, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A second process that joins a group of two at tmp_path, and does there what the tests below do here."""
    job = job_of(planned, "sweep: {num_tokens: 3, mode: split_eager}")
    program = f"""
import sys, pathlib
from mlaprof.capture.graphs import CaptureError
from mlaprof.facts import Check
from mlaprof.records import Job
from mlaprof.worker.events import RankFailed
from mlaprof.worker.group import RankPlace, group_of
job = Job.model_validate_json(sys.stdin.read())
with group_of(job, RankPlace(1, {str(tmp_path / "meeting")!r})) as group:
    assert group.gather("one")  == ["zero", "one"]
    group.worst([Check(name="a", value=0.5, limit=1), Check(name="b", value=float("nan"), limit=1)])
    assert group.any(True) and group.most(2.0) == 3.0
    for error in (CaptureError("cannot", op="a"), ValueError("no room")):
        try:
            with group.together():
                raise error
        except (CaptureError, RankFailed) as met:
            assert isinstance(error, CaptureError) == isinstance(met, CaptureError)
    group.meet()
"""
    process = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE)
    assert process.stdin
    process.stdin.write(job.model_dump_json().encode())
    process.stdin.close()
    yield process
    process.kill()
    process.wait()


def test_ranks_agree(planned, tmp_path: Path, another_rank: subprocess.Popen[bytes]) -> None:
    """The worst value of a check is everybody's, one yes is a yes, and where one fails all do."""
    job = job_of(planned, "sweep: {num_tokens: 3, mode: split_eager}")
    with group_of(job, RankPlace(0, str(tmp_path / "meeting"))) as group:
        assert group.gather("zero") == ["zero", "one"]
        checks = group.worst([Check(name="a", value=0.2, limit=1), Check(name="b", value=0.0, limit=1)])
        assert checks[0].value == 0.5 and not checks[1].passed
        assert group.any(False) and group.most(3.0) == 3.0
        with pytest.raises(CaptureError, match=r"^cannot either"), group.together():
            raise CaptureError("cannot either", op="a")
        with pytest.raises(RankFailed, match="rank 1: ValueError: no room"), group.together():
            pass
        group.meet()
    with pytest.raises(ContextLost):  # the rest is for a fresh group
        recover(job, RankFailed("rank 1: ValueError: no room"))
    assert another_rank.wait(60) == 0 and not torch.distributed.is_initialized()


def rounds(*device_s: float, submit_s: float = 1.0, filled: bool = True) -> Rounds[str]:
    samples = tuple(Sample(each, submit_s, submit_s, each, filled) for each in device_s)
    arm = ArmSamples(samples, ("cool",) * len(samples), (Burst(device_s[0], device_s[0]),), 3)
    return Rounds({"a": arm}, "samples", 0, 0.0, False)


def test_the_row_is_the_slowest_rank_of_each_round() -> None:
    every = [rounds(1.0, 5.0), rounds(2.0, 3.0, submit_s=4.0, filled=False)]

    row = slowest(every).arms["a"]
    facts = rank_facts(every, [{"a": {"topk": "[1]"}}, {"a": {"topk": "[1]"}}], "a")

    assert row.device_s == (2.0, 5.0) and {each.submit_s for each in row.samples} == {4.0}
    assert not any(each.filled for each in row.samples) and row.bursts[0].sustained_s == 2.0
    assert facts.spread_s == (1.0, 2.0) and facts.world == 2 and facts.disagreement == ()


def test_kernels_whose_tiles_differ_are_named() -> None:
    one = {"topk": "[32, 4]", "absorb": "the launcher's choice for a"}

    assert disagreement([one, one]) == ()
    assert disagreement([one, one | {"topk": "[64, 4]"}, one]) == ("topk",)


def test_a_group_is_of_one_without_ranks(planned) -> None:
    """Nothing is started, nothing is agreed upon."""
    job = planned("sweep: {num_tokens: 3, mode: split_eager}").jobs[0]
    assert job.layer.tp == TpSpec(world=1)
    with group_of(job, None) as group:
        assert (group.world, group.reduce, group.gather(3)) == (1, None, [3])


@pytest.mark.gpu
def test_every_mode_of_two_ranks_on_two_gpus(planned) -> None:
    """The all-reduce is NCCL's, inside the graphs of the modes that have any."""
    if torch.cuda.device_count() < 2:
        pytest.skip(f"needs two CUDA GPUs, and torch sees {torch.cuda.device_count()}")
    job = job_of(planned, "sweep: {num_tokens: 3, context_len: 70, mode: [" + ", ".join(MODES) + "]}")

    found = swept(job.model_copy(update={"device": "cuda"}))

    assert {each.point.mode: each.outcome.cause for each in found.values()} == dict.fromkeys(MODES, "")
    assert all(each.ranks and each.ranks.world == 2 for each in found.values())
