"""The `table` library."""

from __future__ import annotations

from typing import Optional

from vm.library.builtin import NOTHING, Machine, builtin
from vm.values import Table


@builtin(
    "table.new",
    "narr?: integer, nrec?: integer",
    "table",
    faults=("memory",),
)
def table_new(machine: Machine, depth: int, narr: Optional[int] = None, nrec: Optional[int] = None) -> Table:
    """an empty table; how many entries it will have need not be told"""
    return Table(machine.account)


@builtin("table.clear", "t: table", "")
def table_clear(machine: Machine, depth: int, t: Table) -> object:
    """remove all entries of t"""
    t.clear()
    return NOTHING


@builtin("table.count", "t: table", "integer")
def table_count(machine: Machine, depth: int, t: Table) -> int:
    """how many entries t has"""
    return len(t)
