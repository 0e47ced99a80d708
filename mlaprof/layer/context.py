"""What a registered op finds at run time: the layer behind a string index, and the batch's metadata.

A custom op takes tensors and strings only, so the engine leaves the rest in a thread-local for the duration of a
forward. Both are held weakly, as upstream does: a context must not keep a dead layer's weights alive.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Protocol

import torch
from torch import Tensor

from mlaprof.layer.metadata import AttnMetadata
from mlaprof.study import MultiStream

Reduce = Callable[[Tensor], None]

_current = threading.local()


class AttentionLayer(Protocol):
    """What the ops call of the layer behind their index; mla.py's MLA."""

    def dsa_proj(self, hidden_states: Tensor, position_ids: Tensor, context: ForwardContext) -> list[Tensor]: ...

    def dsa_proj_like(self, hidden_states: Tensor) -> list[Tensor]: ...

    def dsa_attn(
        self,
        q: Tensor,
        compressed_kv: Tensor,
        k_pe: Tensor,
        latent_cache: Tensor,
        indexer_intermediates: list[Tensor],
        position_ids: Tensor,
        context: ForwardContext,
        output: Tensor,
    ) -> None: ...

    def forward_impl(
        self, hidden_states: Tensor, position_ids: Tensor, context: ForwardContext, output: Tensor
    ) -> None: ...


class ForwardContext:
    """Enter it around every forward, captured or not.

    compiled is the engine's torch-compile flag: true while the layer runs under a graph optimizer, at run time too,
    not only while Dynamo traces. It switches the short-MHA branch off. multi_stream says where independent work inside
    the ops runs on two streams of a GPU (`maybe_execute_in_parallel`): nowhere, in captures, or in eager runs as well.
    reduce sums a tensor over the ranks, in place; a layer of one rank never asks for it.
    """

    __slots__ = ("_aux_stream", "_device", "_layers", "_metadata", "_outer", "compiled", "multi_stream", "reduce")

    def __init__(
        self,
        layers: Mapping[str, AttentionLayer],
        metadata: AttnMetadata,
        *,
        compiled: bool,
        multi_stream: MultiStream = "off",
        reduce: Reduce | None = None,
    ) -> None:
        self._layers = weakref.WeakValueDictionary(layers)
        self._metadata = weakref.ref(metadata)
        self._outer: list[ForwardContext | None] = []  # one an entry: a context may be entered inside itself
        self.compiled = compiled
        self.multi_stream = multi_stream
        self.reduce = reduce
        self._device = metadata.device
        # Made here: the first fork may stand inside a capture.
        streams = multi_stream != "off" and self._device.type == "cuda"
        self._aux_stream = torch.cuda.Stream(self._device) if streams else None

    def __enter__(self) -> ForwardContext:
        self._outer.append(getattr(_current, "context", None))
        _current.context = self
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        _current.context = self._outer.pop()

    @property
    def forks(self) -> bool:
        """Whether independent work now runs on two streams: switched on, and on a device that has streams."""
        if self.multi_stream == "off" or self._device.type != "cuda":
            return False
        return self.multi_stream == "always" or torch.cuda.is_current_stream_capturing()

    @property
    def metadata(self) -> AttnMetadata:
        metadata = self._metadata()
        if metadata is None:
            raise RuntimeError("attention metadata: expected it to outlive the forward, got a dead reference")
        return metadata

    def aux_stream(self, current: torch.cuda.Stream) -> torch.cuda.Stream:
        """The stream for work beside current, the same one ever after."""
        # torch hands streams out of a ring of 32, so the one kept may have become the current one as well.
        if self._aux_stream is None or self._aux_stream == current:
            self._aux_stream = torch.cuda.Stream(current.device)
        return self._aux_stream

    def layer(self, layer_idx: str) -> AttentionLayer:
        layer = self._layers.get(layer_idx)
        if layer is None:
            raise RuntimeError(f"layer_idx: expected one of {sorted(self._layers)}, got {layer_idx!r}")
        return layer


def current() -> ForwardContext:
    """The context of this thread's forward. Raises RuntimeError outside of one."""
    context: ForwardContext | None = getattr(_current, "context", None)
    if context is None:
        raise RuntimeError("forward context: expected `with ForwardContext(...)` around the forward, got none")
    return context
