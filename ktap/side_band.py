"""What the kernel tells of all processes: programs they map, forks, programs they start, their ends.

An event that counts nothing, on every processor, has the kernel write a record of each of these into a
ring that is read in place. So the maps of a process are known also when it has ended before anybody
asks. Source: linux/perf_event.h (PERF_RECORD_MMAP2, COMM, FORK, EXIT, LOST; `struct sample_id`).
"""

from __future__ import annotations

import errno
import mmap
import os
from struct import Struct
from time import monotonic_ns
from typing import List, Tuple, Union

from ktap import kernel
from ktap.perf_event import FORMAT_LOST, lost_samples
from vm.named_tuple import NamedTuple

DUMMY = 9
"""PERF_COUNT_SW_DUMMY."""
FLAG_MMAP, FLAG_COMM, FLAG_TASK, FLAG_SAMPLE_ID, FLAG_MMAP2 = 1 << 8, 1 << 9, 1 << 13, 1 << 18, 1 << 23
FLAG_COMM_EXEC, FLAG_CLOCK, FLAG_BUILD_ID = 1 << 24, 1 << 25, 1 << 34
FLAGS = FLAG_MMAP | FLAG_COMM | FLAG_TASK | FLAG_SAMPLE_ID | FLAG_MMAP2 | FLAG_COMM_EXEC | FLAG_CLOCK
MONOTONIC = 1
WHAT = "events of processes"
LOST, COMM, EXIT, FORK, MMAP2 = 2, 3, 4, 7, 10
"""Types of records."""
MISC_COMM_EXEC, MISC_BUILD_ID = 1 << 13, 1 << 14
RING_BYTES = 1 << 18
"""A few hundred programs started on each processor between two looks."""
HEAD_INDEX, TAIL_INDEX = 1024 // 8, 1032 // 8
"""Of data_head and data_tail in the first page, as 64-bit words."""
TIME_BYTES = 8
"""Of the struct sample_id at the end of each record: the time alone."""

HEADER = Struct("=IHH")
TASK = Struct("=I").unpack_from
"""COMM: the process."""
TASKS = Struct("=IIII").unpack_from
"""FORK and EXIT: process, parent's process, thread, parent's thread."""
PLACE = Struct("=IIQQQ").unpack_from
"""MMAP2: process, thread, start, size, offset in the file."""
FILE = Struct("=IIQQ").unpack_from
"""MMAP2: major and minor number of the device, inode, its generation."""
NAME_OFFSET = 72
"""MMAP2: of the file's name."""
TIME = Struct("=Q").unpack_from


class Mapped(NamedTuple):
    """A process can now run code at a place."""

    time_ns: int
    pid: int
    start: int
    end: int
    offset: int
    """In the file, of what lies at `start`."""
    path: str
    """As the process sees it, or a name that is no path: `[vdso]`, `//anon`."""
    build_id: str
    """In hexadecimal, empty where it is not known."""
    inode: int
    """0 where it is not known."""


class Started(NamedTuple):
    """A process runs another program: nothing of what it had mapped is left."""

    time_ns: int
    pid: int


class Forked(NamedTuple):
    """A process has been made as a copy of another."""

    time_ns: int
    pid: int
    parent: int


class Ended(NamedTuple):
    """A process is gone."""

    time_ns: int
    pid: int


Change = Union[Mapped, Started, Forked, Ended]


class Ring(NamedTuple):
    """The ring of one processor."""

    event: int
    pages: mmap.mmap
    positions: memoryview
    data: memoryview


