"""Functions of the kernel by its function tracer: thousands of them at once, where nothing is asked but which was called.

A probe of its own takes the kernel some milliseconds for each function and a grace period more to go; its function
tracer takes a list of them in a second and lets go of all in another. It runs in an instance of tracefs, so nobody
else's tracing changes. Its records have the function and the thread; registers and stacks take probes (ktap.perf_probes).

Returns come from the function graph tracer, which instances have from Linux 6.11 on.

Source: Documentation/trace/ftrace.rst; kernel/trace/trace_functions.c, trace_functions_graph.c, ftrace.c
(add_rec_by_index).
"""

from __future__ import annotations

import os
import re
import sys
from bisect import bisect_left, bisect_right
from collections import Counter
from contextlib import suppress
from typing import Callable, Dict, FrozenSet, List, Sequence, Tuple

from ktap.calls import CALL_CONTEXTS, CALL_RETURN, Called
from ktap.captured import IN_INTERRUPT
from ktap.event_format import parse_format
from ktap.functions import FILTER_ADDRESSES, FILTER_FUNCTIONS, MOST_PREFIX_BYTES
from ktap.perf_event import RAW, Attribute, Sample
from ktap.perf_event import TRACEPOINT as TRACEPOINT_TYPE
from ktap.perf_values import PARENT, Maker, tracepoint_fills
from ktap.plan import Captured
from vm.named_tuple import NamedTuple

FUNCTION, GRAPH = "function", "function_graph"
"""Tracers: of calls, and of calls and returns."""
GROUP = "ftrace"
CALLS = {FUNCTION: ("function", "ip"), GRAPH: ("funcgraph_entry", "func")}
RETURNS = ("funcgraph_exit", "func")
"""Which records tell of calls, which of returns, and the field that has the function."""
SLOTS = frozenset({"pid_tgid", "comm", PARENT, IN_INTERRUPT})
"""What its records tell, and what is known of their thread."""
ENABLED = "/proc/sys/kernel/ftrace_enabled"
GRAPH_FILTERS = ("set_graph_function", "set_graph_notrace")
"""They narrow the function graph tracer of every instance."""

Member = Tuple[int, Captured]
"""An event with its number."""


class Line(NamedTuple):
    """A function as the kernel lists it: the number of its line, by which filters take it, and its name."""

    number: int
    name: str


class Records(NamedTuple):
    """The records of one kind that an instance's tracer makes, and whose they are."""

    attribute: Attribute
    route: Callable[[Sample], Sequence[Maker]]
    members: Sequence[Member]
    lines: Sequence[Line]


def takes(event: Captured) -> bool:
    """Whether nothing is asked of an event that the tracers do not tell."""
    called = event.wanted.called
    return (
        event.wanted.context in CALL_CONTEXTS
        and called is not None
        and not called.offset
        and all(slot.name in SLOTS for slot in event.kind.layout.slots)
    )


def usable(root: str, instance: str) -> FrozenSet[str]:
    """The tracers that an instance can be given. Raises OSError."""
    with open(ENABLED) as file:
        if file.read().strip() == "0":
            return frozenset()
    with open(os.path.join(instance, "available_tracers")) as file:
        known = set(file.read().split()) & {FUNCTION, GRAPH}
    for name in GRAPH_FILTERS:
        with suppress(FileNotFoundError), open(os.path.join(root, name)) as file:
            if any(line.strip() and not line.startswith("#") for line in file):
                known.discard(GRAPH)
    return frozenset(known)


def lines_of(root: str, functions: Sequence[Called]) -> Dict[int, Line]:
    """The lines of functions, by address; those that the tracers cannot trace, or that cannot be told apart, lack.

    Raises OSError.
    """
    path = os.path.join(root, FILTER_ADDRESSES)
    if not os.path.exists(path):
        return _lines_by_name(root, functions)
    with open(path, "rb") as file:
        found = re.findall(rb"^(?:0x)?([0-9a-f]+) (\S+)", file.read(), re.M)
    listed = sorted((int(address, 16), number, name) for number, (address, name) in enumerate(found, 1))
    places = [address for address, _, _ in listed]
    lines: Dict[int, Line] = {}
    for called in functions:
        at = bisect_left(places, called.address)
        if at < len(places) and places[at] - called.address <= MOST_PREFIX_BYTES:
            lines[called.address] = Line(listed[at][1], listed[at][2].decode())
    return lines


def _lines_by_name(root: str, functions: Sequence[Called]) -> Dict[int, Line]:
    with open(os.path.join(root, FILTER_FUNCTIONS)) as file:
        names = [line.split(None, 1)[0] for line in file]
    numbers = {name: number for number, name in enumerate(names, 1)}
    listed, meant = Counter(names), Counter(called.symbol for called in functions)
    return {
        called.address: Line(numbers[called.symbol], called.symbol)
        for called in functions
        if listed[called.symbol] == 1 and meant[called.symbol] == 1
    }


def records(root: str, members: Sequence[Member], tracer: str, bits: int) -> List[Records]:
    """The records for functions, calls apart from returns; functions that have no line are in none. Raises OSError."""
    lines = lines_of(root, list({event.wanted.called: None for _, event in members if event.wanted.called is not None}))
    found: List[Records] = []
    for returns in (False, True):
        by_address: Dict[int, List[Member]] = {}
        for number, event in members:
            called = event.wanted.called
            if called is not None and called.address in lines and (event.wanted.context == CALL_RETURN) == returns:
                by_address.setdefault(called.address, []).append((number, event))
        if by_address:
            name, field = RETURNS if returns else CALLS[tracer]
            traced = [lines[address] for address in by_address]
            found.append(_records(root, name, field, by_address, traced, bits))
    return found


def _records(
    root: str, name: str, field: str, by_address: Dict[int, List[Member]], lines: Sequence[Line], bits: int
) -> Records:
    with open(os.path.join(root, "events", GROUP, name, "format")) as file:
        event_format = parse_format(GROUP, file.read())
    place = event_format.field(field)
    assert place is not None
    start, end = place.offset, place.offset + place.size
    makers = {
        address: tuple(Maker(number, event, bits, tracepoint_fills(event)) for number, event in members)
        for address, members in by_address.items()
    }
    addresses = sorted(makers)
    known: Dict[bytes, Sequence[Maker]] = {}

    def route(sample: Sample) -> Sequence[Maker]:
        word = sample.raw[start:end]
        found = known.get(word)
        if found is None:
            address = int.from_bytes(word, sys.byteorder)
            at = bisect_right(addresses, address) - 1
            near = at >= 0 and address - addresses[at] <= MOST_PREFIX_BYTES
            found = known[word] = makers[addresses[at]] if near else ()
        return found

    attribute = Attribute(TRACEPOINT_TYPE, event_format.id, 1, RAW)
    return Records(attribute, route, [one for members in by_address.values() for one in members], lines)
