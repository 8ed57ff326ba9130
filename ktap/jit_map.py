"""Functions that a process has made while it runs, as it tells them in a `perf-PID.map` file.

A line is `START SIZE NAME`, the numbers in hexadecimal; the file grows, and what was written last about
a place counts. Source: tools/perf/Documentation/jit-interface.txt of the kernel.
"""

from __future__ import annotations

import os
import stat
from bisect import bisect_right
from contextlib import suppress
from time import monotonic
from typing import Dict, List, Optional, Tuple

MOST_BYTES = 256 << 20
LOOK_AGAIN_S = 0.5
"""How long after a look at the file it is looked at again for an address that is not in it."""


class JitMap:
    """The file of one process; it may come later, and is read as far as it has grown."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._paths = _paths(pid)
        self._owner = _owner(pid)
        self._read_bytes = 0
        self._looked_s = -LOOK_AGAIN_S
        self._functions: Dict[int, Tuple[int, str]] = {}
        self._starts: List[int] = []

    def at(self, address: int) -> Optional[Tuple[str, int]]:
        """The function an address lies in and how far behind its start, None where none is told."""
        found = self._find(address)
        if found is None and monotonic() - self._looked_s >= LOOK_AGAIN_S:
            self._looked_s = monotonic()
            if self._grow():
                found = self._find(address)
        return found

    def _find(self, address: int) -> Optional[Tuple[str, int]]:
        place = bisect_right(self._starts, address) - 1
        if place < 0:
            return None
        start = self._starts[place]
        end, name = self._functions[start]
        return (name, address - start) if address < end else None

    def _grow(self) -> bool:
        """Read what is new; False where there is nothing."""
        for path in self._paths:
            with suppress(OSError):
                data = _new_part(path, self._read_bytes, self._owner)
                if data:
                    self._take(data)
                    return True
        return False

    def _take(self, data: bytes) -> None:
        whole = data[: data.rfind(b"\n") + 1]
        self._read_bytes += len(whole)
        for line in whole.splitlines():
            part = line.split(None, 2)
            with suppress(ValueError, IndexError):
                start = int(part[0], 16)
                self._functions[start] = (start + int(part[1], 16), part[2].decode("utf-8", "replace"))
        self._starts = sorted(self._functions)


def _paths(pid: int) -> List[str]:
    """Where the file may lie: under the root that the process sees, by the number that it knows itself by."""
    own = pid
    with suppress(OSError, ValueError), open(f"/proc/{pid}/status") as file:
        own = next((int(line.split()[-1]) for line in file if line.startswith("NSpid:")), pid)
    return [f"/proc/{pid}/root/tmp/perf-{own}.map", f"/tmp/perf-{pid}.map"]


def _owner(pid: int) -> Optional[int]:
    """The user a process runs as, None where it is gone."""
    with suppress(OSError):
        return os.stat(f"/proc/{pid}").st_uid
    return None


def _new_part(path: str, start: int, owner: Optional[int]) -> bytes:
    """What a file has behind a place. Raises OSError. A file of somebody else, or that is no plain file, has nothing."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        trusted = status.st_uid in (0, status.st_uid if owner is None else owner)
        if not trusted or not stat.S_ISREG(status.st_mode) or not start < status.st_size <= MOST_BYTES:
            return b""
        parts = []
        while part := os.pread(descriptor, 1 << 20, start):
            parts.append(part)
            start += len(part)
        return b"".join(parts)
    finally:
        os.close(descriptor)
