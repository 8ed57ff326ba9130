"""Printing: print, printf, sprintf, print_hist."""

from __future__ import annotations

from typing import Optional

from vm.aggregate import Stats
from vm.fault import Fault
from vm.histogram import draw_largest
from vm.library.builtin import KERNEL, NOTHING, Function, Machine, builtin, made, wrong_argument
from vm.printf import formatter
from vm.values import Table, describe, order, tostring

SHOWN_ROWS = 20


@made("print", "...: any", "", ("output",), KERNEL)
def make_print(machine: Machine) -> Function:
    """print the values with tabs between them and a newline after"""
    write, host = machine.output.write, machine.host

    def print_values(depth: int, *values: object) -> object:
        write(b"\t".join([value if type(value) is bytes else tostring(value, host) for value in values]) + b"\n")
        return NOTHING

    return print_values


@made(
    "printf",
    "format: string, ...: any",
    "",
    faults=("format", "string", "output"),
    tiers=KERNEL,
)
def make_printf(machine: Machine) -> Function:
    """print by a C format; %s takes any value"""
    write, host = machine.output.write, machine.host
    fill = formatter("printf", lambda value: tostring(value, host), describe, machine.limits.string_bytes)

    def printf(depth: int, format: object = None, *values: object) -> object:
        if type(format) is not bytes:
            raise wrong_argument("printf", 1, format, "string")
        write(fill(format, values))
        return NOTHING

    return printf


@made(
    "sprintf",
    "format: string, ...: any",
    "string",
    faults=("format", "string", "memory"),
)
def make_sprintf(machine: Machine) -> Function:
    """the string that printf would print"""
    host, built = machine.host, machine.account.built
    fill = formatter("sprintf", lambda value: tostring(value, host), describe, machine.limits.string_bytes)

    def sprintf(depth: int, format: object = None, *values: object) -> object:
        if type(format) is not bytes:
            raise wrong_argument("sprintf", 1, format, "string")
        return built(fill(format, values))

    return sprintf


@builtin(
    "print_hist",
    "t: table, n?: integer",
    "",
    faults=("output",),
)
def print_hist(machine: Machine, depth: int, t: Table, n: Optional[int] = None) -> object:
    """draw the counts in t, largest first, n rows (20); a stats value stands for its count

    Draw t; equal counts in order of their keys, which is the same wherever they were counted.
    """
    rows = []
    for key, value in sorted(t.entries(), key=lambda entry: order(entry[0])):
        count = value.count if isinstance(value, Stats) else value
        if not isinstance(count, int) or isinstance(count, bool):
            label = tostring(key, machine.host).decode("utf-8", "replace")
            raise Fault("argument", f"print_hist: the value of {label} is {describe(value)}, expected an integer")
        rows.append((tostring(key, machine.host), int(count)))
    machine.output.write(draw_largest(rows, max(0, SHOWN_ROWS if n is None else n)))
    return NOTHING
