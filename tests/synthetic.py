"""Events that never happened: a source over the invented tracepoints below tests/tracefs.

What a case says of an event (`#@ test:event pid=3 a=1 text=hello`) becomes a raw record as the tracepoint's
`format` file lays it out, and is read, filtered and captured by the code that serves live events. Integers
are written as in C, the rest is text; what is not given is zero, or one of `DEFAULTS`. Beside fields and
the task's values an event can have

====================  ===================================================================
`+NS`                 it fires so long after the one before it, not 1000 ns
`user@0x1000=text`    what lies in the process's memory there; `kernel@` likewise
`stack=0x10,0x20`     its kernel stack, innermost first; `ustack` likewise
`in_interrupt=1`      it fires in an interrupt; `in_iowait=1`: the task waits for a device
====================  ===================================================================

The kernel's types are those of `TYPES`, and the running task is such a structure at `TASK_ADDRESS`.
"""

from __future__ import annotations

import struct
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Iterable, Mapping, Optional, Sequence, Union

from corpus import Fired

from ktap import demand
from ktap.btf import Argument
from ktap.captured import (
    ARGUMENTS,
    IN_INTERRUPT,
    KERNEL_STACK,
    MEMBER,
    READ,
    RECORD,
    TASK,
    USER_STACK,
    make_event,
)
from ktap.event_format import DATA_LOC, INTEGER, POINTER, TEXT, EventFormat, Field
from ktap.event_format import cut as up_to_nul
from ktap.functions import KernelFunctions
from ktap.layout import Slot
from ktap.needs import needs, symbols_of
from ktap.plan import Captured, captured, probes_of
from ktap.predicate import All, IntegerAt, Negated, Predicate, Running, Some, Test, TextAt
from ktap.print_format import event_text
from ktap.resolve import Kernel, Resolver
from ktap.tracefs import Tracefs
from vm.c_types import Named, Type
from vm.declaration import Declarations
from vm.diagnostic import Refusal
from vm.event import Batch, Event, Loss, Probe
from vm.library.foreign import declarations
from vm.machine import Machine
from vm.values import Table

TRACEFS = Path(__file__).parent / "tracefs"
RAW_ARGUMENTS = {"event": tuple(Argument(name, Named("long")) for name in ("a", "b", "c"))}
"""Raw tracepoints and their arguments: `raw:event` fires with `test:event`."""
TYPES = """
struct task_struct {
    int pid, tgid;
    unsigned in_iowait : 1;
    struct task_struct *real_parent;
    char comm[16];
};
"""
TASK_LAYOUT = struct.Struct("=iiI4xQ16s")
TASK_ADDRESS, PARENT_ADDRESS = 0xFFFF888000100000, 0xFFFF888000200000
RAW_LABELS = {"test:event": "raw:event"}
KERNEL_RELEASE = "6.18.0"
BATCH = 3
"""Records that one poll gives, so that batches have seams."""
DEFAULTS = {"pid": "100", "cpu": "0", "uid": "0", "gid": "0", "ppid": "1", "cgroup": "1", "execname": "task"}

Values = dict[str, str]


class Names:
    """See ktap.pointer_format.KernelNames: addresses as they are."""

    def symbol(self, address: int) -> bytes:
        return b"%#x" % address

    symbol_name = string = pointer = symbol

    def constant(self, name: str) -> Optional[int]:
        return None


class Functions(KernelFunctions):
    """The invented kernel was built without kprobes."""

    def can_be_probed(self) -> bool:
        return False


class Types:
    """What the invented kernel has for BTF."""

    def __init__(self) -> None:
        self.declarations = Declarations(None, 8, True)
        self.declarations.declare(TYPES)

    def find(self, name: str) -> Optional[Type]:
        return self.declarations.find(name)

    def raw_tracepoint(self, name: str) -> Optional[tuple[Argument, ...]]:
        return RAW_ARGUMENTS.get(name)

    def raw_tracepoints(self) -> list[str]:
        return list(RAW_ARGUMENTS)


