"""Records of sites: what a handler in the kernel sends, and how the VM takes it.

A *site* is a place that prints, faults or exits. Each has a layout of its own, and a number behind those
of all events, so that its records come in order of time with all others.
"""

from __future__ import annotations

from itertools import repeat
from operator import itemgetter
from struct import pack
from typing import Callable, Dict, Iterable, List, Optional, Sequence, Tuple

from compiler.lower.types import Type
from compiler.lower.values import Site, Value
from ktap.captured import NAMES, CapturedEvent, Plumbing, TextOf
from ktap.layout import Layout, Slot, Values, aligned, fixed, integer, variable
from ktap.tables import NameOf, number, unpack_bytes
from vm.event import Action, Bulk, Event
from vm.fault import Fault, Frame
from vm.machine import Machine
from vm.named_tuple import NamedTuple
from vm.output import Output
from vm.printf import plan_of
from vm.values import describe, tostring

COMM_BYTES = 16
"""Strings of this size (the name of a task) are sent whole, padded; others with their length."""


AT_ONCE = 4096
"""Records that are printed at once."""
Many = Callable[[Sequence[Values]], None]


class EventNames(NamedTuple):
    """What events are called and how they are told, by their numbers."""

    name_of: NameOf
    text_of: Callable[[int], TextOf]
    """Makes argstr of a raw record."""


class SiteEvent(CapturedEvent):
    """What is known of the event that a handler in the kernel ran for: when it fired."""

    __slots__ = ()

    @property
    def nsecs(self) -> object:
        """Monotonic time in ns."""
        return self.record[0]


class Outside(NamedTuple):
    """What happens to the records of a site: its layout, and the function the run loop calls for one."""

    layout: Layout
    event: CapturedEvent
    handle: Action


def outside(site: Site, machine: Machine, names: EventNames, plumbing: Plumbing) -> Outside:
    """How the VM takes the records of a site: with the builtin that a handler in the VM would call."""
    frames = tuple(Frame(machine.program.functions[call.function].name, call.span) for call in site.frames)

    hint = machine.hint() if site.name == "loop" else None

    def fault(depth: int, event: Event) -> object:
        raised = Fault(site.name, site.detail, hint)
        raised.frames = frames
        raise raised

    if site.detail:
        return Outside(site_layout(site), SiteEvent(), fault)
    decode = site_values(site, names, plumbing)
    function = machine.builtins[site.name]

    def call(depth: int, event: Event) -> object:
        try:
            return function(depth, *decode(event.record))  # type: ignore[operator]  # builtins are functions
        except Fault as raised:
            raised.frames = raised.frames or frames
            raise

    many = printer(site, machine, names, call)
    return Outside(site_layout(site), SiteEvent(), call if many is None else Bulk(call, many))


def printer(site: Site, machine: Machine, names: EventNames, one: Action) -> Optional[Many]:
    """Prints many records of a site at once, where each gives what Python's % makes of a tuple of its values.

    Where they pass the limit of the output, they are printed one by one.
    """
    output, host = machine.output, machine.host
    if site.name not in ("print", "printf") or type(output) is not Output:  # stamps are of one event each
        return None
    columns = columns_of(site, names)
    if columns is None:
        return None
    examples = tuple(column.example for column in columns)

    def text(value: object) -> bytes:
        return tostring(value, host)

    try:
        if site.name == "print":
            plan = plan_of(b"\t".join([b"%s"] * len(columns)) + b"\n", examples, text, describe)
        else:
            written = dict(site.constants).get(0)
            plan = plan_of(written, examples[1:], text, describe) if isinstance(written, bytes) else None
            columns = columns[1:]
    except Fault:  # it will be told of the first record
        return None
    if plan is None:
        return None
    used = columns if plan.converters is None else columns[: len(plan.converters)]
    converts = plan.converters or (None,) * len(used)
    fill, whole = plan.template.__mod__, Output.has_room

    def many(records: Sequence[Values]) -> None:
        for start in range(0, len(records), AT_ONCE):
            part = records[start : start + AT_ONCE]
            items = tuple(zip(*part))
            values = [column.of(items) for column in used]
            rows = [value if convert is None else map(convert, value) for value, convert in zip(values, converts)]
            data = b"".join(map(fill, zip(*rows))) if rows else fill(()) * len(part)
            if whole(output, len(data)):
                output.write(data)
                continue
            event = SiteEvent()
            for record in part:
                event.record = record
                one(1, event)

    return many


class Column(NamedTuple):
    """One argument of a builtin over many records: a value of its type, and how the items of records become it."""

    example: object
    of: Callable[[Sequence[Sequence[object]]], Iterable[object]]


def columns_of(site: Site, names: EventNames) -> Optional[List[Column]]:
    """The arguments of a site; None where one of them may be nil, or is neither a number nor a string."""
    layout, constants = site_layout(site), dict(site.constants)
    kinds = iter(enumerate(site.values))
    found: List[Column] = []
    for argument in range(len(constants) + len(site.values)):
        if argument in constants:
            found.append(constant_column(constants[argument]))
            continue
        index, kind = next(kinds)
        place = layout.item(f"value{index}")
        convert = CONVERT.get(next(iter(kind.kinds))) if len(kind.kinds) == 1 else None
        if convert is None or place is None:
            return None
        found.append(convert(place, kind, names))
    return found


