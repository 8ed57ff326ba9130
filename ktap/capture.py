"""Capture programs: one BPF program an attach point, which decides, reads and sends.

In order: is it ktap itself, a process that is not followed, another processor? Do the filters hold?
Then the record (ktap.layout) is filled (ktap.filling) and handed to the event buffer (ktap.sending).

Memory of a process can be read when an event fires only where it is in RAM. The kernel itself brings in
what a system call points at while the call runs; so what could not be read at its entry is read again
when it returns, and sent after the record by a program of the context RETURN (ktap.late puts them
together).
"""

from __future__ import annotations

from typing import Callable, List, Mapping, Optional, Tuple

from compiler.ir import Writer
from ktap import claiming, deferred, demand, waiting
from ktap.bodies import Body
from ktap.calls import CALL_CONTEXTS, TYPED_CONTEXTS, Called, typed_words
from ktap.captured import READ, RECORD
from ktap.event_format import EventFormat
from ktap.fetched import Recipe, fill_record
from ktap.filling import UNREAD, fill_fixed, fill_varying
from ktap.kernel import Compat
from ktap.layout import Layout, aligned, integer
from ktap.predicate import UNDECIDED_OFFSET, Predicate, lower, searches, text_area
from ktap.sending import RING, STACK_RECORD_BYTES, send
from vm.named_tuple import NamedTuple

SYSCALL_ENTER, SYSCALL_EXIT, RAW, TRACEPOINT, PROFILE = "syscall enter", "syscall exit", "raw", "tracepoint", "profile"
"""What a program is attached to, which says what its context holds."""
USER_ENTRY, USER_RETURN = "user function", "user function's return"
"""Places in files; the context holds the registers."""
USER_CONTEXTS = (USER_ENTRY, USER_RETURN)
COUNTER = "counter"
"""A perf event; the context holds the registers, the period and the address."""

EVERY_ENTER, EVERY_EXIT = "every syscall enter", "every syscall exit"
"""raw_syscalls:sys_enter and sys_exit as raw tracepoints, for handlers that read no more of the record than
RAW_SYSCALLS says can be made of the context."""

PASSED_ON = 1
"""What programs on perf events of tracepoints return: for 0 the kernel keeps the event from all others who sample it."""
RETURN = "return"
"""A system call returns: what its entry could not read is read now."""


class Partial(NamedTuple):
    """The beginning of a record: the context that makes it, and up to where."""

    context: str
    end: int


RAW_SYSCALLS = {
    "raw_syscalls:sys_enter": Partial(EVERY_ENTER, 16),
    "raw_syscalls:sys_exit": Partial(EVERY_EXIT, 24),
}
"""The number of the system call; at its exit, the result too. The arguments of 32-bit programs lie elsewhere."""


class Registers(NamedTuple):
    """Where pt_regs has the number and the arguments of a system call (asm/ptrace.h)."""

    number: int
    number_bytes: int
    """The verifier lets nobody read behind it."""
    arguments: Tuple[int, ...]


REGISTERS = {
    "x86_64": Registers(120, 8, (112, 104, 96, 56, 72, 64)),
    "aarch64": Registers(280, 4, (0, 8, 16, 24, 32, 40)),
}


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
    members: Mapping[str, demand.Read] = {}  # never changed
    """The reads of members of structures, by path."""
    bodies: Tuple[Body, ...] = ()
    sends: bool = True
    """Whether a handler in the VM wants the record."""
    sent_filters: Optional[int] = None
    """The bits of the filters for which the record is sent, None where it is sent whatever they say."""
    late: bool = False
    """Memory of the process that could not be read at the entry of a system call is read again at its return."""
    recipe: Optional[Recipe] = None
    """How the raw record is made of registers, where the kernel makes none."""
    called: Optional[Called] = None
    """The function of the kernel that a typed program is for."""
    touches: Tuple[demand.Read, ...] = ()
    """What handlers read of the process that is probed, which may have to be brought into RAM first."""
    waits: bool = False
    """The program waits for that (see ktap.waiting)."""
    of_ktap: bool = False
    """The record is made when ktap itself runs, too."""
    late_filters: bool = False
    """So are filters that could not be decided; until then the record is tentative, the highest bit of its point."""

    @property
    def leaves(self) -> bool:
        """Whether handlers in the kernel may be left to the return of the system call."""
        return any(body.late for body in self.bodies)

    @property
    def returns(self) -> bool:
        """Whether there may be something to do at the return of the system call."""
        return self.late or self.leaves

    @property
    def late_layout(self) -> Layout:
        """What is sent at the return."""
        reads = tuple(slot for slot in self.layout.slots if slot.name.startswith(READ))
        return aligned((integer("pid_tgid", "Q"), *reads))


