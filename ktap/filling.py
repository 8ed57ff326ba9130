"""Filling records: how every slot of a layout gets its bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Callable, Mapping

from compiler.ir import Writer
from ktap import demand
from ktap.calls import TYPED_CONTEXTS
from ktap.captured import (
    ARGUMENTS,
    CALLER,
    IN_INTERRUPT,
    KERNEL_CALLER,
    KERNEL_STACK,
    MEMBER,
    READ,
    RECORD,
    TASK,
    USER_STACK,
)
from ktap.event_format import DATA_LOC, REL_LOC, EventFormat
from ktap.layout import Layout, Slot, variable
from ktap.registers import MACHINES

if TYPE_CHECKING:
    from ktap.capture import Frame

USER_STACK_FLAG = 256
PREEMPT_COUNT, PREEMPT_OFFSET = "preempt_count", "preempt_offset"
"""References: the kernel's per-CPU variable that has its preemption count, and where in it that lies."""
INTERRUPT_BITS = 0x00FFFF00
UNREAD = "unread"
"""Name of the room on the stack that says whether memory could not be read."""


def fill_fixed(frame: Frame, layout: Layout, space: str, point: str) -> str:
    """A record of one size, but for its time; its length."""
    w = frame.w
    w.store(4, w.narrowed(point, 4), space, 8)
    w.store(4, frame.task.cpu, space, 12)
    for index, slot in enumerate(layout.slots):
        FILL[slot.name](frame, slot, space, layout.offset(index))
    return str(layout.fixed_bytes)


def fill_varying(frame: Frame, layout: Layout, space: str, point: str) -> str:
    """A record whose size varies, but for its time; its length as an i64."""
    w = frame.w
    w.store(4, w.narrowed(point, 4), space, 8)
    w.store(4, frame.task.cpu, space, 12)
    position = str(layout.fixed_bytes)
    for index, slot in enumerate(layout.slots):
        offset = layout.offset(index)
        if not slot.varies:
            FILL[slot.name](frame, slot, space, offset)
            continue
        target = w.at(space, position)
        length = _varying(frame, slot, target)
        w.store(4, w.narrowed(length, 4), space, offset)
        position = _advanced(w, position, length, slot.size_bytes)
    return position


def _advanced(w: Writer, position: str, length: str, most_bytes: int) -> str:
    """The position behind `length` bytes, or the same where the length is negative.

    A length above the slot's size cannot be; saying so is for the verifier.
    """
    some, none, both = w.fresh("some"), w.fresh("none"), w.fresh("both")
    w.branch(w.value(f"icmp ugt i64 {length}, {most_bytes}"), none, some)
    w.label(some)
    moved = w.value(f"add i64 {position}, {length}")
    w.goto(both)
    w.label(none)
    w.goto(both)
    w.label(both)
    return w.value(f"phi i64 [ {moved}, %{some} ], [ {position}, %{none} ]")


def _varying(frame: Frame, slot: Slot, target: str) -> str:
    """Write the bytes of a slot; their number as an i64, negative where they could not be read."""
    if slot.name == RECORD:
        return _whole_record(frame, slot, target)
    if slot.name in (KERNEL_STACK, USER_STACK):
        flags = USER_STACK_FLAG if slot.name == USER_STACK else 0
        return frame.w.call("get_stack", "%ctx", target, slot.size_bytes, flags)
    if slot.name.startswith(READ):
        read = frame.case.reads[int(slot.name[len(READ) :])]
        length = read_memory(frame, read, target)
        if frame.case.late and read.space == demand.USER:
            _note_unread(frame, length)
        return length
    return read_memory(frame, frame.case.members[slot.name[len(MEMBER) :]], target)


def _note_unread(frame: Frame, length: str) -> None:
    """Keep in mind that memory could not be read."""
    w = frame.w
    room = w.local(8, UNREAD)
    failed = w.value(f"lshr i64 {length}, 63")
    w.store(8, w.value(f"or i64 {w.load(8, room)}, {failed}"), room)


def read_memory(frame: Frame, read: demand.Read, target: str) -> str:
    """Read memory as handlers ask for; its length as an i64, negative where it could not be read."""
    w = frame.w
    address = frame.expression(read.address)
    if read.kind == demand.STRING:
        length = w.text_bytes(w.call(f"probe_read_{read.space}_str", target, read.most_bytes, address))
        return w.value(f"sub i64 {length}, 1")
    size = str(read.most_bytes)
    if read.length is not None:
        wanted = frame.expression(read.length)
        too_long = w.value(f"icmp ugt i64 {wanted}, {read.most_bytes}")
        size = w.value(f"select i1 {too_long}, i64 {read.most_bytes}, i64 {wanted}")
        negative = w.value(f"icmp slt i64 {wanted}, 0")
        size = w.value(f"select i1 {negative}, i64 0, i64 {size}")
    failed = w.call(
        f"probe_read_{read.space}", target, w.narrowed(size, 8) if size.isdigit() else _word(w, size), address
    )
    return w.value(f"select i1 {w.value(f'icmp eq i64 {failed}, 0')}, i64 {size}, i64 -1")


def _word(w: Writer, operand: str) -> str:
    return w.value(f"trunc i64 {operand} to i32")


