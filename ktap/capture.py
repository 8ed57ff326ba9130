"""Capture programs: one BPF program an attach point, which decides, reads and sends.

In order: is it ktap itself, a process that is not followed, another processor? Do the filters hold?
Then the record (ktap.layout) is made and handed to the event buffer:

- through the ring buffer: space is reserved first and the time taken after it, which is what makes the
  reader's horizon exact (ktap.ring_buffer). Records of one size are filled in place; others are put
  together in a scratch map and copied to a reservation of their size;
- through perf buffers: a mark that a program is at work on this processor is set before the time is
  taken and cleared when the record is written (ktap.perf_buffer).

What cannot be handed over is counted in the map `losses`, by event.
"""

from __future__ import annotations

from typing import Callable, Mapping, NamedTuple, Optional, Tuple

from compiler.ir import Writer
from ktap import demand
from ktap.captured import ARGUMENTS, KERNEL_STACK, MEMBER, READ, RECORD, USER_STACK
from ktap.event_format import DATA_LOC, REL_LOC, EventFormat
from ktap.layout import HEAD_BYTES, Layout, Slot
from ktap.predicate import Predicate, lower, searches

SYSCALL_ENTER, SYSCALL_EXIT, RAW, TRACEPOINT, PROFILE = "syscall enter", "syscall exit", "raw", "tracepoint", "profile"
"""What a program is attached to, which says what its context holds."""

RING, PERF = "ring", "perf"

MOST_RECORD_BYTES = 8192
"""The largest raw record the kernel makes for a BPF program (PERF_MAX_TRACE_SIZE)."""
STACK_RECORD_BYTES = 256
"""Records up to this size are put together on the program's stack for a perf buffer."""
NO_WAKEUP = 1
CURRENT_CPU = 0xFFFFFFFF
USER_STACK_FLAG = 256


class Registers(NamedTuple):
    """Where pt_regs has the number and the arguments of a system call (asm/ptrace.h)."""

    number: int
    arguments: Tuple[int, ...]


REGISTERS = {
    "x86_64": Registers(120, (112, 104, 96, 56, 72, 64)),
    "aarch64": Registers(280, (0, 8, 16, 24, 32, 40)),
}


class Chain(NamedTuple):
    """A member reached from an argument or the running task: pointers to follow, then bytes to read."""

    argument: Optional[int]
    """Number of the raw tracepoint's argument; None starts from the running task."""
    steps: Tuple[int, ...]
    """Offset of the pointer to follow at each step; the last one is the member's own."""
    size_bytes: int
    shift: int = 0
    bits: int = 0
    """Of a bit field: where it lies in its bytes, and how wide it is (0: no bit field)."""


class Access(NamedTuple):
    """Where a lowered handler finds a value of the raw record; `kind` is a field's, or empty where there is none."""

    name: str
    kind: str = ""
    offset: int = 0
    size_bytes: int = 0
    signed: bool = False
    place: str = ""


class Body(NamedTuple):
    """A lowered handler of an event: its number, the filter it has, what it reads of the record."""

    handler: int
    filter: Optional[int]
    accesses: Tuple[Access, ...]


class Case(NamedTuple):
    """One kind of record that a program makes, and the handlers that it runs itself."""

    layout: Layout
    format: Optional[EventFormat] = None
    """Of a raw record whose size varies."""
    filters: Tuple[Predicate, ...] = ()
    """The record is made when one holds; the bit of each that does is set in the point's number."""
    always: bool = True
    """The record is made whatever the filters say."""
    reads: Tuple[demand.Read, ...] = ()
    chains: Mapping[str, Chain] = {}  # never changed
    """How to reach the members of structures, by path."""
    bodies: Tuple[Body, ...] = ()
    sends: bool = True
    """Whether a handler in the VM wants the record."""
    sent_filters: Optional[int] = None
    """The bits of the filters for which the record is sent, None where it is sent whatever they say."""


class Spec(NamedTuple):
    """A program to be made."""

    context: str
    cases: Tuple[Case, ...]
    bits: int
    """A point is the number of its event << bits, plus the bits of the filters that held."""
    transport: str
    own_process: int
    followed: bool = False
    """Only processes in the map `followed`."""
    cpu: Optional[int] = None
    machine: str = "x86_64"
    emit: Optional[Callable[[Frame, Body, str, str], None]] = None
    """Writes a lowered handler: the event's number as an operand, the label where it ends."""
    scratch_bytes: int = 0
    """What records of lowered handlers take at most."""


class Task(NamedTuple):
    """What is known on every path of a program: operands."""

    pair: str
    """Process << 32 | thread."""
    cpu: str


