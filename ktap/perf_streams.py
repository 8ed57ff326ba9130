"""From the events of a script to perf events: what each samples, its filter, and which records come of a sample.

A few tracepoints are perf events; many come through an instance of tracefs. Many system calls of which more than the
record is asked are two tracepoints, raw_syscalls:sys_enter and sys_exit: the numbers are told apart in the kernel's
filter, and again here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Callable, Dict, FrozenSet, Iterable, List, Optional, Sequence, Tuple

from ktap.capture import PROFILE, SYSCALL_ENTER, SYSCALL_EXIT, TRACEPOINT
from ktap.captured import KERNEL_STACK, PLUMBING_FRAMES, USER_STACK
from ktap.event_format import EventFormat
from ktap.kernel import CPU_CLOCK
from ktap.kernel_filter import MOST_BYTES, both, kernel_filter
from ktap.own_group import OwnGroup
from ktap.perf_event import CALLCHAIN, RAW, SOFTWARE, USER_REGISTERS, Attribute, Sample
from ktap.perf_event import TRACEPOINT as TRACEPOINT_TYPE
from ktap.perf_values import Maker, samples_of, tracepoint_fills
from ktap.plan import Captured
from ktap.tracefs import TracepointName
from vm.named_tuple import NamedTuple

if TYPE_CHECKING:
    from ktap.function_tracer import Line

EXCLUDE_CHAIN_KERNEL, EXCLUDE_CHAIN_USER = 1 << 21, 1 << 22
RAW_GROUP = "raw_syscalls"
NUMBER_OFFSET = 8
"""Of the system call's number in the record."""
OF_32_BITS = 1
"""Of a process (Sample.abi): its calls have numbers of their own, and events of system calls pass them over."""
FIRST_REGISTER = 1
MOST_FRAMES = 127
FEW_TRACEPOINTS = 8
"""So many tracepoints are perf events, which the kernel lets go of one after the other, each in 73 ms."""
TRACED = "read from an instance of tracefs"
TRACEPOINT_NS, FUNCTION_NS = 73_000_000, 20_000_000
"""What it takes the kernel to let go of the last perf event of a tracepoint, of a probe of a function."""
SLOW_NS = 1_500_000_000
"""So long is worth saying."""

FormatOf = Callable[[TracepointName], EventFormat]


class Tools(NamedTuple):
    """What streams are made with."""

    bits: int
    """How many low bits of a point tell of filters."""
    format_of: FormatOf
    narrowing: str
    """A condition that every filter of a tracepoint has."""
    machine: str
    root: str
    """Of tracefs."""
    group: Callable[[], OwnGroup]
    """Where events are defined; asked for when the first is."""
    skip: Callable[[str, OSError], None]
    """Told of a place that the kernel does not take."""
    tracers: Callable[[], FrozenSet[str]]
    """The tracers of functions that ktap's own instance can be given (ktap.function_tracer)."""
    attaching: bool = True


class Bare(NamedTuple):
    """An event of ktap's group that is at the places of another and fetches nothing."""

    defined: str
    attribute: Attribute


class Stream(NamedTuple):
    """A perf event, one on every processor."""

    label: str
    """What losses are told of."""
    attribute: Attribute
    route: Callable[[Sample], Sequence[Maker]]
    """Whose records come of a sample."""
    filter: Optional[str] = None
    by_record: bool = True
    """Its samples have a record that tells the thread."""
    leaves_out_ktap: bool = True
    event_id: Optional[int] = None
    """Of the tracepoint, where that is what detaching takes its time for."""
    how: str = "a perf event of the tracepoint on every processor"
    """For ktap explain."""
    text: bytes = b""
    """What the attribute's `config1` is to point at where it opens the event, empty for none."""
    in_code: bool = False
    """It takes breakpoints, which somebody must be there to let go of when ktap is killed."""
    plain: Optional[TracepointName] = None
    """The tracepoint, where its samples have nothing but its record."""
    traced: Optional[TracepointName] = None
    """It comes through a tracefs instance, by this name."""
    fits: bool = True
    """The kernel has room for all that it may have to fetch: where it has not it drops the event, and does not count it."""
    beside: Tuple[Bare, ...] = ()
    """What is counted beside it then (ktap.perf_counts)."""
    origin: Optional[TracepointName] = None
    """The tracepoint that its event probe hangs on, whose events are counted beside."""
    tracer: str = ""
    """It comes from a tracer of functions, in an instance, by this name."""
    lines: Tuple[Line, ...] = ()
    """The functions that this is to trace."""
    parts: Optional[Callable[[], Sequence[Stream]]] = None
    """The same in smaller pieces, of which the kernel may refuse fewer; of a tracer's functions, as perf events."""
    defined: str = ""
    """The name of the event of ktap's group that it is."""
    functions: int = 0
    """How many probes of the kernel's functions it is, which are let go of one after the other."""


