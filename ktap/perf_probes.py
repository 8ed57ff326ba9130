"""Perf events of places in code and of counters, as streams (see ktap.perf_streams).

A place whose values are all in registers is an event of the kernel's uprobe or kprobe PMU, gone with its file
descriptor. One whose values take memory is defined in ktap's own group, with the memory as fetch arguments; so are
many places together. Many functions of the kernel of which nothing is read are traced (ktap.function_tracer).
"""

from __future__ import annotations

import errno
import os
import sys
from functools import cache
from typing import TYPE_CHECKING, Callable, Dict, List, Optional, Sequence, Tuple

from ktap import links, uprobes
from ktap.calls import CALL_CONTEXTS, CALL_RETURN, remembered
from ktap.capture import COUNTER, USER_CONTEXTS, USER_RETURN
from ktap.captured import CALLER, KERNEL_CALLER, MEMBER, READ, RECORD
from ktap.counters import REGISTER_BYTES
from ktap.demand import Passed, Read
from ktap.event_format import EventFormat, parse_format
from ktap.fetch import KEEP
from ktap.own_group import OwnGroup
from ktap.perf_counts import FUNCTION_BYTES
from ktap.perf_event import ADDRESS, IP, RAW, REGISTERS, USER_STACK_BYTES, Attribute, Sample
from ktap.perf_event import TRACEPOINT as TRACEPOINT_TYPE
from ktap.perf_fetch import (
    Cells,
    Fetches,
    Inexpressible,
    Instant,
    Registers,
    Words,
    behind_record,
    record_maker,
    register_names,
    strings_bytes,
)
from ktap.perf_streams import Bare, Stream, Tools, chain_of
from ktap.perf_values import Fill, Maker, Who, samples_of, tracepoint_fills
from ktap.plan import Captured, Wanted, field_of
from ktap.predicate import looked_at
from ktap.registers import MACHINES, WORD_BYTES
from ktap.tasks import Tasks

if TYPE_CHECKING:
    from ktap.function_tracer import Records

RETURNS = 1
"""Bit of the configuration of an event of these PMUs."""
SEMAPHORE_SHIFT = 32
DEVICES = {"uprobe": "user probes (CONFIG_UPROBES)", "kprobe": "probes on its functions (CONFIG_KPROBES)"}


REFUSED = frozenset({*uprobes.REFUSED, *links.REFUSED})
"""What the kernel says of one place; anything else is about all of them."""
FEW = 4
"""So many places are an event each; more of them are one definition, which the kernel lets go of all at once."""
UNKNOWN_AT_RETURN = f"this kernel's definitions have no arguments of a call at its return; {KEEP}"
NUMBER = "number"
"""The argument of a definition that says which of its places it was."""

Member = Tuple[int, Captured]
Members = Sequence[Member]
"""Events with their numbers."""


def place_streams(events: Members, tools: Tools) -> List[Stream]:
    """The streams of functions, returns, markers and counters. Raises OSError, and Inexpressible."""
    found: List[Stream] = []
    groups: Dict[object, List[Member]] = {}
    for number, event in events:
        if event.wanted.context == COUNTER:
            found.append(counter_stream(number, event, tools))
        else:
            fetches = fetches_of(event, tools.machine)
            key = (event.wanted.context, tuple(fetches.arguments), event.kind.layout)
            groups.setdefault(key, []).append((number, event))
    found += traced_streams(groups, tools)
    for members in sorted(groups.values(), key=lambda members: bool(members) and links.wants_link(members[0][1])):
        if not members:
            continue
        places = by_place(members)
        if (
            fetches_of(members[0][1], tools.machine).arguments
            or len(places) > FEW
            or counts_misses(members, tools.root)
        ):
            for part in apart(places):
                found += defined_streams(part, tools)
        else:
            found += [device_stream(number, event, tools) for number, event in members]
    return found


def counts_misses(members: Members, root: str) -> bool:
    """Whether the kernel counts the calls that it cannot show: of what is defined, where that may be done."""
    return members[0][1].wanted.called is not None and os.access(os.path.join(root, "kprobe_events"), os.W_OK)


