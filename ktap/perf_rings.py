"""Rings of perf events: one a processor, that many events share, read in place; and the instant up to which all is read.

An event's time is taken before its record is written, both with preemption off. So when every processor
has passed a point where it could be preempted (membarrier(2) waits for it), all that fired before is in the
rings. That is the horizon. Nobody is woken for an event: the watermark is never reached.

Source: linux/perf_event.h (struct perf_event_mmap_page), membarrier(2).
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from time import monotonic_ns
from typing import Iterator, Optional, Tuple

from ktap import kernel
from ktap.perf_buffer import HEAD_INDEX, HEADER, TAIL_INDEX
from vm.named_tuple import NamedTuple

MEMBARRIER_CALL = {"x86_64": 324, "aarch64": 283, "riscv64": 283, "ppc64le": 365, "s390x": 356}
GLOBAL_BARRIER = 1
MOST_RECORD_BYTES = 1 << 16
"""What the size of a record has room for."""
SLACK_NS = 50_000_000
"""Without membarrier: nothing is held up longer between its time and its record."""

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


class Ring(NamedTuple):
    """The mapped ring of one processor; `owner` is the event it belongs to, and `number` that one's where it is alone."""

    cpu: int
    owner: int
    pages: mmap.mmap
    positions: memoryview
    """The first page as 64-bit words."""
    data: memoryview
    number: int = 0


def map_ring(cpu: int, owner: int, size_bytes: int) -> Ring:
    """Map a ring of a power of two of pages. Raises OSError."""
    pages = mmap.mmap(owner, mmap.PAGESIZE + size_bytes)
    view = memoryview(pages)
    return Ring(cpu, owner, pages, view[: mmap.PAGESIZE].cast("Q"), view[mmap.PAGESIZE :])


def map_largest(cpu: int, owner: int, size_bytes: int, least_bytes: int) -> Tuple[Ring, int]:
    """The same, of half the size as long as the process may not lock so much memory. Raises OSError."""
    while True:
        try:
            return map_ring(cpu, owner, size_bytes), size_bytes
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.ENOMEM, errno.EAGAIN) or size_bytes <= least_bytes:
                raise
            size_bytes //= 2


def unmap(ring: Ring) -> None:
    """Give the memory back."""
    ring.data.release()
    ring.positions.release()
    ring.pages.close()


def waiting_bytes(ring: Ring) -> int:
    """How much is in a ring."""
    size: int = ring.positions[HEAD_INDEX] - ring.positions[TAIL_INDEX]
    return size


def taken(ring: Ring, most_bytes: Optional[int] = None) -> Iterator[Tuple[int, memoryview, int]]:
    """The records in a ring, or the first of them, taken out of it: kind, and the bytes with the place where it starts.

    `most_bytes` is at least MOST_RECORD_BYTES.
    """
    head, tail = ring.positions[HEAD_INDEX], ring.positions[TAIL_INDEX]
    if most_bytes is not None:
        head = min(head, tail + most_bytes)
    if head == tail:
        return
    size = len(ring.data)
    start, length = tail & size - 1, head - tail
    if start + length <= size:
        span = memoryview(bytes(ring.data[start : start + length]))
    else:
        span = memoryview(bytes(ring.data[start:]) + bytes(ring.data[: start + length - size]))
    at = 0
    while at < length:
        kind, _, record_bytes = HEADER(span, at)
        if at + record_bytes > length:
            break
        yield kind, span, at
        at += record_bytes
    ring.positions[TAIL_INDEX] = tail + at


def settled_ns() -> int:
    """A time before which nothing is still to be written: waits some milliseconds for every processor."""
    now_ns = monotonic_ns()
    number: Optional[int] = MEMBARRIER_CALL.get(os.uname().machine)
    if number is not None and _libc.syscall(number, GLOBAL_BARRIER, 0, 0) == 0:
        return now_ns
    return now_ns - SLACK_NS


def online(cpu: Optional[int]) -> Tuple[int, ...]:
    """The processors that are traced."""
    return kernel.online_cpus() if cpu is None else (cpu,)
