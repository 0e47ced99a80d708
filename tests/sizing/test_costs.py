"""What costs are read off a run: the way and its eager form, one clock, the ledger, and what padded cells say."""

from __future__ import annotations

import numpy as np
import pytest

from mlaprof.analysis.summary import summarize
from mlaprof.errors import RunFileError
from mlaprof.sizing.costs import costs_of

MIB = 2**20


@pytest.fixture(scope="module")
def summary(fake_runs):
    """An H100 with every mode at the powers of two, a ledger of 4 MiB and 100 ms a size."""
    return summarize(fake_runs.make_run(fake_runs.complete(fake_runs.h100())))


def test_a_way_is_set_beside_its_eager_form(summary):
    costs = costs_of(summary, measured_layers=1)

    assert (costs.way, costs.eager_way, costs.largest) == ("split_piecewise", "split_eager", 8192)
    assert costs.clock_name == "the longer of device and submit time"
    assert np.all(costs.graph.seconds <= costs.eager.seconds * 1.01)
    assert (costs.padding_share, costs.padded_cells) == (1.0, 0)


def test_device_time_is_its_own_clock(summary):
    step, device = (costs_of(summary, measured_layers=1, clock=clock) for clock in ("step", "device"))

    assert device.clock_name == "device time"
    assert np.all(device.eager.seconds <= step.eager.seconds)
    assert device.eager.seconds[0] < 0.5 * step.eager.seconds[0]


def test_a_list_of_all_measured_sizes_costs_what_the_ledger_sums_to(summary):
    costs = costs_of(summary, measured_layers=1)
    assert costs.capture is not None
    all_sizes = np.array([8192]), np.array([13])

    assert costs.capture.memory(*all_sizes) == pytest.approx(14 * 4 * MIB)
    assert costs.capture.capture_s(*all_sizes) == pytest.approx(14 * 0.1)


def test_a_smaller_largest_size_needs_a_smaller_pool(summary):
    costs = costs_of(summary, measured_layers=1)
    assert costs.capture is not None

    assert costs.capture.memory(np.array([2048]), np.array([0])) == pytest.approx(MIB)
    assert costs.capture.memory(np.array([2048]), np.array([3])) == pytest.approx(13 * MIB)


def test_layers_scale_times_and_memory(summary):
    two, ten = (costs_of(summary, measured_layers=2, layers=layers) for layers in (2, 10))
    assert two.capture and ten.capture and two.capture.bytes is not None and ten.capture.bytes is not None

    assert ten.graph.seconds == pytest.approx(5 * two.graph.seconds)
    assert ten.capture.bytes == pytest.approx(5 * two.capture.bytes)
    assert ten.capture.seconds == pytest.approx(5 * two.capture.seconds)


@pytest.mark.parametrize(
    ("spread", "told"),
    [(0.002, "sustained time"), (0.9, "the longer of device and submit time")],
    ids=["steady", "unsteady"],
)
def test_sustained_time_is_taken_where_it_is_known(fake_runs, spread, told):
    """A few bursts that differ by half are no clock to choose by."""
    cells = []
    for mode in ("split_eager", "split_piecewise"):
        for tokens in (64, 256):
            seen = fake_runs.bursts(3e-4, 2e-4)
            seen["sustained_s"] = fake_runs.samples(3e-4, 8, spread=spread)
            cells.append(fake_runs.timing(fake_runs.point(mode, tokens), 1e-4, 2e-4, **seen))
    costs = costs_of(summarize(fake_runs.make_run(cells)), measured_layers=1)

    assert costs.clock_name == told
    assert costs.graph.seconds[0] == pytest.approx(3e-4 if told.startswith("sust") else 2e-4, rel=0.05)


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_padded_cells_say_what_padding_costs(fake_runs, share):
    """A step of 96 tokens run at 128 that took `share` of the way from its own time to that of 128."""
    sizes = (64, 128, 192, 256)
    cells = [
        fake_runs.timing(fake_runs.point(mode, tokens), 1e-6 * tokens, 1e-7)
        for mode in ("split_eager", "split_piecewise")
        for tokens in sizes
    ]
    padded = fake_runs.timing(fake_runs.point("split_piecewise", 96), 1e-6 * (96 + share * 32), 1e-7)
    assert padded.graph
    padded = padded.model_copy(
        update={"graph": padded.graph.model_copy(update={"padded_tokens": 128, "state": "replayed"})}
    )
    costs = costs_of(summarize(fake_runs.make_run([*cells, padded])), measured_layers=1)

    assert costs.padded_cells == 1 and 96 not in costs.graph.tokens
    assert costs.padding_share == pytest.approx(share, abs=0.01)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"way": "breakable@logits@x"}, "no timed cell of breakable@logits@x"),
        ({"way": "full"}, "full pads to no capture size"),
        ({"context_len": 7}, "no prefill or mixed cell"),
    ],
)
def test_a_run_that_does_not_hold_what_is_asked_is_refused(summary, asked, words):
    with pytest.raises(RunFileError, match=words) as raised:
        costs_of(summary, measured_layers=1, **asked)
    assert raised.value.hint


def test_generations_alone_are_no_steps_to_pad(fake_runs):
    run = fake_runs.make_run(fake_runs.sweep(fake_runs.h100(), phase="decode", context_len=1024))
    with pytest.raises(RunFileError, match="no prefill or mixed cell"):
        costs_of(summarize(run), measured_layers=1)


def test_one_size_makes_no_curve(fake_runs):
    cells = [fake_runs.timing(fake_runs.point(mode, 64), 1e-4, 1e-5) for mode in ("split_eager", "split_piecewise")]
    with pytest.raises(RunFileError, match="1 sizes of both"):
        costs_of(summarize(fake_runs.make_run(cells)), measured_layers=1)
