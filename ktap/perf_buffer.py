"""Perf buffers: one ring for each processor, mapped and read in place, for kernels without a BPF ring buffer.

A program takes the time before its record is written, and may be held up in between. So it adds one
to its processor's word of the map `busy` before, and takes it off after. Once a processor was seen
with nothing at work after the clock was read, every record it still writes has a later time; when all
were seen so, what lies in the rings then is all there is up to that time. That is the horizon.

Nobody is woken for an event (the watermark is half a ring, and nobody polls).

Source: linux/perf_event.h (struct perf_event_mmap_page, PERF_RECORD_SAMPLE, PERF_RECORD_LOST).
"""

from __future__ import annotations

import mmap
import os
import struct
from time import monotonic_ns
from typing import List, Optional, Sequence, Tuple

from ktap import kernel
from ktap.layout import Layout, Values
from ktap.transport import POINT_OFFSET, Drained, Shape, shape, striding
from vm.named_tuple import NamedTuple

SAMPLE, LOST = 9, 2
SAMPLE_HEADER = 12
"""Before the record's own bytes: the header, and the size of what follows."""
HEAD_INDEX, TAIL_INDEX = 1024 // 8, 1032 // 8
"""Of data_head and data_tail in the first page, as 64-bit words."""
MMAPABLE = 1 << 10
BUSY_BYTES = 64
"""Of a processor's word: a cache line for each."""
PATIENCE = 2_000
"""How often a processor that is at work is looked at again before the horizon is left where it was."""

HEADER = struct.Struct("=IHH").unpack_from
POINT = struct.Struct("=I").unpack_from
LOST_COUNT = struct.Struct("=Q").unpack_from


class Ring(NamedTuple):
    """The ring of one processor."""

    event: int
    pages: mmap.mmap
    positions: memoryview
    """The first page as 64-bit words."""
    data: memoryview


class PerfBuffer:
    """Perf buffers of `size_bytes` (a power of two of at least a page) for each online processor. Raises OSError."""

    name = "perf"

    def __init__(self, size_bytes: int) -> None:
        cpus = kernel.possible_cpus()
        self.lost_records = 0
        """What the kernel has reported as lost with PERF_RECORD_LOST; the map `losses` has it by event."""
        self._size = size_bytes
        self._shape: Optional[Shape] = None
        self._stride = 0
        self._rings: List[Ring] = []
        self._fds = [kernel.create_map(kernel.PERF_EVENT_ARRAY, "ktap_buffer", 4, 4, cpus)]
        try:
            self._fds.append(kernel.create_map(kernel.ARRAY, "ktap_busy", 4, BUSY_BYTES, cpus, MMAPABLE))
            self._busy_pages = mmap.mmap(self._fds[1], -(-BUSY_BYTES * cpus // mmap.PAGESIZE) * mmap.PAGESIZE)
            self._busy = memoryview(self._busy_pages).cast("Q")
            for cpu in kernel.online_cpus():
                self._rings.append(_open_ring(cpu, size_bytes))
                kernel.update(self._fds[0], struct.pack("=I", cpu), struct.pack("=I", self._rings[-1].event))
        except OSError:
            self.close()
            raise
        self._busy_words = [cpu * BUSY_BYTES // 8 for cpu in kernel.online_cpus()]

    @property
    def maps(self) -> Sequence[Tuple[str, int]]:
        """The array of rings, and the marks of programs at work."""
        return (("buffer", self._fds[0]), ("busy", self._fds[1]))

    def expect(self, layouts: Sequence[Optional[Layout]], points_bits: int) -> None:
        """See Buffer.expect."""
        self._shape = shape(layouts, points_bits)
        uniform = self._shape.uniform
        self._stride = 0
        if uniform is not None:
            self._stride = (SAMPLE_HEADER + uniform.fixed_bytes + 7) & ~7
            self._unpack = striding(uniform, SAMPLE_HEADER, self._stride).iter_unpack

    def drain(self) -> Drained:
        """See Buffer.drain."""
        now = monotonic_ns()
        settled = all(self._seen_idle(word) for word in self._busy_words)
        records: List[Values] = []
        for ring in self._rings:
            head, tail = ring.positions[HEAD_INDEX], ring.positions[TAIL_INDEX]
            if head != tail:
                records += self._read(ring, tail, head - tail)
                ring.positions[TAIL_INDEX] = head
        return Drained(records, now if settled else None)

    def _seen_idle(self, word: int) -> bool:
        busy = self._busy
        return any(not busy[word] for _ in range(PATIENCE))

    def _read(self, ring: Ring, tail: int, length: int) -> List[Values]:
        start = tail & (self._size - 1)
        if start + length <= self._size:
            span = ring.data[start : start + length]
        else:
            span = memoryview(bytes(ring.data[start:]) + bytes(ring.data[: start + length - self._size]))
        stride = self._stride
        if stride and not length % stride:
            count = length // stride
            sizes, types = span.cast("H")[3 :: stride // 2].tolist(), span.cast("I")[:: stride // 4].tolist()
            if sizes.count(stride) == count and types.count(SAMPLE) == count:
                return list(self._unpack(span))
        return self._mixed(span)

    def _mixed(self, span: memoryview) -> List[Values]:
        """Records of different kinds and sizes, one after the other."""
        assert self._shape is not None
        decoders, bits = self._shape.decoders, self._shape.bits
        records: List[Values] = []
        offset, end = 0, len(span)
        while offset < end:
            kind, _, size = HEADER(span, offset)
            if kind == SAMPLE:
                at = offset + SAMPLE_HEADER
                records.append(decoders[POINT(span, at + POINT_OFFSET)[0] >> bits](span, at))
            elif kind == LOST:
                self.lost_records += LOST_COUNT(span, offset + 16)[0]
            offset += size
        return records

    def close(self) -> None:
        """See Buffer.close."""
        for ring in self._rings:
            ring.data.release()
            ring.positions.release()
            ring.pages.close()
            os.close(ring.event)
        for fd in self._fds:
            os.close(fd)
        self._rings, self._fds = [], []


def _open_ring(cpu: int, size_bytes: int) -> Ring:
    counter = kernel.Counter(
        kernel.TYPE_SOFTWARE,
        kernel.BPF_OUTPUT,
        period=1,
        sample_type=kernel.SAMPLE_RAW,
        flags=kernel.FLAG_WATERMARK,
        wakeup=size_bytes // 2,
    )
    event = kernel.open_perf_event(counter, cpu, what="perf buffer")
    try:
        pages = mmap.mmap(event, mmap.PAGESIZE + size_bytes)
    except OSError:
        os.close(event)
        raise
    view = memoryview(pages)
    kernel.enable(event)
    return Ring(event, pages, view[: mmap.PAGESIZE].cast("Q"), view[mmap.PAGESIZE :])
