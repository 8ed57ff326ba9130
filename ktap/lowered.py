"""Handlers that run in the kernel: chosen, emitted into capture programs, and heard from.

A lowered handler is a body of the programs of its events. What it prints, faults at or exits with comes
out of the event buffer as a record of its *site*, in order of time with all others, and the VM does the
rest with the builtin a handler outside would call.
"""

from __future__ import annotations

from struct import pack
from typing import Callable, Dict, FrozenSet, List, Mapping, NamedTuple, Optional, Sequence, Tuple

from compiler.bpf import MapFd
from compiler.ir import Writer
from compiler.lower.emit import Emitter, Limits, Shared
from compiler.lower.flat import NotLowered, Variable
from compiler.lower.infer import Typing
from compiler.lower.layouts import stats_layout
from compiler.lower.partition import Candidate, Plan, Reason, partition
from compiler.lower.reach import Reach
from compiler.lower.snapshot import Closure, Snapshot, take, text
from compiler.lower.stops import can_stop
from compiler.lower.types import INTEGER, NIL, PROBENAME, Type, join, string
from compiler.lower.values import Site, Value, integer, of_constant
from ktap.capture import RAW, Access, Body, Frame, Spec
from ktap.captured import CapturedEvent
from ktap.demand import Demand
from ktap.demand import join as joined
from ktap.event_format import INTEGER as INTEGER_FIELD
from ktap.event_format import POINTER, TEXT
from ktap.layout import Layout, Slot, aligned, fixed, variable
from ktap.layout import integer as integer_slot
from ktap.plan import Wanted, field_of
from ktap.sending import send
from ktap.tables import KernelTables, Variables, number, unpack_bytes
from vm.diagnostic import Diagnostic, Refusal
from vm.event import Action, Event, Probe
from vm.fault import Fault
from vm.fault import Frame as FaultFrame
from vm.machine import Machine
from vm.program import Span
from vm.values import Table

CONTEXT = frozenset({"cpu", "pid", "tid", "uid", "gid", "cgroup", "nsecs"})
"""Integers that helpers give."""
COMM_BYTES = 16
INLINE_BYTES = 64
"""Strings up to this size are sent whole, padded; longer ones with their length."""
MOST_TEXT_BYTES = 4096
MISSING = ""


class Outside(NamedTuple):
    """What happens to the records of a site: its layout, and the function the run loop calls for one."""

    layout: Layout
    event: CapturedEvent
    handle: Action