class SideBand:
    """The records of all processors. Raises OSError where the kernel lets nobody have them."""

    def __init__(self) -> None:
        self._told_lost = 0
        """What the rings say of records that found no room, which they can only behind others that find some."""
        self._rings: List[Ring] = []
        self._later: List[Change] = []
        try:
            for cpu in kernel.online_cpus():
                self._rings.append(open_ring(cpu))
        except OSError:
            self.close()
            raise

    def drain(self) -> List[Change]:
        """What has happened since the last time, in order of time.

        What happens while the rings are read is kept for the next time: a processor that was looked at
        first may have something earlier.
        """
        now_ns = monotonic_ns()
        found, self._later = self._later, []
        for ring in self._rings:
            head, tail = ring.positions[HEAD_INDEX], ring.positions[TAIL_INDEX]
            if head != tail:
                found += self._read(ring, tail, head - tail)
                ring.positions[TAIL_INDEX] = head
        if not found:
            return found
        found.sort(key=lambda change: change.time_ns)
        while found and found[-1].time_ns > now_ns:
            self._later.append(found.pop())
        return found

    def _read(self, ring: Ring, tail: int, length: int) -> List[Change]:
        start = tail & (RING_BYTES - 1)
        data = bytes(ring.data[start : start + length])
        data += bytes(ring.data[: length - len(data)])
        changes, lost = decoded(data)
        self._told_lost += lost
        return changes

    def lost(self) -> int:
        """How many records found no room."""
        counts = [lost_samples(ring.event) for ring in self._rings]
        return self._told_lost if None in counts else sum(filter(None, counts))

    def close(self) -> None:
        """Give the rings back. Safe to call twice."""
        for ring in self._rings:
            ring.data.release()
            ring.positions.release()
            ring.pages.close()
            os.close(ring.event)
        self._rings = []


def open_ring(cpu: int) -> Ring:
    """The records of one processor, with build ids where the kernel has them (Linux 5.12). Raises OSError."""
    counter = kernel.Counter(kernel.TYPE_SOFTWARE, DUMMY, 1, kernel.SAMPLE_TIME, clock=MONOTONIC)
    event = -1
    for flags, read_format in ((FLAGS | FLAG_BUILD_ID, FORMAT_LOST), (FLAGS | FLAG_BUILD_ID, 0), (FLAGS, 0)):
        try:
            event = kernel.open_perf_event(counter._replace(flags=flags, read_format=read_format), cpu, what=WHAT)
            break
        except OSError as error:
            if error.errno != errno.EINVAL or flags == FLAGS:
                raise
    try:
        pages = mmap.mmap(event, mmap.PAGESIZE + RING_BYTES)
    except OSError:
        os.close(event)
        raise
    view = memoryview(pages)
    return Ring(event, pages, view[: mmap.PAGESIZE].cast("Q"), view[mmap.PAGESIZE :])


def decoded(data: bytes) -> Tuple[List[Change], int]:
    """The changes that records tell, in their order, and how many records were lost."""
    changes: List[Change] = []
    lost = 0
    offset = 0
    while offset + HEADER.size <= len(data):
        kind, misc, size = HEADER.unpack_from(data, offset)
        if size < HEADER.size:
            break
        record = data[offset : offset + size]
        offset += size
        if kind == LOST:
            lost += TIME(record, HEADER.size + 8)[0]
            continue
        (time_ns,) = TIME(record, size - TIME_BYTES)
        if kind == MMAP2:
            changes.append(_mapped(record, misc, time_ns))
        elif kind == COMM and misc & MISC_COMM_EXEC:
            changes.append(Started(time_ns, TASK(record, HEADER.size)[0]))
        elif kind in (FORK, EXIT):
            pid, parent, thread, _ = TASKS(record, HEADER.size)
            if kind == FORK and pid != parent:
                changes.append(Forked(time_ns, pid, parent))
            elif kind == EXIT and pid == thread:
                changes.append(Ended(time_ns, pid))
    return changes, lost


def _mapped(record: bytes, misc: int, time_ns: int) -> Mapped:
    pid, _, start, size, offset = PLACE(record, HEADER.size)
    behind = HEADER.size + 32
    build_id, inode = "", 0
    if misc & MISC_BUILD_ID:
        build_id = record[behind + 4 : behind + 4 + record[behind]].hex()
    else:
        _, _, inode, _ = FILE(record, behind)
    path = record[NAME_OFFSET : record.find(b"\0", NAME_OFFSET)].decode("utf-8", "surrogateescape")
    return Mapped(time_ns, pid, start, start + size, offset, path, build_id, inode)
