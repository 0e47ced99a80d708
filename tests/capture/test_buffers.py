from __future__ import annotations

import pytest
import torch

from mlaprof.capture.buffers import InputBuffers


def make(**extra: torch.Tensor) -> InputBuffers:
    return InputBuffers({"x": torch.zeros(8, 3), "ids": torch.zeros(8, dtype=torch.int64), **extra})


def test_slices_of_every_size_start_at_one_address():
    """A graph captured at one size reads what is loaded at any other."""
    buffers = make()
    addresses = {tuple(view.data_ptr() for view in buffers.slice(n)) for n in (1, 5, 8)}

    assert len(addresses) == 1
    assert [tuple(view.shape) for view in buffers.slice(5)] == [(5, 3), (5,)]
    assert buffers.slice(5) is buffers.slice(5)


def test_load_copies_and_leaves_other_rows_and_inputs_alone():
    """Padding rows hold what earlier batches left, as in an engine."""
    buffers = make()
    buffers.load(x=torch.full((8, 3), 1.0), ids=torch.arange(8))
    source = torch.full((2, 3), 7.0)
    buffers.load(x=source)
    source.zero_()

    x, ids = buffers.slice(8)
    assert x[:2].eq(7).all() and x[2:].eq(1).all()
    assert ids.tolist() == list(range(8))


def test_sizes_are_reported():
    buffers = make()
    assert (list(buffers.tensors), buffers.device) == (["x", "ids"], torch.device("cpu"))
    assert all(
        view.data_ptr() == buffers.tensors[name].data_ptr()
        for name, view in zip(("x", "ids"), buffers.slice(3), strict=True)
    )
    assert (buffers.max_tokens, buffers.num_bytes) == (8, 8 * 3 * 4 + 8 * 8)


@pytest.mark.parametrize("num_tokens", [0, -1, 9])
def test_a_size_outside_the_buffers_is_refused(num_tokens):
    with pytest.raises(ValueError, match="expected 1 to 8"):
        make().slice(num_tokens)


@pytest.mark.parametrize(
    ("batch", "complaint"),
    [
        ({"y": torch.zeros(1, 3)}, "got 'y'"),
        ({"x": torch.zeros(9, 3)}, "expected 1 to 8, got 9"),
        ({"x": torch.zeros(0, 3)}, "expected 1 to 8, got 0"),
        ({"x": torch.zeros(2, 4)}, r"x: expected \(2, 3\)"),
        ({"x": torch.zeros(2, 3, dtype=torch.float64)}, "float32, got"),
        ({"x": torch.tensor(1.0)}, "got 0"),
        ({"x": torch.zeros(2, 3), "ids": torch.zeros(3, dtype=torch.int64)}, "one token count"),
    ],
)
def test_an_unfit_batch_is_refused_and_nothing_is_copied(batch, complaint):
    buffers = make()
    ids = {"ids": torch.ones(2, dtype=torch.int64)} if "ids" not in batch and len(batch) == 1 else {}
    with pytest.raises(ValueError, match="expected"):
        buffers.load(**ids, **batch)
    with pytest.raises(ValueError, match=complaint):
        buffers.load(**batch)
    assert not any(view.any() for view in buffers.slice(8))


@pytest.mark.parametrize(
    "tensors", [{}, {"x": torch.zeros(0, 3)}, {"x": torch.zeros(4, 3), "y": torch.zeros(5)}, {"x": torch.tensor(1.0)}]
)
def test_buffers_that_disagree_are_refused(tensors):
    with pytest.raises(ValueError, match="expected"):
        InputBuffers(tensors)