class Lowering:
    """The handlers of one run that go to the kernel."""

    def __init__(self, machine: Machine, required: bool = False) -> None:
        """`required`: it is an error when a handler of events stays in the VM."""
        self.machine = machine
        self.required = required
        self.plan: Optional[Plan] = None
        self.tables: Optional[KernelTables] = None
        self.snapshot: Optional[Snapshot] = None
        self.sites: List[Site] = []
        self.site_base = 0
        """The number of the first site, behind those of all events."""
        self.names: Tuple[bytes, ...] = ()
        """probename by the number of the event."""
        self.room_bytes = 0
        self.scratch_bytes = 0
        self.refused: Dict[int, Reason] = {}
        self._types: Dict[int, Callable[[str, Span], Type]] = {}
        self._stops = False
        self._contended: FrozenSet[str] = frozenset()

    # -- choosing -----------------------------------------------------------------------------

    def choose(self, probes: Sequence[Probe], wanted: Sequence[Wanted]) -> FrozenSet[int]:
        """Decide which probes go to the kernel; the indexes of those that do."""
        machine = self.machine
        snapshot = self.snapshot = take(machine.program, self._globals(), machine.handlers, self._closure_of)
        candidates: Dict[int, Candidate] = {}
        for index, probe in enumerate(probes):
            events = [event for event in wanted if index in event.probes]
            closure = self._closure_of(machine.handlers[probe.handler])
            if events and closure is not None and not probe.takes_event:
                self._types[index] = event_types(events)
                candidates[index] = Candidate(closure, tuple(e.label for e in events), self._types[index])
        for index in self.refused:
            candidates.pop(index, None)
        self.plan = partition(
            snapshot, candidates, lambda left: self._reach(probes, candidates, left), self._name_of, self._value_of
        )
        self.names = tuple(event.name.encode() for event in wanted)
        if self.required:
            self._require(probes)
        return frozenset(self.plan.kernel)

    def _require(self, probes: Sequence[Probe]) -> None:
        """Raises Refusal (status 1) that tells why handlers stay in the VM."""
        assert self.plan is not None
        program = self.machine.program
        problems = []
        for index, probe in enumerate(probes):
            reason = self.plan.reasons.get(index) or self.refused.get(index)
            if reason is not None:
                text = f"`{probe.event}` stays in the VM: it {reason.text}"
                problems.append(Diagnostic(program.source_name, reason.span or probe.span, text, reason.remedy))
            elif index not in self.plan.kernel:
                text = f"`{probe.event}` stays in the VM: its handler is given the event"
                problems.append(Diagnostic(program.source_name, probe.span, text))
        if problems:
            raise Refusal(problems, program.source)

    def _closure_of(self, function: object) -> Optional[Closure]:
        """A function of the script taken apart."""
        number = self.machine.function_number(function)
        if number is None:
            return None
        cells = getattr(function, "__closure__", None) or ()
        names = function.__code__.co_freevars  # type: ignore[attr-defined]  # it is a function of translated code
        held = {name: cell.cell_contents for name, cell in zip(names, cells)}
        upvalues = self.machine.program.functions[number].upvalues
        return Closure(number, tuple(held.get(f"u{slot}", [None]) for slot in range(len(upvalues))))

    def _globals(self) -> Dict[str, object]:
        program, canonical = self.machine.program, self.machine.translator.canonical
        found: Dict[str, object] = {}
        for function in program.functions:
            for instruction in function.code:
                if instruction.op in ("GETGLOBAL", "SETGLOBAL"):
                    index = instruction.b if instruction.op == "GETGLOBAL" else instruction.a
                    found[text(program, index)] = self.machine.names.get(f"g{canonical[index]}")
        return found

    def _reach(self, probes: Sequence[Probe], candidates: Mapping[int, Candidate], left: FrozenSet[int]) -> Reach:
        """What stays in the VM and runs while events fire."""
        assert self.snapshot is not None
        reach = Reach(self.snapshot)
        for probe in self.machine.probes:
            if probe.event.startswith("tick-"):
                closure = self._closure_of(self.machine.handlers[probe.handler])
                if closure is not None:
                    reach.add(closure, None)
        for index, probe in enumerate(probes):
            if index in left or index not in candidates:
                closure = self._closure_of(self.machine.handlers[probe.handler])
                if closure is not None:
                    reach.add(closure, probe.span.line)
        return reach

    def _name_of(self, table: Table) -> str:
        assert self.snapshot is not None
        named = (name for name, value in self.snapshot.globals.items() if value is table)
        return next(named, "a table")

    # -- variables ----------------------------------------------------------------------------

    def _value_of(self, variable: Variable) -> object:
        """What a variable of the VM holds."""
        if variable.kind == "global":
            return self.machine.names[f"g{self.machine.translator.canonical[variable.identity]}"]
        return self._box(variable)[0]

    def _set_value(self, variable: Variable, value: object) -> None:
        if variable.kind == "global":
            self.machine.names[f"g{self.machine.translator.canonical[variable.identity]}"] = value
        else:
            self._box(variable)[0] = value

    def _box(self, variable: Variable) -> List[object]:
        for handler in self.machine.handlers:
            closure = self._closure_of(handler)
            for box in closure.boxes if closure is not None else ():
                if id(box) == variable.identity:
                    return box
        raise KeyError(variable.name)

    # -- making -------------------------------------------------------------------------------

    def prepare(self, site_base: int, programs: Mapping[int, int]) -> None:
        """Make the maps. `programs` says how many programs run a handler. Raises OSError."""
        assert self.plan is not None
        plan, limits = self.plan, self.machine.limits
        self.site_base = site_base
        ticks = any(probe.event.startswith("tick-") for probe in self.machine.probes)
        self.tables = KernelTables(
            plan,
            self.machine.keeping,
            stats_layout(self.machine.keeping),
            limits.table_entries,
            ticks,
            Variables(self._value_of, self._set_value),
            lambda number: self.names[number],
        )
        self._contended = self._contention(programs)
        self._stops = any(
            can_stop(flat, self._typing(handler), plan.facts.entries[handler]) for handler, flat in plan.kernel.items()
        )

    def _contention(self, programs: Mapping[int, int]) -> FrozenSet[str]:
        """The maps that more than one program updates."""
        assert self.plan is not None and self.tables is not None
        found = {"sums", "samples"} if sum(programs.values()) > 1 else set()
        for identity, home in self.plan.tables.items():
            if sum(programs[handler] for handler in home.facts.accesses if handler in programs) > 1:
                found.add(self.tables.names[identity])
        return frozenset(found)

    def _typing(self, handler: int) -> Typing:
        assert self.plan is not None
        return Typing(self.plan.facts, handler, self.plan.kernel[handler], self._types[handler], self._value_of)

    def body(self, handler: int, filter_index: Optional[int], event: Wanted) -> Body:
        """The body of a handler in the program of an event."""
        assert self.plan is not None
        names = {o.name for block in self.plan.kernel[handler].blocks for o in block.operations if o.op == "EVENT"}
        return Body(handler, filter_index, tuple(access(event, name) for name in sorted(names) if is_field(name)))

    def emit(self, frame: Frame, body: Body, event: str, end: str) -> None:
        """Write a body; ends all of its blocks at the label `end`. Raises NotLowered."""
        assert self.plan is not None and self.tables is not None
        w = frame.w
        limits = Limits(self.machine.limits.handler_rounds, self.machine.limits.table_entries)
        shared = Shared(
            self.plan,
            self.tables.names,
            self.tables.exchanged,
            self.tables.variable_places,
            self._contended,
            stats_layout(self.machine.keeping),
            limits,
        )
        if self._stops:
            key = w.local(4)
            w.store(4, 0, key)
            w.only_if(w.value(f"icmp eq i64 {w.load(8, w.lookup('stopped', key, end))}, 0"), end)
        environment = FrameEnvironment(self, frame, body, event, end)
        emitter = Emitter(environment, shared, body.handler, self._typing(body.handler), end, w.fresh("h"))
        environment.begin(self.plan.kernel[body.handler])
        emitter.run()
        self.room_bytes = max(self.room_bytes, emitter.texts.room_bytes)

    def complete(self, spec: Spec) -> Spec:
        """A program that runs handlers, with what emitting them needs; what they need besides is known afterwards."""
        from ktap.capture import capture_ir

        self.room_bytes = 0
        capture_ir(spec._replace(emit=self.emit))
        return spec._replace(emit=self.emit, scratch_bytes=self.scratch_bytes)

    def divided(self, event: Wanted, lowered: FrozenSet[int], demands: Mapping[int, Demand]) -> Wanted:
        """An event whose lowered probes are bodies of its program."""
        pairs = list(zip(event.probes, event.filter_of))
        bodies = tuple(self.body(probe, index, event) for probe, index in pairs if probe in lowered)
        left = [(probe, index) for probe, index in pairs if probe not in lowered]
        return event._replace(
            bodies=bodies,
            probes=tuple(probe for probe, _ in left),
            filter_of=tuple(index for _, index in left),
            demand=joined(demands[probe] for probe, _ in left),
        )

    def values(self) -> Dict[str, int | MapFd]:
        """What programs refer to."""
        assert self.tables is not None
        found: Dict[str, int | MapFd] = {name: MapFd(fd) for name, fd in self.tables.maps.items()}
        found["realtime_offset"] = self.machine.host.realtime_offset_ns()
        return found

    # -- sites --------------------------------------------------------------------------------

    def site(self, site: Site) -> int:
        """The number of a site, as an event's."""
        if site not in self.sites:
            self.sites.append(site)
            self.scratch_bytes = max(self.scratch_bytes, site_layout(site).most_bytes)
        return self.site_base + self.sites.index(site)

    def outside(self) -> List[Outside]:
        """What is done with the records of every site, in the order of their numbers."""
        return [Outside(site_layout(site), CapturedEvent(), self._handler(site)) for site in self.sites]

    def _handler(self, site: Site) -> Action:
        decode = site_values(site, lambda number: self.names[number])
        if site.detail:

            def fault(depth: int, event: Event) -> object:
                raised = Fault(site.name, site.detail)
                function = self.machine.program.functions[site.function]
                raised.frames = (FaultFrame(function.name, site.span),)
                raise raised

            return fault
        function = self.machine.builtins[site.name]

        def call(depth: int, event: Event) -> object:
            return function(depth, *decode(event.record))  # type: ignore[operator]  # builtins are functions

        return call