def _whole_record(frame: Frame, slot: Slot, target: str) -> str:
    """The raw record with what its `__data_loc` fields point at."""
    w, event_format = frame.w, frame.case.format
    assert event_format is not None
    end = str(record_bytes(event_format))
    for field in event_format.fields:
        for place in range(field.offset, field.offset + field.size, 4) if field.place in (DATA_LOC, REL_LOC) else ():
            word = w.load_wide(4, False, frame.base, place)
            start = w.value(f"and i64 {word}, 65535")
            length = w.value(f"lshr i64 {word}, 16")
            behind = w.value(f"add i64 {start}, {length}")
            if field.place == REL_LOC:
                behind = w.value(f"add i64 {behind}, {place + 4}")
            further = w.value(f"icmp ugt i64 {behind}, {end}")
            end = w.value(f"select i1 {further}, i64 {behind}, i64 {end}")
    size = end
    if not end.isdigit():
        too_long = w.value(f"icmp ugt i64 {end}, {slot.size_bytes}")
        size = w.value(f"select i1 {too_long}, i64 {slot.size_bytes}, i64 {end}")
    address = w.value(f"ptrtoint ptr {frame.base} to i64")
    w.call("probe_read_kernel", target, size if size.isdigit() else _word(w, size), address)  # zeros if it fails
    w.store(8, _common(frame), target)
    return size


def fill_shown(frame: Frame, target: str, size_bytes: int) -> str:
    """Write the raw record of an event, at most `size_bytes`, for its text; its length as an i64."""
    if frame.case.format is not None:
        return _whole_record(frame, variable(RECORD, size_bytes), target)
    # by a helper, which does not mind where the bytes lie: `target` may be anywhere on the stack
    frame.w.call("probe_read_kernel", target, size_bytes, frame.w.value(f"ptrtoint ptr {frame.base} to i64"))
    return str(size_bytes)


def record_bytes(event_format: EventFormat) -> int:
    """Size of the fixed part of a raw record: to the end of its last field, rounded up to 8 as the kernel does."""
    ends = [field.offset + field.size for field in (*event_format.fields, *event_format.common)]
    return max(ends, default=8)


def _common(frame: Frame) -> str:
    """The common fields: common_type and common_pid; common_flags and common_preempt_count are 0."""
    w = frame.w
    thread = w.value(f"shl i64 {frame.task.pair}, 32")
    return w.value(f"or i64 {thread}, {frame.identity}")


def _fill_record(frame: Frame, slot: Slot, space: str, offset: int) -> None:
    """A raw record of one size: its common fields, then a copy of the rest."""
    w = frame.w
    common = _common(frame)
    if offset % 8:
        w.store(4, w.narrowed(common, 4), space, offset)
        w.store(4, w.narrowed(w.value(f"lshr i64 {common}, 32"), 4), space, offset + 4)
    else:
        w.store(8, common, space, offset)
    done = 8
    while done < slot.size_bytes:
        left = slot.size_bytes - done
        size = next(n for n in (8, 4, 2, 1) if n <= left and (offset + done) % n == 0 == done % n)
        w.store(size, w.load(size, frame.base, done), space, offset + done)
        done += size


def _fill_arguments(frame: Frame, slot: Slot, space: str, offset: int) -> None:
    for place in range(0, slot.size_bytes, 8):
        frame.w.store(8, frame.w.load(8, "%ctx", place), space, offset + place)


def _fill_comm(frame: Frame, slot: Slot, space: str, offset: int) -> None:
    frame.write_name(frame.w.at(space, offset))


def _fill_pair(frame: Frame, slot: Slot, space: str, offset: int) -> None:
    frame.w.store(8, frame.task.pair, space, offset)


def _from(helper: str) -> Callable[[Frame, Slot, str, int], None]:
    def fill(frame: Frame, slot: Slot, space: str, offset: int) -> None:
        frame.w.store(8, frame.w.call(helper), space, offset)

    return fill


def _fill_interrupt(frame: Frame, slot: Slot, space: str, offset: int) -> None:
    """The bits of the preemption count that are set in interrupts (linux/preempt.h)."""
    frame.w.store(4, interrupt_bits(frame), space, offset)


def interrupt_bits(frame: Frame) -> str:
    """The preemption count's bits for interrupts, an i32."""
    w = frame.w
    count = w.load(4, w.call("this_cpu_ptr", w.reference(PREEMPT_COUNT)), w.number(PREEMPT_OFFSET))
    return w.value(f"and i32 {count}, {INTERRUPT_BITS}")


def _fill_caller(frame: Frame, slot: Slot, space: str, offset: int) -> None:
    frame.w.store(8, caller(frame), space, offset)


def caller(frame: Frame) -> str:
    """The return address of a function that has just been called: on the stack, or in the register for it.

    Typed programs have no registers, but stacks with all callers on them.
    """
    w, machine = frame.w, MACHINES[frame.spec.machine]
    if frame.spec.context in TYPED_CONTEXTS:
        return "0"
    if machine.link is not None:
        return w.load(8, "%ctx", machine.registers[machine.link].offset)
    room = w.local(8, "word")
    w.store(8, 0, room)
    w.call("probe_read_user", room, 8, w.load(8, "%ctx", machine.registers[machine.stack].offset))
    return w.load(8, room)


FILL: Mapping[str, Callable[[Frame, Slot, str, int], None]] = {
    "pid_tgid": _fill_pair,
    "uid_gid": _from("get_current_uid_gid"),
    "comm": _fill_comm,
    "cgroup": _from("get_current_cgroup_id"),
    RECORD: _fill_record,
    ARGUMENTS: _fill_arguments,
    TASK: _from("get_current_task"),
    IN_INTERRUPT: _fill_interrupt,
    CALLER: _fill_caller,
    KERNEL_CALLER: _fill_caller,
}
"""How the slots of one size are filled; those of varying size are in `_varying`."""