def apart(places: Sequence[Members]) -> Sequence[Sequence[Members]]:
    """Places in parts for the kernel to take."""
    spots = [spot for place in places if (spot := place[0][1].wanted.spot) is not None]
    return uprobes.apart(places, spots) if spots else [places]


def traced_streams(groups: Dict[object, List[Member]], tools: Tools) -> List[Stream]:
    """The streams of the function tracer; what it takes is taken out of the groups, where there are many functions in them."""
    from ktap import function_tracer

    asked = [members for members in groups.values() if function_tracer.takes(members[0][1])]
    if links.probe_type() is not None:
        asked = [members for members in asked if len(by_place(members)) > FEW]
    tracers = tools.tracers() if asked else frozenset()
    tracer = function_tracer.FUNCTION
    if function_tracer.GRAPH in tracers:
        tracer = function_tracer.GRAPH if any(is_return(members) for members in asked) else tracer
    else:
        asked = [members for members in asked if not is_return(members)]
    if tracer not in tracers or not asked:
        return []
    found = function_tracer.records(tools.root, [one for members in asked for one in members], tracer, tools.bits)
    taken = {number for records in found for number, _ in records.members}
    for members in asked:
        members[:] = [(number, event) for number, event in members if number not in taken]
    return [_traced_stream(records, tracer, tools) for records in found]


def _traced_stream(records: Records, tracer: str, tools: Tools) -> Stream:
    members = records.members
    how = f"the kernel's {tracer.replace('_', ' ')} tracer, read from an instance of tracefs"

    def parts() -> Sequence[Stream]:
        return defined_streams(by_place(members), tools)

    return Stream(
        label_of(by_place(members)),
        records.attribute,
        records.route,
        how=how,
        tracer=tracer,
        lines=tuple(records.lines),
        parts=parts,
    )


def is_return(members: Members) -> bool:
    """Whether events of one kind are returns."""
    return members[0][1].wanted.context in (USER_RETURN, CALL_RETURN)


def label_of(places: Sequence[Members]) -> str:
    """Places in a few words."""
    label = places[0][0][1].wanted.label
    return label if len(places) == 1 else f"{label} and {len(places) - 1} more"


def by_place(members: Members) -> List[Members]:
    """The events of each place."""
    found: Dict[object, List[Member]] = {}
    for number, event in members:
        wanted = event.wanted
        called = wanted.called
        place = (
            wanted.spot._replace(starts=False) if wanted.spot is not None else called and called.address + called.offset
        )
        found.setdefault(place, []).append((number, event))
    return list(found.values())


def attribute_of(event: Captured, registers: Registers, machine: str) -> Attribute:
    """What is sampled at a place; its type and configuration are left open."""
    layout = event.kind.layout
    kind = RAW | samples_of(layout)
    if layout.item(RECORD) is not None or event.case.reads or event.case.members:
        kind |= REGISTERS
    top = 0
    if layout.item(CALLER) is not None or layout.item(KERNEL_CALLER) is not None:
        kind |= REGISTERS
        if MACHINES[machine].link is None:  # calls push the address
            kind, top = kind | USER_STACK_BYTES, WORD_BYTES
    frames, flags = chain_of([event])
    return Attribute(0, 0, 1, kind, flags, registers=registers.mask, stack_bytes=top, frames=frames)


def device_stream(number: int, event: Captured, tools: Tools) -> Stream:
    """One place as an event of a PMU. Raises OSError."""
    registers = Registers(tools.machine)
    attribute, text = _device_event(event.wanted, attribute_of(event, registers, tools.machine))
    maker = (Maker(number, event, tools.bits, probe_fills(event, registers, {}, tools.machine)),)
    device = "uprobe" if event.wanted.spot is not None else "kprobe"
    how = f"a perf event of the {device} PMU on every processor"
    return Stream(
        event.wanted.label, attribute, lambda sample: maker, tools.narrowing or None, how=how, text=text, in_code=True
    )


