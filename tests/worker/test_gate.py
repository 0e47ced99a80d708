"""The gate before the clock: an arm whose step is not that of its own eager run, under every batch, is not timed."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from mlaprof.capture.addresses import StaleAddress
from mlaprof.capture.program import Prepared
from mlaprof.layer.mla import MLA
from mlaprof.layer.saved import save_rows
from mlaprof.records import Point
from mlaprof.study import MODES, Mode
from mlaprof.worker.arms import Arm
from mlaprof.worker.gate import Gate, Verdict
from mlaprof.worker.prepare import prepare
from mlaprof.worker.rig import Rig

NUM_TOKENS, OTHER_SIZE = 9, 20
EAGER: tuple[Mode, ...] = ("monolithic_eager", "split_eager")
PADDED: tuple[Mode, ...] = ("monolithic_piecewise", "split_piecewise", "breakable")
CAPTURED: tuple[Mode, ...] = (*PADDED, "full")
Run = Callable[[], Tensor]
Spoil = Callable[[Run, int], Tensor]
# One prompt as a whole: no other lengths, but pages drawn again.
FULL_SETS = ("other pages", "other pages, draw 4", "own batch")


class Faulty:
    """A runner that spoils what the one inside does; what it is told of itself stays."""

    def __init__(self, inside: object, spoil: Spoil) -> None:
        self._inside = inside
        self._spoil = spoil

    def facts(self, num_tokens: int) -> Prepared:
        return self._inside.facts(num_tokens)

    def run(self, num_tokens: int) -> Tensor:
        return self._spoil(lambda: self._inside.run(num_tokens), num_tokens)

    def verified_run(self, num_tokens: int) -> Tensor:
        return self._spoil(lambda: self._inside.verified_run(num_tokens), num_tokens)


class Stale:
    """Does its work, and returns what the first run of that many tokens gave."""

    def __init__(self) -> None:
        self._kept: dict[int, Tensor] = {}

    def __call__(self, run: Run, num_tokens: int) -> Tensor:
        return self._kept.setdefault(num_tokens, run().clone()).clone()


class Untouched:
    """Returns the buffer without running anything: after the gate's poison it holds NaN."""

    def __init__(self) -> None:
        self._buffers: dict[int, Tensor] = {}

    def __call__(self, run: Run, num_tokens: int) -> Tensor:
        return self._buffers[num_tokens] if num_tokens in self._buffers else self._buffers.setdefault(num_tokens, run())


def one_bit_off(run: Run, num_tokens: int) -> Tensor:
    output = run().clone()
    output.view(torch.int16)[0, 0] ^= 1
    return output


@pytest.fixture(autouse=True)
def _inference() -> Iterator[None]:
    with torch.inference_mode():
        yield


def prepared(rig: Rig) -> dict[tuple[Mode, int], Arm]:
    """Every Point's arm, all sizes captured."""
    with torch.inference_mode():
        return {(point.mode, point.num_tokens): prepare(rig, point).arm for point in rig.job.points}


@pytest.fixture(scope="module")
def rig(rig_of) -> Rig:
    """Every mode at two sizes; 70 cached tokens are more than tiny selects."""
    return rig_of(OTHER_SIZE, NUM_TOKENS, modes=MODES, phase="prefill", context_len=70)


@pytest.fixture(scope="module")
def arms(rig) -> dict[Mode, Arm]:
    return {mode: arm for (mode, size), arm in prepared(rig).items() if size == NUM_TOKENS}


@pytest.fixture(scope="module")
def bucketed(rig_of) -> tuple[Rig, dict[tuple[Mode, int], Arm]]:
    """One captured size, below the larger Point."""
    rig = rig_of(20, 5, modes=PADDED, phase="prefill", context_len=70, sizes=(16,))
    return rig, prepared(rig)


@pytest.fixture
def gate(rig) -> Gate:
    return Gate(rig, NUM_TOKENS)


