"""The private memory pool of the emulated graphs.

A graph knows addresses; it keeps no tensor alive. So a block is free for the next allocation of a capture once every
tensor made on it is gone, though graphs recorded earlier go on reading and writing there. That is what a caching
allocator does with a graph pool, and why holding a graph's tensors weakly is a trap. Unlike there, blocks are not split
or merged, and a block never returns to the system while a view of it is alive.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor

from mlaprof.capture.dispatch import on_storage, replace_tensors, tensors_in

T = TypeVar("T")


class Block:
    """Memory at a fixed address. It outlives its block while any storage made on it is in use."""

    def __init__(self, memory: torch.UntypedStorage) -> None:
        self._memory = memory
        self._owner: weakref.ref[ctypes.Array[ctypes.c_char]] | None = None
        self.nbytes = memory.nbytes()
        self.address = memory.data_ptr()

    @property
    def is_free(self) -> bool:
        """True once the tensors on the last owning storage are gone."""
        return self._owner is None or self._owner() is None

    def storage(self, nbytes: int, *, owns: bool) -> torch.UntypedStorage:
        """A storage on the first nbytes. One that owns keeps the block from being free; none can be resized."""
        array = (ctypes.c_char * nbytes).from_address(self.address)
        array.memory = self._memory  # type: ignore[attr-defined]
        if owns:
            self._owner = weakref.ref(array)
        return torch.frombuffer(array, dtype=torch.uint8).untyped_storage()


class CpuPool:
    """The blocks held by the graphs alive; it holds none itself."""

    def __init__(self) -> None:
        self._blocks: weakref.WeakValueDictionary[int, Block] = weakref.WeakValueDictionary()

    @property
    def nbytes(self) -> int:
        return sum(block.nbytes for block in self._blocks.values())

    def take_in(self, tree: T, tensors: Sequence[Tensor], *, copy: bool) -> tuple[T, tuple[Block, ...]]:
        """The tree with these tensors of it moved into the pool, and the blocks they are in.

        The smallest free block that is large enough is taken, else their own memory becomes a block.
        copy   whether what they hold is of value
        """
        blocks: dict[int, Block] = {}
        storages: dict[int, torch.UntypedStorage] = {}
        made: dict[int, Tensor] = {}
        for tensor in tensors:
            memory = tensor.untyped_storage()
            if memory.nbytes() == 0:
                continue
            if memory._cdata not in blocks:
                block = self._best_fit(memory.nbytes()) or Block(memory)
                storage = block.storage(memory.nbytes(), owns=True)
                if copy and block.address != memory.data_ptr():
                    storage.copy_(memory)
                self._blocks[block.address] = block
                blocks[memory._cdata], storages[memory._cdata] = block, storage
            made[id(tensor)] = on_storage(tensor, storages[memory._cdata])
        return replace_tensors(tree, made), tuple(blocks.values())

    def disown(self, tree: T) -> T:
        """The same structure with the tensors in the pool replaced by views that do not keep their block."""
        storages: dict[int, torch.UntypedStorage] = {}
        made: dict[int, Tensor] = {}
        for tensor in tensors_in(tree):
            memory = tensor.untyped_storage()
            block = self._blocks.get(memory.data_ptr())
            if block is None:
                continue
            if memory._cdata not in storages:
                storages[memory._cdata] = block.storage(memory.nbytes(), owns=False)
            made[id(tensor)] = on_storage(tensor, storages[memory._cdata])
        return replace_tensors(tree, made)

    def _best_fit(self, nbytes: int) -> Block | None:
        fitting = [block for block in self._blocks.values() if block.nbytes >= nbytes and block.is_free]
        return min(fitting, key=lambda block: block.nbytes, default=None)
