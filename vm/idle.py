"""What event variables give where there is no event: in the main chunk, in ticks and in trace_end."""

from __future__ import annotations

from typing import Optional, Tuple

from vm.event import VARIABLES
from vm.host import Host


class IdleEvent:
    """The event that stands in where there is none: nil, but for the handler's name and the clock."""

    record: Tuple[object, ...] = ()
    probename: Optional[bytes] = None
    """The handler's: `tick-1s`, `trace_end`."""
    time_ns: Optional[int] = None
    """What the time is, where that is not the clock's: in a replay."""

    def __init__(self, host: Host) -> None:
        self.host = host

    @property
    def nsecs(self) -> int:
        """The time."""
        return self.host.monotonic_ns() if self.time_ns is None else self.time_ns

    def field(self, path: str) -> object:
        """nil."""
        return None

    def task(self, path: str) -> object:
        """nil."""
        return None

    def memory(self, space: str, kind: str, address: int, size: int) -> Optional[bytes]:
        """Nothing was captured. Raises LookupError."""
        raise LookupError

    def stack(self, space: str, depth: int, skip: int) -> object:
        """nil."""
        return None

    def state(self, name: str) -> object:
        """nil."""
        return None


for variable in VARIABLES:
    if not hasattr(IdleEvent, variable.name):
        setattr(IdleEvent, variable.name, None)