class SyntheticSource:
    """See vm.event.Source."""

    def __init__(self, machine: Machine, fired: Sequence[Fired]) -> None:
        self.machine = machine
        self.fired = fired
        self.probes: Sequence[Probe] = ()
        self.demands: Mapping[int, demand.Demand] = {}
        self.symbols: Mapping[str, int] = {}
        self.kernel = Kernel(lambda: Tracefs(str(TRACEFS)), "x86_64", Types, Functions)
        self.events: list[Captured] = []
        self.points: list[tuple[Event, tuple[int, ...]]] = []
        self.records: list[tuple[object, ...]] = []
        self.time_ns = 0
        self.closed = False

    def attach(self, probes: Sequence[Probe]) -> None:
        """See vm.event.Source.attach. Raises Refusal."""
        program = self.machine.program
        handlers = [(probe.function, probe.takes_event) for probe in probes]
        limit = self.machine.limits.event_string_bytes
        wanted = needs(program, handlers, limit, lambda: declarations(self.machine))
        if wanted.diagnostics:
            raise Refusal(wanted.diagnostics, program.source)
        demands = {index: wanted.of_function[probe.function] for index, probe in enumerate(probes)}
        resolver = Resolver(program, self.kernel)
        for index, probe in enumerate(probes):
            resolver.add(index, probe, demands[index])
        found = resolver.wanted(demands, wanted.places)
        self.probes, self.demands = probes, demands
        self.symbols = {name: self.machine.host.kernel_address(name) or 0 for name in symbols_of(demands.values())}
        self.events = [captured(event, self.symbols) for event in found]
        self.fire()

    def fire(self) -> None:
        """Make the points, and the records of all events of the case."""
        bits = max((len(event.wanted.filters) for event in self.events), default=0)
        for event in self.events:
            shown = event_text(event.kind.format, Names(), KERNEL_RELEASE).show if event.kind.format else None
            made = make_event(event.kind, shown, self.table, self.machine.host.kernel_symbol)
            self.points += [(made, probes_of(event.wanted, mask)) for mask in range(1 << bits)]
        time_ns = 0
        for fired in self.fired:
            time_ns += fired.after_ns
            labels = (fired.name, RAW_LABELS.get(fired.name))
            for number, event in enumerate(self.events):
                if event.wanted.label in labels:
                    self.records += record(event, fired, time_ns, number << bits)

    def table(self, values: Sequence[int]) -> Table:
        made = Table(self.machine.account)
        for place, value in enumerate(values, 1):
            made.put(place, value)
        return made

    def now_ns(self) -> int:
        return self.time_ns

    def poll(self, timeout_ns: int) -> Batch:
        batch, self.records = self.records[:BATCH], self.records[BATCH:]
        if batch:
            seam = bool(self.records) and self.records[0][0] == batch[-1][0]  # what fired at that time goes on
            self.time_ns = int(str(batch[-1][0])) - seam
        return Batch(batch, self.time_ns, not self.records)

    def quiet(self) -> None:
        pass

    def settle(self, last: bool = False) -> None:
        pass

    def unread(self, end_ns: int) -> Mapping[str, int]:
        return {}

    def losses(self) -> Sequence[Loss]:
        return ()

    def close(self) -> None:
        self.closed = True


def record(event: Captured, fired: Fired, time_ns: int, first_point: int) -> Iterable[tuple[object, ...]]:
    """The record of an event as a buffer would give it: none where no probe wants it."""
    values = {**DEFAULTS, **fired.values}
    values.setdefault("tid", values["pid"])
    raw = raw_record(event.wanted.format, values) if event.wanted.format else raw_arguments(event, values)
    mask = sum(1 << bit for bit, filter in enumerate(event.wanted.filters) if holds(filter, raw, values))
    if probes_of(event.wanted, mask):
        slots = [slot_value(slot, event, raw, values) for slot in event.kind.layout.slots]
        yield (time_ns, first_point + mask, number(values["cpu"]), *slots)


def number(text: str) -> int:
    return int(text, 0)


# -- raw records ----------------------------------------------------------------------------------


