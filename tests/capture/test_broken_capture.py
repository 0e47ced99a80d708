"""One capture ended before operators that stay eager and resumed behind them, on every graph maker."""

from __future__ import annotations

import gc

import pytest
import torch

from mlaprof.capture.graphs import Break, CaptureError

pytestmark = pytest.mark.usefixtures("mode")

ATTEND = ["toy::attend"]


@pytest.fixture
def x(device) -> torch.Tensor:
    return torch.randn(7, 8, device=device)


def attend(q, gate):
    """What a caller of the real one does: it allocates the output."""
    output = torch.zeros_like(q)
    torch.ops.toy.attend(q, gate, output)
    return output


def kinds(steps) -> str:
    return "".join("b" if isinstance(step, Break) else "g" for step in steps)


def run(steps):
    for step in steps:
        step() if isinstance(step, Break) else step.replay()


def layers(x):
    for factor in (2.0, 3.0):
        x = x + attend(x * factor, x.sigmoid()).relu()
    return x


SHAPES = {
    "two breaks": (layers, "gbgbg"),
    "no break": (lambda x: x * 2 + 1, "g"),
    "break first": (lambda x: (torch.ops.toy.note(x), x * 2)[1], "bg"),
    "break last": (lambda x: (y := x * 2, torch.ops.toy.note(y))[0], "gb"),
    "breaks adjacent": (lambda x: (y := x * 2, torch.ops.toy.note(y), torch.ops.toy.note(x), y + 1)[-1], "gbbg"),
    "views between": (lambda x: (y := x * 2, torch.ops.toy.note(y), torch.ops.toy.note(y.t()), y + 1)[-1], "gbbg"),
    "break only": (lambda x: (torch.ops.toy.note(x), x)[1], "b"),
    "nothing": (lambda x: x.t().t(), ""),
}


@pytest.mark.parametrize("name", SHAPES)
def test_replays_compute_what_eager_does_from_what_the_inputs_hold_now(graphs, x, batch, name):
    """Bit for bit; at once, and whatever the batch is by then, since the operators between read it anew."""
    fn, want = SHAPES[name]
    batch.num_tokens = 7
    fn(x)
    steps, result = graphs.capture_broken(lambda: fn(x), [*ATTEND, "toy::note"])
    assert kinds(steps) == want
    assert torch.equal(fn(x), result)
    for rows in (7, 3, 5):
        batch.num_tokens = rows
        x.copy_(torch.randn(7, 8))
        run(steps)
        assert torch.equal(fn(x), result)


def test_replay_reads_no_python_but_that_of_the_operators_between(graphs, x):
    factor = [2.0]

    def fn():
        y = x * factor[0]
        torch.ops.toy.note(y)
        return y * factor[0]

    steps, result = graphs.capture_broken(fn, ["toy::note"])
    factor[0] = 5.0
    run(steps)
    assert torch.equal(x * 2 * 2, result)


def test_what_the_function_changes_is_changed_once(graphs, x, device):
    """Before, between and behind the breaks: the replay that follows each capture is its one run."""
    counts = torch.zeros(3, device=device)

    def fn():
        counts[0].add_(1)
        torch.ops.toy.note(x)
        counts[1].add_(1)
        torch.ops.toy.note(x)
        counts[2].add_(1)

    steps, _ = graphs.capture_broken(fn, ["toy::note"])
    assert counts.tolist() == [1, 1, 1]
    run(steps)
    assert counts.tolist() == [2, 2, 2]


def test_an_operator_between_sees_real_data(graphs, x, batch, device):
    """Its output may decide what it does; a capture alone computes nothing."""
    batch.num_tokens = 7
    want = attend(x * 2, x).clone()
    steps, _ = graphs.capture_broken(lambda: attend(x * 2, x), ATTEND)
    [step] = [step for step in steps if isinstance(step, Break)]
    assert step.op == "toy::attend"
    assert torch.equal(x * 2, step.args[0])
    assert torch.equal(want, step.args[2])


def test_a_break_is_named_with_its_overload_or_without(graphs, x):
    def fn():
        y = x * 2
        torch.ops.toy.note(y)
        return y + 1

    for named in ("toy::note", "toy::note.default"):
        assert kinds(graphs.capture_broken(fn, [named])[0]) == "gbg"
    for other in ("toy::not", "note", "toy::note.other"):
        assert kinds(graphs.capture_broken(fn, [other])[0]) == "g"


def test_the_operators_of_each_graph_are_named(graphs, x, batch):
    batch.num_tokens = 7
    steps, _ = graphs.capture_broken(lambda: layers(x), ATTEND)
    first, _, second, _, third = steps
    # A real capture is watched above the dispatcher, where an overload is not chosen yet.
    mul, add = ("aten::mul.Tensor", "aten::add.Tensor") if graphs.emulated else ("aten::mul", "aten::add")
    assert first.ops == (mul, "aten::sigmoid", "aten::zeros_like")
    assert second.ops == ("aten::relu", add, *first.ops)
    assert third.ops == ("aten::relu", add)
    for graph in (first, second, third):
        assert graph.nodes.total == len(graph.ops)
        assert graph.capture_s > 0
        assert (graph.instantiate_s > 0) == (graph.first_replay_s > 0) == (not graphs.emulated)