class InPlace(NamedTuple):
    """What programs read of the running task without a helper that copies it."""

    task: bool = False
    """Its fields and its registers."""
    name_at: Optional[int] = None
    """Where its name is (ktap.task_name)."""


class Spec(NamedTuple):
    """A program to be made."""

    context: str
    cases: Tuple[Case, ...]
    bits: int
    """A point is the number of its event << bits, plus the bits of the filters that held."""
    transport: str
    followed: bool = False
    """Only processes in the map `followed`."""
    cpu: Optional[int] = None
    machine: str = "x86_64"
    compat: Optional[Compat] = None
    in_place: InPlace = InPlace()
    """How system calls of 32-bit programs are told; their numbers mean other calls, and tracefs leaves them out too."""
    emit: Optional[Callable[[Frame, Body, str, str], None]] = None
    """Writes a lowered handler: the event's number as an operand, the label where it ends."""
    scratch_bytes: int = 0
    """What records of lowered handlers take at most."""
    late_base: int = 0
    """What is added to an event's number for what is sent at the return."""


class Task(NamedTuple):
    """What is known on every path of a program: operands."""

    pair: str
    """Process << 32 | thread."""
    cpu: str
    event_cpu: str = ""
    """Where the event fired, if that is not the same."""


def scratch_bytes(spec: Spec) -> int:
    """Size of the scratch value a program needs for each processor, 0 when it needs none."""
    layouts = [case.late_layout if spec.context == RETURN else case.layout for case in spec.cases]
    if spec.transport == RING:
        sizes = [layout.most_bytes for layout in layouts if layout.varies]
    else:
        sizes = [layout.most_bytes for layout in layouts if layout.most_bytes > STACK_RECORD_BYTES]
    return (max(*sizes, spec.scratch_bytes, 0) + 15) & ~7 if sizes or spec.scratch_bytes else 0


def capture_ir(spec: Spec) -> str:
    """The LLVM IR of a capture program.

    Its references: `buffer`, `losses`, `own_process` (a number); `event` and `event_id` (numbers), or
    `wanted` (system calls);
    `followed`, `scratch`, `busy`, `text`, `unread` where the spec asks for them; `keeper` (a number) in files.
    """
    w = Writer()
    if spec.context == TRACEPOINT:
        w.result = PASSED_ON
    if not any(case.sends or any(body.acts for body in case.bodies) for case in spec.cases):
        w.goto("out")
        return w.text()
    if spec.context == RETURN:
        return _return_ir(w, spec)
    if spec.context in USER_CONTEXTS:
        claiming.prepare(w)
    number = None
    if spec.context in (SYSCALL_ENTER, SYSCALL_EXIT):
        number = _syscall_number(w, spec)
        entry = _wanted(w, spec, number)
    pair = w.call("get_current_pid_tgid")
    process = w.value(f"lshr i64 {pair}, 32")
    if spec.context != PROFILE and not spec.cases[0].of_ktap:
        w.only_if(w.value(f"icmp ne i64 {process}, {w.number('own_process')}"))
        if spec.context in USER_CONTEXTS:
            w.only_if(w.value(f"icmp ne i64 {process}, {w.number('keeper')}"))
    cpu = w.call("get_smp_processor_id")
    if spec.cpu is not None:
        w.only_if(w.value(f"icmp eq i32 {cpu}, {spec.cpu}"))
    if spec.followed:
        key = w.local(4, "key")
        w.store(4, w.narrowed(process, 4), key)
        w.lookup("followed", key)
    task = Task(pair, cpu)
    if number is None:
        base = _every_record(w, spec) if spec.context == EVERY_EXIT else "%ctx"
        frame = Frame(w, spec, spec.cases[0], task, base, w.number("event_id"))
        by_cookie = spec.context in (*USER_CONTEXTS, *CALL_CONTEXTS)
        event = w.call("get_attach_cookie", "%ctx") if by_cookie else w.number("event")
        if spec.context in TYPED_CONTEXTS and needs_record(frame.case):
            frame.base = typed_words(w, frame.case.called)
        if spec.context in USER_CONTEXTS:
            waiting.make_record(frame, needs_record(frame.case))
        elif frame.case.recipe is not None and needs_record(frame.case):
            frame.base = fill_record(frame, frame.case.recipe)
        _case(frame, event, "0")
        return w.text()

    def one(case: Case, event: str, identity: str) -> None:
        base = _syscall_record(w, spec, case, number) if needs_record(case) else "%ctx"
        _case(Frame(w, spec, case, task, base, identity), event, entry)

    _each_case(w, spec, entry, one)
    return w.text()


