"""The WebAssembly binary format as far as this host reads and writes it: numbers, names, sections.

Sources: WebAssembly core spec 5.5; component model Binary.md. Not here: what stands in the sections (`component.py`
looks for names, `adapter.py` puts a component around another).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

ITEMS_MAX: Final = 10_000
"""Imports or exports of one file; real components have under a hundred."""
NAME_MAX_BYTES: Final = 4_096


class Reader:
    """A cursor over bytes; raises IndexError past the end."""

    __slots__ = ("_at", "_data", "_end")

    def __init__(self, data: bytes, at: int, end: int) -> None:
        self._data = data
        self._at = at
        self._end = end

    @property
    def at(self) -> int:
        """Where it stands, in the whole file."""
        return self._at

    @property
    def end(self) -> int:
        """Where it ends, in the whole file."""
        return self._end

    @property
    def more(self) -> bool:
        """Whether anything is left."""
        return self._at < self._end

    def byte(self) -> int:
        """Read one byte."""
        if self._at >= self._end:
            raise IndexError("it ends in the middle of a section")
        self._at += 1
        return self._data[self._at - 1]

    def number(self) -> int:
        """Read a number in unsigned LEB128."""
        value = shift = 0
        while True:
            byte = self.byte()
            value |= (byte & 0x7F) << shift
            if not byte & 0x80:
                return value
            shift += 7
            if shift > 63:
                raise IndexError("a number is too long")

    def count(self) -> int:
        """Read how many entries follow."""
        count = self.number()
        if count > ITEMS_MAX:
            raise IndexError(f"a section claims {count} entries")
        return count

    def name(self) -> str:
        """Read a name."""
        size = self.number()
        if size > NAME_MAX_BYTES:
            raise IndexError(f"a name claims {size} bytes")
        return self.take(size).decode()

    def take(self, size: int) -> bytes:
        """Read so many bytes."""
        if self._at + size > self._end:
            raise IndexError("it ends in the middle of a section")
        self._at += size
        return self._data[self._at - size : self._at]

    def part(self, size: int) -> Reader:
        """Return a cursor over the next bytes alone."""
        if self._at + size > self._end:
            raise IndexError(f"a section claims {size} bytes, {self._end - self._at} are left")
        part = Reader(self._data, self._at, self._at + size)
        self._at += size
        return part


def sections(data: bytes) -> Iterator[tuple[int, Reader]]:
    """Go through the sections of a file: the kind and the content of each."""
    reader = Reader(data, 8, len(data))
    while reader.more:
        section = reader.byte()
        yield section, reader.part(reader.number())


def component_name(reader: Reader) -> str:
    """Read the name of a component's import or export, without the version suffix that may follow it."""
    form = reader.byte()
    if form > 2:
        raise IndexError(f"an import or export name has the unknown form {form}")
    name = reader.name()
    if form == 2:
        reader.name()
    return name


def encoded_number(value: int) -> bytes:
    """Return `value` in LEB128."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def encoded_name(name: str) -> bytes:
    """Return a name with its size."""
    text = name.encode()
    return encoded_number(len(text)) + text


def vector(items: Sequence[bytes]) -> bytes:
    """Return encoded items with their count."""
    return encoded_number(len(items)) + b"".join(items)


def section(kind: int, content: bytes) -> bytes:
    """Return a section."""
    return bytes([kind]) + encoded_number(len(content)) + content
