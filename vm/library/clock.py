"""Time: gettimeofday_*, strftime, print_trace_clock. In a handler it is the time of the event."""

from __future__ import annotations

import time

from vm.fault import Fault
from vm.library.builtin import KERNEL, NOTHING, Machine, builtin

SECOND_NS = 1_000_000_000
LONGEST_FORMAT = 1000


def real_ns(machine: Machine) -> int:
    """Nanoseconds since 1970."""
    return machine.now_ns() + machine.host.realtime_offset_ns()


@builtin("gettimeofday_ns", "", "integer", tiers=KERNEL)
def gettimeofday_ns(machine: Machine, depth: int) -> int:
    """nanoseconds since 1970"""
    return real_ns(machine)


@builtin("gettimeofday_us", "", "integer", tiers=KERNEL)
def gettimeofday_us(machine: Machine, depth: int) -> int:
    """microseconds since 1970"""
    return real_ns(machine) // 1000


@builtin("gettimeofday_ms", "", "integer", tiers=KERNEL)
def gettimeofday_ms(machine: Machine, depth: int) -> int:
    """milliseconds since 1970"""
    return real_ns(machine) // 1_000_000


@builtin("gettimeofday_s", "", "integer", tiers=KERNEL)
def gettimeofday_s(machine: Machine, depth: int) -> int:
    """seconds since 1970"""
    return real_ns(machine) // SECOND_NS


@builtin(
    "strftime",
    "format: string, ns: integer",
    "string",
    faults=("string", "memory"),
)
def strftime(machine: Machine, depth: int, format: bytes, ns: int) -> bytes:
    """a time in ns since 1970 by a strftime(3) format, in local time"""
    if b"\0" in format or len(format) > LONGEST_FORMAT:
        raise Fault("argument", f"strftime: a format is at most {LONGEST_FORMAT} bytes, none of them zero")
    try:
        text = time.strftime(format.decode("utf-8", "surrogateescape"), time.localtime(ns // SECOND_NS))
    except (ValueError, OverflowError, OSError) as error:
        raise Fault("argument", f"strftime: no such time or format: {error}") from None
    return machine.account.built(text.encode("utf-8", "surrogateescape"))


@builtin("print_trace_clock", "", "", faults=("output",))
def print_trace_clock(machine: Machine, depth: int) -> object:
    """print the trace clock, in seconds and microseconds"""
    seconds, rest = divmod(machine.now_ns(), SECOND_NS)
    machine.output.write(b"%5d.%06d\n" % (seconds, rest // 1000))
    return NOTHING