def faulty(arm: Arm, spoil: Spoil) -> Arm:
    return replace(arm, runner=Faulty(arm.runner, spoil))


def wrong(verdict: Verdict) -> list[str]:
    return [check.name for check in verdict.wrong]


def test_sound_arms_pass(gate, arms):
    """The first meets the oracle, the second its bits, each captured one its own eager run under every batch."""
    verdicts = {mode: gate.check(arms[mode]) for mode in MODES}
    assert {mode: wrong(verdict) for mode, verdict in verdicts.items()} == {mode: [] for mode in MODES}
    names = {mode: {check.name for check in verdict.checks} for mode, verdict in verdicts.items()}
    assert any("vs oracle" in name for name in names["monolithic_eager"])
    assert "eager, own batch: differing bytes vs eager" in names["split_eager"]
    for mode in CAPTURED:
        assert {f"{each}: differing bytes vs eager" for each in verdicts[mode].facts.sets} <= names[mode]


def test_padded_arms_are_replayed_under_every_batch_that_can_be_made(gate, arms):
    """Other pages, other requests, fewer tokens, and the own batch last: the graph was captured with that one."""
    for mode in PADDED:
        facts = gate.check(arms[mode]).facts
        assert facts.sets == ("other pages", "other lengths", "fewer tokens", "own batch"), mode
        assert (facts.replays, facts.interleaved, facts.after_timing) == (4, (OTHER_SIZE,), False)


def test_a_full_graph_is_replayed_under_the_batches_it_serves(gate, arms):
    """Of a prefill it froze the requests themselves."""
    assert gate.check(arms["full"]).facts.sets == FULL_SETS


def test_a_full_decode_graph_is_replayed_under_long_and_short_sequences(rig_of):
    """Two graphs, one for each answer to whether the indexer is skipped; each with a batch of its own."""
    rig = rig_of(5, modes=("split_eager", "full"), phase="decode", context_len=100)
    arms = prepared(rig)
    facts = Gate(rig, 5).check(arms["full", 5]).facts
    assert facts.sets == ("other pages", "other lengths", "idle requests", "short sequences", "own batch")


@pytest.mark.parametrize("mode", CAPTURED)
@pytest.mark.parametrize(
    "make_fault", [Stale, Untouched, lambda: one_bit_off], ids=["stale", "untouched", "one bit off"]
)
def test_a_captured_arm_that_returns_something_else_is_caught(gate, arms, make_fault, mode):
    """An old result, a buffer nobody wrote, a single wrong bit: the captured arm is incorrect."""
    assert wrong(gate.check(faulty(arms[mode], make_fault())))
    assert wrong(gate.check(arms[mode])) == []


@pytest.mark.parametrize("mode", CAPTURED)
def test_an_arm_that_leaves_its_output_as_it_was_is_caught(gate, arms, mode):
    """The run before it left the right one there, in the same batch; the gate has overwritten it with NaN."""

    class Silent(Faulty):
        def verified_run(self, num_tokens: int) -> Tensor:
            before = self._left.clone()
            return self._inside.run(num_tokens).copy_(before)

        def run(self, num_tokens: int) -> Tensor:
            output = self._inside.run(num_tokens)
            self._left = output if num_tokens != OTHER_SIZE else self._left
            return output

    arm = replace(arms[mode], runner=Silent(arms[mode].runner, one_bit_off))
    verdict = gate.check(arm)
    assert wrong(verdict) == [f"{name}: differing bytes vs eager" for name in verdict.facts.sets]


def test_a_stale_arm_is_caught_by_the_batches_it_was_not_captured_with(rig, gate, arms):
    """The result kept is right for one batch only."""
    stale = faulty(arms["split_piecewise"], Stale())
    rig.load(NUM_TOKENS)
    with stale.context:
        stale.runner.run(NUM_TOKENS)
    found = wrong(gate.check(stale))
    assert found == ["other pages: differing bytes vs eager", "other lengths: differing bytes vs eager"]


