"""Raw records of a tracefs instance, decoded from the pages of its ring buffers.

Source: kernel/trace/ring_buffer.c; `events/header_page` and `events/header_event` of tracefs.
"""

from __future__ import annotations

import os
import struct
from typing import Iterator

PADDING, TIME_EXTEND, TIME_STAMP = 29, 30, 31


def page_records(page: bytes, header_size: int = 16) -> Iterator[bytes]:
    """The records of one page, each from its `common_type` on."""
    (commit,) = struct.unpack_from("=Q", page, 8)
    at, end = header_size, header_size + (commit & 0xFFFFF)
    while at < end:
        (word,) = struct.unpack_from("=I", page, at)
        kind, delta = word & 31, word >> 5
        if kind in (TIME_EXTEND, TIME_STAMP):
            at += 8
        elif kind == PADDING:
            if delta == 0:
                return
            at += 4 + struct.unpack_from("=I", page, at + 4)[0]
        elif kind == 0:
            (length,) = struct.unpack_from("=I", page, at + 4)
            yield page[at + 8 : at + 4 + length]
            at += 4 + length
        else:
            yield page[at + 4 : at + 4 + kind * 4]
            at += 4 + kind * 4


def cpu_records(instance: str, cpu: int) -> list[bytes]:
    """Every record in a CPU's buffer of an instance, oldest first; the buffer is emptied."""
    file = os.open(f"{instance}/per_cpu/cpu{cpu}/trace_pipe_raw", os.O_RDONLY | os.O_NONBLOCK)
    records: list[bytes] = []
    try:
        while True:
            try:
                page = os.read(file, 4096)
            except BlockingIOError:
                return records
            if not page:
                return records
            records.extend(page_records(page))
    finally:
        os.close(file)
