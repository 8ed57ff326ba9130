"""Records of sites: what a handler in the kernel sends, and how the VM takes it.

A *site* is a place that prints, faults or exits. Each has a layout of its own, and a number behind those
of all events, so that its records come in order of time with all others.
"""

from __future__ import annotations

from struct import pack
from typing import Callable, List, NamedTuple, Sequence, Tuple

from compiler.lower.types import Type
from compiler.lower.values import Site, Value
from ktap.captured import CapturedEvent
from ktap.layout import Layout, Slot, aligned, fixed, integer, variable
from ktap.tables import NameOf, number, unpack_bytes
from vm.event import Action, Event
from vm.fault import Fault, Frame
from vm.machine import Machine

COMM_BYTES = 16
"""Strings of this size (the name of a task) are sent whole, padded; others with their length."""


class Outside(NamedTuple):
    """What happens to the records of a site: its layout, and the function the run loop calls for one."""

    layout: Layout
    event: CapturedEvent
    handle: Action


def outside(site: Site, machine: Machine, name_of: NameOf) -> Outside:
    """How the VM takes the records of a site: with the builtin that a handler in the VM would call."""
    frames = tuple(Frame(machine.program.functions[call.function].name, call.span) for call in site.frames)

    def fault(depth: int, event: Event) -> object:
        raised = Fault(site.name, site.detail)
        raised.frames = frames
        raise raised

    if site.detail:
        return Outside(site_layout(site), CapturedEvent(), fault)
    decode = site_values(site, name_of)
    function = machine.builtins[site.name]

    def call(depth: int, event: Event) -> object:
        try:
            return function(depth, *decode(event.record))  # type: ignore[operator]  # builtins are functions
        except Fault as raised:
            raised.frames = raised.frames or frames
            raise

    return Outside(site_layout(site), CapturedEvent(), call)


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
            slots.append(integer(f"nil{index}", "B"))
        plain = kind.without("nil")
        if not plain.kinds:
            continue
        if not plain.is_bytes:
            slots.append(integer(f"value{index}", "q"))
        elif is_inline(kind):
            slots.append(fixed(f"value{index}", plain.size_bytes))
        else:
            slots.append(variable(f"value{index}", plain.size_bytes))
    return aligned(tuple(slots))


def is_inline(kind: Type) -> bool:
    """Whether a string is sent whole: the name of a task."""
    return kind.is_only("string") and kind.size_bytes == COMM_BYTES


def site_values(site: Site, name_of: NameOf) -> Callable[[Tuple[object, ...]], List[object]]:
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


def site_value(layout: Layout, record: Tuple[object, ...], index: int, kind: Type, name_of: NameOf) -> object:
    """One value of a record."""
    nil = layout.item(f"nil{index}")
    if kind.is_only("nil") or (nil is not None and record[nil]):
        return None
    place = layout.item(f"value{index}")
    assert place is not None
    item = record[place]
    plain = kind.without("nil")
    if isinstance(item, bytes):
        return unpack_bytes(plain, item)
    assert isinstance(item, int)
    return number(plain, pack("=q", item), name_of)
