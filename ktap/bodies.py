"""Handlers that run in the kernel as the programs of their events know them."""

from __future__ import annotations

from typing import Optional, Tuple

from ktap import demand
from ktap.members import Member
from vm.named_tuple import NamedTuple


class Access(NamedTuple):
    """Where a lowered handler finds a value of the raw record; `kind` is a field's, or empty where there is none."""

    name: str
    kind: str = ""
    offset: int = 0
    size_bytes: int = 0
    signed: bool = False
    place: str = ""


class Body(NamedTuple):
    """A lowered handler of an event: its number, the filter it has, what it reads of the record."""

    handler: int
    filter: Optional[int]
    accesses: Tuple[Access, ...]
    members: Tuple[Tuple[str, Member], ...] = ()
    """Members of structures, by the variable that names them."""
    acts: bool = True
    """Whether it does anything."""
    enters: str = ""
    """The space of a function that begins where it runs (see ktap.plan.enters), if it looks at a stack of that space."""
    touches: Tuple[demand.Read, ...] = ()
    """What it reads of the process that is probed."""
    late: Tuple[demand.Read, ...] = ()
    """Memory of the process that may be brought into RAM only while the system call runs."""
    timed: bool = False
    """Whether it looks at the clock."""
    shown_bytes: int = 0
    """Size of the raw record that it sends for argstr, 0 where it does not; at most that, where the format varies."""

    @property
    def needs_record(self) -> bool:
        """Whether it looks at the raw record."""
        return bool(self.accesses or self.late or self.shown_bytes) or any(
            demand.looks_at_record(member.read) for _, member in self.members
        )
