"""Handlers that run in the kernel: chosen, emitted into capture programs, and heard from.

A lowered handler is a body of the programs of its events. What it prints, faults at or exits with comes
out of the event buffer as a record of its *site*, in order of time with all others, and the VM does the
rest with the builtin a handler outside would call.

    lowering = Lowering(machine)
    while True:
        kernel = lowering.choose(probes, wanted)
        lowering.prepare(site_base, objects)
        ...                               # programs are made with lowering.emit
        except Refused as refused:        # by emit, or by the kernel's verifier
            lowering.refuse(refused)      # that handler stays in the VM: choose again
"""

from __future__ import annotations

from typing import AbstractSet, Callable, Dict, FrozenSet, List, Mapping, Optional, Sequence, Tuple, TypeVar

from compiler.bpf import BackendError, MapFd
from compiler.lower.emit import Emitter
from compiler.lower.flat import FlatHandler, NotLowered, Refused, Variable
from compiler.lower.infer import EventType, Typing
from compiler.lower.layouts import stats_layout
from compiler.lower.partition import AGGREGATION, Candidate, Plan, Reason, Surroundings, partition
from compiler.lower.reach import Reach
from compiler.lower.shared import Limits, Shared
from compiler.lower.signature import event_names
from compiler.lower.snapshot import Box, Closure, Snapshot, reachable, take, text
from compiler.lower.stops import can_stop
from compiler.lower.values import Site
from ktap import surroundings
from ktap.bodies import Body
from ktap.capture import SYSCALL_ENTER, USER_CONTEXTS, Case, Frame
from ktap.captured import Plumbing, TextOf
from ktap.deferred import user_reads
from ktap.demand import KERNEL, Demand
from ktap.demand import join as joined
from ktap.objects import Objects
from ktap.plan import Wanted, enters, value_places
from ktap.predicate import reads_process
from ktap.sites import EventNames, Outside, outside, site_layout
from ktap.surroundings import FrameEnvironment, event_types
from ktap.tables import SAMPLES, SUMS, KernelTables, Variables
from ktap.verifier import REFUSED, Unfit
from vm.diagnostic import Diagnostic, Refusal
from vm.event import Probe
from vm.machine import Machine
from vm.program import Span
from vm.values import Table

Made = TypeVar("Made")

