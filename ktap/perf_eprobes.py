"""Tracepoints whose handlers read memory behind their fields: event probes, in an instance of ktap's own.

An event probe hangs on a tracepoint and fetches what its definition says, the fields too, into one record. perf
does not sample such events; they are read from a tracefs instance. Source: Documentation/trace/eprobetrace.rst;
kernel/trace/trace_eprobe.c (Linux 5.15).
"""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import Callable, Dict, List, Optional, Tuple

from ktap.captured import IN_INTERRUPT, KERNEL_STACK, READ, RECORD, USER_STACK
from ktap.demand import Read
from ktap.event_format import DATA_LOC, INLINE, INTEGER, POINTER, TEXT, EventFormat, Field
from ktap.layout import Slot
from ktap.own_group import OwnGroup
from ktap.perf_event import TRACEPOINT as TRACEPOINT_TYPE
from ktap.perf_event import Attribute
from ktap.perf_fetch import Cells, Fetches, Inexpressible, Words, field_names
from ktap.perf_probes import format_of
from ktap.perf_streams import Stream, Tools
from ktap.perf_values import Fill, Maker, tracepoint_fills
from ktap.plan import Captured
from ktap.tracefs import TracepointName

PLAIN = {INTEGER: "u", POINTER: "x"}
FILE = "dynamic_events"
TRIED = "sched.sched_switch"
"""A tracepoint that every kernel has."""


def has_event_probes(group: OwnGroup) -> bool:
    """Whether the kernel takes such definitions."""
    with suppress(OSError):
        group.define(FILE, "e", [TRIED])
        return True
    return False


class Copies:
    """The fields of a tracepoint as fetch arguments, and the record that is made of them again."""

    def __init__(self, event: EventFormat) -> None:
        """Raises Inexpressible."""
        self.arguments: List[str] = []
        self._fields: List[Tuple[Field, str]] = []
        self._size = max(field.offset + field.size for field in event.fields)
        for number, field in enumerate(event.fields):
            if field.kind in PLAIN and field.place == INLINE:
                kind = f"u{8 * field.size}"
            elif field.kind == TEXT and field.place in (INLINE, DATA_LOC):
                kind = "string"
            else:
                raise Inexpressible(f"`{field.name}`, an array,")
            name = f"f{number}"
            self.arguments.append(f"{name}=${field.name}:{kind}")
            self._fields.append((field, name))

    def maker(self, event: EventFormat) -> Callable[[bytes], bytes]:
        """Makes the tracepoint's record of the event probe's, whose format is known now."""
        places = [(field, event.field(name)) for field, name in self._fields]

        def make(raw: bytes) -> bytes:
            record = bytearray(self._size)
            record[4:8] = raw[4:8]
            for field, source in places:
                assert source is not None
                data = raw[source.offset : source.offset + source.size]
                if field.kind != TEXT:
                    record[field.offset : field.offset + field.size] = data[: field.size]
                    continue
                word = int.from_bytes(data, sys.byteorder)
                text = raw[word & 0xFFFF :][: word >> 16]
                if field.place == INLINE:
                    record[field.offset : field.offset + field.size] = text[: field.size].ljust(field.size, b"\0")
                else:
                    where = len(text) << 16 | len(record)
                    record[field.offset : field.offset + 4] = where.to_bytes(4, sys.byteorder)
                    record += text
            return bytes(record)

        return make


def fetches_of(event: Captured, event_format: EventFormat) -> Fetches:
    """The memory that handlers read. Raises Inexpressible."""
    for name in (KERNEL_STACK, USER_STACK, "cgroup"):
        if event.kind.layout.item(name) is not None:
            raise Inexpressible("memory and, of the same event, stacks or the cgroup")
    fetches = Fetches(Words(field_names(event_format), False))
    for read in event.case.reads:
        fetches.add(read)
    return fetches


def eprobe_stream(number: int, event: Captured, tools: Tools) -> Stream:
    """The stream of a tracepoint with memory. Raises OSError, and Inexpressible."""
    wanted = event.wanted
    group, _, name = wanted.label.partition(":")
    event_format = wanted.format or tools.format_of(TracepointName(group, name))
    fetches = fetches_of(event, event_format)
    copies = Copies(event_format) if event.kind.layout.item(RECORD) is not None else None
    arguments = [*(copies.arguments if copies is not None else ()), *fetches.arguments]
    how = (
        "an event probe, read from an instance of tracefs, where a histogram counts what there is no room for;"
        f" it fetches {' '.join(arguments)}"
    )
    attribute = Attribute(TRACEPOINT_TYPE, 0)
    if not tools.attaching:
        return Stream(wanted.label, attribute, lambda sample: (), how=how)
    own = tools.group()
    defined = own.define(FILE, "e", [" ".join([f"{group}.{name}", *arguments])])
    own_format = format_of(own, defined)
    cells = fetches.cells(own_format)
    maker = (Maker(number, event, tools.bits, _fills(event, cells, copies, own_format)),)
    return Stream(
        wanted.label,
        attribute._replace(config=own_format.id),
        lambda sample: maker,
        None if event.case.of_ktap else tools.narrowing or None,
        leaves_out_ktap=not event.case.of_ktap,
        how=how,
        traced=TracepointName(own.name, defined),
        origin=TracepointName(group, name),
    )


def _fills(event: Captured, cells: Cells, copies: Optional[Copies], own_format: EventFormat) -> Dict[str, Fill]:
    fills = {name: fill for name, fill in tracepoint_fills(event).items() if name == IN_INTERRUPT}
    for slot in event.kind.layout.slots:
        if slot.name == RECORD and copies is not None:
            fills[RECORD] = _copied(copies.maker(own_format), slot)
        elif slot.name.startswith(READ):
            fills[slot.name] = _fetched(cells, event.case.reads[int(slot.name[len(READ) :])])
    return fills


def _copied(make: Callable[[bytes], bytes], slot: Slot) -> Fill:
    size, least = slot.size_bytes, 0 if slot.varies else slot.size_bytes
    return lambda sample, who, tasks: make(sample.raw)[:size].ljust(least, b"\0")


def _fetched(cells: Cells, read: Read) -> Fill:
    cell = cells[read]
    return lambda sample, who, tasks: cell(sample.raw)


def why_unread(event: Captured, format_of_name: Callable[[TracepointName], EventFormat]) -> Optional[str]:
    """What an event probe cannot fetch, None where it can all."""
    group, _, name = event.wanted.label.partition(":")
    event_format = event.wanted.format or format_of_name(TracepointName(group, name))
    try:
        fetches_of(event, event_format)
        if event.kind.layout.item(RECORD) is not None:
            Copies(event_format)
    except Inexpressible as error:
        return str(error)
    return None