# -- types and places of event values ---------------------------------------------------------


def is_field(name: str) -> bool:
    """Whether an event variable is a field of the record."""
    return name == "retval" or name.startswith("args.") or (name.startswith("arg") and name[3:].isdigit())


def event_types(events: Sequence[Wanted]) -> Callable[[str, Span], Type]:
    """The type of a variable over all events of a probe."""

    def type_of(name: str, span: Span) -> Type:
        if name in CONTEXT:
            return INTEGER
        if name == "execname":
            return string(COMM_BYTES)
        if name == "probename":
            return PROBENAME
        if not is_field(name):
            raise NotLowered(span, f"reads {name}, which only the VM has")
        found = [field_type(access(event, name), name, span) for event in events]
        kind = found[0]
        for other in found[1:]:
            kind = join(kind, other)
        return kind

    return type_of


def field_type(where: Access, name: str, span: Span) -> Type:
    """The type of a field."""
    if where.kind == MISSING:
        return NIL
    if where.kind in (INTEGER_FIELD, POINTER):
        return INTEGER
    if where.kind == TEXT:
        return string(where.size_bytes if where.place == "inline" else MOST_TEXT_BYTES)
    raise NotLowered(span, f"reads {name}, an array")


def access(event: Wanted, name: str) -> Access:
    """Where an event has a field."""
    if event.context == RAW:
        place = argument_number(event, name)
        return Access(name) if place is None else Access(name, INTEGER_FIELD, 8 * place, 8, True, "inline")
    field = field_of(event.format, name) if event.format is not None else None
    if field is None or (name == "retval" and not event.name.startswith("sys_exit_")):
        return Access(name)
    return Access(name, field.kind, field.offset, field.size, field.signed, field.place)


