"""What the two event buffers share: turning bytes into records, and putting records in order of time.

A buffer hands out what was written up to an instant, and tells the *horizon*: the time up to which
every record has been handed out. It is exact for both buffers, by rules of their own.
"""

from __future__ import annotations

from operator import itemgetter
from struct import Struct
from time import monotonic_ns
from typing import Callable, List, Optional, Protocol, Sequence, Tuple

from ktap.layout import Decoder, Layout, Values, decoder
from vm.named_tuple import NamedTuple

POINT_OFFSET = 8
"""Of the point's number in a record."""


class Drained(NamedTuple):
    """What a buffer handed out, in no order; `horizon_ns` is None when it could not be moved on."""

    records: List[Values]
    horizon_ns: Optional[int]


class Buffer(Protocol):
    """A transport between the capture programs and this process."""

    name: str
    """`ring` or `perf`."""

    @property
    def maps(self) -> Sequence[Tuple[str, int]]:
        """The maps that programs write to: the name of the reference and the file descriptor."""

    def expect(self, layouts: Sequence[Optional[Layout]], points_bits: int) -> None:
        """Tell how records are laid out: one layout an event (None: it sends none), a point being its number << bits."""

    def drain(self) -> Drained:
        """Everything written so far."""

    def close(self) -> None:
        """Give it back. Safe to call twice."""


class OnDemand:
    """A buffer that is made when a program refers to it: one whose handlers send nothing takes no memory."""

    def __init__(self, name: str, make: Callable[[], Buffer]) -> None:
        """`make` raises OSError, which then comes from `maps`."""
        self.name = name
        self._make = make
        self._made: Optional[Buffer] = None
        self._expected: Tuple[Sequence[Optional[Layout]], int] = ((), 0)

    @property
    def maps(self) -> Sequence[Tuple[str, int]]:
        """See Buffer.maps."""
        if self._made is None:
            self._made = self._make()
            self._made.expect(*self._expected)
        return self._made.maps

    def expect(self, layouts: Sequence[Optional[Layout]], points_bits: int) -> None:
        """See Buffer.expect."""
        self._expected = (layouts, points_bits)
        if self._made is not None:
            self._made.expect(layouts, points_bits)

    def drain(self) -> Drained:
        """See Buffer.drain."""
        return Drained([], monotonic_ns()) if self._made is None else self._made.drain()

    def close(self) -> None:
        """See Buffer.close."""
        if self._made is not None:
            self._made.close()


class Shape(NamedTuple):
    """How to read records: the decoder of every event, and the one struct where all are alike and fixed."""

    decoders: Tuple[Decoder, ...]
    bits: int
    uniform: Optional[Layout]


def shape(layouts: Sequence[Optional[Layout]], bits: int) -> Shape:
    """The shape of records of these layouts; arguments as in `Buffer.expect`."""
    sent = [layout for layout in layouts if layout is not None]
    made = {layout: decoder(layout) for layout in set(sent)}
    alike = len({layout.letters for layout in sent}) == 1 and not sent[0].varies
    decoders = tuple(_unsent if layout is None else made[layout] for layout in layouts)
    return Shape(decoders, bits, sent[0] if alike else None)


def _unsent(data: memoryview, offset: int) -> Values:
    raise LookupError("a record of an event that sends none")


def striding(layout: Layout, before: int, stride: int) -> Struct:
    """A struct for `iter_unpack` over records `stride` bytes apart, their bytes starting after `before`."""
    return Struct(f"={before}x{layout.letters}{stride - before - layout.fixed_bytes}x")


class Order:
    """Holds records back until no earlier one can come."""

    def __init__(self) -> None:
        self._held: List[Values] = []
        self.horizon_ns = 0

    def take(self, drained: Drained) -> List[Values]:
        """The records up to the horizon, in order of time; records of one time stay as they came."""
        records = self._held
        records += drained.records
        if drained.horizon_ns is not None:
            self.horizon_ns = drained.horizon_ns
        records.sort(key=TIME)
        horizon = self.horizon_ns
        end = len(records)
        while end and records[end - 1][0] > horizon:  # type: ignore[operator]  # the time is an integer
            end -= 1
        self._held = records[end:]
        del records[end:]
        return records


TIME = itemgetter(0)
