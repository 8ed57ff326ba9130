"""Filters on recorded events, decided here: the same comparisons that ktap.predicate lowers for the kernel.

Source: kernel/trace/trace_events_filter.c; lib/glob.c.
"""

from __future__ import annotations

import re
import sys
from operator import eq, ge, gt, le, lt, ne
from typing import Callable, Dict, Optional

from ktap.captured import ARGUMENTS, RECORD
from ktap.event_format import INLINE, REL_LOC, cut
from ktap.glob import Any, Glob, parse_glob
from ktap.layout import Layout, Values
from ktap.predicate import All, IntegerAt, Negated, Predicate, Running, Some, Test, TextAt

Decide = Callable[[Values], bool]
COMPARISONS: Dict[str, Callable[[int, int], bool]] = {"==": eq, "!=": ne, "<": lt, "<=": le, ">": gt, ">=": ge}


class NotRecorded(Exception):
    """A filter looks at what the recording does not have; the message says at what."""


def decider(what: Predicate, layout: Layout) -> Decide:
    """Whether a record of a layout passes. Raises NotRecorded."""
    if isinstance(what, Negated):
        inner = decider(what.inner, layout)
        return lambda values: not inner(values)
    if isinstance(what, (All, Some)):
        parts = [decider(part, layout) for part in what.parts]
        together = all if isinstance(what, All) else any
        return lambda values: together([part(values) for part in parts])
    return _text(what, what.value, layout) if isinstance(what.value, bytes) else _number(what, what.value, layout)


def _place(layout: Layout, *names: str) -> int:
    for name in names:
        place = layout.item(name)
        if place is not None:
            return place
    raise NotRecorded(f"the {names[0]}")


# -- integers -------------------------------------------------------------------------------------


def _number(test: Test, wanted: int, layout: Layout) -> Decide:
    subject = test.subject
    if isinstance(subject, Running):
        read, size, signed = _running(subject.name, layout), 4, False
    elif isinstance(subject, IntegerAt):
        read, size, signed = _integer(subject, layout), subject.size_bytes, subject.signed
    else:
        raise NotRecorded("a number in a string")
    mask = (1 << 8 * size) - 1
    wanted &= mask
    if test.operator == "&":
        return lambda values: read(values) & wanted != 0
    if signed and wanted >> (8 * size - 1):
        wanted -= mask + 1
    compare = COMPARISONS[test.operator]
    return lambda values: compare(read(values), wanted)


def _integer(subject: IntegerAt, layout: Layout) -> Callable[[Values], int]:
    place = _place(layout, RECORD, ARGUMENTS)
    start, end, signed = subject.offset, subject.offset + subject.size_bytes, subject.signed

    def read(values: Values) -> int:
        data = values[place]
        return int.from_bytes(data[start:end], sys.byteorder, signed=signed) if isinstance(data, bytes) else 0

    return read


def _running(name: str, layout: Layout) -> Callable[[Values], int]:
    if name == "cpu":
        return lambda values: _low(values[2])
    place = _place(layout, "uid_gid" if name == "uid" else "pid_tgid")
    if name == "pid":
        return lambda values: _low(values[place], 32)
    return lambda values: _low(values[place])


def _low(number: object, shift: int = 0) -> int:
    return number >> shift & 0xFFFFFFFF if isinstance(number, int) else 0


# -- strings --------------------------------------------------------------------------------------


def _text(test: Test, wanted: bytes, layout: Layout) -> Decide:
    subject = test.subject
    if isinstance(subject, Running):
        read = _whole(_place(layout, "comm"))
    elif isinstance(subject, TextAt):
        read = _string(subject, layout)
    else:
        raise NotRecorded("a string in a number")
    if test.operator == "~":
        match = glob_pattern(parse_glob(wanted)).fullmatch
        return lambda values: (text := read(values)) is not None and match(text) is not None
    expected = test.operator == "=="
    return lambda values: (read(values) == wanted) is expected


def _whole(place: int) -> Callable[[Values], Optional[bytes]]:
    def read(values: Values) -> Optional[bytes]:
        data = values[place]
        return cut(data) if isinstance(data, bytes) else None

    return read


def _string(subject: TextAt, layout: Layout) -> Callable[[Values], Optional[bytes]]:
    place = _place(layout, RECORD)
    start, end = subject.offset, subject.offset + subject.size_bytes
    if subject.place == INLINE:
        return lambda values: cut(_raw(values[place])[start:end])
    if subject.space:
        raise NotRecorded("the memory behind a pointer")
    base = end if subject.place == REL_LOC else 0

    def read(values: Values) -> Optional[bytes]:
        raw = _raw(values[place])
        word = int.from_bytes(raw[start:end], sys.byteorder)
        first = base + (word & 0xFFFF)
        return cut(raw[first : first + (word >> 16)])

    return read


def _raw(data: object) -> bytes:
    return data if isinstance(data, bytes) else b""


def glob_pattern(glob: Glob) -> re.Pattern[bytes]:
    """A glob of the kernel's as a regular expression for the whole string."""
    return re.compile(b".*".join(b"".join(_item(item) for item in segment) for segment in glob.segments), re.S)


def _item(item: object) -> bytes:
    if isinstance(item, int):
        return re.escape(bytes([item]))
    if isinstance(item, Any):
        return b"."
    ranges = getattr(item, "ranges", ())
    inside = b"|".join(b"[%s-%s]" % (_escaped(low), _escaped(high)) for low, high in ranges if low <= high) or b"(?!)"
    return b"(?!%s)." % inside if getattr(item, "negated", False) else b"(?:%s)" % inside


def _escaped(byte: int) -> bytes:
    return b"\\x%02x" % byte