def defined_streams(places: Sequence[Members], tools: Tools) -> List[Stream]:
    """Places that are defined in ktap's own group, as one event where the kernel takes them all. Raises OSError."""
    first = places[0][0][1]
    fetches = fetches_of(first, tools.machine)
    if not tools.attaching:
        return [_defined_stream(places, fetches, None, tools)]
    try:
        return [_defined_stream(places, fetches, define(places, fetches.arguments, tools.group()), tools)]
    except OSError as error:
        if error.errno not in REFUSED:
            raise
        if len(places) == 1:
            if error.errno == errno.EINVAL and any(isinstance(what, Passed) for what in fetches.fetched):
                error = OSError(errno.EOPNOTSUPP, UNKNOWN_AT_RETURN)
            tools.skip(first.wanted.label, error)
            return []
    half = len(places) // 2
    return [*defined_streams(places[:half], tools), *defined_streams(places[half:], tools)]


def _defined_stream(
    places: Sequence[Members], fetches: Fetches, event_format: Optional[EventFormat], tools: Tools
) -> Stream:
    first = places[0][0][1]
    registers = Registers(tools.machine)
    attribute = attribute_of(first, registers, tools.machine)
    label, functions = label_of(places), len(places) if first.wanted.called is not None else 0
    fits = not functions or strings_bytes(fetches.arguments) < FUNCTION_BYTES
    functions *= 1 if fits else 1 + counters(places)
    how = f"a definition in ktap's own group, with perf events; it fetches {' '.join(fetches.arguments) or 'nothing'}"
    if not fits:
        how += "; what there is no room for is counted by another beside"
    if event_format is None:
        return Stream(label, attribute, lambda sample: (), how=how, functions=functions)
    cells = fetches.cells(event_format)
    makers = [
        tuple(
            Maker(number, event, tools.bits, probe_fills(event, registers, cells, tools.machine))
            for number, event in place
        )
        for place in places
    ]
    field = event_format.field(NUMBER)
    assert field is not None
    start, end = field.offset, field.offset + field.size

    def route(sample: Sample) -> Sequence[Maker]:
        return makers[int.from_bytes(sample.raw[start:end], sys.byteorder)]

    def parts() -> Sequence[Stream]:
        half = len(places) // 2
        return [*defined_streams(places[:half], tools), *defined_streams(places[half:], tools)]

    beside = () if fits else counting(places, tools.group())
    attribute = attribute._replace(type=TRACEPOINT_TYPE, config=event_format.id)
    return Stream(
        label,
        attribute,
        route,
        tools.narrowing or None,
        how=how,
        in_code=True,
        parts=parts if len(places) > 1 else None,
        defined=event_format.name,
        functions=functions,
        fits=fits,
        beside=beside,
    )


def counters(places: Sequence[Members]) -> int:
    """How many definitions count beside one: see ktap.perf_counts."""
    return 2 if is_return(places[0]) else 1


def counting(places: Sequence[Members], group: OwnGroup) -> Tuple[Bare, ...]:
    """What counts the events of places beside those that fetch; nothing where the kernel takes no more definitions."""
    try:
        formats = [define(places, (), group) for _ in range(counters(places))]
    except OSError:
        return ()
    return tuple(Bare(one.name, Attribute(TRACEPOINT_TYPE, one.id)) for one in formats)


def fetches_of(event: Captured, machine: str) -> Fetches:
    """The memory that an event's values take. Raises Inexpressible."""
    wanted = event.wanted
    fetches = Fetches(Words(register_names(machine), wanted.context in USER_CONTEXTS))
    if event.kind.layout.item(RECORD) is not None and wanted.recipe is not None:
        asked = places_asked(wanted)
        for part in wanted.recipe.parts:
            if asked is None or any(start <= part.offset < start + size for start, size in asked):
                fetches.add(part.what)
    for read in (*event.case.reads, *event.case.members.values()):
        fetches.add(behind_record(read, wanted.recipe))
    return fetches