def constant_column(value: object) -> Column:
    """An argument that is the same in every record."""
    return Column(value, lambda items: repeat(value, len(items[0])))


def _integers(place: int, kind: Type, names: EventNames) -> Column:
    return Column(0, lambda items: items[place])


def _strings(place: int, kind: Type, names: EventNames) -> Column:
    if not is_inline(kind):
        return Column(b"", lambda items: items[place])
    name = NAMES.__getitem__
    return Column(b"", lambda items: map(name, items[place]))  # type: ignore[arg-type]  # the layout says bytes


def _event_names(place: int, kind: Type, names: EventNames) -> Column:
    return Column(b"", lambda items: map(names.name_of, items[place]))  # type: ignore[arg-type]  # the layout says q


def _event_texts(place: int, kind: Type, names: EventNames) -> Column:
    def texts(items: Sequence[Sequence[object]]) -> Iterable[object]:
        events, records = items[place - 1], items[place]
        text_of = {event: names.text_of(event) for event in set(events)}  # type: ignore[arg-type]  # the layout says q
        return [text_of[event](record) for event, record in zip(events, records)]  # type: ignore[arg-type]

    return Column(b"", texts)


CONVERT: Dict[str, Callable[[int, Type, EventNames], Column]] = {
    "integer": _integers,
    "string": _strings,
    "probename": _event_names,
    "argstr": _event_texts,
}
"""Columns by the kind of their values."""


def site_slots(site: Site, values: Sequence[Value]) -> List[Tuple[str, Tuple[Value, str]]]:
    """The slots of a site by name, with the value each takes and which part of it."""
    found: List[Tuple[str, Tuple[Value, str]]] = []
    for index, (kind, value) in enumerate(zip(site.values, values)):
        if kind.can_be("nil"):
            found.append((f"nil{index}", (value, "nil")))
        if kind.is_either:
            found += [(f"text{index}", (value, "text")), (f"number{index}", (value, "number"))]
            found.append((f"value{index}", (value, "bytes")))
        elif kind.can_be("argstr"):
            found += [(f"number{index}", (value, "number")), (f"value{index}", (value, "record"))]
        elif not kind.is_only("nil"):
            found.append((f"value{index}", (value, "bytes" if kind.without("nil").is_bytes else "number")))
    return found


def site_layout(site: Site) -> Layout:
    """The layout of a site's records."""
    slots: List[Slot] = []
    for index, kind in enumerate(site.values):
        if kind.can_be("nil"):
            slots.append(integer(f"nil{index}", "B"))
        plain = kind.without("nil")
        if not plain.kinds:
            continue
        if kind.is_either:
            slots += [integer(f"text{index}", "B"), integer(f"number{index}", "q")]
            slots.append(variable(f"value{index}", plain.size_bytes))
        elif kind.can_be("argstr"):
            slots += [integer(f"number{index}", "q"), variable(f"value{index}", plain.size_bytes)]
        elif not plain.is_bytes:
            slots.append(integer(f"value{index}", "q"))
        elif is_inline(kind):
            slots.append(fixed(f"value{index}", plain.size_bytes))
        else:
            slots.append(variable(f"value{index}", plain.size_bytes))
    return aligned(tuple(slots))


def is_inline(kind: Type) -> bool:
    """Whether a string is sent whole: the name of a task."""
    return kind.is_only("string") and kind.size_bytes == COMM_BYTES


def site_values(site: Site, names: EventNames, plumbing: Plumbing) -> Callable[[Values], List[object]]:
    """Reads the arguments of a builtin out of a site's record."""
    layout, constants = site_layout(site), dict(site.constants)
    kinds = iter(enumerate(site.values))
    readers: List[Callable[[Values], object]] = []
    for argument in range(len(constants) + len(site.values)):
        if argument in constants:
            readers.append(_constant(constants[argument]))
        else:
            readers.append(site_value(layout, *next(kinds), names, plumbing))
    return lambda record: [read(record) for read in readers]


def _constant(value: object) -> Callable[[Values], object]:
    return lambda record: value


def site_value(
    layout: Layout, index: int, kind: Type, names: EventNames, plumbing: Plumbing
) -> Callable[[Values], object]:
    """Reads one value of a record."""
    nil, place = layout.item(f"nil{index}"), layout.item(f"value{index}")
    plain = kind.without("nil")
    if place is None:
        return _constant(None)
    if nil is None and plain.is_only("integer"):
        return itemgetter(place)
    text, figure = layout.item(f"text{index}"), layout.item(f"number{index}")
    if plain.can_be("argstr"):
        event = layout.item(f"number{index}") or 0
        return lambda record: names.text_of(record[event])(record[place])  # type: ignore[arg-type]  # as the layout says

    def read(record: Values) -> object:
        if nil is not None and record[nil]:
            return None
        item = record[place if text is None or figure is None or record[text] else figure]
        if isinstance(item, bytes):
            return unpack_bytes(plain, item, plumbing)
        assert isinstance(item, int)
        return number(plain, pack("=q", item), names.name_of)

    return read
