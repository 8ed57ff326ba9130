"""Stacks and symbols: stack, ustack, print_backtrace, ksym, usym, ipof."""

from __future__ import annotations

from typing import Optional

from vm.fault import Fault
from vm.library.builtin import KERNEL, NOTHING, Machine, builtin, event_pid
from vm.values import Address, Stack, tostring

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


@builtin("ksym", "a?: integer", "address")
def ksym(machine: Machine, depth: int, a: Optional[int] = None) -> Optional[Address]:
    """a as an address of the kernel, which prints as its symbol"""
    return None if a is None else Address(a)


@builtin("ipof", "a?: integer", "address")
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
