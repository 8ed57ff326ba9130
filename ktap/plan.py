"""From a script's probes to the events to attach, and what to capture of each.

Every tracepoint that some probe wants is one `Wanted`, however many probes want it: they share one
program and one record, and the filters that held are told by bits of the point's number.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Iterator, List, Mapping, Optional, Sequence, Tuple, Union

from ktap import demand
from ktap.bodies import Body
from ktap.bystanders import tells_of_others
from ktap.capture import (
    COUNTER,
    PROFILE,
    RAW,
    RAW_SYSCALLS,
    REGISTERS,
    SYSCALL_ENTER,
    SYSCALL_EXIT,
    TRACEPOINT,
    USER_CONTEXTS,
    USER_ENTRY,
    Case,
)
from ktap.captured import (
    ARGUMENTS,
    CALLER,
    IN_INTERRUPT,
    KERNEL_CALLER,
    KERNEL_STACK,
    MEMBER,
    PLUMBING_FRAMES,
    READ,
    RECORD,
    TASK,
    USER_STACK,
    Kind,
)
from ktap.demand import Demand
from ktap.event_format import INLINE, INTEGER, POINTER, RETVAL, EventFormat, Field
from ktap.filling import record_bytes
from ktap.layout import Slot, aligned, fixed, integer, variable
from ktap.predicate import Predicate, looks_to, reads_process
from vm.named_tuple import NamedTuple
from vm.values import wrap

if TYPE_CHECKING:
    from ktap.calls import Called
    from ktap.fetched import Recipe
    from ktap.kernel import Counter
    from ktap.members import Member
    from ktap.user_functions import Spot

MOST_FILTERS = 4
"""Distinct filters of one attachment of an event: its points are 2 to that power."""
MOST_DYNAMIC_BYTES = 4096
"""The most that is kept of a raw record with parts of varying size."""


OF_PROCESSES = (SYSCALL_ENTER, SYSCALL_EXIT, COUNTER, *USER_CONTEXTS)
"""Where pointers are the process's, if nothing says whose."""


class Timer(NamedTuple):
    """A `profile-N` timer."""

    period_ns: int


class Wanted(NamedTuple):
    """One attachment: an event and the probes that want it."""

    context: str
    """As ktap.capture names them."""
    label: str
    """For messages: `sched:sched_switch`."""
    name: str
    """The tracepoint, or the timer as probename gives it."""
    format: Optional[EventFormat]
    probes: Tuple[int, ...]
    filters: Tuple[Predicate, ...]
    """The distinct filters of the probes."""
    filter_of: Tuple[Optional[int], ...]
    """For every probe: which of the filters, None for none."""
    demand: Demand
    number: int = -1
    """Of the system call."""
    timer: Optional[Timer] = None
    arguments: Tuple[str, ...] = ()
    """Names of a raw tracepoint's arguments."""
    spot: Optional[Spot] = None
    """The place of a user probe."""
    recipe: Optional[Recipe] = None
    """How its record is made."""
    counter: Optional[Counter] = None
    """What is counted or watched."""
    called: Optional[Called] = None
    """The function of the kernel that is probed."""
    members: Tuple[Member, ...] = ()
    """Members of structures that handlers read."""
    bodies: Tuple[Body, ...] = ()
    """Handlers that run in the kernel; `probes` are then those that do not."""


def enters(wanted: Wanted) -> str:
    """The space of a function that begins where the event fires, if its stack does not tell its caller yet; else empty."""
    if wanted.called is not None and wanted.called.hides_caller:
        return demand.KERNEL
    return demand.USER if wanted.context == USER_ENTRY and wanted.spot is not None and wanted.spot.starts else ""


def has_plumbing(context: str) -> bool:
    """Whether kernel stacks may begin with frames that lead to the program itself."""
    return context not in (PROFILE, COUNTER)


def is_plain(wanted: Wanted) -> bool:
    """Whether a tracepoint serves as a raw one: neither its filters nor its handlers look at the record."""
    lowered = any(body.needs_record for body in wanted.bodies)
    filtered = any(looks_to(condition) for condition in wanted.filters)
    return not filtered and not lowered and not reads_record(wanted.demand)


class Captured(NamedTuple):
    """A wanted event with what its program makes of it and how its records are read."""

    wanted: Wanted
    case: Case
    kind: Kind


