"""What a system call's entry could not read, put into its record when the call's return has sent it.

The return comes as a record of its own, a little after the entry. Until it is there the entry is held
back, and with it all that fired later, so that handlers keep to the order of time; but no longer than
PATIENCE_NS: a call that blocks may return much later, and then the value is nil.
"""

from __future__ import annotations

from collections import deque
from typing import Deque, Dict, List, Tuple

from ktap.layout import Values
from vm.named_tuple import NamedTuple

PATIENCE_NS = 20_000_000


class Places(NamedTuple):
    """Where an event's records hold the thread and what may come late, and where its late records do."""

    pair: int
    reads: Tuple[int, ...]
    late_pair: int
    late_reads: Tuple[int, ...]
    tentative: int = 0
    """The bit of a point whose filters could not all be decided, 0 where that cannot be."""
    always: bool = True
    """The record is wanted whatever the filters say."""


class Late:
    """`events` are those whose records can lack something, by number; their late records have `base` added."""

    def __init__(self, events: Dict[int, Places], base: int, bits: int) -> None:
        self._events = events
        self._base = base
        self._bits = bits
        self._queue: Deque[Values] = deque()
        self._waiting: Dict[Tuple[int, object], int] = {}
        """Event and thread to how many records had been queued before the one that waits."""
        self._taken = 0
        """How many records have left the queue."""

    def complete(self, records: List[Values], horizon_ns: int) -> Tuple[List[Values], int]:
        """Take records in order of time, give those that need not wait, and up to when there is none before them."""
        queue, events, bits, base = self._queue, self._events, self._bits, self._base
        for record in records:
            number = record[1] >> bits  # type: ignore[operator]  # the point is an integer
            places = events.get(number)
            if places is not None:
                if record[1] & places.tentative or None in [record[place] for place in places.reads]:  # type: ignore[operator]
                    self._waiting[number, record[places.pair]] = self._taken + len(queue)
            elif number >= base and number - base in events:
                self._put(number - base, record)
                continue
            queue.append(record)
        return self._ready(horizon_ns)

    def _put(self, number: int, late: Values) -> None:
        """Complete the record that waits for it, if it still does."""
        places = self._events[number]
        index = self._waiting.pop((number, late[places.late_pair]), self._taken - 1) - self._taken
        if index < 0:
            return
        values = list(self._queue[index])
        for place, source in zip(places.reads, places.late_reads):
            if values[place] is None:
                values[place] = late[source]
        self._queue[index] = self._decided(places, number, late[1], tuple(values))

    def _decided(self, places: Places, number: int, point: object, values: Values) -> Values:
        """The record with the bits of the filters that hold after all; nothing when it is not wanted then."""
        if not places.tentative:
            return values
        mask = point & (places.tentative - 1)  # type: ignore[operator]  # the point is an integer
        if not mask and not places.always:
            return ()
        return (values[0], number << self._bits | mask, *values[2:])

    def _ready(self, horizon_ns: int) -> Tuple[List[Values], int]:
        queue = self._queue
        first = min(self._waiting.values(), default=self._taken + len(queue)) - self._taken
        while first < len(queue) and queue[first][0] + PATIENCE_NS <= horizon_ns:  # type: ignore[operator]
            key = next(key for key, index in self._waiting.items() if index == first + self._taken)
            del self._waiting[key]
            record = queue[first]
            queue[first] = self._decided(self._events[key[0]], key[0], record[1], record)
            first = min(self._waiting.values(), default=self._taken + len(queue)) - self._taken
        ready = [queue.popleft() for _ in range(first)]
        self._taken += first
        if queue:
            horizon_ns = min(horizon_ns, queue[0][0] - 1)  # type: ignore[operator]
        return [record for record in ready if record], horizon_ns
