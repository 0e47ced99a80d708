"""What every test shares: few threads, runs with planted numbers, and GPU tests that say why they did not run."""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
from pathlib import Path
from types import ModuleType

import pytest

# Before any test imports torch; worker processes inherit it. Tests are small: more threads only disturb them.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")

# A shell starts what runs in its background with SIGINT ignored, nohup with SIGHUP, and programs inherit that: mlaprof
# and its workers would then outlive the Ctrl-C and the faults that tests send them.
for number in (signal.SIGINT, signal.SIGHUP):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, signal.default_int_handler if number is signal.SIGINT else signal.SIG_DFL)

CHECKOUT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def checkout() -> Path:
    """The root of the checkout under test."""
    return CHECKOUT


@pytest.fixture(scope="session")
def fake_runs() -> ModuleType:
    """The module tests/analysis/fake_runs.py: make_run, timing, memory, compiled, sweep and machines."""
    path = Path(__file__).with_name("analysis") / "fake_runs.py"
    spec = importlib.util.spec_from_file_location("fake_runs", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["fake_runs"] = module
    spec.loader.exec_module(module)
    return module


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    on_gpu = [item for item in items if item.get_closest_marker("gpu")]
    if not on_gpu:
        return
    import torch  # two seconds that tests of the parent process need not pay

    if torch.cuda.is_available():
        from mlaprof.kernels.stable_keys import make_keys_stable

        make_keys_stable()  # before the first launch of any test, as a worker does
        return
    skip = pytest.mark.skip(reason="needs a CUDA GPU, and torch sees none")
    for item in on_gpu:
        item.add_marker(skip)