@pytest.mark.parametrize("mode", MODES)
def test_an_arm_that_leaves_the_caches_unwritten_is_caught(rig, arms, mode):
    """Right output, and the next step would read rows that nobody wrote: NaN, since the gate has spoilt them."""

    def unwritten(run: Run, num_tokens: int) -> Tensor:
        saved = save_rows(rig.caches, rig.metadata)
        output = run()
        saved.restore()
        return output

    verdict = Gate(rig, NUM_TOKENS).check(faulty(arms[mode], unwritten))
    sets = () if verdict.facts is None else verdict.facts.sets
    assert wrong(verdict) == [f"{name}, cache rows: differing bytes vs eager" for name in sets]
    assert (mode in EAGER) == (not sets)  # of an eager arm the stack itself is what is timed


@pytest.mark.parametrize("mode", CAPTURED)
def test_an_arm_that_writes_to_pages_of_others_is_caught(rig, gate, arms, mode):
    """Its own step is right, and another request's tokens are gone: one byte of one page, in either cache."""
    owned = {page for pages in rig.load(NUM_TOKENS).pages for page in pages}
    stranger = next(page for page in range(rig.num_blocks) if page not in owned)
    pool = rig.caches.index_k[0]
    kept = pool[stranger].clone()

    def stray(run: Run, num_tokens: int) -> Tensor:
        if rig.loaded[1].name == "own batch" and num_tokens == NUM_TOKENS:
            pool[stranger].view(-1)[5] = next(bytes_written)
        return run()

    bytes_written = itertools.count()
    found = wrong(gate.check(faulty(arms[mode], stray)))
    pool[stranger].copy_(kept)
    assert found == ["own batch, pages of others: differing bytes vs eager"]


def test_an_index_cache_that_no_later_part_of_the_step_reads_is_compared_too(rig_of, monkeypatch):
    """At boundary logits the selection comes from the new keys themselves, so that no output tells."""
    rig = rig_of(70, modes=("split_piecewise",), phase="prefill", context_len=0, boundary="logits")
    with monkeypatch.context() as patch:
        patch.setattr(MLA, "_write_caches", lambda self, *args: self._append_latent(*args[:3], args[5]))
        arms = prepared(rig)
    found = wrong(Gate(rig, 70).check(arms["split_piecewise", 70]))
    assert found == [f"{name}, cache rows: differing bytes vs eager" for name in FULL_SETS]


def test_padding_rows_are_nan_and_leak_nowhere(rig, gate, arms):
    """What one padding row adds to a row of the batch shows in the batch that has padding, and in no other."""
    hidden = rig.buffers.tensors["hidden_states"]
    spoilt: list[bool] = []

    def leaking(run: Run, num_tokens: int) -> Tensor:
        output = run().clone()
        if num_tokens < NUM_TOKENS:
            spoilt.append(bool(hidden[num_tokens:NUM_TOKENS].isnan().all()))
            output[0] += 0 * hidden[NUM_TOKENS - 1]
        return output

    assert wrong(gate.check(faulty(arms["breakable"], leaking))) == ["fewer tokens: differing bytes vs eager"]
    assert spoilt and all(spoilt)


def test_another_size_that_spoils_this_one_is_caught(gate, arms):
    """Crosstalk between sizes shows only where they take turns."""
    sizes: list[int] = []

    def crosstalk(run: Run, num_tokens: int) -> Tensor:
        sizes.append(num_tokens)
        return one_bit_off(run, num_tokens) if OTHER_SIZE in sizes and num_tokens == NUM_TOKENS else run()

    found = wrong(gate.check(faulty(arms["full"], crosstalk)))
    assert found == [f"{name}: differing bytes vs eager" for name in FULL_SETS]
    assert sizes == [NUM_TOKENS, OTHER_SIZE, NUM_TOKENS] * 3