def argument_number(event: Wanted, name: str) -> Optional[int]:
    """The number of a raw tracepoint's argument."""
    if name.startswith("args."):
        return event.arguments.index(name[5:]) if name[5:] in event.arguments else None
    return int(name[3:]) if name[3:].isdigit() and int(name[3:]) < len(event.arguments) else None


# -- a handler's surroundings -----------------------------------------------------------------


class FrameEnvironment:
    """See compiler.lower.values.Environment: event values out of a capture program's frame."""

    def __init__(self, lowering: Lowering, frame: Frame, body: Body, event: str, end: str) -> None:
        self.lowering = lowering
        self.frame = frame
        self.writer: Writer = frame.w
        self.accesses = {place.name: place for place in body.accesses}
        self.number_of_event = event
        self.function = 0
        self.end = end
        self.time = ""

    def begin(self, flat: object) -> None:
        """Read what must be the same through the whole handler."""
        from compiler.lower.flat import FlatHandler

        assert isinstance(flat, FlatHandler)
        self.function = flat.functions[0]
        timed = [
            o
            for block in flat.blocks
            for o in block.operations
            if (o.op == "EVENT" and o.name == "nsecs") or o.name.startswith("gettimeofday_")
        ]
        if timed:
            self.time = self.writer.call("ktime_get_ns")

    def event(self, name: str) -> Value:
        """See Environment.event."""
        w, task = self.writer, self.frame.task
        if name in self.accesses:
            return self._field(self.accesses[name])
        if name == "execname":
            room = w.local(COMM_BYTES)
            w.call("get_current_comm", room, COMM_BYTES)
            return Value(string(COMM_BYTES), pointer=room)
        if name == "probename":
            return Value(PROBENAME, self.number_of_event)
        if name == "cpu":
            return integer(w.value(f"zext i32 {task.cpu} to i64"), INTEGER)
        if name == "nsecs":
            return integer(self.time, INTEGER)
        pair = task.pair if name in ("pid", "tid") else ""
        if name in ("uid", "gid"):
            pair = w.call("get_current_uid_gid")
        if name == "cgroup":
            return integer(w.call("get_current_cgroup_id"), INTEGER)
        if name in ("pid", "gid"):
            return integer(w.value(f"lshr i64 {pair}, 32"), INTEGER)
        if name in ("tid", "uid"):
            return integer(w.value(f"and i64 {pair}, 4294967295"), INTEGER)
        raise NotLowered(None, f"reads {name}, which only the VM has")

    def _field(self, place: Access) -> Value:
        w = self.writer
        if place.kind == MISSING:
            return of_constant(None)
        if place.kind in (INTEGER_FIELD, POINTER):
            return integer(w.load_wide(place.size_bytes, place.signed, self.frame.base, place.offset), INTEGER)
        return self._text(place)

    def _text(self, place: Access) -> Value:
        """A char array of the record, its bytes behind the first NUL cleared."""
        w = self.writer
        if place.place != "inline":
            raise NotLowered(None, f"reads {place.name}, a string of varying size")
        room = w.local((place.size_bytes + 7) & ~7)
        if place.size_bytes % 8:
            w.store(8, 0, room, place.size_bytes & ~7)
        source = w.value(f"ptrtoint ptr {w.at(self.frame.base, place.offset)} to i64")
        for offset in range(0, (place.size_bytes + 7) & ~7, 8):
            w.store(8, 0, room, offset)
        w.call("probe_read_kernel_str", room, place.size_bytes, source)
        return Value(string(place.size_bytes), pointer=room)

    def is_named(self, number: str, name: bytes) -> str:
        """See Environment.is_named."""
        test = "false"
        for index, known in enumerate(self.lowering.names):
            if known == name:
                same = self.writer.value(f"icmp eq i64 {number}, {index}")
                test = same if test == "false" else self.writer.value(f"or i1 {test}, {same}")
        return test

    def number(self, name: str) -> str:
        """See Environment.number."""
        return self.writer.number(name)

    def send(self, site: Site, values: Sequence[Value]) -> None:
        """See Environment.send."""
        site = site._replace(function=self.function)
        number = self.lowering.site(site)
        layout = site_layout(site)
        then = self.writer.fresh("sent")
        point = str(number << self.frame.spec.bits)
        send(
            self.frame, layout, self.number_of_event, lambda space: self._fill(site, values, layout, space, point), then
        )
        self.writer.label(then)

    def _fill(self, site: Site, values: Sequence[Value], layout: Layout, space: str, point: str) -> str:
        w = self.writer
        w.store(4, point, space, 8)
        w.store(4, self.frame.task.cpu, space, 12)
        found = dict(site_slots(site, values))
        position = str(layout.fixed_bytes)
        for index, slot in enumerate(layout.slots):
            value, part = found[slot.name]
            offset = layout.offset(index)
            if part == "nil":
                w.store(1, w.value(f"zext i1 {value.isnil} to i8"), space, offset)
            elif slot.varies:
                position = self._varying(value, slot, space, offset, position)
            elif part == "bytes":
                for step in range(0, slot.size_bytes, 8):
                    w.store(8, w.load(8, value.pointer, step), space, offset + step)
            else:
                w.store(8, value.number, space, offset)
        return position

    def _varying(self, value: Value, slot: Slot, space: str, offset: int, position: str) -> str:
        """Copy bytes behind the fixed part; the new position."""
        w = self.writer
        length = str(value.type.size_bytes) if value.length is None else value.length
        over = w.value(f"icmp ugt i64 {length}, {slot.size_bytes}")
        length = w.value(f"select i1 {over}, i64 {slot.size_bytes}, i64 {length}")
        if value.type.can_be("nil"):
            length = w.value(f"select i1 {value.isnil}, i64 0, i64 {length}")
        source = w.value(f"ptrtoint ptr {value.pointer} to i64")
        w.call("probe_read_kernel", w.at(space, position), w.value(f"trunc i64 {length} to i32"), source)
        w.store(4, w.value(f"trunc i64 {length} to i32"), space, offset)
        return w.value(f"add i64 {position}, {length}")