def _each_case(w: Writer, spec: Spec, entry: str, one: Callable[[Case, str, str], None]) -> None:
    """Choose the case by the entry of `wanted`; `one` writes it, given the numbers of the event and its format."""
    event = w.value(f"sub i64 {w.value(f'and i64 {entry}, 16777215')}, 1")
    identity = w.value(f"lshr i64 {entry}, 32")
    which = w.value(f"and i64 {w.value(f'lshr i64 {entry}, 24')}, 255")
    for index, case in enumerate(spec.cases):
        following = w.fresh("case")
        w.only_if(w.value(f"icmp eq i64 {which}, {index}"), following)
        one(case, event, identity)
        w.label(following)
    w.goto("out")


def _return_ir(w: Writer, spec: Spec) -> str:
    """What a thread's system call could not read at its entry is read and sent."""
    pair = w.call("get_current_pid_tgid")
    key = w.local(4, "thread")
    w.store(4, w.narrowed(pair, 4), key)
    kept = w.lookup("unread", key)
    record = w.local(deferred.UNREAD_BYTES, "record")
    for offset in range(0, deferred.UNREAD_BYTES, 8):
        w.store(8, w.load(8, kept, offset), record, offset)
    w.call("map_delete", w.reference("unread"), key)
    task = Task(pair, w.call("get_smp_processor_id"), w.load(4, record, deferred.CPU_OFFSET))

    def one(case: Case, event: str, identity: str) -> None:
        frame = Frame(w, spec, case, task, record, identity)
        if case.leaves:
            deferred.run_left(frame, event)
        if not case.late:
            w.goto("out")
            return
        w.only_if(w.value(f"icmp ne i64 {w.load(8, record, deferred.SENT_OFFSET)}, 0"))
        late = w.value(f"add i64 {event}, {spec.late_base}")
        mask = _held(frame) if case.late_filters else "0"
        point = w.value(f"or i64 {w.value(f'shl i64 {late}, {spec.bits}')}, {mask}")
        layout = case.late_layout
        fill = fill_varying if layout.varies else fill_fixed
        send(frame, layout, late, lambda space: fill(frame, layout, space, point), "out")

    _each_case(w, spec, w.load(8, record), one)
    return w.text()


def wanted_entry(event: int, case: int, event_id: int) -> int:
    """What the map `wanted` holds for a system call's number: 0 is for those that nobody wants."""
    return (event + 1) | case << 24 | event_id << 32


def _syscall_number(w: Writer, spec: Spec) -> str:
    """The number of the system call as an i64."""
    if spec.context == SYSCALL_ENTER:
        return w.load(8, "%ctx", 8)
    offset, size, _ = REGISTERS[spec.machine]
    if spec.in_place.task:
        found = w.call("task_pt_regs", w.call("get_current_task_btf"))
        return w.load_wide(size, False, found, offset)
    room = w.local(8, "word")
    registers = w.load(8, "%ctx")
    w.call("probe_read_kernel", room, size, w.value(f"add i64 {registers}, {offset}"))
    return w.load_wide(size, False, room)


def _wanted(w: Writer, spec: Spec, number: str) -> str:
    """The entry for a system call; goes to `out` for one that nobody wants, or a 32-bit program's."""
    key = w.local(4, "key")
    w.store(4, w.narrowed(number, 4), key)
    entry = w.load(8, w.lookup("wanted", key))
    w.only_if(w.value(f"icmp ne i64 {entry}, 0"))
    if spec.compat is not None:
        _not_compat(w, spec.compat, spec.in_place.task)
    return entry


def _not_compat(w: Writer, compat: Compat, in_place: bool) -> None:
    """Goes to `out` for a system call of a 32-bit program."""
    if in_place:
        word = w.load(4, w.call("get_current_task_btf"), compat.offset)
    else:
        room = w.local(8, "word")
        w.store(8, 0, room)
        place = w.value(f"add i64 {w.call('get_current_task')}, {compat.offset}")
        w.call("probe_read_kernel", room, 4, place)
        word = w.load(4, room)
    w.only_if(w.value(f"icmp eq i32 {w.value(f'and i32 {word}, {compat.mask}')}, 0"))