def streams(events: Sequence[Captured], tools: Tools) -> List[Stream]:
    """All perf events of a script. Raises OSError for a definition that the kernel does not take."""
    found: List[Stream] = []
    calls: Dict[str, List[Tuple[int, Captured]]] = {}
    places: List[Tuple[int, Captured]] = []
    for number, event in enumerate(events):
        context = event.wanted.context
        if event.case.reads and context in (SYSCALL_ENTER, SYSCALL_EXIT, TRACEPOINT):
            from ktap.perf_eprobes import eprobe_stream

            found.append(eprobe_stream(number, event, tools))
        elif context in (SYSCALL_ENTER, SYSCALL_EXIT):
            calls.setdefault(context, []).append((number, event))
        elif context in KINDS:
            found.append(KINDS[context](number, event, tools))
        else:
            places.append((number, event))
    for context, members in calls.items():
        found += _system_calls(context, members, tools)
    if places:
        from ktap.perf_probes import place_streams

        found += place_streams(places, tools)
    return _without_delay(found)


def detach_ns(wanted: Iterable[Stream]) -> int:
    """How long it takes the kernel, about, to let go of streams."""
    found = list(wanted)
    slow = len({stream.event_id for stream in found if stream.event_id is not None})
    return slow * TRACEPOINT_NS + sum(stream.functions for stream in found) * FUNCTION_NS


def _without_delay(found: List[Stream]) -> List[Stream]:
    """Many tracepoints come through an instance, which the kernel lets go of at once, where samples have the record only."""
    slow = [one for one in found if one.event_id is not None and one.plain is not None]
    if len(slow) <= FEW_TRACEPOINTS:
        return found
    return [one._replace(traced=one.plain, event_id=None, how=TRACED) if one in slow else one for one in found]


def _system_calls(context: str, members: Sequence[Tuple[int, Captured]], tools: Tools) -> List[Stream]:
    """System calls by their own tracepoints, which leave out what 32-bit programs call (and 64-bit ones by `int $0x80`).

    By the tracepoint of all of them where many have more than a record, or the kernel's stack is asked for, which
    their own do not have (kernel/trace/trace_syscalls.c submits them with the registers of the process).
    """
    with_stacks = [one for one in members if one[1].kind.layout.item(KERNEL_STACK) is not None]
    others = [one for one in members if one not in with_stacks]
    own = [_tracepoint(number, event, tools) for number, event in others]
    if len(own) > FEW_TRACEPOINTS and any(stream.plain is None for stream in own):
        own, with_stacks = [], list(members)
    return [*own, *([_every_call(context, with_stacks, tools)] if with_stacks else [])]