def scratch_bytes(spec: Spec) -> int:
    """Size of the scratch value a program needs for each processor, 0 when it needs none."""
    layouts = [case.layout for case in spec.cases]
    if spec.transport == RING:
        sizes = [layout.most_bytes for layout in layouts if layout.varies]
    else:
        sizes = [layout.most_bytes for layout in layouts if layout.most_bytes > STACK_RECORD_BYTES]
    return (max(*sizes, spec.scratch_bytes, 0) + 15) & ~7 if sizes or spec.scratch_bytes else 0


def capture_ir(spec: Spec) -> str:
    """The LLVM IR of a capture program.

    Its references: `buffer`, `losses`; `event` and `event_id` (numbers), or `wanted` (system calls);
    `followed`, `scratch`, `busy` where the spec asks for them.
    """
    w = Writer()
    number = None
    if spec.context in (SYSCALL_ENTER, SYSCALL_EXIT):
        number = _syscall_number(w, spec)
        entry = _wanted(w, number)
    pair = w.call("get_current_pid_tgid")
    process = w.value(f"lshr i64 {pair}, 32")
    if spec.context != PROFILE:
        w.only_if(w.value(f"icmp ne i64 {process}, {spec.own_process}"))
    cpu = w.call("get_smp_processor_id")
    if spec.cpu is not None:
        w.only_if(w.value(f"icmp eq i32 {cpu}, {spec.cpu}"))
    if spec.followed:
        key = w.local(4, "key")
        w.store(4, w.narrowed(process, 4), key)
        w.lookup("followed", key)
    task = Task(pair, cpu)
    if number is None:
        _case(w, spec, spec.cases[0], task, w.number("event"), w.number("event_id"), None)
    else:
        event = w.value(f"and i64 {entry}, 16777215")
        identity = w.value(f"lshr i64 {entry}, 32")
        which = w.value(f"and i64 {w.value(f'lshr i64 {entry}, 24')}, 255")
        for index, case in enumerate(spec.cases):
            following = w.fresh("case")
            if index + 1 < len(spec.cases):
                w.only_if(w.value(f"icmp eq i64 {which}, {index}"), following)
            _case(w, spec, case, task, w.value(f"sub i64 {event}, 1"), identity, number)
            if index + 1 < len(spec.cases):
                w.label(following)
    return w.text()


def wanted_entry(event: int, case: int, event_id: int) -> int:
    """What the map `wanted` holds for a system call's number: 0 is for those that nobody wants."""
    return (event + 1) | case << 24 | event_id << 32


def _syscall_number(w: Writer, spec: Spec) -> str:
    """The number of the system call as an i64; calls of 32-bit programs are left out, as tracefs does."""
    if spec.context == SYSCALL_ENTER:
        return w.load(8, "%ctx", 8)
    room = w.local(8, "word")
    registers = w.load(8, "%ctx")
    place = w.value(f"add i64 {registers}, {REGISTERS[spec.machine].number}")
    w.call("probe_read_kernel", room, 8, place)
    return w.load(8, room)


def _wanted(w: Writer, number: str) -> str:
    """The entry for a system call; goes to `out` for one that nobody wants."""
    key = w.local(4, "key")
    w.store(4, w.narrowed(number, 4), key)
    entry = w.load(8, w.lookup("wanted", key))
    w.only_if(w.value(f"icmp ne i64 {entry}, 0"))
    return entry


def _case(w: Writer, spec: Spec, case: Case, task: Task, event: str, identity: str, number: Optional[str]) -> None:
    """Filter, fill and send; ends the block."""
    base = "%ctx"
    if number is not None and _needs_record(case):
        base = _syscall_record(w, spec, case, number)
    frame = Frame(w, spec, case, task, base, identity)
    mask = _filters(frame)
    point = w.value(f"add i64 {w.value(f'shl i64 {event}, {spec.bits}')}, {mask}")
    if case.bodies:
        _run_bodies(frame, event, mask)
    if case.sends:
        fill = _fill_varying if case.layout.varies else _fill
        send(frame, case.layout, event, lambda space: fill(frame, space, point), "out")
    else:
        w.goto("out")


def _run_bodies(frame: Frame, event: str, mask: str) -> None:
    """Run the handlers that are lowered; go on where the record is to be sent."""
    w, case = frame.w, frame.case
    assert frame.spec.emit is not None
    for body in case.bodies:
        end = w.fresh("end")
        if body.filter is not None:
            w.only_if(w.value(f"icmp ne i64 {w.value(f'and i64 {mask}, {1 << body.filter}')}, 0"), end)
        frame.spec.emit(frame, body, event, end)
        w.label(end)
    if case.sends and case.sent_filters is not None:
        w.only_if(w.value(f"icmp ne i64 {w.value(f'and i64 {mask}, {case.sent_filters}')}, 0"))