def places_asked(wanted: Wanted) -> Optional[List[Tuple[int, int]]]:
    """Where in its record an event's handlers and filters look: offset and size; None where they look at all of it."""
    names = wanted.demand.variables
    if wanted.format is None or "argstr" in names:
        return None
    fields = [field_of(wanted.format, ".".join(name.split(".")[:2])) for name in names]
    found = [(field.offset, field.size) for field in fields if field is not None]
    return found + [place for condition in wanted.filters for place in looked_at(condition)]


def define(places: Sequence[Members], arguments: Sequence[str], group: OwnGroup) -> EventFormat:
    """Have the kernel know places as one event, each with its number; what its records have. Raises OSError."""
    wanted = places[0][0][1].wanted
    head = "r" if is_return(places[0]) else "p"
    opened: Dict[str, int] = {}  # names of files may have blanks
    try:
        lines = []
        for number, place in enumerate(places):
            where = place_text(place[0][1].wanted, opened)
            lines.append(" ".join([where, f"{NUMBER}=\\{number}:u32", *arguments]))
        name = group.define("uprobe_events" if wanted.spot is not None else "kprobe_events", head, lines)
    finally:
        for file in opened.values():
            os.close(file)
    return format_of(group, name)


def place_text(wanted: Wanted, opened: Dict[str, int]) -> str:
    """A place in the kernel's words; `opened` keeps the files."""
    if wanted.spot is not None:
        spot = wanted.spot
        if spot.path not in opened:
            opened[spot.path] = os.open(spot.path, os.O_RDONLY | os.O_CLOEXEC)
        counter = f"({spot.semaphore:#x})" if spot.semaphore else ""
        return f"/proc/self/fd/{opened[spot.path]}:{spot.offset:#x}{counter}"
    called = wanted.called
    assert called is not None
    if wanted.recipe is not None and remembered(wanted.recipe):
        return called.symbol  # of an address alone the kernel does not know the arguments at a return
    return f"{called.address + called.offset:#x}"  # several functions may have one name, which the kernel does not take then


def format_of(group: OwnGroup, name: str) -> EventFormat:
    """What the kernel's records of a definition have. Raises OSError."""
    with open(os.path.join(group.directory(name), "format")) as file:
        return parse_format(group.name, file.read())


def _device_event(wanted: Wanted, attribute: Attribute) -> Tuple[Attribute, bytes]:
    """The event of a PMU, and what its attribute is to point at. Raises OSError."""
    returns = RETURNS if wanted.context in (USER_RETURN, CALL_RETURN) else 0
    if wanted.spot is not None:
        spot = wanted.spot
        text = os.fsencode(spot.path)
        config = returns | spot.semaphore << SEMAPHORE_SHIFT
        device, behind = _device("uprobe"), spot.offset
    else:
        called = wanted.called
        assert called is not None
        text = b""  # several functions may have its name
        config, device, behind = returns, _device("kprobe"), called.address + called.offset
    return attribute._replace(type=device, config=config, config2=behind), text


@cache
def _device(name: str) -> int:
    path = f"/sys/bus/event_source/devices/{name}/type"
    try:
        with open(path) as file:
            return int(file.read())
    except OSError as error:
        raise OSError(error.errno, f"this kernel has no {DEVICES[name]}", "probe") from error


# -- values ---------------------------------------------------------------------------------------


def probe_fills(event: Captured, registers: Registers, cells: Cells, machine: str) -> Dict[str, Fill]:
    """How the values of a place in code are made. Raises Inexpressible."""
    fills = {name: fill for name, fill in tracepoint_fills(event).items() if name != RECORD}
    instant_of = _instants(registers)
    for slot in event.kind.layout.slots:
        if slot.name == RECORD and event.wanted.recipe is not None:
            make = record_maker(event.wanted.recipe, cells)
            fills[RECORD] = lambda sample, who, tasks, make=make: make(instant_of(sample, who, tasks))  # type: ignore[misc]
        elif slot.name.startswith(READ):
            fills[slot.name] = _fetched(event, cells, event.case.reads[int(slot.name[len(READ) :])])
        elif slot.name.startswith(MEMBER):
            fills[slot.name] = _fetched(event, cells, event.case.members[slot.name[len(MEMBER) :]])
        elif slot.name in (CALLER, KERNEL_CALLER):
            fills[slot.name] = _caller(machine, instant_of)
    return fills