def test_only_sizes_that_were_replayed_are_called_interleaved(rig_of):
    """One that has no graph, or no batch, was not."""
    rig = rig_of(OTHER_SIZE, NUM_TOKENS, modes=("full",), phase="prefill", context_len=0)
    arm = prepare(rig, rig.job.points[-1]).arm
    assert Gate(rig, NUM_TOKENS).check(arm).facts.interleaved == ()


@pytest.mark.parametrize("mode", MODES)
def test_the_caches_are_as_they_were_and_the_own_batch_is_loaded(rig, gate, arms, mode):
    """Bit for bit, in every page, after sound arms and after one that raises in the middle."""

    def raising(run: Run, num_tokens: int) -> Tensor:
        run()
        raise RuntimeError("launch failed")

    def snapshot() -> list[Tensor]:
        return [pool.view(torch.uint8).clone() for pool in (rig.caches.latent, *rig.caches.index_k)]

    rig.load(OTHER_SIZE)
    before = snapshot()
    gate.check(arms[mode])
    assert all(torch.equal(one, other) for one, other in zip(before, snapshot(), strict=True))
    assert (rig.metadata.num_tokens, rig.loaded[0], rig.loaded[1].name) == (NUM_TOKENS, 0, "own batch")
    if mode in CAPTURED:
        with pytest.raises(RuntimeError, match="launch failed"):
            gate.check(faulty(arms[mode], raising))
        assert all(torch.equal(one, other) for one, other in zip(before, snapshot(), strict=True))


def test_a_moved_address_is_a_check_that_fails(gate, arms):
    """Found before the replay: the reason says what moved, and no bits are compared."""

    class Moved(Faulty):
        def verified_run(self, num_tokens: int) -> Tensor:
            raise StaleAddress("captured with an input that is gone")

    moved = replace(arms["full"], runner=Moved(arms["full"].runner, lambda run, size: run()))
    found = wrong(gate.check(moved))
    assert found == [f"{name}: captured with an input that is gone" for name in FULL_SETS]


def test_the_graph_of_the_own_batch_is_looked_up_with_that_batch_in_place(rig, arms):
    """Whatever was loaded before: a graph that serves the arm must not go unreplayed."""
    rig.load(OTHER_SIZE)
    assert Gate(rig, NUM_TOKENS).check(arms["full"]).facts is not None


@pytest.mark.parametrize("mode", CAPTURED)
def test_an_arm_that_breaks_while_it_is_timed_is_caught_behind_it(gate, arms, mode):
    broken: list[bool] = []
    arm = faulty(arms[mode], lambda run, size: one_bit_off(run, size) if broken else run())
    verdict = gate.check(arm)
    sound = gate.recheck(arm, verdict)
    assert wrong(verdict) == wrong(sound) == []
    assert (sound.facts.after_timing, sound.facts.replays) == (True, verdict.facts.replays + 1)
    broken.append(True)
    assert wrong(gate.recheck(arm, verdict)) == ["own batch, after timing: differing bytes vs eager"]


@pytest.mark.parametrize("mode", PADDED)
def test_an_arm_that_fell_back_is_held_to_what_an_eager_one_is(bucketed, mode):
    """Above the largest captured size: no replays to tell of, but oracle, contract, and the pieces themselves."""
    rig, arms = bucketed
    arm = arms[mode, 20]
    verdict = Gate(rig, 20).check(arm)
    assert wrong(verdict) == [] and verdict.facts is None
    names = [check.name for check in verdict.checks]
    assert any("vs oracle" in name for name in names)
    assert any("written against its schema" in name for name in names)
    assert wrong(Gate(rig, 20).check(faulty(arm, one_bit_off))) == ["own batch: differing bytes vs eager"]


