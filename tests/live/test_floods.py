"""More events than handlers can take: a run ends all the same, and owns up to every one of them."""

from __future__ import annotations

import mmap
import struct
import time
from array import array
from typing import List

import pytest
from tracing import EVENTS, SPIN, python, trace

from ktap.perf_buffer import HEAD_INDEX, SAMPLE, TAIL_INDEX
from ktap.perf_rings import MOST_RECORD_BYTES, Ring, taken, waiting_bytes
from vm.run import PATIENCE_NS


@pytest.mark.live
@pytest.mark.parametrize("tier", ["vm", EVENTS])
def test_a_flood_does_not_keep_a_run_from_its_end(tier: str) -> None:
    """What is in the buffers is taken in parts, so that the end is seen and nothing more is put into them."""
    begun_s = time.monotonic()
    traced = trace(
        "var n = 0 trace profile-10us { n += 1 } trace_end { print(n) }",
        python(SPIN),
        everyone=True,
        duration_s=1.0,
        tier=tier,
    )
    assert time.monotonic() - begun_s < PATIENCE_NS / 1e9 + 30
    (line,) = traced.lines
    assert int(line) > 1000


CALLS = """
import os, time
end = time.time() + 3
while time.time() < end:
    for _ in range(1000): os.getppid()
"""


@pytest.mark.live
@pytest.mark.parametrize("events", ["syscalls:*", "syscalls:sys_enter_getppid"])
def test_without_bpf_every_call_of_a_flood_is_handled_or_counted(events: str) -> None:
    """By an instance of tracefs, and by perf events."""
    begun_s = time.monotonic()
    script = f"""
    trace {events} /pid != 0/ {{ n[probename] += 1 }}
    trace_end {{ print(n["sys_enter_getppid"]) }}
    """
    traced = trace(script, python(CALLS), duration_s=1.5, tier=EVENTS)
    assert time.monotonic() - begun_s < PATIENCE_NS / 1e9 + 30
    (handled,) = traced.lines
    assert int(handled) > 1000


def ring_of(size: int, records: List[bytes], start: int) -> Ring:
    """A ring that holds records, and of which so much has been read."""
    data = bytearray(size)
    whole = b"".join(records)
    for at, byte in enumerate(whole):
        data[(start + at) % size] = byte
    positions = memoryview(array("Q", bytes(4096)))
    positions[TAIL_INDEX], positions[HEAD_INDEX] = start, start + len(whole)
    return Ring(0, -1, mmap.mmap(-1, 4096), positions, memoryview(data))


@pytest.mark.parametrize("start", [0, 1 << 17, (1 << 18) - 8])
def test_a_ring_is_taken_in_parts(start: int) -> None:
    sizes = [16 + 8 * (number * 7 % 300) for number in range(150)]
    records = [struct.pack("=IHHQ", SAMPLE, 0, size, number) + bytes(size - 16) for number, size in enumerate(sizes)]
    ring = ring_of(1 << 18, records, start)
    found: List[int] = []
    parts = 0
    while waiting_bytes(ring):
        before = len(found)
        for kind, data, at in taken(ring, MOST_RECORD_BYTES):
            assert kind == SAMPLE
            found.append(struct.unpack_from("=Q", data, at + 8)[0])
        assert len(found) > before
        parts += 1
    assert found == list(range(150))
    assert parts > 2