def _needs_record(case: Case) -> bool:
    return bool(any(body.accesses for body in case.bodies) or case.filters or case.reads or case.layout.item(RECORD))


class Frame:
    """What the parts of a program share while one case is written."""

    def __init__(self, w: Writer, spec: Spec, case: Case, task: Task, base: str, identity: str) -> None:
        self.w = w
        self.spec = spec
        self.case = case
        self.task = task
        self.base = base
        """What the offsets of the format count from."""
        self.identity = identity
        """The event's id, an i64."""
        self.searches = sum(searches(predicate) for case in spec.cases for predicate in case.filters)
        """In the filters of the whole program (see ktap.glob)."""

    def expression(self, expression: demand.Expression) -> str:
        """An address or a length as an i64; 0 where there is no such value."""
        w = self.w
        if isinstance(expression, demand.Place):
            return w.load_wide(expression.size_bytes, expression.signed, self.base, expression.offset)
        if isinstance(expression, demand.Value):
            return w.call("get_current_task")
        if isinstance(expression, demand.Number):
            return str(expression.value)
        if isinstance(expression, demand.Binary):
            left, right = self.expression(expression.left), self.expression(expression.right)
            if expression.operator in ("SHL", "SHR"):
                right = w.value(f"and i64 {right}, 63")
            return w.value(f"{demand.OPERATORS[expression.operator][0]} i64 {left}, {right}")
        assert isinstance(expression, demand.Read)
        room = w.local(8, "word")
        w.store(8, 0, room)
        size = min(8, expression.most_bytes)
        w.call(f"probe_read_{expression.space}", room, size, self.expression(expression.address))
        return w.load(8, room)


def _syscall_record(w: Writer, spec: Spec, case: Case, number: str) -> str:
    """The record of a system call's event on the stack, as the kernel would make it, but for its first 8 bytes."""
    registers = REGISTERS[spec.machine]
    if spec.context == SYSCALL_EXIT:
        room = w.local(24, "record")
        w.store(8, w.load(8, "%ctx", 8), room, 16)
    else:
        room = w.local(16 + 8 * len(registers.arguments), "record")
        low, high = min(registers.arguments), max(registers.arguments) + 8
        copy = w.local(high - low, "registers")
        source = w.value(f"add i64 {w.load(8, '%ctx')}, {low}")
        w.call("probe_read_kernel", copy, high - low, source)
        for index, offset in enumerate(registers.arguments):
            w.store(8, w.load(8, copy, offset - low), room, 16 + 8 * index)
    w.store(8, w.value(f"and i64 {number}, 4294967295"), room, 8)
    w.store(8, 0, room, 0)
    return room


def _filters(frame: Frame) -> str:
    """The bits of the filters that hold, as an i64; goes to `out` when no probe wants the event."""
    w, case = frame.w, frame.case
    mask = "0"
    for index, predicate in enumerate(case.filters):
        yes, no, both = w.fresh("yes"), w.fresh("no"), w.fresh("both")
        lower(frame, predicate, yes, no)
        w.label(yes)
        held = w.value(f"or i64 {mask}, {1 << index}")
        w.goto(both)
        w.label(no)
        w.goto(both)
        w.label(both)
        mask = w.value(f"phi i64 [ {held}, %{yes} ], [ {mask}, %{no} ]")
    if not case.always:
        w.only_if(w.value(f"icmp ne i64 {mask}, 0"))
    return mask


# -- sending --------------------------------------------------------------------------------------


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
        _count_loss(w, event)
        w.goto(then)
        return
    space = _scratch(frame)
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
    _count_loss(w, event)
    w.goto(then)


def _send_perf(frame: Frame, layout: Layout, event: str, fill: Fill, then: str) -> None:
    w = frame.w
    space = w.local(layout.most_bytes, "send") if layout.most_bytes <= STACK_RECORD_BYTES else _scratch(frame)
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
    _count_loss(w, event)
    w.goto(then)


def _scratch(frame: Frame) -> str:
    key = frame.w.local(4, "key")
    frame.w.store(4, frame.task.cpu, key)
    return frame.w.lookup("scratch", key)


def _count_loss(w: Writer, event: str) -> None:
    key = w.local(4, "key")
    w.store(4, w.narrowed(event, 4), key)
    counter = w.lookup("losses", key)
    w.value(f"atomicrmw add ptr {counter}, i64 1 seq_cst")


# -- filling --------------------------------------------------------------------------------------


def _fill(frame: Frame, space: str, point: str) -> str:
    """A record of one size, but for its time; its length."""
    w, layout = frame.w, frame.case.layout
    w.store(4, w.narrowed(point, 4), space, 8)
    w.store(4, frame.task.cpu, space, 12)
    for index, slot in enumerate(layout.slots):
        FILL[slot.name](frame, slot, space, layout.offset(index))
    return str(layout.fixed_bytes)


