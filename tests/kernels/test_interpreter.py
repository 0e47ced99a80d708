"""The repaired interpreter computes what the GPU would, and the stock one still does not."""

from __future__ import annotations

import pytest
import torch


def values() -> torch.Tensor:
    """20,001 values over e4m3's range: random ones, ties, subnormals and the edge of overflow."""
    g = torch.Generator().manual_seed(0)
    spread = torch.randn(19_000, generator=g) * torch.exp2(torch.randint(-12, 9, (19_000,), generator=g).float())
    ties = torch.arange(-500, 501) / 16.0
    return torch.cat([spread.clamp(-448, 448), ties.clamp(-448, 448)])


def operands(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(1)
    return torch.randn(16, 16, generator=g).to(dtype), torch.randn(16, 16, generator=g).to(dtype)


def test_repaired_cast_equals_torch(interpreter):
    """fp32 to e4m3 rounds as torch does, on every value tried."""
    got = interpreter.call("interpreter_probes", "cast_to_e4m3", values())
    assert torch.equal(values().to(torch.float8_e4m3fn).view(torch.uint8), got.view(torch.uint8))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn, torch.float32], ids=str)
def test_repaired_dot_equals_torch(interpreter, dtype):
    """A tile product of narrow operands is the fp32 product of their values."""
    a, b = operands(dtype)
    got = interpreter.call("interpreter_probes", "dot", a, b)
    torch.testing.assert_close(a.float() @ b.float(), got, rtol=1e-5, atol=1e-5)


def test_stock_interpreter_still_needs_the_repairs(start_interpreter):
    """When this fails, this release of Triton mended its interpreter: drop that part of interpreter.repair()."""
    stock = start_interpreter(repaired=False)
    try:
        codes = stock.call("interpreter_probes", "cast_to_e4m3", values())
        a, b = operands(torch.bfloat16)
        product = stock.call("interpreter_probes", "dot", a, b)
    finally:
        stock.close()
    assert not torch.equal(values().to(torch.float8_e4m3fn).view(torch.uint8), codes.view(torch.uint8))
    assert not torch.allclose(a.float() @ b.float(), product, rtol=1e-2, atol=1e-2)


def test_exception_crosses_the_pipe(interpreter):
    """A launcher's ValueError arrives as a ValueError, and the child lives on."""
    with pytest.raises(ValueError, match="x: expected shape"):
        interpreter.call("mlaprof.kernels.act_quant", "act_quant", torch.zeros(3, 64))
    assert interpreter.call("interpreter_probes", "cast_to_e4m3", torch.ones(1)).float().item() == 1.0
