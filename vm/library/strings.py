"""The `string` library. Places in a string count from 1, negative ones from its end, as in Lua 5.1."""

from __future__ import annotations

from typing import Optional

from vm.library.builtin import KERNEL, Machine, builtin
from vm.values import Table


def clipped(length: int, first: int, last: int) -> slice:
    """The slice of a string of `length` bytes from `first` through `last`, both as scripts give them."""
    start = first - 1 if first > 0 else max(length + first, 0) if first < 0 else 0
    end = last if last >= 0 else length + last + 1
    return slice(start, max(end, 0))


@builtin("string.len", "s: string", "integer", tiers=KERNEL)
def string_len(machine: Machine, depth: int, s: bytes) -> int:
    """how many bytes s has"""
    return len(s)


@builtin("string.sub", "s: string, first: integer, last?: integer", "string")
def string_sub(machine: Machine, depth: int, s: bytes, first: int, last: Optional[int] = None) -> bytes:
    """the bytes of s from first through last"""
    return machine.account.built(s[clipped(len(s), first, -1 if last is None else last)])


@builtin(
    "string.find",
    "s: string, what: string, from?: integer",
    "integer, integer",
)
def string_find(machine: Machine, depth: int, s: bytes, what: bytes, start: Optional[int] = None) -> object:
    """first and last place of the plain text `what` in s, nil where it is not"""
    begin = clipped(len(s), 1 if start is None else start, -1).start
    place = s.find(what, begin)
    return None if place < 0 else (place + 1, place + len(what))


@builtin("string.upper", "s: string", "string")
def string_upper(machine: Machine, depth: int, s: bytes) -> bytes:
    """s with the letters a-z as A-Z"""
    return machine.account.built(s.upper())


@builtin("string.lower", "s: string", "string")
def string_lower(machine: Machine, depth: int, s: bytes) -> bytes:
    """s with the letters A-Z as a-z"""
    return machine.account.built(s.lower())


@builtin("string.rep", "s: string, n: integer", "string", faults=("string", "memory"))
def string_rep(machine: Machine, depth: int, s: bytes, n: int) -> bytes:
    """s, n times"""
    if n > 0 and len(s) * n > machine.limits.string_bytes:
        raise machine.account.string_fault()
    return machine.account.built(s * max(0, n if s else 0))


@builtin(
    "string.split",
    "s: string, separator: string",
    "table",
    faults=("memory",),
)
def string_split(machine: Machine, depth: int, s: bytes, separator: bytes) -> Table:
    """the parts of s between separators, from 1; an empty separator gives the single bytes"""
    parts = s.split(separator) if separator else [s[n : n + 1] for n in range(len(s))]
    table = Table(machine.account)
    for number, part in enumerate(parts, 1):
        table.put(number, machine.account.built(part))
    return table