def reads_to(event: Captured) -> float:
    """How far into the raw record an event's programs look."""
    case = event.case
    if case.reads or case.members or (case.format is not None and case.layout.item(RECORD) is not None):
        return inf
    if any(body.shown_bytes for body in case.bodies):
        return inf
    if any(demand.looks_at_record(member.read) for body in case.bodies for _, member in body.members):
        return inf
    ends = [place.offset + place.size_bytes for body in case.bodies for place in body.accesses]
    ends += [slot.size_bytes for slot in case.layout.slots if slot.name == RECORD]
    return max(0, *ends, *(looks_to(condition) for condition in case.filters), 0)


def raw_context(event: Captured, machine: str) -> Optional[str]:
    """What a raw tracepoint in place of a tracepoint's event is to programs, None where they need the event itself."""
    if is_plain(event.wanted):
        return RAW
    made = RAW_SYSCALLS.get(event.wanted.label) if machine in REGISTERS else None
    return made.context if made is not None and reads_to(event) <= made.end else None


def probes_of(wanted: Wanted, mask: int) -> Tuple[int, ...]:
    """The probes that want a record whose filters held as the bits of `mask` say."""
    pairs = zip(wanted.probes, wanted.filter_of)
    return tuple(probe for probe, index in pairs if index is None or mask >> index & 1)


def field_of(event: EventFormat, name: str) -> Optional[Field]:
    """The field an event variable (`arg1`, `args.filename`, `retval`) names, None where there is none."""
    if name.startswith("args."):
        name = name[5:]
    elif name.startswith("arg") and name[3:].isdigit():
        number = int(name[3:])
        return event.numbered[number] if number < len(event.numbered) else None
    elif name == "retval":
        name = RETVAL if any(field.name == RETVAL for field in event.fields) else "ret"
    return next((field for field in event.fields if field.name == name), None)


def reads_record(wanted: Demand) -> bool:
    """Whether handlers may read anything of the record."""
    return any(name.startswith("arg") or name == "retval" for name in wanted.variables)


def captured(wanted: Wanted, symbols: Mapping[str, int]) -> Captured:
    """The slots of a wanted event, its case and its kind; `symbols` are the addresses that its reads name."""
    at_entry = wanted.context == SYSCALL_ENTER and bool(wanted.probes)
    late_filters = at_entry and any(reads_process(condition) for condition in wanted.filters)
    late = late_filters or (at_entry and any(read.space != demand.KERNEL for read in wanted.demand.reads))
    place_of = value_places(wanted, symbols)
    read = _placed_reads(wanted, place_of)
    members = _placed_members(wanted, place_of)
    layout = aligned(
        (
            *context_slots(wanted.demand, late),
            *_caller_slots(wanted),
            *(variable(f"{READ}{number}", pair[0].most_bytes) for number, pair in enumerate(read)),
            *(variable(f"{MEMBER}{member.path}", member.read.most_bytes) for member, _ in members),
            *_record_slots(wanted),
        )
    )
    placed = [place for _, place in read]
    keep_format = wanted.format if wanted.format is not None and _dynamic(wanted.format) else None
    if keep_format is not None and wanted.recipe is not None:
        keep_format = keep_format._replace(name="")  # so that functions of one kind of record are one case
    always = None in wanted.filter_of or any(body.filter is None for body in wanted.bodies)
    case = Case(
        layout,
        keep_format,
        wanted.filters,
        always,
        tuple(placed),
        {member.path: place for member, place in members},
        bodies=wanted.bodies,
        sends=bool(wanted.probes),
        sent_filters=_bits(wanted.filter_of),
        late=late,
        late_filters=late_filters,
        recipe=wanted.recipe,
        touches=touches(wanted, placed),
        of_ktap=wanted.context in (RAW, TRACEPOINT) and tells_of_others(wanted.label),
    )
    kind = Kind(
        wanted.name,
        layout,
        wanted.format,
        tuple(asked for asked, _ in read),
        wanted.arguments,
        symbols,
        has_plumbing(wanted.context),
        wanted.members,
    )
    return Captured(wanted, case, kind)


def _caller_slots(wanted: Wanted) -> Iterator[Slot]:
    """The callers of functions that have just begun, whom their stacks do not have yet."""
    begun = enters(wanted)
    if wanted.demand.user_stack and begun == demand.USER:
        yield integer(CALLER, "Q")
    if wanted.demand.kernel_stack and begun == demand.KERNEL:
        yield integer(KERNEL_CALLER, "Q")


