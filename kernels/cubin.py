"""What a compiled kernel asks of the GPU, read from its cubin alone: no GPU, no driver, no cuobjdump.

A cubin is a little-endian ELF64 file. Its `.nv.info*` sections hold records of a format byte, an attribute byte and a
16-bit length; those of format 4 are followed by that many bytes, here (symbol, value) pairs of 32-bit words.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

_SIZED = 4  # format of a record whose payload follows it
_FRAME_SIZE = 0x11  # attribute: bytes of local memory a thread
_REGISTER_COUNT = 0x2F  # attribute: registers a thread


class CubinFacts(NamedTuple):
    """Registers and stack of a thread, static shared memory of a program; dynamic shared memory is not in the file."""

    registers: int
    stack_bytes: int
    static_shared_bytes: int


def read_cubin(cubin: bytes) -> CubinFacts:
    """Registers, stack and static shared memory of the one kernel in a cubin.

    Raises ValueError when it is no ELF64 file or holds no register count.
    """
    if cubin[:5] != b"\x7fELF\x02":
        raise ValueError(f"cubin: expected an ELF64 file, got one that starts with {cubin[:5]!r}")
    counts: dict[int, int] = {}
    shared = 0
    for name, offset, size in _sections(cubin):
        if name.startswith(".nv.info"):
            counts.update(_attributes(cubin[offset : offset + size]))
        elif name.startswith(".nv.shared."):
            shared += size
    if _REGISTER_COUNT not in counts:
        raise ValueError("cubin: expected a register count in .nv.info, got none")
    return CubinFacts(counts[_REGISTER_COUNT], counts.get(_FRAME_SIZE, 0), shared)


def _sections(elf: bytes) -> Iterator[tuple[str, int, int]]:
    """(name, offset, size in bytes) of every section."""
    (table,) = struct.unpack_from("<Q", elf, 0x28)
    entry_size, num_entries, names_index = struct.unpack_from("<HHH", elf, 0x3A)
    # name, type, flags, address, offset, size, then four words of no use here
    headers = [struct.unpack_from("<IIQQQQ", elf, table + i * entry_size) for i in range(num_entries)]
    names_offset = headers[names_index][4]
    for name, _, _, _, offset, size in headers:
        start = names_offset + name
        yield elf[start : elf.index(b"\0", start)].decode(), offset, size


def _attributes(info: bytes) -> Iterator[tuple[int, int]]:
    """(attribute, value) of every sized record that is one (symbol, value) pair."""
    at = 0
    while at + 4 <= len(info):
        form, attribute, length = struct.unpack_from("<BBH", info, at)
        at += 4
        if form != _SIZED:
            continue
        if length == 8:
            yield attribute, struct.unpack_from("<II", info, at)[1]
        at += length
