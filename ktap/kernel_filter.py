"""Filters in the words of the kernel's own (kernel/trace/trace_events_filter.c), for events that no program decides.

What comes out lets pass all that a filter lets pass, and perhaps more: what the kernel has no words for (the
process, the user) is left out, and decided outside, like everything else, by ktap.recorded_filter.
"""

from __future__ import annotations

from typing import Optional, Sequence, Union

from ktap.event_format import INTEGERS, TEXTS, EventFormat
from ktap.predicate import All, IntegerAt, Negated, Predicate, Running, Some, Test, TextAt

CONTEXT = {"tid": "common_pid", "cpu": "CPU", "execname": "COMM"}
"""What the kernel calls the names that filters may use beside the fields."""
MOST_BYTES = 2000
"""Of a filter; the kernel takes a page."""


def kernel_filter(filters: Sequence[Predicate], event: EventFormat) -> Optional[str]:
    """What passes one of several filters; None where the kernel cannot narrow it."""
    found = [_wide(one, event) for one in filters]
    if not found or None in found:
        return None
    text = " || ".join(f"({one})" for one in found)
    return text if len(text.encode()) <= MOST_BYTES else None


def both(first: Optional[str], second: Optional[str]) -> str:
    """Two conditions that must hold, either of which may be none."""
    return " && ".join(f"({one})" for one in (first, second) if one)


def _wide(what: Predicate, event: EventFormat) -> Optional[str]:
    """At least as wide as the predicate."""
    if isinstance(what, Test):
        return _test(what, event)
    if isinstance(what, Negated):
        inner = _exact(what.inner, event)
        return None if inner is None else f"!({inner})"
    parts = [_wide(part, event) for part in what.parts]
    known = [f"({part})" for part in parts if part is not None]
    if isinstance(what, All):
        return " && ".join(known) or None
    return " || ".join(known) if len(known) == len(parts) else None


def _exact(what: Predicate, event: EventFormat) -> Optional[str]:
    """The very predicate, which may stand behind a `!`."""
    if isinstance(what, Test):
        return _test(what, event)
    if isinstance(what, Negated):
        inner = _exact(what.inner, event)
        return None if inner is None else f"!({inner})"
    parts = [_exact(part, event) for part in what.parts]
    if None in parts:
        return None
    return (" && " if isinstance(what, All) else " || ").join(f"({part})" for part in parts)


def _test(test: Test, event: EventFormat) -> Optional[str]:
    name = _name(test.subject, event)
    value = _value(test.value)
    return None if name is None or value is None else f"{name} {test.operator} {value}"


def _name(subject: Union[IntegerAt, TextAt, Running], event: EventFormat) -> Optional[str]:
    if isinstance(subject, Running):
        return CONTEXT.get(subject.name)
    if isinstance(subject, TextAt) and subject.space:
        return None
    for field in event.fields:
        if (field.offset, field.size) == (subject.offset, subject.size_bytes):
            shadowed = field.name in ("CPU", "cpu", "COMM", "comm") and field.name in CONTEXT.values()
            return None if shadowed or field.kind in (INTEGERS, TEXTS) else field.name
    return None


def _value(value: Union[int, bytes]) -> Optional[str]:
    if isinstance(value, int):
        return str(value) if value < 0 or value < 1 << 63 else None
    text = value.decode("latin-1")
    if '"' in text or not text.isprintable() or not text.isascii() or "\\" in text or not text:
        return None
    return f'"{text}"'


def is_decided(what: Predicate) -> Optional[str]:
    """Why a filter cannot be decided from a sample; None where it can."""
    if isinstance(what, Negated):
        return is_decided(what.inner)
    if isinstance(what, (All, Some)):
        return next((found for part in what.parts if (found := is_decided(part)) is not None), None)
    if isinstance(what.subject, Running) and what.subject.name == "uid":
        return "`uid`"
    if isinstance(what.subject, TextAt) and what.subject.space:
        return "memory behind a pointer"
    return None
