"""Timers of scripts: `tick-5s`, `profile-99hz`, and which tick is due when."""

from __future__ import annotations

from heapq import heapify, heapreplace
from typing import List, Optional, Sequence, Tuple

from vm.event import Probe

UNITS_NS = {
    "": 1_000_000_000,
    "s": 1_000_000_000,
    "sec": 1_000_000_000,
    "ms": 1_000_000,
    "msec": 1_000_000,
    "us": 1_000,
    "usec": 1_000,
    "ns": 1,
}
SHORTEST_NS = 10_000
"""What a script may ask for at least: below that it would do nothing else."""


def period_ns(text: str) -> int:
    """The period of a timer as written (`tick-5s`, `profile-99hz`). Raises ValueError, which says what is wrong."""
    amount = text.partition("-")[2]
    unit = amount.lstrip("0123456789")
    digits = amount[: len(amount) - len(unit)]
    if not 0 < len(digits) < 19:
        raise ValueError(f"`{text}` is no timer: after the `-` comes a number and a unit")
    number = int(digits)
    if unit != "hz" and unit not in UNITS_NS:
        raise ValueError(f"`{unit}` is no unit of time: there are {', '.join([*filter(None, UNITS_NS), 'hz'])}")
    if number == 0:
        raise ValueError("a timer needs a number above 0")
    period = UNITS_NS["s"] // number if unit == "hz" else number * UNITS_NS[unit]
    if period < SHORTEST_NS:
        raise ValueError(f"a timer cannot be shorter than {SHORTEST_NS // 1000} us")
    return period


class Schedule:
    """When which tick is due. `add`ed order decides between ticks that are due at the same time."""

    def __init__(self, ticks: Sequence[Probe], begin_ns: int) -> None:
        """The first round of each is one period after `begin_ns`. Raises ValueError as `period_ns`."""
        self.ticks = ticks
        self.periods_ns = [period_ns(tick.event) for tick in ticks]
        self.due: List[Tuple[int, int]] = [(begin_ns + period, place) for place, period in enumerate(self.periods_ns)]
        heapify(self.due)

    def next_ns(self) -> Optional[int]:
        """When the next tick is due, None without ticks."""
        return self.due[0][0] if self.due else None

    def take(self, late_ns: Optional[int] = None) -> Probe:
        """The tick that is due next, which is set for its next round.

        With `late_ns`, the time now, rounds that have been missed are left out but for the last: a tick
        that cannot keep up fires once, in its phase.
        """
        due_ns, place = self.due[0]
        period = self.periods_ns[place]
        following = due_ns + period
        if late_ns is not None and late_ns > following:
            following += (late_ns - following) // period * period
        heapreplace(self.due, (following, place))
        return self.ticks[place]