@pytest.mark.parametrize("mode", PADDED)
def test_a_batch_below_its_bucket_is_replayed_with_padding_in_every_batch(bucketed, mode):
    rig, arms = bucketed
    verdict = Gate(rig, 5).check(arms[mode, 5])
    assert wrong(verdict) == [] and len(verdict.facts.sets) >= 3
    leak = faulty(arms[mode, 5], lambda run, size: run() + 0 * rig.buffers.tensors["hidden_states"][15])
    assert {f"{name}: differing bytes vs eager" for name in verdict.facts.sets} <= set(wrong(Gate(rig, 5).check(leak)))


@pytest.mark.parametrize("mode", ["split_eager", "split_piecewise", "breakable", "full"])
def test_an_arm_that_writes_what_its_schema_does_not_declare_is_caught(gate, arms, mode, monkeypatch):
    """Op 2 run twice on the same arguments would not give the same result."""
    right = MLA.dsa_attn

    def scribbling(self: MLA, q: Tensor, *args: object) -> None:
        right(self, q, *args)
        q.add_(1)

    monkeypatch.setattr(MLA, "dsa_attn", scribbling)
    assert wrong(gate.check(arms[mode])) == ["mlaprof::mla_dsa_attn_inplace: arguments written against its schema"]


def test_an_eager_arm_that_differs_from_the_proven_one_is_caught(gate, arms, monkeypatch):
    """The second eager arm is held to the first one's bits."""
    gate.check(arms["monolithic_eager"])
    monkeypatch.setattr(MLA, "dsa_proj", _scaled(MLA.dsa_proj))
    assert "eager, own batch: differing bytes vs eager" in wrong(gate.check(arms["split_eager"]))


def test_an_eager_arm_whose_caches_differ_from_the_proven_ones_is_caught(gate, arms, monkeypatch):
    """Of a short batch no output depends on the index cache; the second arm has no oracle of its own."""
    gate.check(arms["monolithic_eager"])
    right = MLA._write_caches

    def twice_the_scale(self: MLA, *args: Any) -> None:
        *first, k_scale, latent, fp8, scale = args
        right(self, *first, k_scale * 2, latent, fp8, scale)

    monkeypatch.setattr(MLA, "_write_caches", twice_the_scale)
    assert "eager, own batch, cache rows: differing bytes vs eager" in wrong(gate.check(arms["split_eager"]))


def _scaled(real: Callable[..., list[Tensor]], factor: float = 1.01) -> Callable[..., list[Tensor]]:
    def wrong(self: object, *args: object) -> list[Tensor]:
        q, *rest = real(self, *args)
        return [q * factor, *rest]

    return wrong


def test_the_first_eager_arm_meets_the_oracle(gate, arms, monkeypatch):
    """Wrong from the start, alike in every mode: only the oracle can tell."""
    monkeypatch.setattr(MLA, "_write_caches", lambda self, *args: None)
    assert "own batch, layer 0: latent rows written" in wrong(gate.check(arms["monolithic_eager"]))


def test_an_arm_that_repeats_a_wrong_output_bit_for_bit_is_wrong_too(gate, arms, monkeypatch):
    """Only what passed the oracle is a yardstick for the next arm, eager or captured."""
    monkeypatch.setattr(MLA, "dsa_proj", _scaled(MLA.dsa_proj, 2.0))
    for mode in ("monolithic_eager", "split_eager", "monolithic_eager"):
        assert "own batch, layer 0: worst row error vs oracle" in wrong(gate.check(arms[mode])), mode


def test_the_same_arm_at_another_size_is_proven_there(rig, arms):
    """A runner serves all its sizes; each is held to its own eager runs."""
    other = arms["split_piecewise"].at(Point.model_validate({**dict(rig.job.points[0]), "mode": "split_piecewise"}))
    verdict = Gate(rig, OTHER_SIZE).check(other)
    assert wrong(verdict) == [] and verdict.facts.interleaved == (NUM_TOKENS,)
