"""The BPF ring buffer (Linux 5.8): one buffer of all processors, read in place.

Programs reserve space first, then take the time and fill the record. Reservations are made one after
the other under a lock, so: read the clock, then the producer's position; once everything before that
position has been read, every record still to come was reserved after the clock was read and so has a
later time. That is the horizon, exactly.

Source: kernel/bpf/ringbuf.c (a page with the consumer's position, a page with the producer's, the data
mapped twice in a row so that no record wraps; 8 bytes before each record: its length with two flags).
"""

from __future__ import annotations

import mmap
import os
from time import monotonic_ns
from typing import List, Optional, Sequence, Tuple

from ktap import kernel
from ktap.layout import Layout, Values
from ktap.objects import Objects
from ktap.transport import POINT_OFFSET, Drained, Shape, shape, striding

BUSY, DISCARDED = 1 << 31, 1 << 30
RECORD_HEADER = 8
RETRIES = 8
"""How often a record that is still being written is looked at again before the drain ends at it."""


class RingBuffer:
    """A ring of `size_bytes`, a power of two of at least a page. Raises OSError."""

    name = "ring"

    def __init__(self, size_bytes: int, objects: Objects) -> None:
        page = mmap.PAGESIZE
        self.fd = objects.map(kernel.RINGBUF, "ktap_ring", 0, 0, size_bytes)
        self._consumer_page = mmap.mmap(self.fd, page, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        self._producer_pages = mmap.mmap(self.fd, page + 2 * size_bytes, mmap.MAP_SHARED, mmap.PROT_READ, offset=page)
        self._mask = size_bytes - 1
        self._consumer = memoryview(self._consumer_page).cast("Q")
        self._producer = memoryview(self._producer_pages)[:8].cast("Q")
        self._data = memoryview(self._producer_pages)[page:]
        self._words = self._data.cast("I")
        self._shape: Optional[Shape] = None
        self._stride = 0

    @property
    def maps(self) -> Sequence[Tuple[str, int]]:
        """The ring itself."""
        return (("buffer", self.fd),)

    def expect(self, layouts: Sequence[Optional[Layout]], points_bits: int) -> None:
        """See Buffer.expect."""
        self._shape = shape(layouts, points_bits)
        uniform = self._shape.uniform
        self._stride = 0
        if uniform is not None:
            self._stride = RECORD_HEADER + ((uniform.fixed_bytes + 7) & ~7)
            self._size = uniform.fixed_bytes
            self._unpack = striding(uniform, RECORD_HEADER, self._stride).iter_unpack

    def drain(self) -> Drained:
        """See Buffer.drain."""
        now = monotonic_ns()
        produced = self._producer[0]
        consumed = self._consumer[0]
        if produced == consumed:
            return Drained([], now)
        start = consumed & self._mask
        length = produced - consumed
        if self._stride:
            records, read = self._alike(start, length)
        else:
            records, read = self._mixed(start, length)
        self._consumer[0] = consumed + read
        return Drained(records, now if read == length else None)

    def _alike(self, start: int, length: int) -> Tuple[List[Values], int]:
        """Records that all have one size: their lengths are checked and they are unpacked as a whole."""
        stride, size = self._stride, self._size
        count = length // stride
        for _ in range(RETRIES):
            lengths = self._words[start >> 2 : (start + length) >> 2 : stride >> 2].tolist()
            if lengths.count(size) == count:
                break
        else:
            count = next(index for index, found in enumerate(lengths) if found != size)
        end = start + count * stride
        return list(self._unpack(self._data[start:end])), count * stride

    def _mixed(self, start: int, length: int) -> Tuple[List[Values], int]:
        """Records of different sizes, one after the other."""
        assert self._shape is not None
        data, words = self._data, self._words
        decoders, bits = self._shape.decoders, self._shape.bits
        records: List[Values] = []
        append = records.append
        point_word = (RECORD_HEADER + POINT_OFFSET) >> 2
        offset, end = start, start + length
        while offset < end:
            head = words[offset >> 2]
            if head & BUSY:
                if not self._settled(offset):
                    break
                head = words[offset >> 2]
            if not head & DISCARDED:
                append(decoders[words[(offset >> 2) + point_word] >> bits](data, offset + RECORD_HEADER))
            offset += (RECORD_HEADER + (head & ~DISCARDED) + 7) & ~7
        return records, offset - start

    def _settled(self, offset: int) -> bool:
        return any(not self._words[offset >> 2] & BUSY for _ in range(RETRIES))

    def close(self) -> None:
        """See Buffer.close."""
        if self.fd < 0:
            return
        for view in (self._words, self._data, self._producer, self._consumer):
            view.release()
        self._producer_pages.close()
        self._consumer_page.close()
        os.close(self.fd)
        self.fd = -1
