"""Reading memory of the event: it was read when the event fired, here it is only looked up."""

from __future__ import annotations

import sys
from typing import Optional, Union

from vm.fault import Fault
from vm.library.builtin import KERNEL, Machine, builtin
from vm.values import Cdata, wrap

Place = Union[int, Cdata, None]
"""A parameter that takes an address."""
ADDRESS_MASK = 0xFFFFFFFFFFFFFFFF


def captured(
    machine: Machine, name: str, space: str, kind: str, address: Place, size: int, hint: Optional[str] = None
) -> Optional[bytes]:
    """Memory at an address; nil where it could not be read or the address is nil.

    Raises Fault event outside of an event and for what was not captured.
    """
    if address is None:
        return None
    number = (address.address if isinstance(address, Cdata) else int(address)) & ADDRESS_MASK
    if machine.event is None:
        raise Fault("event", f"{name}: there is memory to read in the handler of an event only")
    try:
        return machine.event.memory(space, kind, number, size)
    except LookupError:
        raise Fault(
            "event",
            f"{name}: the memory at {number:#x} was not captured when the event fired",
            hint or f"give {name} an argument of the event itself, as in {name}(arg1)",
        ) from None


def string_at(machine: Machine, name: str, space: str, p: Place, n: Optional[int]) -> Optional[bytes]:
    """The bytes at p up to a zero, at most n and never more than the limit for strings of an event."""
    limit = machine.limits.event_string_bytes
    size = limit if n is None else min(n, limit)
    if size < 0:
        raise Fault("argument", f"{name}: a string of {size} bytes")
    found = captured(machine, name, space, "string", p, size)
    return None if found is None else machine.account.built(found.partition(b"\0")[0][:size])


@builtin("user_string", "p?: integer|cdata, n?: integer", "string", ("event",), KERNEL)
def user_string(machine: Machine, depth: int, p: Place = None, n: Optional[int] = None) -> Optional[bytes]:
    """the string at p in the process, at most n bytes"""
    return string_at(machine, "user_string", "user", p, n)


@builtin("kernel_string", "p?: integer|cdata, n?: integer", "string", ("event",), KERNEL)
def kernel_string(machine: Machine, depth: int, p: Place = None, n: Optional[int] = None) -> Optional[bytes]:
    """the string at p in the kernel, at most n bytes"""
    return string_at(machine, "kernel_string", "kernel", p, n)


@builtin("user_buf", "p?: integer|cdata, n?: integer", "string", ("event",))
def user_buf(machine: Machine, depth: int, p: Place = None, n: Optional[int] = None) -> Optional[bytes]:
    """n bytes at p in the process"""
    if p is None or n is None:
        return None
    if n < 0:
        raise Fault("argument", f"user_buf: a buffer of {n} bytes")
    size = min(n, machine.limits.event_string_bytes)
    found = captured(machine, "user_buf", "user", "bytes", p, size)
    return None if found is None else machine.account.built(found[:size])


def add_number(space: str, where: str, bits: int) -> None:
    """Make the row of `kernel_u32` and its like."""
    name = f"{space}_u{bits}"

    def number(machine: Machine, depth: int, p: Place = None) -> Optional[int]:
        found = captured(machine, name, space, "bytes", p, bits // 8)
        if found is None or len(found) < bits // 8:
            return None
        return wrap(int.from_bytes(found[: bits // 8], sys.byteorder))

    number.__doc__ = f"the {bits}-bit number at p in the {where}; nil where it cannot be read"
    builtin(name, "p?: integer|cdata", "integer", ("event",), KERNEL)(number)


for number_bits in (8, 16, 32, 64):
    add_number("kernel", "kernel", number_bits)
    add_number("user", "process", number_bits)
