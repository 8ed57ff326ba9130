"""Sending records: a reservation in the ring, or a sample of a perf buffer; what finds no room is counted.

Through the ring, space is reserved first and the time taken after it, which is what makes the reader's
horizon exact (ktap.ring_buffer). Records of one size are filled in place; others are put together in a
scratch map and copied to a reservation of their size. Through perf buffers a mark that a program is at
work on this processor is set before the time is taken and cleared when the record is written
(ktap.perf_buffer).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Callable

from compiler.ir import Writer
from ktap.layout import Layout

if TYPE_CHECKING:
    from ktap.capture import Frame

RING, PERF = "ring", "perf"

STACK_RECORD_BYTES = 256
"""Records up to this size are put together on the program's stack for a perf buffer."""
NO_WAKEUP = 1
CURRENT_CPU = 0xFFFFFFFF

Fill = Callable[[str], str]
"""Writes a record but for its time at an address; its length as an i64 operand."""


def send(frame: Frame, layout: Layout, event: str, fill: Fill, then: str) -> None:
    """Make a record and hand it to the event buffer; ends the block with a jump to `then`."""
    (_send_ring if frame.spec.transport == RING else _send_perf)(frame, layout, event, fill, then)


def _send_ring(frame: Frame, layout: Layout, event: str, fill: Fill, then: str) -> None:
    w = frame.w
    lost = w.fresh("lost")
    if not layout.varies:
        space = w.call("ringbuf_reserve", w.reference("buffer"), layout.fixed_bytes, 0)
        w.only_if(w.value(f"icmp ne ptr {space}, null"), lost)
        w.store(8, w.call("ktime_get_ns"), space)
        fill(space)
        w.call("ringbuf_submit", space, NO_WAKEUP)
        w.goto(then)
        w.label(lost)
        count_loss(w, event)
        w.goto(then)
        return
    space = scratch(frame)
    length = fill(space)
    pointer = w.local(16, "dynptr")
    failed = w.call("ringbuf_reserve_dynptr", w.reference("buffer"), w.narrowed(length, 4), 0, pointer)
    w.only_if(w.value(f"icmp eq i64 {failed}, 0"), lost)
    w.store(8, w.call("ktime_get_ns"), space)
    w.call("dynptr_write", pointer, 0, space, w.narrowed(length, 4), 0)
    w.call("ringbuf_submit_dynptr", pointer, NO_WAKEUP)
    w.goto(then)
    w.label(lost)
    w.call("ringbuf_discard_dynptr", pointer, NO_WAKEUP)
    count_loss(w, event)
    w.goto(then)


def _send_perf(frame: Frame, layout: Layout, event: str, fill: Fill, then: str) -> None:
    w = frame.w
    space = w.local(layout.most_bytes, "send") if layout.most_bytes <= STACK_RECORD_BYTES else scratch(frame)
    key = w.local(4, "key")
    w.store(4, frame.task.cpu, key)
    busy = w.lookup("busy", key)
    w.value(f"atomicrmw add ptr {busy}, i64 1 seq_cst")
    if layout.varies:
        length = fill(space)
        w.store(8, w.call("ktime_get_ns"), space)
    else:
        w.store(8, w.call("ktime_get_ns"), space)
        length = fill(space)
    result = w.call("perf_event_output", "%ctx", w.reference("buffer"), CURRENT_CPU, space, length)
    w.value(f"atomicrmw add ptr {busy}, i64 -1 seq_cst")
    w.only_if(w.value(f"icmp ne i64 {result}, 0"), then)
    count_loss(w, event)
    w.goto(then)


def scratch(frame: Frame) -> str:
    """This processor's value of the map `scratch`."""
    key = frame.w.local(4, "key")
    frame.w.store(4, frame.task.cpu, key)
    return frame.w.lookup("scratch", key)


def count_loss(w: Writer, event: str) -> None:
    """One more event that found no room."""
    key = w.local(4, "key")
    w.store(4, w.narrowed(event, 4), key)
    counter = w.lookup("losses", key)
    w.value(f"atomicrmw add ptr {counter}, i64 1 seq_cst")