def test_an_operator_that_returns_a_tensor_is_refused(graphs, x):
    """A later graph would go on reading the first one. Only the emulation sees the operators of torch itself."""
    own = [("aten::exp", torch.exp)] if graphs.emulated else []
    for op, call in (("toy::fresh", torch.ops.toy.fresh), *own):
        with pytest.raises(CaptureError, match=f"{op} stays eager and hands its result to what follows") as caught:
            graphs.capture_broken(lambda call=call: call(x * 2) + 1, [op])
        assert caught.value.op == op
    usable(graphs, x)


def usable(graphs, x) -> None:
    """Broken or whole, and no memory of the failure is left in what is captured next."""
    steps, result = graphs.capture_broken(lambda: (y := x * 2, torch.ops.toy.note(y), y + 1)[-1], ["toy::note"])
    graph, whole = graphs.capture(lambda: x - 1)
    before = graphs.pool_bytes()
    x.copy_(torch.randn(7, 8))
    run(steps)
    graph.replay()
    assert torch.equal(x * 2 + 1, result) and torch.equal(x - 1, whole)
    ordinary = torch.randn(1 << 20, device=x.device)
    assert graphs.pool_bytes() == before
    assert torch.isfinite(ordinary.sum()).item()


def test_an_operator_that_fails_between_two_captures_is_named(graphs, x):
    def fn():
        y = x * 2
        torch.ops.toy.attend(y, y[:, :3], y)
        return y + 1

    for _ in range(2):
        with pytest.raises(CaptureError, match="toy::attend, run between two captures: ") as caught:
            graphs.capture_broken(fn, ATTEND)
        assert caught.value.op == "toy::attend"
    usable(graphs, x)


def wait(y):
    return y.sum().item()


def mistake(y):
    return y.view(3)


@pytest.mark.parametrize("culprit", [wait, mistake])
@pytest.mark.parametrize("behind", [False, True], ids=["before the break", "behind the break"])
def test_a_capture_that_fails_leaves_the_maker_and_the_collector_as_they_were(graphs, x, culprit, behind):
    def fn():
        y = x * 2
        if not behind:
            culprit(y)
        torch.ops.toy.note(y)
        return culprit(y)

    enabled = gc.isenabled()
    for _ in range(2):
        with pytest.raises(CaptureError) as caught:
            graphs.capture_broken(fn, ["toy::note"])
        named = {wait: "_local_scalar_dense" if graphs.emulated else "y.sum().item()", mistake: "y.view(3)"}
        assert named[culprit] in caught.value.op
        assert gc.isenabled() == enabled
    usable(graphs, x)


def test_what_is_allocated_between_two_breaks_stays_where_it_is(graphs, x, churn):
    """Such a capture is empty and makes no graph; its memory is of the pool all the same."""

    def fn():
        torch.ops.toy.note(x)
        output = torch.empty_like(x)
        torch.ops.toy.attend(x, x, output)
        return output

    steps, result = graphs.capture_broken(fn, ["toy::note", "toy::attend"])
    assert kinds(steps) == "bb"
    _, other = graphs.capture(lambda: x * 2)
    churn()
    run(steps)
    assert torch.equal(x.flip(0) * x, result)
    assert other.data_ptr() != result.data_ptr() == steps[1].args[2].data_ptr()


def test_a_break_keeps_its_arguments(graphs, x, batch):
    """So no later capture takes their blocks, though nobody else holds them."""
    batch.num_tokens = 7
    steps, _ = graphs.capture_broken(lambda: layers(x), ATTEND)
    held = {argument.data_ptr() for step in steps if isinstance(step, Break) for argument in step.args}
    _, others = graphs.capture(lambda: [x * factor for factor in range(10)])
    assert not held & {other.data_ptr() for other in others}
    assert len(held) == 6


def is_right_after_another_size(graphs, x, batch, hold) -> bool:
    """Whether a broken capture computes what it did after a second size was captured and replayed in its midst."""
    batch.num_tokens = 7
    steps, result = graphs.capture_broken(lambda: attend(x * 2, x) + 1, ATTEND)
    want = result.clone()
    first, step, last = steps
    if hold == "weak":
        step = Break(step.op, step.func, graphs.disown(step.args), step.kwargs)
    del steps
    other, _results = graphs.capture(lambda: [x * factor for factor in (5.0, 7.0)])

    first.replay()
    other.replay()
    step()
    last.replay()
    return torch.equal(want, result)


def test_trap_a_break_that_holds_its_arguments_weakly_reads_what_a_later_graph_wrote(graphs, x, batch):
    assert not is_right_after_another_size(graphs, x, batch, "weak")


def test_trap_a_break_that_holds_its_arguments_strongly_does_not(graphs, x, batch):
    """The twin, with the defence."""
    assert is_right_after_another_size(graphs, x, batch, "strong")