InstantOf = Callable[[Sample, Who, Tasks], Instant]


def _instants(registers: Registers) -> InstantOf:
    """Gives a sample's instant; the last one is kept, for it is asked for slot by slot."""
    last: List[Tuple[Sample, Instant]] = []

    def instant_of(sample: Sample, who: Who, tasks: Tasks) -> Instant:
        if not last or last[0][0] is not sample:
            name = tasks.name(who.tid, sample.cpu) if who.tid is not None else None
            last[:] = [(sample, Instant(registers.image(sample.registers), sample.raw, name or b""))]
        return last[0][1]

    return instant_of


def _fetched(event: Captured, cells: Cells, read: Read) -> Fill:
    found = behind_record(read, event.wanted.recipe)
    assert isinstance(found, Read)
    cell = cells[found]
    return lambda sample, who, tasks: cell(sample.raw)


def _caller(machine: str, instant_of: InstantOf) -> Fill:
    """Where a function returns to: on the stack, or in the register for it."""
    known = MACHINES[machine]
    if known.link is None:
        return lambda sample, who, tasks: int.from_bytes(sample.stack[:WORD_BYTES], sys.byteorder)
    at = known.registers[known.link].offset
    return lambda sample, who, tasks: int.from_bytes(
        instant_of(sample, who, tasks).registers[at : at + WORD_BYTES], sys.byteorder
    )


# -- counters -------------------------------------------------------------------------------------


def counter_stream(number: int, event: Captured, tools: Tools) -> Stream:
    """The stream of a counter or a watchpoint."""
    wanted = event.wanted
    counter = wanted.counter
    assert counter is not None
    kind = IP | ADDRESS | samples_of(event.kind.layout)
    frames, flags = chain_of([event])
    attribute = Attribute(
        counter.type,
        counter.config,
        counter.period,
        kind,
        flags,
        counter.breakpoint,
        counter.config1,
        counter.config2,
        frames=frames,
    )
    fills: Dict[str, Fill] = {}
    if event.kind.layout.item(RECORD) is not None and wanted.recipe is not None:
        fills[RECORD] = _counted(wanted, counter.period, tools.machine)
    maker = (Maker(number, event, tools.bits, fills),)
    how = "a counter on every processor"
    return Stream(wanted.label, attribute, lambda sample: maker, by_record=False, how=how)


def _counted(wanted: Wanted, period: int, machine: str) -> Fill:
    """The record of a counter, from what stands for registers, period and address where programs find them."""
    assert wanted.recipe is not None
    nothing: Cells = {part.what: lambda raw: None for part in wanted.recipe.parts if isinstance(part.what, Read)}
    make = record_maker(wanted.recipe, nothing)
    ip_at, behind = MACHINES[machine].registers[MACHINES[machine].instruction].offset, REGISTER_BYTES[machine]

    def fill(sample: Sample, who: Who, tasks: Tasks) -> bytes:
        image = bytearray(behind + 2 * WORD_BYTES)
        for at, number in ((ip_at, sample.ip), (behind, period), (behind + WORD_BYTES, sample.address)):
            image[at : at + WORD_BYTES] = number.to_bytes(WORD_BYTES, sys.byteorder)
        return make(Instant(bytes(image), bytes(WORD_BYTES), b""))

    return fill


def why_inexpressible(event: Captured, machine: str) -> Optional[str]:
    """What the kernel has no words for, None where all can be had."""
    wanted = event.wanted
    if wanted.context not in (*USER_CONTEXTS, *CALL_CONTEXTS):
        return None
    try:
        fetches_of(event, machine)
    except Inexpressible as error:
        return str(error)
    return None