def _placed_reads(wanted: Wanted, place_of: demand.PlaceOf) -> List[Tuple[demand.Read, demand.Read]]:
    """What handlers read of memory, with where that is."""
    space = demand.USER if wanted.context in OF_PROCESSES else demand.KERNEL
    reads = sorted((demand.settled(read, space) for read in wanted.demand.reads), key=repr)
    pairs = [(read, demand.placed(read, place_of)) for read in reads]
    return [(read, place) for read, place in pairs if isinstance(place, demand.Read)]


def _placed_members(wanted: Wanted, place_of: demand.PlaceOf) -> List[Tuple[Member, demand.Read]]:
    """What handlers read by the names of members, with where that is."""
    pairs = [(member, demand.placed(member.read, place_of)) for member in wanted.members]
    return [(member, place) for member, place in pairs if isinstance(place, demand.Read)]


def _record_slots(wanted: Wanted) -> Iterator[Slot]:
    if not reads_record(wanted.demand):
        return
    if wanted.context == RAW and wanted.arguments:
        yield fixed(ARGUMENTS, 8 * len(wanted.arguments))
    if wanted.format is not None:
        yield record_slot(wanted.context, wanted.format, wanted.recipe)


def touches(wanted: Wanted, reads: Sequence[demand.Read]) -> Tuple[demand.Read, ...]:
    """What handlers read of the process that is probed, each memory once."""
    if wanted.context not in USER_CONTEXTS:
        return ()
    found = [read for read in reads if read.space == demand.USER]
    return tuple(dict.fromkeys([*found, *(read for body in wanted.bodies for read in body.touches)]))


def _bits(filters: Tuple[Optional[int], ...]) -> Optional[int]:
    """The bits of filters, None where one of them is no filter at all."""
    total = 0
    for index in filters:
        if index is None:
            return None
        total |= 1 << index
    return total


def context_slots(wanted: Demand, late: bool) -> List[Slot]:
    """The slots of the running task that handlers may read; what comes late is found by its thread."""
    names = wanted.variables
    slots: List[Slot] = []
    if names & {"pid", "tid"} or wanted.user_stack or late:
        slots.append(integer("pid_tgid", "Q"))
    if names & {"uid", "gid"}:
        slots.append(integer("uid_gid", "Q"))
    if "execname" in names:
        slots.append(fixed("comm", 16))
    if "cgroup" in names:
        slots.append(integer("cgroup", "Q"))
    if "curtask" in names:
        slots.append(integer(TASK, "Q"))
    if IN_INTERRUPT in wanted.states:
        slots.append(integer(IN_INTERRUPT, "I"))
    if wanted.kernel_stack:
        slots.append(variable(KERNEL_STACK, 8 * (wanted.kernel_stack + PLUMBING_FRAMES)))
    if wanted.user_stack:
        slots.append(variable(USER_STACK, 8 * wanted.user_stack))
    return slots


def record_slot(context: str, event: EventFormat, recipe: Optional[Recipe] = None) -> Slot:
    """The slot of the raw record. All system calls of one direction have one size, so that they read alike."""
    if context == SYSCALL_ENTER:
        return fixed(RECORD, 64)
    if context == SYSCALL_EXIT:
        return fixed(RECORD, 24)
    if recipe is not None:
        return variable(RECORD, recipe.most_bytes) if recipe.strings else fixed(RECORD, record_bytes(event))
    if _dynamic(event):
        return variable(RECORD, record_bytes(event) + MOST_DYNAMIC_BYTES)
    return fixed(RECORD, record_bytes(event))


def _dynamic(event: EventFormat) -> bool:
    return any(field.place != INLINE for field in event.fields)


def value_places(wanted: Wanted, symbols: Mapping[str, int]) -> demand.PlaceOf:
    """Where the variables of expressions lie in this event."""
    members = {member.path: member for member in wanted.members if not member.text and not member.bits}

    def place(what: Union[demand.Value, demand.Symbol]) -> Optional[demand.Expression]:
        if isinstance(what, demand.Symbol):
            address = symbols.get(what.name)
            return None if address is None else demand.Number(wrap(address))
        name = what.name
        if name == "curtask":
            return what
        if name in members:
            return demand.placed(members[name].read, place)
        if wanted.context == RAW:
            names = {f"args.{argument}": number for number, argument in enumerate(wanted.arguments) if argument}
            number = int(name[3:]) if name[3:].isdigit() else names.get(name, -1)
            return demand.Place(8 * number, 8, True) if 0 <= number < len(wanted.arguments) else None
        if wanted.format is None:
            return None
        field = field_of(wanted.format, name)
        if field is None or field.kind not in (INTEGER, POINTER):
            return None
        return demand.Place(field.offset, field.size, field.signed)

    return place