def _fill_varying(frame: Frame, space: str, point: str) -> str:
    """A record whose size varies, but for its time; its length as an i64."""
    w, layout = frame.w, frame.case.layout
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
        return _read(frame, frame.case.reads[int(slot.name[len(READ) :])], target)
    return _member(frame, frame.case.chains[slot.name[len(MEMBER) :]], target)


def _read(frame: Frame, read: demand.Read, target: str) -> str:
    w = frame.w
    address = frame.expression(read.address)
    if read.kind == demand.STRING:
        length = w.call(f"probe_read_{read.space}_str", target, read.most_bytes, address)
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


def _member(frame: Frame, chain: Chain, target: str) -> str:
    """Follow pointers from an argument or the running task and read the member at their end."""
    w = frame.w
    address = w.call("get_current_task") if chain.argument is None else w.load(8, "%ctx", 8 * chain.argument)
    room = w.local(8, "word")
    for offset in chain.steps[:-1]:
        w.store(8, 0, room)
        w.call("probe_read_kernel", room, 8, w.value(f"add i64 {address}, {offset}"))
        address = w.load(8, room)
    place = w.value(f"add i64 {address}, {chain.steps[-1]}")
    failed = w.call("probe_read_kernel", target, chain.size_bytes, place)
    return w.value(f"select i1 {w.value(f'icmp eq i64 {failed}, 0')}, i64 {chain.size_bytes}, i64 -1")


def _whole_record(frame: Frame, slot: Slot, target: str) -> str:
    """The raw record with what its `__data_loc` fields point at."""
    w, event_format = frame.w, frame.case.format
    assert event_format is not None
    end = str(record_bytes(event_format))
    for field in event_format.fields:
        if field.place in (DATA_LOC, REL_LOC):
            word = w.load_wide(4, False, frame.base, field.offset)
            start = w.value(f"and i64 {word}, 65535")
            length = w.value(f"lshr i64 {word}, 16")
            behind = w.value(f"add i64 {start}, {length}")
            if field.place == REL_LOC:
                behind = w.value(f"add i64 {behind}, {field.offset + 4}")
            further = w.value(f"icmp ugt i64 {behind}, {end}")
            end = w.value(f"select i1 {further}, i64 {behind}, i64 {end}")
    size = end
    if not end.isdigit():
        too_long = w.value(f"icmp ugt i64 {end}, {slot.size_bytes}")
        size = w.value(f"select i1 {too_long}, i64 {slot.size_bytes}, i64 {end}")
    address = w.value(f"ptrtoint ptr {frame.base} to i64")
    failed = w.call("probe_read_kernel", target, size if size.isdigit() else _word(w, size), address)
    w.store(8, _common(frame), target)
    return w.value(f"select i1 {w.value(f'icmp eq i64 {failed}, 0')}, i64 {size}, i64 -1")


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
    w.store(8, _common(frame), space, offset)
    done = 8
    for size in (8, 4, 2, 1):
        while done + size <= slot.size_bytes:
            w.store(size, w.load(size, frame.base, done), space, offset + done)
            done += size


def _fill_arguments(frame: Frame, slot: Slot, space: str, offset: int) -> None:
    for place in range(0, slot.size_bytes, 8):
        frame.w.store(8, frame.w.load(8, "%ctx", place), space, offset + place)


def _fill_comm(frame: Frame, slot: Slot, space: str, offset: int) -> None:
    frame.w.call("get_current_comm", frame.w.at(space, offset), slot.size_bytes)


def _fill_pair(frame: Frame, slot: Slot, space: str, offset: int) -> None:
    frame.w.store(8, frame.task.pair, space, offset)


def _from(helper: str) -> Callable[[Frame, Slot, str, int], None]:
    def fill(frame: Frame, slot: Slot, space: str, offset: int) -> None:
        frame.w.store(8, frame.w.call(helper), space, offset)

    return fill


def _fill_parent(frame: Frame, slot: Slot, space: str, offset: int) -> None:
    _member(frame, frame.case.chains["ppid"], frame.w.at(space, offset))


FILL: Mapping[str, Callable[[Frame, Slot, str, int], None]] = {
    "pid_tgid": _fill_pair,
    "uid_gid": _from("get_current_uid_gid"),
    "comm": _fill_comm,
    "cgroup": _from("get_current_cgroup_id"),
    "ppid": _fill_parent,
    RECORD: _fill_record,
    ARGUMENTS: _fill_arguments,
}
"""How the slots of one size are filled; those of varying size are in `_varying`."""
assert HEAD_BYTES == 16
