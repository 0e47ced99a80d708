"""A package that may or may not be installed: its version, its functions, and why one of them cannot be had."""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Prepared = Callable[[], object]  # a call with its operands converted: what is timed

HOPPER = (9, 0)


class Unavailable(Exception):
    """A provider cannot run this kernel here. Not an error: the cell is skipped with this reason.

    reason  what is absent or unsupported
    remedy  what to install or to change; may be empty
    """

    def __init__(self, reason: str, remedy: str = "") -> None:
        super().__init__(f"{reason}; {remedy}" if remedy else reason)
        self.reason = reason
        self.remedy = remedy


@dataclass(frozen=True)
class Package:
    """One provider's Python package.

    name           what it is called in studies and messages
    modules        import names, the first that imports is taken
    distributions  names under which a registry or a wheel carries it, for the version
    remedy         how to get it
    """

    name: str
    modules: tuple[str, ...]
    distributions: tuple[str, ...]
    remedy: str

    def version(self) -> str | None:
        """Name and version of the first distribution that is installed, e.g. `sgl-deep-gemm 0.1.3`."""
        for distribution in self.distributions:
            try:
                return f"{distribution} {importlib.metadata.version(distribution)}"
            except importlib.metadata.PackageNotFoundError:
                continue
        return None

    def load(self, submodule: str = "") -> Any:
        """The imported module, or one inside it. Raises Unavailable where none imports."""
        suffix = f".{submodule}" if submodule else ""
        for module in self.modules:
            try:
                return importlib.import_module(module + suffix)
            except ModuleNotFoundError as absent:
                if not f"{module}{suffix}.".startswith(f"{absent.name}."):
                    raise Unavailable(f"{module} needs {absent.name}", f"install {absent.name}") from absent
            except Exception as broken:  # a foreign package loads libraries, asserts, asks the driver
                first_line = f"{type(broken).__name__}: {broken}".splitlines()[0]
                raise Unavailable(f"{module + suffix} does not load: {first_line}", self.remedy) from broken
        if submodule and self.version() is not None:
            raise Unavailable(f"{self.version()} has no module {submodule}", self.remedy)
        raise Unavailable(f"{self.name} is not installed", self.remedy)

    def function(self, *names: str, submodule: str = "") -> Callable[..., Any]:
        """The first of these functions that the package has. Raises Unavailable where it has none of them."""
        module = self.load(submodule)
        for name in names:
            if (found := getattr(module, name, None)) is not None:
                return found  # type: ignore[no-any-return]
        raise Unavailable(f"{self.version() or self.name} has no {' or '.join(names)}", self.remedy)

    def operator(self, namespace: str, name: str, *, registered_by: str) -> Callable[..., Any]:
        """An operator that importing a module of the package registers with torch. Raises Unavailable without it."""
        self.load(registered_by)
        found = getattr(getattr(torch.ops, namespace), name, None)
        if found is None:
            raise Unavailable(f"{self.version() or self.name} has no {namespace}::{name}", self.remedy)
        return found  # type: ignore[no-any-return]


def capability(device: torch.device) -> tuple[int, int]:
    """Compute capability of a device; (0, 0) for what is no CUDA GPU."""
    return torch.cuda.get_device_capability(device) if device.type == "cuda" else (0, 0)


def need_hopper(name: str, device: torch.device) -> None:
    """Raise Unavailable unless device has compute capability 9.0."""
    if capability(device) != HOPPER:
        need(False, f"{name} runs on compute capability 9.0 only, not on {device.type} {_dotted(capability(device))}")


def need_cuda(name: str, device: torch.device) -> None:
    """Raise Unavailable unless device is a CUDA GPU."""
    need(capability(device) > (0, 0), f"{name} needs a CUDA GPU, not a {device.type}")


def need(met: bool, reason: str, remedy: str = "") -> None:
    """Raise Unavailable with the reason unless the condition is met."""
    if not met:
        raise Unavailable(reason, remedy)


def dense_columns(scale: Tensor) -> Tensor:
    """Column-major scales without the padding between columns, as CUTLASS and cuBLASLt derive them from a shape."""
    return scale.t().contiguous().t()


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}" if version > (0, 0) else ""
