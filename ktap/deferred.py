"""Handlers in the kernel that wait for the return of their system call, whose memory is in RAM only then.

At the entry of a call a handler's reads of the process are tried first. Where one fails, nothing of the handler
has been done yet: it, and those behind it for the same event, are left to a program at the call's return
(context RETURN), which runs them with the record, the time and the processor of the entry. What it reads is
then there, or is nowhere. A call that never returns keeps its entry in the map `unread`; those are counted
when tracing ends.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Dict

from ktap import demand, kernel
from ktap.filling import read_memory
from ktap.sending import count_loss, scratch

if TYPE_CHECKING:
    from ktap.capture import Frame

CPU_OFFSET, TIME_OFFSET, LEFT_OFFSET, SENT_OFFSET = 12, 64, 72, 80
"""Behind the entry of `wanted`, what the map `unread` holds: the raw record, with the processor in its number's upper
half; the time; which handlers are left, with the filters that held; whether the VM waits for memory."""
UNREAD_BYTES = 88
LEFT = "left"
"""Name of the room on the stack that says which handlers are left."""
NEVER_RETURNED = "waiting for memory in calls that had not returned"
"""`Loss.what` of events whose handlers have not run."""


def run_bodies(frame: Frame, event: str, mask: str, at_entry: bool) -> None:
    """Run the handlers that are lowered; `at_entry` of a system call, those whose memory is not there are left."""
    w, case = frame.w, frame.case
    assert frame.spec.emit is not None
    if case.leaves:
        w.store(8, 0, w.local(8, LEFT))
    if sum(body.timed for body in case.bodies) > 1:  # it is the same for all of them
        frame.time = w.call("ktime_get_ns")
    after = w.fresh("after")
    for number, body in enumerate(case.bodies):
        end = w.fresh("end")
        if body.filter is not None:
            w.only_if(w.value(f"icmp ne i64 {w.value(f'and i64 {mask}, {1 << body.filter}')}, 0"), end)
        if body.late and at_entry:
            leave_unread(frame, number, mask, after)
        frame.spec.emit(frame, body, event, end)
        w.label(end)
    w.goto(after)
    w.label(after)


def leave_unread(frame: Frame, number: int, mask: str, after: str) -> None:
    """Go to `after` where a read of handler `number` of the case fails, which leaves it and all behind it."""
    w = frame.w
    missing, there = w.fresh("missing"), w.fresh("there")
    for read in frame.case.bodies[number].late:
        length = read_memory(frame, read, scratch(frame))
        w.only_if(w.value(f"icmp sge i64 {length}, 0"), missing)
    w.goto(there)
    w.label(missing)
    left = w.value(f"or i64 {w.value(f'shl i64 {mask}, 8')}, {number + 1}")
    w.store(8, left, w.local(8, LEFT))
    w.goto(after)
    w.label(there)


def keep(frame: Frame, event: str, entry: str, sent: str) -> None:
    """Keep what the return needs, if it has anything to do; `sent` is not 0 where the VM waits for memory."""
    w = frame.w
    left = w.load(8, w.local(8, LEFT)) if frame.case.leaves else "0"
    w.only_if(w.value(f"icmp ne i64 {w.value(f'or i64 {left}, {sent}')}, 0"))
    key = w.local(4, "thread")
    w.store(4, w.narrowed(frame.task.pair, 4), key)
    w.store(8, entry, frame.base)
    w.store(4, frame.task.cpu, frame.base, CPU_OFFSET)
    time = frame.time or (w.call("ktime_get_ns") if frame.case.leaves else "0")
    w.store(8, time, frame.base, TIME_OFFSET)
    w.store(8, left, frame.base, LEFT_OFFSET)
    w.store(8, sent, frame.base, SENT_OFFSET)
    failed = w.call("map_update", w.reference("unread"), key, frame.base, 0)
    if frame.case.leaves:
        w.only_if(w.value(f"icmp ne i64 {failed}, 0"))
        count_loss(w, event)


def run_left(frame: Frame, event: str) -> None:
    """At the return: run the handlers that were left, with the entry's time."""
    w = frame.w
    assert frame.spec.emit is not None
    frame.time = w.load(8, frame.base, TIME_OFFSET)
    left = w.load(8, frame.base, LEFT_OFFSET)
    first = w.value(f"and i64 {left}, 255")
    after = w.fresh("after")
    w.only_if(w.value(f"icmp ne i64 {first}, 0"), after)
    for number, body in enumerate(frame.case.bodies):
        end = w.fresh("end")
        w.only_if(w.value(f"icmp ule i64 {first}, {number + 1}"), end)
        if body.filter is not None:
            held = w.value(f"and i64 {left}, {1 << body.filter + 8}")
            w.only_if(w.value(f"icmp ne i64 {held}, 0"), end)
        frame.spec.emit(frame, body, event, end)
        w.label(end)
    w.goto(after)
    w.label(after)


def never_returned(fd: int) -> Dict[int, int]:
    """How many events there are in a map `unread` whose handlers have not run, by the event's number."""
    found: Dict[int, int] = {}
    for _, value in kernel.take_all(fd, 4, UNREAD_BYTES, False):
        entry, left = (struct.unpack_from("=Q", value, offset)[0] for offset in (0, LEFT_OFFSET))
        if left:
            number = (entry & 0xFFFFFF) - 1
            found[number] = found.get(number, 0) + 1
    return found


def user_reads(wanted: demand.Demand, place_of: demand.PlaceOf) -> tuple[demand.Read, ...]:
    """The reads of the process's memory whose address an event tells."""
    settled = sorted((demand.settled(read, demand.USER) for read in wanted.reads), key=repr)
    placed = [demand.placed(read, place_of) for read in settled if read.space == demand.USER]
    return tuple(read for read in placed if isinstance(read, demand.Read))
