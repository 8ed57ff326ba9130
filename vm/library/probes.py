"""The `kdebug` and `timer` libraries: probes set by a call, as in scripts of ktap 0.1 to 0.3.

Each sets what a `trace` statement would; the spellings of events from then are turned into today's.
"""

from __future__ import annotations

from typing import Optional, Union

from vm.fault import Fault
from vm.library.builtin import NOTHING, Function, Machine, builtin
from vm.values import Table

RETURNS = {b"kprobe": b"", b"kretprobe": b"%return", b"uprobe": b"", b"uretprobe": b"%return"}
"""Older prefixes of function probes, and what comes after the function today."""


def event_text(older: bytes) -> bytes:
    """An event as `trace` has it: `tp:syscalls` is `syscalls:*`, `kretprobe:f` is `probe:f%return`."""
    prefix, colon, rest = older.partition(b":")
    if not colon:
        return older
    if prefix == b"tp":
        return rest if b":" in rest else (rest or b"*") + b":*"
    if prefix in RETURNS:
        return b"probe:" + rest + RETURNS[prefix]
    return older


@builtin(
    "kdebug.probe",
    "event: string, handler: function, filter?: string",
    "",
    ("probe",),
)
def probe(machine: Machine, depth: int, event: bytes, handler: Function, filter: Optional[bytes] = None) -> object:
    """set a probe; the handler is given the event. `tp:GROUP` and `tp:GROUP:EVENT` are tracepoints"""
    machine.probe(event_text(event), filter, handler, takes_event=True)
    return NOTHING


@builtin(
    "kdebug.trace_by_id",
    "id: integer|table, handler: function, filter?: string",
    "",
    ("probe",),
)
def trace_by_id(
    machine: Machine, depth: int, id: Union[int, Table], handler: Function, filter: Optional[bytes] = None
) -> object:
    """trace the tracepoint that has this id in tracefs, or a table of them"""
    ids = [value for _, value in id.entries()] if isinstance(id, Table) else [id]
    for number in ids:
        if not isinstance(number, int) or isinstance(number, bool) or number < 1:
            raise Fault("argument", "kdebug.trace_by_id: the id of a tracepoint is an integer above 0")
        machine.probe(b"id:%d" % number, filter, handler, takes_event=False)
    return NOTHING


@builtin(
    "kdebug.tracepoint",
    "name: string, handler: function",
    "",
    ("probe",),
)
def tracepoint(machine: Machine, depth: int, name: bytes, handler: Function) -> object:
    """trace a raw tracepoint, its arguments as the kernel passes them"""
    machine.probe(b"raw:" + name.rpartition(b":")[2], None, handler, takes_event=False)
    return NOTHING


@builtin("kdebug.kprobe", "name: string, handler: function", "", ("probe",))
def kprobe(machine: Machine, depth: int, name: bytes, handler: Function) -> object:
    """trace the entry of a kernel function"""
    machine.probe(b"probe:" + name, None, handler, takes_event=False)
    return NOTHING


@builtin("kdebug.trace_end", "handler: function", "", ("probe",))
def trace_end(machine: Machine, depth: int, handler: Function) -> object:
    """call the handler when tracing ends"""
    machine.probe(b"trace_end", None, handler, takes_event=False)
    return NOTHING


@builtin("kdebug.probe_end", "handler: function", "", ("probe",))
def probe_end(machine: Machine, depth: int, handler: Function) -> object:
    """the same as kdebug.trace_end"""
    return trace_end(machine, depth, handler)


def timer_event(kind: bytes, period: Union[bytes, int]) -> bytes:
    """`tick-1s` of a kind and a period: `1s`, `tick-1s` or a number of seconds."""
    if isinstance(period, int):
        return b"%b-%ds" % (kind, period)
    return period if period.startswith(kind + b"-") else kind + b"-" + period


@builtin(
    "timer.tick",
    "period: string|integer, handler: function",
    "",
    ("probe",),
)
def tick(machine: Machine, depth: int, period: Union[bytes, int], handler: Function) -> object:
    """call the handler every period: `1s`, `10ms`"""
    machine.probe(timer_event(b"tick", period), None, handler, takes_event=False)
    return NOTHING


@builtin("timer.profile", "period: string|integer, handler: function", "", ("probe",))
def profile(machine: Machine, depth: int, period: Union[bytes, int], handler: Function) -> object:
    """the same on every processor: `99hz`"""
    machine.probe(timer_event(b"profile", period), None, handler, takes_event=False)
    return NOTHING
