"""How tables and variables lie in BPF maps: keys, values, and the maps to be made.

A key is its parts one after the other, each at a multiple of 8 and padded with zeros, so that equal
keys are equal bytes: 8 bytes for an integer, an address or a boolean; a string's bytes (NUL-free, at
most as many as inference found). A stack is 16 bytes and then return addresses: in the first 8 the process
(of a kernel stack: whether it may begin with frames that lead to the program), from bit 32 on how many
frames are wanted and from bit 48 on how many before them are not; in the second 8 the caller of a function
that has just begun, which its stack does not tell yet, or 0.

A value is 8 bytes for an integer or a boolean; a length of 8 bytes and then the bytes for a string or a
stack. A sum is 8 bytes, and where it is drained while events fire 8 more that count the additions. An
aggregation is its count and its sum; how far its extremes are from the largest and from the smallest
integer; and its buckets. Where removed entries are kept, 8 bytes before the value are 1, or 0 in one that
was removed: to remove an entry and make it again takes the kernel several times as long as to write it.
"""

from __future__ import annotations

from typing import Tuple

from compiler.lower.types import Type
from vm.aggregate import Keeping, Shape
from vm.histogram import steps
from vm.named_tuple import NamedTuple

HASH, PERCPU_HASH, ARRAY, PERCPU_ARRAY = "hash", "percpu_hash", "array", "percpu_array"

MOST_KEY_BYTES = 2 * 4096 + 2048
"""The largest key: two strings as long as any, a stack and some parts beside them."""
MOST_PERCPU_BYTES = 32 << 10
"""The largest value of a map for each processor (PCPU_MIN_UNIT_SIZE of linux/percpu.h)."""
COUNT, SUM_OF, SMALLEST, LARGEST, BUCKETS = 0, 8, 16, 24, 32
"""Offsets in the value of an aggregation."""
STATE_BYTES = 8
"""Before the value of an entry that is kept when it is removed."""
KEPT_SHARE, LEAST_KEPT = 8, 1024
"""What share of a table's entries may be removed ones; tables of fewer than so many keep none."""
POWERS = 65
"""Buckets of powers of two: below zero, zero, then by bit length 1 to 63."""


class MapSpec(NamedTuple):
    """A map to be made. `swapped`: it is the inner map of an array of maps, so that it can be exchanged as a whole."""

    name: str
    kind: str
    key_bytes: int
    value_bytes: int
    entries: int
    swapped: bool = False
    preallocated: bool = True
    """Its entries are made with it, not each when it is inserted."""


class StatsLayout(NamedTuple):
    """Where the buckets of an aggregation lie."""

    powers: bool
    shapes: Tuple[Shape, ...]

    @property
    def size_bytes(self) -> int:
        """Size of a value."""
        return self.shape_offset(len(self.shapes))

    def shape_offset(self, index: int) -> int:
        """Where the buckets of a shape begin: one below, its steps, one above."""
        offset = BUCKETS + (8 * POWERS if self.powers else 0)
        return offset + sum(8 * (2 + steps(*shape)) for shape in self.shapes[:index])


def stats_layout(keeping: Keeping) -> StatsLayout:
    """The layout that keeps what a script reads."""
    return StatsLayout(keeping.powers, keeping.shapes)


def kept_entries(entries: int, processors: int) -> int:
    """How many removed entries each processor may leave in a table."""
    return entries // KEPT_SHARE // processors if entries >= LEAST_KEPT else 0


def rounded(size_bytes: int) -> int:
    """Up to a multiple of 8."""
    return (size_bytes + 7) & ~7


def part_bytes(part: Type) -> int:
    """Size of one part of a key."""
    return max(8, rounded(part.size_bytes)) if part.is_bytes else 8


def key_parts(key: Type) -> Tuple[Type, ...]:
    """The parts of a key; a key of one value is its own part."""
    return key.parts if key.can_be("key") else (key,)


def key_bytes(key: Type) -> int:
    """Size of a key."""
    return sum(part_bytes(part) for part in key_parts(key))


def value_bytes(value: Type) -> int:
    """Size of a plain value (not an aggregation)."""
    return 8 + rounded(value.size_bytes) if value.without("nil").is_bytes and value.size_bytes else 8