def _every_call(context: str, members: Sequence[Tuple[int, Captured]], tools: Tools) -> Stream:
    name = "sys_enter" if context == SYSCALL_ENTER else "sys_exit"
    event_format = tools.format_of(TracepointName(RAW_GROUP, name))
    by_number: Dict[int, List[Maker]] = {}
    sample, frames, flags = RAW | USER_REGISTERS, 0, 0
    for number, event in members:
        maker = Maker(number, event, tools.bits, tracepoint_fills(event, tools.machine))
        by_number.setdefault(event.wanted.number, []).append(maker)
    for _, event in members:
        sample |= samples_of(event.kind.layout)
    if sample & CALLCHAIN:
        frames, flags = chain_of([event for _, event in members])
    attribute = Attribute(TRACEPOINT_TYPE, event_format.id, 1, sample, flags, registers=FIRST_REGISTER, frames=frames)
    none: Sequence[Maker] = ()

    def route(sample: Sample) -> Sequence[Maker]:
        if sample.abi == OF_32_BITS:
            return none
        return by_number.get(int.from_bytes(sample.raw[NUMBER_OFFSET : NUMBER_OFFSET + 4], "little"), none)

    label = members[0][1].wanted.label if len(members) == 1 else f"syscalls:{name}_*"
    chosen = both(_calls_filter([event for _, event in members], event_format), tools.narrowing)
    how = f"a perf event of {RAW_GROUP}:{name} on every processor"
    return Stream(label, attribute, route, chosen or None, event_id=event_format.id, how=how)


def _calls_filter(events: Sequence[Captured], event_format: EventFormat) -> Optional[str]:
    """The numbers with the filters of each; the numbers alone, or nothing, where that gets too long."""
    parts = [both(f"id == {event.wanted.number}", _own_filter(event, event_format)) for event in events]
    for texts in (parts, [f"id == {event.wanted.number}" for event in events]):
        text = " || ".join(f"({part})" for part in dict.fromkeys(texts))
        if len(text) <= MOST_BYTES:
            return text
    return None


def _own_filter(event: Captured, event_format: Optional[EventFormat]) -> Optional[str]:
    wanted = event.wanted
    if None in wanted.filter_of or event_format is None:
        return None
    return kernel_filter(wanted.filters, event_format)


def _tracepoint(number: int, event: Captured, tools: Tools) -> Stream:
    wanted = event.wanted
    group, _, name = wanted.label.partition(":")
    event_format = wanted.format or tools.format_of(TracepointName(group, name))
    maker = (Maker(number, event, tools.bits, tracepoint_fills(event, tools.machine)),)
    sample = RAW | samples_of(event.kind.layout)
    frames, flags = chain_of([event]) if sample & CALLCHAIN else (0, 0)
    attribute = Attribute(TRACEPOINT_TYPE, event_format.id, 1, sample, flags, frames=frames)
    chosen = both(_own_filter(event, event_format), "" if event.case.of_ktap else tools.narrowing)
    return Stream(
        wanted.label,
        attribute,
        lambda sample: maker,
        chosen or None,
        leaves_out_ktap=not event.case.of_ktap,
        event_id=event_format.id,
        plain=TracepointName(group, name) if sample == RAW else None,
    )


def _profile(number: int, event: Captured, tools: Tools) -> Stream:
    timer = event.wanted.timer
    assert timer is not None
    maker = (Maker(number, event, tools.bits, {}),)
    sample = samples_of(event.kind.layout)
    frames, flags = chain_of([event]) if sample & CALLCHAIN else (0, 0)
    attribute = Attribute(SOFTWARE, CPU_CLOCK, timer.period_ns, sample, flags, frames=frames)
    return Stream(
        event.wanted.label,
        attribute,
        lambda sample: maker,
        by_record=False,
        leaves_out_ktap=False,
        how="a timer on every processor (cpu-clock)",
    )


def chain_of(events: Sequence[Captured]) -> Tuple[int, int]:
    """How many addresses call chains of these events have, and the flags that leave out whose nobody asks for."""
    kernel = max((event.wanted.demand.kernel_stack for event in events), default=0)
    user = max((event.wanted.demand.user_stack for event in events), default=0)
    names = {slot.name for event in events for slot in event.kind.layout.slots}
    flags = 0 if KERNEL_STACK in names else EXCLUDE_CHAIN_KERNEL
    flags |= 0 if USER_STACK in names else EXCLUDE_CHAIN_USER
    return (0 if kernel and user else min(MOST_FRAMES, kernel + PLUMBING_FRAMES if kernel else user)), flags


KINDS: Dict[str, Callable[[int, Captured, Tools], Stream]] = {
    TRACEPOINT: _tracepoint,
    PROFILE: _profile,
}
"""How events become perf events that are neither system calls nor places in code nor counters."""
