"""A tracefs instance of ktap's own: its ring buffers, read raw, for events that perf cannot sample or lets go of slowly.

    instance = OwnInstance(root, group, cpus, size_bytes)
    instance.enable("sched", "sched_switch")
    instance.trace("function", lines, None)
    instance.take(until_ns)     # records of all processors, each with its time and processor, and up to when that is all
    instance.close()

Source: linux/ring_buffer.h, Documentation/trace/ring-buffer-map.rst and `events/header_page` for the pages;
Documentation/trace/ftrace.rst for the files. The instance's name is its group's (ktap.own_group), which removes it
when ktap is killed.
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from struct import Struct
from typing import TYPE_CHECKING, Dict, Iterator, List, Optional, Sequence, Tuple

from vm.named_tuple import NamedTuple

if TYPE_CHECKING:
    from ktap.function_tracer import Line

PAGE_HEADER = Struct("=QQ").unpack_from
"""The time of the first event, and the bytes that are written, with flags above."""
DATA_OFFSET = 16
SIZE_MASK = 0xFFFFF
WORD = Struct("=I").unpack_from
TYPE = Struct("=H").unpack_from
LARGEST_SMALL, PADDING, TIME_EXTEND, TIME_STAMP = 28, 29, 30, 31
"""Values of an event's first five bits: up to the first it is a length in words, 0 for one that follows."""
DELTA_BITS = 27
UPPER_TIME = ~((1 << 59) - 1)
"""Bits of a time that a TIME_STAMP has no room for."""
LARGEST_PAGE_BYTES = 1 << 17
FILTER = "set_ftrace_filter"
LOST = ("overrun", "dropped events")
"""What `stats` calls events that were lost."""


class Record(NamedTuple):
    """One event as it lies in a ring."""

    time_ns: int
    cpu: int
    type: int
    """The number of its event."""
    data: bytes


def records_of(page: bytes, cpu: int) -> Iterator[Record]:
    """The events of a page."""
    time_ns, written = PAGE_HEADER(page)
    at, end = DATA_OFFSET, DATA_OFFSET + (written & SIZE_MASK)
    while at < end:
        (word,) = WORD(page, at)
        kind, delta = word & 31, word >> 5
        if kind == PADDING:
            if not delta:
                return
            at += 4 + WORD(page, at + 4)[0]
            time_ns += delta
            continue
        if kind == TIME_EXTEND:
            time_ns += delta + (WORD(page, at + 4)[0] << DELTA_BITS)
            at += 8
            continue
        if kind == TIME_STAMP:
            time_ns = time_ns & UPPER_TIME | delta + (WORD(page, at + 4)[0] << DELTA_BITS)
            at += 8
            continue
        time_ns += delta
        start = at + 4 if kind else at + 8
        behind = at + 4 + (4 * kind if kind else WORD(page, at + 4)[0])
        data = page[start:behind]
        yield Record(time_ns, cpu, TYPE(data)[0], data)
        at = behind


class OwnInstance:
    """See above. Raises OSError."""

    def __init__(self, root: str, name: str, cpus: Sequence[int], size_bytes: int) -> None:
        """Rings of `size_bytes` for each of `cpus`."""
        self.path = os.path.join(root, "instances", name)
        self._cpus = cpus
        self._files: Dict[int, int] = {}
        os.mkdir(self.path)
        try:
            self._write("trace_clock", "mono")
            self._write("options/overwrite", "0")
            self._write("tracing_on", "0")
            for cpu in cpus:
                self._write(f"per_cpu/cpu{cpu}/buffer_size_kb", str(max(4, size_bytes >> 10)))
        except OSError:
            self.close()
            raise

    def _write(self, name: str, text: str) -> None:
        file = os.open(os.path.join(self.path, name), os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(file, text.encode())
        finally:
            os.close(file)

    def enable(self, group: str, name: str, narrowing: str = "") -> None:
        """Have an event written to the rings once tracing is on. Raises OSError."""
        if narrowing:
            self._write(f"events/{group}/{name}/filter", narrowing)
        self._write(f"events/{group}/{name}/enable", "1")

    def trace(self, tracer: str, lines: Sequence[Line], left_out: Optional[int]) -> None:
        """Have a tracer of functions write its records to the rings once tracing is on, but for a thread. Raises OSError.

        Functions are told by number, for the kernel compares a name with all that it has. What it has understood is
        read again: the numbers are others when a module has gone.
        """
        chosen = os.open(os.path.join(self.path, FILTER), os.O_RDWR | os.O_TRUNC | os.O_CLOEXEC)
        try:
            for line in lines:
                os.write(chosen, b"%d\n" % line.number)
        finally:
            os.close(chosen)
        with open(os.path.join(self.path, FILTER)) as file:
            understood = sorted(row.split(None, 1)[0] for row in file)
        if understood != sorted(line.name for line in lines):
            raise OSError(errno.EAGAIN, "functions of the kernel came or went meanwhile", tracer)
        if left_out is not None:
            with suppress(FileNotFoundError):  # Linux 5.7 has it; what comes all the same is left out behind the rings
                self._write("set_ftrace_notrace_pid", str(left_out))
        self._write("current_tracer", tracer)

    def start(self) -> None:
        """Let events come. Raises OSError. No tracer can be chosen while somebody has the rings open."""
        for cpu in self._cpus:
            path = os.path.join(self.path, f"per_cpu/cpu{cpu}/trace_pipe_raw")
            self._files[cpu] = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        self._write("tracing_on", "1")

    def stop(self) -> None:
        """Let no more come."""
        self._write("tracing_on", "0")

    def take(self, until_ns: int, most_pages: Optional[int] = None) -> Tuple[List[Record], int]:
        """What lies in the rings, taken out of them, and the time up to which that is all: `until_ns`, for reading may
        itself make events without end, or an earlier one where some ring has more pages than are to be read.
        """
        found: List[Record] = []
        all_until_ns = until_ns
        for cpu, file in self._files.items():
            last_ns, pages = 0, 0
            with suppress(BlockingIOError):
                while last_ns <= until_ns:
                    if pages == most_pages:
                        all_until_ns = min(all_until_ns, last_ns - 1)
                        break
                    page = os.read(file, LARGEST_PAGE_BYTES)
                    if not page:
                        break
                    pages += 1
                    records = list(records_of(page, cpu))
                    found += records
                    last_ns = records[-1].time_ns if records else last_ns
        return found, all_until_ns

    def losses(self) -> List[Tuple[int, int]]:
        """Events that found no room, by processor."""
        found = []
        for cpu in self._files:
            with open(os.path.join(self.path, f"per_cpu/cpu{cpu}/stats")) as file:
                rows = dict(line.strip().split(": ") for line in file if ": " in line)
            found.append((cpu, sum(int(rows.get(name, 0)) for name in LOST)))
        return found

    def close(self) -> None:
        """Remove it. Safe to call twice."""
        for file in self._files.values():
            os.close(file)
        self._files = {}
        try:
            os.rmdir(self.path)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.EBUSY):  # the group's end tries again
                raise