LATE_FILTER = Reason(
    None,
    "has a filter on memory of the process, which may be brought into RAM only while the system call runs",
    None,
)
STACK_AND_MEMORY = Reason(
    None,
    "asks for the kernel's stack, and reads memory of the process that may be there only when the system call returns",
    "read the memory in a handler of its own",
)
GIVEN_THE_EVENT = Reason(None, "is given the event", "use the event's variables")


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
        """What the handlers of the program that was emitted last need: room for bytes, and for their records."""
        self.refused: Dict[int, Reason] = {}
        """Handlers that stay in the VM, besides those the plan has reasons for."""
        self.text_of: Callable[[int], TextOf] = lambda number: bytes
        """What makes argstr of the raw records of an event, by its number; whoever attaches knows."""
        self._types: Dict[int, EventType] = {}
        self._boxes: Dict[int, Box] = {}
        self._stops = False
        self._contended: FrozenSet[str] = frozenset()
        self._plumbing = Plumbing(machine.host.kernel_symbol)

    # -- choosing -----------------------------------------------------------------------------

    def choose(self, probes: Sequence[Probe], wanted: Sequence[Wanted]) -> FrozenSet[int]:
        """Decide which probes go to the kernel; the indexes of those that do.

        Raises Refusal where all have to and not all can.
        """
        machine = self.machine
        running = [probe for probe in machine.probes if probe.event not in ("trace_begin", "trace_end")]
        functions = [machine.handlers[probe.handler] for probe in running]
        snapshot = self.snapshot = take(machine.program, self._globals(), functions, self._closure_of)
        self._boxes = {
            id(box): box
            for closure in map(self._closure_of, functions)
            for code in (reachable(snapshot, closure) if closure is not None else ())
            for box in code.boxes
            if box is not None
        }
        candidates = self._candidates(probes, wanted)

        def earlier(handler: int, kernel: FrozenSet[int]) -> Optional[int]:
            before = {p for event in wanted if handler in event.probes for p in event.probes if p < handler}
            return min((probes[p].span.line for p in before - kernel), default=None)

        self.plan = partition(
            snapshot,
            candidates,
            lambda left: self._reach(probes, candidates, left),
            Surroundings(
                self._name_of,
                self._value_of,
                earlier,
                machine.limits.event_string_bytes,
                machine.limits.string_bytes,
                machine.limits.call_depth,
                stats_layout(machine.keeping).size_bytes,
            ),
        )
        self.names = tuple(event.name.encode() for event in wanted)
        self.sites = []
        if self.required:
            self._require(probes)
        return frozenset(self.plan.kernel)

    def _candidates(self, probes: Sequence[Probe], wanted: Sequence[Wanted]) -> Dict[int, Candidate]:
        candidates: Dict[int, Candidate] = {}
        for index, probe in enumerate(probes):
            events = [event for event in wanted if index in event.probes]
            closure = self._closure_of(self.machine.handlers[probe.handler])
            if probe.takes_event:
                self.refused[index] = GIVEN_THE_EVENT
            elif any(filters_late(event, index) for event in events):
                self.refused[index] = LATE_FILTER
            elif any(asks_for_both(event) for event in events):
                self.refused[index] = STACK_AND_MEMORY
            if events and closure is not None and index not in self.refused:
                self._types[index] = event_types(events)
                candidates[index] = Candidate(closure, tuple(e.label for e in events), self._types[index])
        return candidates

    def refuse(self, refused: Refused) -> Optional[str]:
        """Leave a handler in the VM; what was made for the kernel so far is given back.

        What is to be told of it, where it is the kernel's verifier that does not take it.
        """
        why = refused.why
        self.refused[refused.handler] = Reason(why.span, why.reason, why.remedy)
        self.close()
        if self.required or not why.reason.startswith(REFUSED):
            return None
        place = self.machine.program.source_name + (f":{why.span.line}" if why.span is not None else "")
        return f"{place}: the handler runs in the VM: it {why.reason}"

    def close(self) -> None:
        """Give back the maps. Safe to call twice."""
        if self.tables is not None:
            self.tables.close()
            self.tables = None

    def reasons(self) -> Dict[int, Reason]:
        """Why probes stay in the VM, by index."""
        return {**(self.plan.reasons if self.plan is not None else {}), **self.refused}

    def _require(self, probes: Sequence[Probe]) -> None:
        """Raises Refusal (status 1) that tells why handlers stay in the VM."""
        assert self.plan is not None
        program = self.machine.program
        problems = []
        for index, reason in sorted(self.reasons().items()):
            message = f"`{probes[index].event}` stays in the VM: it {reason.text}"
            place = reason.span or probes[index].span
            problems.append(Diagnostic(program.source_name, place, message, reason.remedy))
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
        """A table's name: of the global that holds it, or of the local."""
        assert self.snapshot is not None
        for name, value in self.snapshot.globals.items():
            if value is table:
                return name
        for function in self.machine.handlers:
            closure = self._closure_of(function)
            for code in reachable(self.snapshot, closure) if closure is not None else ():
                for box, upvalue in zip(code.boxes, code.function.upvalues):
                    if box is not None and box[0] is table:
                        return upvalue.name
        return "a table"

    # -- variables ----------------------------------------------------------------------------

    def _value_of(self, variable: Variable) -> object:
        """What a variable of the VM holds."""
        if variable.kind == "global":
            return self.machine.names[f"g{self.machine.translator.canonical[variable.identity]}"]
        return self._boxes[variable.identity][0]

    def _set_value(self, variable: Variable, value: object) -> None:
        if variable.kind == "global":
            self.machine.names[f"g{self.machine.translator.canonical[variable.identity]}"] = value
        else:
            self._boxes[variable.identity][0] = value

    # -- making -------------------------------------------------------------------------------

    def prepare(self, site_base: int, objects: Objects) -> None:
        """Say what maps there will be; `objects` makes them when a program first refers to them."""
        assert self.plan is not None
        plan = self.plan
        self.site_base = site_base
        ticks = any(probe.event.startswith("tick-") for probe in self.machine.probes)
        self.tables = KernelTables(
            plan,
            self.machine.keeping,
            self.machine.account,
            ticks,
            Variables(self._value_of, self._set_value),
            lambda number: self.names[number],
            self._plumbing,
            objects,
            len(self.names),
        )
        nested = {self.tables.names[identity] for identity, home in plan.tables.items() if home.nested}
        nested |= {SAMPLES if v.home == AGGREGATION else SUMS for v in plan.variables.values() if v.nested}
        self._contended = frozenset(nested)
        self._stops = any(
            can_stop(flat, self._typing(handler), plan.facts.entries[handler]) for handler, flat in plan.kernel.items()
        )

    def _typing(self, handler: int) -> Typing:
        assert self.plan is not None
        return Typing(self.plan.facts, handler, self._flat(handler), self._types[handler], self._value_of)

    def _flat(self, handler: int) -> FlatHandler:
        assert self.plan is not None
        return self.plan.kernel[handler]

    def divided(self, event: Wanted, lowered: FrozenSet[int], demands: Mapping[int, Demand]) -> Wanted:
        """An event whose lowered probes are bodies of its program."""
        pairs = list(zip(event.probes, event.filter_of))
        bodies = tuple(self._body(probe, index, event, demands[probe]) for probe, index in pairs if probe in lowered)
        left = [(probe, index) for probe, index in pairs if probe not in lowered]
        return event._replace(
            bodies=bodies,
            probes=tuple(probe for probe, _ in left),
            filter_of=tuple(index for _, index in left),
            demand=joined(demands[probe] for probe, _ in left),
        )

    def _body(self, handler: int, filter_index: Optional[int], event: Wanted, demand: Demand) -> Body:
        flat = self._flat(handler)
        names = sorted(event_names(flat))
        accesses = surroundings.reads(event, names)
        acts = any(block.operations for block in flat.blocks)
        members = tuple(surroundings.members(event, names).items())
        begun = enters(event)
        begins = begun if calls(flat, "stack" if begun == KERNEL else "ustack") else ""
        late = user_reads(demand, value_places(event, {})) if event.context == SYSCALL_ENTER else ()
        touched = user_reads(demand, value_places(event, {})) if event.context in USER_CONTEXTS else ()
        timed = surroundings.reads_time(flat)
        shown = surroundings.shown_bytes(event, Span(1, 1, 1, 1)) if "argstr" in names else 0
        return Body(handler, filter_index, accesses, members, acts, begins, touched, late, timed, shown)

    # -- emitting -----------------------------------------------------------------------------

    def begin(self) -> None:
        """Another program is made now."""
        self.room_bytes = self.scratch_bytes = 0

    def emit(self, frame: Frame, body: Body, event: str, end: str) -> None:
        """Write a body; ends all of its blocks at the label `end`. Raises Refused."""
        assert self.plan is not None and self.tables is not None
        w = frame.w
        tables = self.tables
        limits = Limits(self.machine.limits.handler_rounds, self.machine.limits.table_entries, tables.kept_entries)
        places = tables.variable_places
        stats = stats_layout(self.machine.keeping)
        shared = Shared(self.plan, tables.names, tables.exchanged, places, self._contended, stats, limits)
        if self._stops:
            w.only_if(w.value(f"icmp eq i64 {w.load(8, w.lookup('stopped', w.index(0), end))}, 0"), end)
        environment = FrameEnvironment(self, frame, body, event)
        emitter = Emitter(environment, shared, body.handler, self._typing(body.handler), end, w.fresh("h"))
        try:
            environment.begin(self._flat(body.handler))
            emitter.run()
        except NotLowered as why:
            raise Refused(body.handler, why) from why
        self.room_bytes = max(self.room_bytes, emitter.texts.room_bytes)
        self.scratch_bytes = max(self.scratch_bytes, *(read.most_bytes for read in body.late), 0)

    def site(self, site: Site) -> int:
        """The number of a site, as an event's."""
        if site not in self.sites:
            self.sites.append(site)
        self.scratch_bytes = max(self.scratch_bytes, site_layout(site).most_bytes)
        return self.site_base + self.sites.index(site)

    def check(self, cases: Sequence[Case], action: Callable[[], Made]) -> Made:
        """Do something with a program that has handlers in it. Raises Refused where it cannot be for their sake."""
        handlers = {body.handler for case in cases for body in case.bodies}
        try:
            return action()
        except Unfit as error:
            raise self._blame(handlers, str(error), error.remedy) from error
        except BackendError as error:
            raise self._blame(handlers, f"needs what programs in the kernel have not: {error}") from error

    def _blame(self, handlers: AbstractSet[int], reason: str, remedy: Optional[str] = None) -> Refused:
        """The refusal of the largest of several handlers, with the place that most likely is the reason."""
        handler = max(handlers, key=lambda number: sum(len(block.operations) for block in self._flat(number).blocks))
        operations = [operation for block in self._flat(handler).blocks for operation in block.operations]
        loops = [operation for operation in operations if operation.op == "ROUND"]
        span = (loops or operations)[0].span if operations else None
        return Refused(handler, NotLowered(span, reason, remedy))

    def values(self) -> Dict[str, int | MapFd]:
        """What programs refer to."""
        assert self.tables is not None
        found: Dict[str, int | MapFd] = {name: MapFd(fd) for name, fd in self.tables.maps.items()}
        found["realtime_offset"] = self.machine.host.realtime_offset_ns()
        return found

    def outside(self) -> List[Outside]:
        """What is done with the records of every site, in the order of their numbers."""
        names = EventNames(lambda number: self.names[number], self.text_of)
        return [outside(site, self.machine, names, self._plumbing) for site in self.sites]


def calls(flat: FlatHandler, builtin: str) -> bool:
    """Whether a handler calls a builtin."""
    return any(o.op == "BUILTIN" and o.name == builtin for block in flat.blocks for o in block.operations)


def asks_for_both(event: Wanted) -> bool:
    """Whether handlers of a system call's entry want the kernel's stack, and memory that may be there only later."""
    reads = any(read.space != KERNEL for read in event.demand.reads)
    return event.context == SYSCALL_ENTER and reads and bool(event.demand.kernel_stack)


def filters_late(event: Wanted, probe: int) -> bool:
    """Whether the filter of a probe may have to wait for the return of the system call."""
    filters = [f for p, f in zip(event.probes, event.filter_of) if p == probe and f is not None]
    return event.context == SYSCALL_ENTER and any(reads_process(event.filters[number]) for number in filters)
