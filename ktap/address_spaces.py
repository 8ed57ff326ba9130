"""What lies at the addresses of processes, also of those that have ended: their mappings, kept.

    spaces = AddressSpaces()
    spaces.watch(pids)            # from here on the kernel tells of mappings, forks and programs started
    spaces.update()               # take in what it has told
    spaces.at(pid, address)       # a Mapping
    spaces.stop()                 # nothing more is told; what is known is kept

Where the kernel tells nothing, /proc/PID/maps is read when a process is first asked about.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from time import monotonic
from typing import Dict, Iterable, List, Optional, Sequence, Tuple

from ktap.side_band import Change, Ended, Forked, Mapped, SideBand, Started
from vm.named_tuple import NamedTuple

MOST_ENDED = 8192
"""Processes that have ended and are still known; each takes about a kilobyte."""
MOST_GENERATIONS = 3
"""Programs of one process number whose mappings are known: a stack may be of the program before the one that runs."""
REREAD_S = 1.0
"""How long after reading the maps of a process they are read again for an address that is not in them."""


class Mapping(NamedTuple):
    """Code of a process: where it lies, and what file it is of (see ktap.side_band.Mapped)."""

    start: int
    end: int
    offset: int
    path: str
    build_id: str
    inode: int


class Space:
    """The mappings of one program of a process, in the order they came."""

    def __init__(self, shared: Tuple[Mapping, ...] = (), text: bytes = b"", earlier: Optional[Space] = None) -> None:
        """`shared` are those of the process it was forked from; `text` is a `maps` file, parsed when it is needed."""
        self._shared = shared
        self._own: List[Mapping] = []
        self._text = text
        self.earlier = earlier
        """What had the number before: the program before exec, or a process that is gone."""
        self.read_s = 0.0
        """When the `maps` file was read."""
        self._shorten()

    def _shorten(self) -> None:
        last = self
        for _ in range(MOST_GENERATIONS - 1):
            if last.earlier is None:
                return
            last = last.earlier
        last.earlier = None

    def add(self, mapping: Mapping) -> None:
        """A mapping that has come."""
        self._parse()
        self._own.append(mapping)

    def all(self) -> Tuple[Mapping, ...]:
        """All mappings; a fork has the same tuple."""
        self._parse()
        if self._own:
            self._shared, self._own = (*self._shared, *self._own), []
        return self._shared

    def _parse(self) -> None:
        if self._text:
            text, self._text = self._text, b""
            self._own = [*parsed(text), *self._own]

    def here(self, address: int) -> Optional[Mapping]:
        """The mapping an address lies in: the one that came last."""
        self._parse()
        for mappings in (self._own, self._shared):
            for mapping in reversed(mappings):
                if mapping.start <= address < mapping.end:
                    return mapping
        return None

    def at(self, address: int) -> Optional[Mapping]:
        """The same, of this program or an earlier one."""
        space: Optional[Space] = self
        while space is not None:
            found = space.here(address)
            if found is not None:
                return found
            space = space.earlier
        return None


class AddressSpaces:
    """See above."""

    def __init__(self) -> None:
        self._spaces: Dict[int, Space] = {}
        self._ended: OrderedDict[int, None] = OrderedDict()
        self._side_band: Optional[SideBand] = None
        self._everyone = True
        self._lost = 0

    # -- being told ---------------------------------------------------------------------------

    def watch(self, pids: Sequence[int] = ()) -> None:
        """Have the kernel tell of these processes and what they will start, of all where none are named.

        Where it does not, mappings are looked up when they are asked for.
        """
        if self._side_band is not None:
            return
        try:
            self._side_band = SideBand()
        except OSError:
            return
        self._everyone = not pids
        for pid in pids or processes():
            self._read(pid)

    def update(self) -> None:
        """Take in what the kernel has told."""
        if self._side_band is not None:
            self.take(self._side_band.drain())

    @property
    def lost(self) -> int:
        """What the kernel told when there was no room for it."""
        return self._lost if self._side_band is None else self._side_band.lost()

    def stop(self) -> None:
        """Be told no more. Safe to call twice."""
        if self._side_band is not None:
            self.update()
            self._lost = self._side_band.lost()
            self._side_band.close()
            self._side_band = None

    def take(self, changes: Iterable[Change]) -> None:
        """What has happened, in order of time."""
        for change in changes:
            if isinstance(change, Forked):
                self._forked(change)
            elif change.pid in self._spaces or self._everyone:
                if isinstance(change, Mapped):
                    space = self._spaces.get(change.pid)
                    if space is None:
                        space = self._spaces[change.pid] = Space()
                    space.add(Mapping(*change[2:]))
                elif isinstance(change, Started):
                    self._spaces[change.pid] = Space(earlier=self._spaces.get(change.pid))
                else:
                    self._end(change)

    def _forked(self, change: Forked) -> None:
        parent = self._spaces.get(change.parent)
        if parent is None and not self._everyone:
            return
        self._ended.pop(change.pid, None)
        shared = parent.all() if parent is not None else ()
        self._spaces[change.pid] = Space(shared, earlier=self._spaces.get(change.pid))

    def _end(self, change: Ended) -> None:
        if change.pid in self._spaces:
            self._ended[change.pid] = None
            if len(self._ended) > MOST_ENDED:
                oldest, _ = self._ended.popitem(last=False)
                self._spaces.pop(oldest, None)

    # -- asking -------------------------------------------------------------------------------

    def at(self, pid: int, address: int) -> Optional[Mapping]:
        """The code that lies at an address of a process, None where nothing is known of it."""
        space = self._spaces.get(pid)
        found = space.at(address) if space is not None else None
        if found is not None or pid in self._ended:
            return found
        if space is None or monotonic() - space.read_s >= REREAD_S:
            space = self._read(pid)
            return space.at(address) if space is not None else None
        return None

    def is_running(self, pid: int) -> bool:
        """Whether a process has not ended, as far as is known."""
        return pid not in self._ended and os.path.exists(f"/proc/{pid}")

    def _read(self, pid: int) -> Optional[Space]:
        """Read the mappings of a process; None where it is gone. Raises nothing."""
        try:
            with open(f"/proc/{pid}/maps", "rb") as file:
                text = file.read()
        except OSError:
            return self._spaces.get(pid)
        space = self._spaces[pid] = Space(text=text, earlier=self._spaces.get(pid))
        space.read_s = monotonic()
        return space


def processes() -> List[int]:
    """The numbers of all processes."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def parsed(text: bytes) -> List[Mapping]:
    """The executable mappings of a `maps` file (`START-END r-xp OFFSET MAJOR:MINOR INODE   PATH`)."""
    found: List[Mapping] = []
    for line in text.splitlines():
        part = line.split(None, 5)
        if len(part) < 5 or part[1][2:3] != b"x":
            continue
        start, _, end = part[0].partition(b"-")
        path = part[5].decode("utf-8", "surrogateescape") if len(part) > 5 else "//anon"
        path = path[: -len(DELETED)] if path.endswith(DELETED) else path
        found.append(Mapping(int(start, 16), int(end, 16), int(part[2], 16), path, "", int(part[4])))
    return found


DELETED = " (deleted)"
