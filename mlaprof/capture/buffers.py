"""The static inputs that captured work reads: fixed addresses, filled by copies."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


class InputBuffers:
    """Owns one [max_tokens, ...] tensor per input, in the order of the module's arguments."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        """Raises ValueError where there is no tensor, or they disagree on max_tokens."""
        if not tensors:
            raise ValueError("tensors: expected at least one input, got none")
        sizes = {name: tensor.shape[0] if tensor.dim() else 0 for name, tensor in tensors.items()}
        if len(set(sizes.values())) > 1 or min(sizes.values()) < 1:
            raise ValueError(f"tensors: expected one max_tokens >= 1 in dimension 0 of all, got {sizes}")
        self._tensors = dict(tensors)
        self._max_tokens = next(iter(sizes.values()))
        self._views: dict[int, tuple[Tensor, ...]] = {}

    @property
    def max_tokens(self) -> int:
        return self._max_tokens

    @property
    def device(self) -> torch.device:
        return next(iter(self._tensors.values())).device

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """The inputs themselves, [max_tokens, ...] each, in the order of the module's arguments."""
        return self._tensors

    @property
    def num_bytes(self) -> int:
        return sum(tensor.numel() * tensor.element_size() for tensor in self._tensors.values())

    def slice(self, num_tokens: int) -> tuple[Tensor, ...]:
        """The first num_tokens rows of every input: views, the same objects at every call.

        Raises ValueError unless 1 <= num_tokens <= max_tokens.
        """
        views = self._views.get(num_tokens)
        if views is None:
            self._check_size(num_tokens)
            views = tuple(tensor[:num_tokens] for tensor in self._tensors.values())
            self._views[num_tokens] = views
        return views

    def load(self, **batch: Tensor) -> None:
        """Copy [num_tokens, ...] tensors into the first rows of the inputs they name.

        Rows behind num_tokens and inputs not named keep what they hold, as the padding rows of an engine do. Raises
        ValueError on an unknown name, a wrong shape or dtype, or token counts that differ; nothing is copied then.
        """
        counts = {name: tensor.shape[0] if tensor.dim() else 0 for name, tensor in batch.items()}
        if len(set(counts.values())) > 1:
            raise ValueError(f"batch: expected one token count, got {counts}")
        for name, tensor in batch.items():
            buffer = self._tensors.get(name)
            if buffer is None:
                raise ValueError(f"batch: expected inputs named {list(self._tensors)}, got {name!r}")
            self._check_size(counts[name])
            want = (counts[name], *buffer.shape[1:])
            if tuple(tensor.shape) != want or tensor.dtype != buffer.dtype:
                got = f"{tuple(tensor.shape)} {tensor.dtype}"
                raise ValueError(f"{name}: expected {want} {buffer.dtype}, got {got}")
        for name, tensor in batch.items():
            # Replay reads fixed addresses, so copy in; rebinding the name would replay stale inputs.
            self._tensors[name][: counts[name]].copy_(tensor)

    def _check_size(self, num_tokens: int) -> None:
        if not 1 <= num_tokens <= self._max_tokens:
            raise ValueError(f"num_tokens: expected 1 to {self._max_tokens}, got {num_tokens}")