def raw_record(event: EventFormat, values: Values) -> bytes:
    """The bytes of a record, from its `common_type` on."""
    end = max(field.offset + field.size for field in event.common + event.fields)
    raw = bytearray(-(-end // 4) * 4)
    struct.pack_into("=HBBi", raw, 0, event.id, 0, 0, number(values["tid"]))
    for field in event.fields:
        text = values.get(field.name)
        if field.place == DATA_LOC:
            content = (text or "").encode() + b"\0"
            struct.pack_into("=HH", raw, field.offset, len(raw), len(content))
            raw += content
        elif text is not None:
            raw[field.offset : field.offset + field.size] = field_bytes(field, text)
        elif field.name == "__syscall_nr":
            raw[field.offset : field.offset + 4] = struct.pack("=i", 257)
    return bytes(raw)


def field_bytes(field: Field, text: str) -> bytes:
    """The bytes of a field in place."""
    if field.kind in (INTEGER, POINTER):
        return (number(text) % (1 << 8 * field.size)).to_bytes(field.size, "little")
    if field.kind == TEXT:
        return text.encode()[: field.size - 1].ljust(field.size, b"\0")
    items = b"".join(number(item).to_bytes(field.element_size, "little") for item in text.split(","))
    return items.ljust(field.size, b"\0")


def raw_arguments(event: Captured, values: Values) -> bytes:
    words = [number(values.get(name, "0")) % (1 << 64) for name in event.wanted.arguments]
    return struct.pack(f"={len(words)}Q", *words)


# -- filters --------------------------------------------------------------------------------------


def holds(filter: Predicate, raw: bytes, values: Values) -> bool:
    """Whether a filter lets an event through: what the lowered predicate decides in the kernel."""
    if isinstance(filter, Negated):
        return not holds(filter.inner, raw, values)
    if isinstance(filter, All):
        return all(holds(part, raw, values) for part in filter.parts)
    if isinstance(filter, Some):
        return any(holds(part, raw, values) for part in filter.parts)
    return compare(filter, subject(filter, raw, values))


def subject(test: Test, raw: bytes, values: Values) -> Union[int, bytes]:
    """The value that a comparison looks at."""
    where = test.subject
    if isinstance(where, Running):
        text = values[where.name]
        return text.encode()[:15] if where.name == "execname" else number(text)
    if isinstance(where, IntegerAt):
        return int.from_bytes(raw[where.offset : where.offset + where.size_bytes], "little", signed=where.signed)
    return text_at(where, raw, values)


def text_at(where: TextAt, raw: bytes, values: Values) -> bytes:
    data = raw[where.offset : where.offset + where.size_bytes]
    if where.place == DATA_LOC:
        start, size = struct.unpack("=HH", data)
        data = raw[start : start + size]
    elif where.place == POINTER:
        found = memory(values, where.space, int.from_bytes(data, "little"))
        data = found if found is not None else b""
    return up_to_nul(data)


def compare(test: Test, value: Union[int, bytes]) -> bool:
    wanted = test.value
    if isinstance(value, bytes):
        assert isinstance(wanted, bytes)
        if test.operator == "~":
            return fnmatchcase(value.decode("latin-1"), wanted.decode("latin-1"))
        return (value == wanted) == (test.operator == "==")
    assert isinstance(wanted, int)
    where = test.subject
    if isinstance(where, IntegerAt):  # the number is cut to the field's size and has its sign
        wanted %= 1 << 8 * where.size_bytes
        if where.signed and wanted >> (8 * where.size_bytes - 1):
            wanted -= 1 << 8 * where.size_bytes
    return {
        "==": value == wanted,
        "!=": value != wanted,
        "<": value < wanted,
        "<=": value <= wanted,
        ">": value > wanted,
        ">=": value >= wanted,
        "&": bool(value & wanted),
    }[test.operator]


# -- what is captured -----------------------------------------------------------------------------


def slot_value(slot: Slot, event: Captured, raw: bytes, values: Values) -> object:
    """The item of a slot in the decoded record."""
    name = slot.name
    if name == "pid_tgid":
        return number(values["pid"]) << 32 | number(values["tid"])
    if name == "uid_gid":
        return number(values["gid"]) << 32 | number(values["uid"])
    if name == "comm":
        return values["execname"].encode()[:15].ljust(16, b"\0")
    if name == "cgroup":
        return number(values[name])
    if name in (RECORD, ARGUMENTS):
        return raw if slot.varies else raw[: slot.size_bytes].ljust(slot.size_bytes, b"\0")
    if name in (KERNEL_STACK, USER_STACK):
        frames = values.get("stack" if name == KERNEL_STACK else "ustack", "")
        return b"".join(struct.pack("=Q", number(frame)) for frame in frames.split(",") if frame)[: slot.size_bytes]
    if name.startswith(READ):
        return read_memory(event.case.reads[int(name[len(READ) :])], raw, values)
    if name == TASK:
        return TASK_ADDRESS
    if name == IN_INTERRUPT:
        return number(values.get(name, "0"))
    assert name.startswith(MEMBER), f"no case can say what {name} is"
    return read_memory(event.case.members[name[len(MEMBER) :]], raw, values)


def read_memory(read: demand.Read, raw: bytes, values: Values) -> Optional[bytes]:
    """What a capture program reads: at most `most_bytes`, a string up to its NUL, None where nothing lies."""

    def known(expression: demand.Expression) -> Optional[int]:
        if isinstance(expression, demand.Place):
            data = raw[expression.offset : expression.offset + expression.size_bytes]
            return int.from_bytes(data, "little", signed=expression.signed)
        if expression == demand.Value("curtask"):
            return TASK_ADDRESS
        assert isinstance(expression, demand.Read)
        inner = read_memory(expression, raw, values)
        return None if inner is None else int.from_bytes(inner, "little")

    address = demand.evaluate(read.address, known)
    length = demand.evaluate(read.length, known) if read.length is not None else read.most_bytes
    if address is None or length is None:
        return None
    found = memory(values, read.space, address)
    if found is None:
        return None
    if read.kind == demand.STRING:
        return up_to_nul(found)[: read.most_bytes]
    most = min(length, read.most_bytes)
    return found[:most] if len(found) >= most else None


def memory(values: Values, space: str, address: int) -> Optional[bytes]:
    """What lies from an address on, as far as it is known."""
    for start, content in areas(values, space):
        behind = (address - start) % (1 << 64)
        if behind < len(content):
            return content[behind:]
    return None


def areas(values: Values, space: str) -> Iterable[tuple[int, bytes]]:
    """The known parts of memory: behind what `user@0x1000=text` has put there lies a NUL."""
    for name, text in values.items():
        where, at, start = name.partition("@")
        if at and where == space:
            yield number(start), text.encode().decode("unicode_escape").encode("latin-1") + b"\0"
    if space == demand.KERNEL:
        pid, tid, parent = (number(values[name]) for name in ("pid", "tid", "ppid"))
        comm = values["execname"].encode()[:15]
        yield TASK_ADDRESS, TASK_LAYOUT.pack(tid, pid, number(values.get("in_iowait", "0")), PARENT_ADDRESS, comm)
        yield PARENT_ADDRESS, TASK_LAYOUT.pack(parent, parent, 0, 0, b"parent")
