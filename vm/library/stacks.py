"""Stacks and symbols: stack, ustack, print_backtrace, print_folded, ksym, usym, ipof."""

from __future__ import annotations

import re
from typing import Dict, Optional, Tuple

from vm.aggregate import Stats
from vm.fault import Fault
from vm.host import Host
from vm.library.builtin import KERNEL, NOTHING, Machine, builtin, event_pid
from vm.values import Address, Key, Stack, Table, describe, tostring

MOST_FRAMES = 127
"""As many as the kernel walks by default (kernel.perf_event_max_stack)."""


def event_stack(machine: Machine, name: str, space: str, depth: Optional[int], skip: Optional[int]) -> object:
    """The stack of the event; nil outside of one. Raises Fault argument and event."""
    frames = MOST_FRAMES if depth is None else depth
    if frames < 1:
        raise Fault("argument", f"{name}: a stack of {frames} frames")
    if skip is not None and skip < 0:
        raise Fault("argument", f"{name}: {skip} frames to skip")
    if machine.event is None:
        return None
    try:
        return machine.event.stack(space, min(frames, MOST_FRAMES), skip or 0)
    except LookupError:
        raise Fault("event", f"{name}: the {space} stack was not captured for this event") from None


STACK_PARAMETERS = "depth?: integer, skip?: integer"


@builtin("stack", STACK_PARAMETERS, "stack", ("event",), KERNEL)
def stack(machine: Machine, depth: int, frames: Optional[int] = None, skip: Optional[int] = None) -> object:
    """the kernel stack, at most depth frames after skip of them"""
    return event_stack(machine, "stack", "kernel", frames, skip)


@builtin("ustack", STACK_PARAMETERS, "stack", ("event",), KERNEL)
def ustack(machine: Machine, depth: int, frames: Optional[int] = None, skip: Optional[int] = None) -> object:
    """the user stack, at most depth frames after skip of them"""
    return event_stack(machine, "ustack", "user", frames, skip)


@builtin("print_backtrace", "", "", ("event", "output"))
def print_backtrace(machine: Machine, depth: int) -> object:
    """print the kernel stack, a frame a line"""
    found = event_stack(machine, "print_backtrace", "kernel", None, None)
    if isinstance(found, Stack):
        machine.output.write(tostring(found, machine.host))
    return NOTHING


FRAME_OFFSET = re.compile(r"\+0x[0-9a-f]+( \[[^\[]*\])?$")
"""What stands behind the name in a symbol."""
FILE_OFFSET = re.compile(r"\[(.*)\+0x[0-9a-f]+( build-id [0-9a-f]+)?\]$")
"""An address of a file without a symbol."""


@builtin("print_folded", "t: table", "", faults=("output",))
def print_folded(machine: Machine, depth: int, t: Table) -> object:
    """print the counts in t as flame graphs take them: `root;caller;function 12`, a line a stack

    The keys of t are stacks, or several values with stacks among them (`s[execname, ustack(), stack()]`), which
    become one line in the order they stand. Lines that are the same are one.
    """
    counts: Dict[str, int] = {}
    for key, value in t.entries():
        count = value.count if isinstance(value, Stats) else value
        if not isinstance(count, int) or isinstance(count, bool):
            label = tostring(key, machine.host).decode("utf-8", "replace")
            raise Fault("argument", f"print_folded: the value of {label} is {describe(value)}, expected an integer")
        line = folded(key.parts() if isinstance(key, Key) else (key,), machine.host)
        counts[line] = counts.get(line, 0) + int(count)
    lines = [f"{line} {count}\n" for line, count in sorted(counts.items())]
    machine.output.write("".join(lines).encode("utf-8", "surrogateescape"))
    return NOTHING


def folded(parts: Tuple[object, ...], host: Host) -> str:
    """The parts of a key, and the functions of the stacks among them, outermost first, with `;` between them."""
    words = []
    for part in parts:
        if isinstance(part, Stack):
            words += [frame_name(name) for name in reversed(part.names(host))]
        else:
            words.append(tostring(part, host).decode("utf-8", "surrogateescape"))
    if not words:
        words = [tostring(part, host).decode().rstrip("\n") for part in parts]
    return ";".join([word.replace(";", ":").replace("\n", " ") for word in words])


def frame_name(symbol: str) -> str:
    """The name of a function alone; `[file]` where only that is known, `[unknown]` where nothing is."""
    if symbol.startswith("0x"):
        return "[unknown]"
    in_file = FILE_OFFSET.match(symbol)
    return f"[{in_file[1]}]" if in_file is not None else FRAME_OFFSET.sub("", symbol)


@builtin("ksym", "a?: integer", "address", (), KERNEL)
def ksym(machine: Machine, depth: int, a: Optional[int] = None) -> Optional[Address]:
    """a as an address of the kernel, which prints as its symbol"""
    return None if a is None else Address(a)


@builtin("ipof", "a?: integer", "address", (), KERNEL)
def ipof(machine: Machine, depth: int, a: Optional[int] = None) -> Optional[Address]:
    """the same as ksym"""
    return ksym(machine, depth, a)


@builtin(
    "usym",
    "a?: integer, pid?: integer",
    "address",
)
def usym(machine: Machine, depth: int, a: Optional[int] = None, pid: Optional[int] = None) -> Optional[Address]:
    """a as an address of the process (the event's), which prints as its symbol"""
    if a is None:
        return None
    if pid is None:
        pid = getattr(a, "pid", 0) or event_pid(machine)
    if pid is None:
        raise Fault("argument", "usym: outside of an event it needs a pid")
    return Address(a, pid)
