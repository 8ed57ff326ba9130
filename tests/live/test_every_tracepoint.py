"""The capture program of every tracepoint of this kernel passes the verifier, on both transports."""

from __future__ import annotations

import os
from typing import Iterator

import pytest
from tracing import TRANSPORTS

from compiler.bpf import Code, MapFd, compile_program, link
from ktap import kernel, tracefs
from ktap.capture import TRACEPOINT, Spec, capture_ir, scratch_bytes
from ktap.demand import Demand
from ktap.plan import Captured, Wanted, captured
from vm.diagnostic import Refusal

pytestmark = pytest.mark.live


def every_event() -> Iterator[Captured]:
    """All tracepoints but those of system calls, with their whole record, the text of it and the running task."""
    files = tracefs.find()
    asked = Demand(frozenset({"argstr", "pid", "execname"}), kernel_stack=5)
    for name in files.names():
        if name.group != "syscalls":
            try:
                event = files.format(name)
            except Refusal:  # another test's own event, gone by now
                continue
            yield captured(Wanted(TRACEPOINT, str(name), name.name, event, (0,), (), (None,), asked), {})


@pytest.mark.parametrize("buffer", TRANSPORTS)
def test_every_tracepoint(buffer: str) -> None:
    codes: dict[str, Code] = {}
    maps: dict[tuple[int, int], MapFd] = {}

    def map_of(kind: int, value_bytes: int) -> MapFd:
        if (kind, value_bytes) not in maps:
            entries = 4096 if kind == kernel.RINGBUF else kernel.possible_cpus()
            sizes = (0, 0) if kind == kernel.RINGBUF else (4, value_bytes)
            maps[kind, value_bytes] = MapFd(kernel.create_map(kind, "ktap_try", *sizes, entries))
        return maps[kind, value_bytes]

    refused = []
    count = 0
    try:
        for event in every_event():
            spec = Spec(TRACEPOINT, (event.case,), 0, buffer)
            ir = capture_ir(spec)
            if ir not in codes:
                codes[ir] = compile_program(ir, kernel.instruction_set())
            assert event.wanted.format is not None
            values = {"own_process": 1, "event": 0, "event_id": event.wanted.format.id}
            values["buffer"] = map_of(kernel.RINGBUF if buffer == "ring" else kernel.PERF_EVENT_ARRAY, 4)
            values |= {"losses": map_of(kernel.ARRAY, 8), "busy": map_of(kernel.ARRAY, 64)}
            values["scratch"] = map_of(kernel.ARRAY, scratch_bytes(spec) or 8)
            try:
                os.close(kernel.load(kernel.TRACEPOINT, link(codes[ir], values), log_bytes=1 << 16))
            except OSError as error:
                refused.append((event.wanted.label, str(error)[-200:]))
            count += 1
    finally:
        for map_fd in maps.values():
            os.close(map_fd.fd)
    assert not refused
    assert count > 100
