"""Record layouts: how the values of an event that were captured lie in its bytes, and in its tuple.

A record is a fixed part (`HEAD`, then one item a slot), followed by the bytes of the slots whose size
varies, in their order; such a slot's item in the fixed part is its length, negative where it could not
be read. Decoded it is the tuple ``(time, point, cpu, value of slot 0, …)``: integers, or bytes (None
where they could not be read).

The capture programs write it (ktap.capture), the buffers read it (ktap.transport), a recording keeps
it, and ktap.captured gives its items the names that scripts know.
"""

from __future__ import annotations

from struct import Struct
from typing import Callable, Optional, Tuple

from vm.named_tuple import NamedTuple

HEAD = "QII"
"""Monotonic time in ns, number of the point, processor."""
HEAD_BYTES = 16
LENGTH = "i"

Values = Tuple[object, ...]

KNOWN = "known"
"""Last slot of some recorded layouts: a bit for every slot of LACKING, in their order, that has a value; others are None."""
LACKING = frozenset({"pid_tgid", "comm", "ppid", "cgroup"})
"""Slots of fixed size whose value may not be known, where no program of the kernel's made the record."""


class Slot(NamedTuple):
    """One captured value: its name, the struct letters of its item in the fixed part, and its size.

    `varies`: the item is a length, and at most `size_bytes` bytes lie behind the fixed part.
    """

    name: str
    letters: str
    size_bytes: int
    varies: bool = False


def integer(name: str, letter: str) -> Slot:
    """A slot for an integer of a struct letter."""
    return Slot(name, letter, Struct("=" + letter).size)


def fixed(name: str, size_bytes: int) -> Slot:
    """A slot for bytes of a known number."""
    return Slot(name, f"{size_bytes}s", size_bytes)


def variable(name: str, most_bytes: int) -> Slot:
    """A slot for bytes of varying number."""
    return Slot(name, LENGTH, most_bytes, True)


class Layout(NamedTuple):
    """The slots of one kind of record, in order: those of 8-byte multiples first, so that stores are aligned."""

    slots: Tuple[Slot, ...]

    def recorded(self) -> Layout:
        """The same with a slot that tells what is not known."""
        return Layout((*self.slots, integer(KNOWN, "Q")))

    @property
    def lacking(self) -> Tuple[int, ...]:
        """Where in the decoded tuple values are that may not be known."""
        return tuple(3 + index for index, slot in enumerate(self.slots) if slot.name in LACKING and not slot.varies)

    @property
    def letters(self) -> str:
        """The struct letters of the fixed part."""
        return HEAD + "".join(slot.letters for slot in self.slots)

    @property
    def fixed_bytes(self) -> int:
        """Size of the fixed part."""
        return Struct("=" + self.letters).size

    @property
    def most_bytes(self) -> int:
        """Size of the largest record."""
        return self.fixed_bytes + sum(slot.size_bytes for slot in self.slots if slot.varies)

    @property
    def varies(self) -> bool:
        """Whether records differ in size."""
        return any(slot.varies for slot in self.slots)

    def offset(self, index: int) -> int:
        """Where the item of a slot lies in the fixed part."""
        return Struct("=" + HEAD + "".join(slot.letters for slot in self.slots[:index])).size

    def item(self, name: str) -> Optional[int]:
        """Where the value of a slot lies in the decoded tuple, None when it was not captured."""
        for index, slot in enumerate(self.slots):
            if slot.name == name:
                return 3 + index
        return None


def aligned(slots: Tuple[Slot, ...]) -> Layout:
    """A layout of slots, ordered so that every integer of the fixed part is at a multiple of its size."""
    return Layout(tuple(sorted(slots, key=lambda slot: -_alignment(slot))))


def _alignment(slot: Slot) -> int:
    size = 4 if slot.varies else slot.size_bytes
    return next(n for n in (8, 4, 2, 1) if size % n == 0)


Decoder = Callable[[memoryview, int], Values]
"""Reads the record that starts at an offset of a buffer. Raises struct.error when it is cut short."""


def decoder(layout: Layout) -> Decoder:
    """A function that reads one record of a layout."""
    known, lacking = layout.item(KNOWN), layout.lacking
    if known is None:
        return _whole(layout)
    read = _whole(layout)

    def decode(buffer: memoryview, offset: int) -> Values:
        values = list(read(buffer, offset))
        bits: int = values[known]  # type: ignore[assignment]  # the layout says Q
        for bit, place in enumerate(lacking):
            if not bits >> bit & 1:
                values[place] = None
        return tuple(values)

    return decode


def _whole(layout: Layout) -> Decoder:
    fixed_part = Struct("=" + layout.letters)
    unpack = fixed_part.unpack_from
    if not layout.varies:
        return unpack
    places = [3 + index for index, slot in enumerate(layout.slots) if slot.varies]
    behind = fixed_part.size

    def decode(buffer: memoryview, offset: int) -> Values:
        values = list(unpack(buffer, offset))
        start = offset + behind
        for place in places:
            length = values[place]
            if length < 0:
                values[place] = None
                continue
            values[place] = bytes(buffer[start : start + length])
            start += length
        return tuple(values)

    return decode