def _case(frame: Frame, event: str, entry: str) -> None:
    """Filter, fill and send; ends the block."""
    w, spec, case = frame.w, frame.spec, frame.case
    mask = _filters(frame)
    point = w.value(f"add i64 {w.value(f'shl i64 {event}, {spec.bits}')}, {mask}")
    if case.late:
        w.store(8, 0, w.local(8, UNREAD))
    if case.bodies:
        deferred.run_bodies(frame, event, mask, spec.context == SYSCALL_ENTER)
    sent = w.fresh("sent")
    if case.sends:
        if case.bodies and case.sent_filters is not None:
            w.only_if(w.value(f"icmp ne i64 {w.value(f'and i64 {mask}, {case.sent_filters}')}, 0"), sent)
        fill = fill_varying if case.layout.varies else fill_fixed
        if case.late_filters:
            w.store(8, w.value(f"lshr i64 {mask}, {spec.bits - 1}"), w.local(8, UNREAD))
        send(frame, case.layout, event, lambda space: fill(frame, case.layout, space, point), sent)
    else:
        w.goto(sent)
    w.label(sent)
    if case.returns and spec.context == SYSCALL_ENTER:
        deferred.keep(frame, event, entry, w.load(8, w.local(8, UNREAD)) if case.late else "0")
    w.goto("out")


def needs_record(case: Case) -> bool:
    """Whether a program looks at the raw record."""
    return bool(
        any(body.needs_record for body in case.bodies)
        or case.filters
        or case.reads
        or (case.waits and case.touches)
        or case.layout.item(RECORD)
    )


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
        self.tentative = spec.context == SYSCALL_ENTER and case.late_filters
        self.time = ""
        """When the event fired, if that is not now."""
        self.undecided: List[Tuple[str, str]] = []
        """Labels for what a filter could not read, and where it goes on as if the comparison did not hold."""

    def write_name(self, target: str) -> None:
        """Write the name of the running task, 16 bytes padded with zeros."""
        w, place = self.w, self.spec.in_place.name_at
        if place is None:
            for offset in (0, 8):  # Linux 6.1 leaves what lies behind the name's last word as it is
                w.store(8, 0, target, offset)
            w.call("get_current_comm", target, 16)
            return
        task = w.call("get_current_task_btf")
        for offset in (0, 8):
            w.store(8, w.load(8, task, place + offset), target, offset)

    def expression(self, expression: demand.Expression) -> str:
        """An address or a length as an i64; 0 where there is no such value."""
        w = self.w
        if isinstance(expression, demand.Place):
            return w.load_wide(expression.size_bytes, expression.signed, self.base, expression.offset)
        if isinstance(expression, demand.Passed):
            return "0"  # of a program that is verified, but never attached
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
        size = 16 + 8 * len(registers.arguments)
        room = w.local(max(size, deferred.UNREAD_BYTES) if case.returns else size, "record")
        low, high = min(registers.arguments), max(registers.arguments) + 8
        copy = w.local(high - low, "registers")
        source = w.value(f"add i64 {w.load(8, '%ctx')}, {low}")
        w.call("probe_read_kernel", copy, high - low, source)
        for index, offset in enumerate(registers.arguments):
            w.store(8, w.load(8, copy, offset - low), room, 16 + 8 * index)
    w.store(8, w.value(f"and i64 {number}, 4294967295"), room, 8)
    w.store(8, 0, room, 0)
    return room


def _every_record(w: Writer, spec: Spec) -> str:
    """The record of raw_syscalls:sys_exit on the stack, but for its first 8 bytes."""
    room = w.local(24, "record")
    number = w.narrowed(_syscall_number(w, spec), 4)
    w.store(8, w.widened(number, 4, True), room, 8)
    w.store(8, w.load(8, "%ctx", 8), room, 16)
    w.store(8, 0, room, 0)
    return room


def _filters(frame: Frame) -> str:
    """The bits of the filters that hold, as an i64; goes to `out` when no probe wants the event."""
    w = frame.w
    mask = _held(frame)
    if not frame.case.always:
        w.only_if(w.value(f"icmp ne i64 {mask}, 0"))
    return mask


def _held(frame: Frame) -> str:
    """The bits of the filters that hold, and the highest one where some cannot be decided yet."""
    w, case = frame.w, frame.case
    room = ""
    if frame.tentative:  # not on the stack: the verifier would follow its values through all filters
        room = w.at(text_area(frame), UNDECIDED_OFFSET)
        w.store(8, 0, room)
    mask = "0"
    for index, predicate in enumerate(case.filters):
        yes, no, both = w.fresh("yes"), w.fresh("no"), w.fresh("both")
        lower(frame, predicate, yes, no)
        while frame.undecided:
            unread, otherwise = frame.undecided.pop()
            w.label(unread)
            w.store(8, 1 << frame.spec.bits - 1, room)
            w.goto(otherwise)
        w.label(yes)
        held = w.value(f"or i64 {mask}, {1 << index}")
        w.goto(both)
        w.label(no)
        w.goto(both)
        w.label(both)
        mask = w.value(f"phi i64 [ {held}, %{yes} ], [ {mask}, %{no} ]")
    return w.value(f"or i64 {mask}, {w.load(8, room)}") if room else mask
