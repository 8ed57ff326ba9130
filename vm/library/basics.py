"""The builtins most scripts need: pairs, sort_pairs, len, delete, tostring, tonumber, stringof, exit."""

from __future__ import annotations

from functools import cmp_to_key
from typing import Callable, Optional

from vm.fault import Exit, Fault
from vm.library.builtin import KERNEL, NOTHING, Function, Machine, builtin, made, wrong_argument
from vm.values import Cdata, Iterator, Stack, Table, inner_key, make_key, order, tostring, wrap

Entry = tuple[object, object]

ENTRY_BYTES = 72
"""An entry of a snapshot: a tuple of two and its place in a list."""


@made("pairs", "t: table", "iterator")
def make_pairs(machine: Machine) -> Function:
    """for `for`: the keys and values of t, as they are when the loop begins"""
    charge = machine.account.charge

    def pairs(depth: int, t: object = None, *_: object) -> object:
        if type(t) is not Table:
            raise wrong_argument("pairs", 1, t, "table")
        charge(ENTRY_BYTES * len(t))
        return Iterator(t.entries())

    return pairs


@builtin(
    "sort_pairs",
    "t: table, before?: function",
    "iterator",
)
def sort_pairs(machine: Machine, depth: int, t: Table, before: Optional[Function] = None) -> Iterator:
    """pairs in order of the keys, or so that before(v1, v2, k1, k2) is true (or below 0) for neighbours

    Sort a snapshot of t. Entries that are equal come in order of their keys, which is the same wherever they were made.
    """
    machine.account.charge(ENTRY_BYTES * len(t))
    entries = t.entries()
    entries.sort(key=lambda entry: order(entry[0]))
    if before is not None:
        entries.sort(key=cmp_to_key(comparison(machine, depth, before)))
    return Iterator(entries)


def comparison(machine: Machine, depth: int, before: Function) -> Callable[[Entry, Entry], int]:
    """The script's comparison as Python's sort takes it, which asks only whether it gives less than 0."""

    def compare(one: Entry, other: Entry) -> int:
        result = machine.call(depth, before, one[1], other[1], one[0], other[0])
        if type(result) is tuple:
            result = result[0] if result else None
        if isinstance(result, int) and not isinstance(result, bool):
            return int(result)
        return -1 if result is not None and result is not False else 0

    return compare


@made("len", "x: string|table", "integer", tiers=KERNEL)
def make_len(machine: Machine) -> Function:
    """bytes of a string, entries of a table"""

    def length(depth: int, x: object = None, *_: object) -> object:
        if type(x) is bytes or type(x) is Table:
            return len(x)
        raise wrong_argument("len", 1, x, "string or table")

    return length


@made("delete", "t: table, k?: any", "", tiers=KERNEL)
def make_delete(machine: Machine) -> Function:
    """remove the entry under k, or all entries where no k is written"""

    def delete(depth: int, t: object = None, *keys: object) -> object:
        if type(t) is not Table:
            raise wrong_argument("delete", 1, t, "table")
        if not keys:
            t.clear()
        elif None not in keys:
            t.pop(inner_key(keys[0]) if len(keys) == 1 else make_key(keys), None)
        return NOTHING

    return delete


@made("tostring", "x: any", "string", faults=("string", "memory"))
def make_tostring(machine: Machine) -> Function:
    """x as print shows it"""
    host, built = machine.host, machine.account.built

    def to_string(depth: int, x: object = None, *_: object) -> object:
        return x if type(x) is bytes else built(tostring(x, host))

    return to_string


@builtin(
    "stringof",
    "x: any",
    "string",
    faults=("string", "memory"),
)
def stringof(machine: Machine, depth: int, x: object = None) -> bytes:
    """x as a string: the symbols of an address or a stack, the text of an event

    The text of x; stacks without the last newline, so that it can stand in a line.
    """
    text = tostring(x, machine.host)
    return machine.account.built(text[:-1] if isinstance(x, Stack) else text)


@builtin(
    "tonumber",
    "x: any, base?: integer",
    "integer",
)
def tonumber(machine: Machine, depth: int, x: object = None, base: Optional[int] = None) -> Optional[int]:
    """the integer that x is or that its text is in a base from 2 to 36 (10, or 16 after 0x); nil where it is none

    Convert x. What 64 bits do not hold is no integer.
    """
    if base is not None and not 2 <= base <= 36:
        raise Fault("argument", f"tonumber: base {base} is not between 2 and 36")
    if isinstance(x, Cdata):
        return x.address
    if isinstance(x, int) and not isinstance(x, bool):
        return int(x)
    return number_in(x, base) if isinstance(x, bytes) else None


def number_in(text: bytes, base: Optional[int]) -> Optional[int]:
    """The integer a text is, None where it is none. White space around it does not count."""
    digits = text.strip(b" \t\n\v\f\r").lower()
    sign = -1 if digits.startswith(b"-") else 1
    if digits[:1] in (b"-", b"+"):
        digits = digits[1:]
    if digits.startswith(b"0x") and base in (None, 16):
        base, digits = 16, digits[2:]
    if not digits.isalnum() or len(digits) > 128:
        return None
    try:
        number = int(digits, base or 10)
    except ValueError:
        return None
    return wrap(sign * number) if number < 1 << 64 else None


@builtin("exit", "status?: integer", "", tiers=KERNEL)
def exit_tracing(machine: Machine, depth: int, status: Optional[int] = None) -> object:
    """end tracing, with this exit status (0); trace_end still runs

    End the run. The status is cut to the 8 bits that a process has.
    """
    raise Exit(0 if status is None else int(status) & 0xFF)