# -- records of sites -------------------------------------------------------------------------


def site_slots(site: Site, values: Sequence[Value]) -> List[Tuple[str, Tuple[Value, str]]]:
    """The slots of a site by name, with the value each takes and which part of it."""
    found: List[Tuple[str, Tuple[Value, str]]] = []
    for index, (kind, value) in enumerate(zip(site.values, values)):
        if kind.can_be("nil"):
            found.append((f"nil{index}", (value, "nil")))
        if not kind.is_only("nil"):
            found.append((f"value{index}", (value, "bytes" if kind.without("nil").is_bytes else "number")))
    return found


def site_layout(site: Site) -> Layout:
    """The layout of a site's records."""
    slots: List[Slot] = []
    for index, kind in enumerate(site.values):
        if kind.can_be("nil"):
            slots.append(integer_slot(f"nil{index}", "B"))
        plain = kind.without("nil")
        if not plain.kinds:
            continue
        if not plain.is_bytes:
            slots.append(integer_slot(f"value{index}", "q"))
        elif is_inline(kind):
            slots.append(fixed(f"value{index}", plain.size_bytes))
        else:
            slots.append(variable(f"value{index}", plain.size_bytes))
    return aligned(tuple(slots))


def is_inline(kind: Type) -> bool:
    """Whether a string is sent whole: the name of a task."""
    return kind.is_only("string") and kind.size_bytes == COMM_BYTES


def site_values(site: Site, name_of: Callable[[int], bytes]) -> Callable[[Tuple[object, ...]], List[object]]:
    """Reads the arguments of a builtin out of a site's record."""
    layout = site_layout(site)
    constants = dict(site.constants)
    count = len(constants) + len(site.values)
    places = [n for n in range(count) if n not in constants]

    def decode(record: Tuple[object, ...]) -> List[object]:
        arguments: List[object] = [constants.get(n) for n in range(count)]
        for index, (place, kind) in enumerate(zip(places, site.values)):
            arguments[place] = site_value(layout, record, index, kind, name_of)
        return arguments

    return decode


def site_value(
    layout: Layout, record: Tuple[object, ...], index: int, kind: Type, name_of: Callable[[int], bytes]
) -> object:
    """One value of a record."""
    nil = layout.item(f"nil{index}")
    if kind.is_only("nil") or (nil is not None and record[nil]):
        return None
    place = layout.item(f"value{index}")
    assert place is not None
    item = record[place]
    plain = kind.without("nil")
    if isinstance(item, bytes):
        return item if plain.can_be("string") and not is_inline(kind) else unpack_bytes(plain, item)
    assert isinstance(item, int)
    return number(plain, pack("=q", item), name_of)
