"""`ktap list`: the events of this machine with their fields."""

from __future__ import annotations

import os
from typing import Iterable, List, Optional

from ktap import event_format, tracefs
from ktap.event_format import EventFormat
from ktap.forms import forms_like, show_forms
from ktap.print_format import event_text
from ktap.symbols import LiveNames
from ktap.tracefs import Tracefs
from vm import c_types
from vm.diagnostic import Diagnostic, Refusal

RAW = "raw:"
OF_PLACES = ("probe:", "sdt:", "perf:", "ftrace:")
"""Events that are looked for in files, or by asking the kernel for them."""
KINDS = ("probe", "sdt", "perf", "raw", "ftrace")
"""A word that stands for all events of a kind, where there is no group of that name."""
VALUES = {
    event_format.INTEGER: "integer",
    event_format.POINTER: "integer",
    event_format.TEXT: "string",
    event_format.BYTES: "string",
    event_format.INTEGERS: "table",
    event_format.TEXTS: "table of strings",
}
"""What a field of each kind is in a script."""


def list_events(pattern: str, verbose: bool) -> str:
    """The events a glob matches (`sched:*`, `syscalls`, `raw:*`), one a line; `verbose` adds types and how argstr is made.

    Where a pattern without a colon is no group, it is a name in any of them (`sched_switch`, `*openat`).

    Raises Refusal: where nothing matches, or (status 3) where the kernel does not tell its events.
    """
    if pattern in KINDS:
        pattern += ":"
    forms = forms_like(pattern)
    if forms:
        return show_forms(forms, verbose)
    if pattern.startswith(RAW):
        return _raw(pattern[len(RAW) :] or "*", verbose)
    if pattern.startswith(OF_PLACES):
        from ktap.user_listing import list_places, lists

        if lists(pattern):
            return list_places(pattern, verbose)
        if pattern.startswith(("probe:", "ftrace:")):
            from ktap.call_listing import list_functions

            return list_functions(pattern, verbose)
    mounted = tracefs.find()
    names = mounted.match(pattern) or ([] if ":" in pattern else mounted.match(f"*:{pattern}"))
    if not names:
        raise _no_event(*mounted.unknown(pattern))
    show = _Verbose(mounted) if verbose else _brief
    return "".join(show(mounted.format(name)) for name in names)


def _no_event(message: str, hint: Optional[str]) -> Refusal:
    return Refusal([Diagnostic("ktap", None, message, hint)], status=1)


def _brief(event: EventFormat) -> str:
    fields = " ".join(field.name for field in event.fields)
    return f"{event.group}:{event.name} {fields}".rstrip() + "\n"


class _Verbose:
    """Shows events with a line a field, and the numbers of those that have one."""

    def __init__(self, mounted: Tracefs) -> None:
        self._names = LiveNames(lambda: mounted.root)
        self._release = os.uname().release

    def __call__(self, event: EventFormat) -> str:
        rows = [
            (f"arg{number}" if number < 10 else "", f"args.{field.name}", VALUES[field.kind], field.declaration)
            for number, field in enumerate(event.fields)
        ]
        fallback = event_text(event, self._names, self._release).fallback
        shown = "as in the trace file" if fallback is None else f"name=value pairs: {fallback} cannot be evaluated here"
        return f"{event.group}:{event.name}\n{_columns([*rows, ('', 'argstr', 'string', shown)])}"


def _columns(rows: Iterable[tuple[str, ...]]) -> str:
    cells: List[tuple[str, ...]] = list(rows)
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in cells)
    return "".join(f"    {line}\n" for line in lines)


def _raw(pattern: str, verbose: bool) -> str:
    """Raw tracepoints, which BTF tells of."""
    from fnmatch import filter as matching

    from ktap.btf import kernel_types

    types = kernel_types()
    if types is None:
        message = "this kernel does not tell the types of its raw tracepoints"
        raise Refusal([Diagnostic("ktap", None, message, "ktap list '*:*' shows the others")], status=3)
    names = matching(types.raw_tracepoints(), pattern)
    if not names:
        raise _no_event(f"no raw tracepoint matches `{pattern}`", "ktap list 'raw:*' shows them")
    lines = []
    for name in names:
        arguments = types.raw_tracepoint(name) or ()
        labels = [argument.name or f"arg{number}" for number, argument in enumerate(arguments)]
        if verbose:
            rows = [
                (f"arg{number}", f"args.{label}", c_types.show(argument.type))
                for number, (label, argument) in enumerate(zip(labels, arguments))
            ]
            lines.append(f"raw:{name}\n" + (_columns(rows) if rows else ""))
        else:
            lines.append(f"raw:{name} {' '.join(labels)}".rstrip() + "\n")
    return "".join(lines)
