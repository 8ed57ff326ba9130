"""What a script holds, in bytes: charged as it grows, counted exactly when the charges say it might be too much.

Whatever can grow charges its size as it is made. Nothing is noted when things are dropped; instead,
when the charges since the last count would pass what is left of the limit, a *census* walks all the
script can still reach and adds up what it finds, by the same sizes. So garbage never makes a script
fail, and real growth always does. The sizes are upper bounds of what Python takes, on all its versions.
"""

from __future__ import annotations

from gc import get_referents
from sys import getsizeof
from types import BuiltinFunctionType, CodeType, FunctionType, ModuleType
from typing import Callable, Dict, Iterable, List, Set, Tuple

from vm.aggregate import Stats
from vm.fault import Fault
from vm.limits import Limits
from vm.values import (
    ENTRY_BYTES,
    KEY_BYTES,
    PART_BYTES,
    TABLE_BYTES,
    EventValue,
    Iterator,
    Key,
    Stack,
    Table,
    payload_bytes,
)

CLOSURE_BYTES = 240
BOX_BYTES = 150
STATS_BYTES = 200
MIN_ALLOWANCE_SHARE = 32
"""A census is done after 1/32 of the limit was charged at the earliest, so that a script near it still moves."""

FREE = frozenset((int, bool, type(None)))
"""Types of values that are counted with what holds them."""


class Apart:
    """Base of what values refer to and the script does not hold: the machine, its account, its C types."""

    __slots__ = ()


NOT_OWNED = (type, ModuleType, CodeType, BuiltinFunctionType, Apart)


class Account(Apart):
    """The charges of one machine. `roots` gives the objects a census starts from."""

    __slots__ = ("allowance", "charged", "drops", "held", "limit", "roots", "string_bytes", "table_entries")

    def __init__(self, limits: Limits, roots: Callable[[], Iterable[object]]) -> None:
        self.limit = limits.memory_bytes
        self.table_entries = limits.table_entries
        self.string_bytes = limits.string_bytes
        self.roots = roots
        self.charged = 0
        self.allowance = limits.memory_bytes
        self.held = 0
        """Bytes the last census found."""
        self.drops: Dict[int, Tuple[Table, int]] = {}
        """Tables at their limit, by identity, and how many new keys each did not take."""

    @property
    def dropped_keys(self) -> int:
        """New keys that tables at their limit did not take, in all."""
        return sum(keys for _, keys in self.drops.values())

    def drop(self, table: Table, keys: int = 1) -> None:
        """Note that a table at its limit did not take new keys."""
        if keys:
            self.drops[id(table)] = (table, self.drops.get(id(table), (table, 0))[1] + keys)

    def charge(self, size_bytes: int) -> None:
        """Note that so many bytes were taken. Raises Fault("memory")."""
        self.charged += size_bytes
        if self.charged > self.allowance:
            self.take_census(size_bytes)

    def take_census(self, coming_bytes: int = 0) -> None:
        """Count what the script holds. Raises Fault("memory") if that and what is coming passes the limit."""
        self.held = reachable_bytes(self.roots())
        if self.held + coming_bytes > self.limit:
            held = f"out of memory: the script holds more than {readable(self.limit)}"
            raise Fault("memory", held, "raise it with --max-memory")
        self.charged = coming_bytes
        self.allowance = max(self.limit - self.held, self.limit // MIN_ALLOWANCE_SHARE)

    def built(self, text: bytes) -> bytes:
        """Check and charge a string that a script built. Raises Fault("string") and Fault("memory")."""
        size_bytes = len(text)
        if size_bytes > self.string_bytes:
            raise self.string_fault()
        if size_bytes > 64:
            self.charge(size_bytes)
        return text

    def string_fault(self) -> Fault:
        """The fault of a string over the limit."""
        return Fault("string", f"a string longer than {readable(self.string_bytes)}", "raise it with --max-string")


def readable(size_bytes: int) -> str:
    """`256 MiB`, `4 KiB`, `100 bytes`: the largest unit that divides evenly."""
    for unit, name in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if size_bytes >= unit and size_bytes % unit == 0:
            return f"{size_bytes // unit} {name}"
    return f"{size_bytes} bytes"


def reachable_bytes(roots: Iterable[object]) -> int:
    """The sizes of all values reachable from `roots`, each counted once."""
    seen: Set[int] = set()
    pending: List[object] = list(roots)
    total = 0
    while pending:
        value = pending.pop()
        kind = type(value)
        if kind in FREE or id(value) in seen:
            continue
        seen.add(id(value))
        total += MEASURES.get(kind, measure_other)(value, pending)
    return total


def measure_table(table: Table, pending: List[object]) -> int:
    """A table: its entries, and what of them is not counted with them."""
    for values in (table, table.values()):
        if not FREE.issuperset(map(type, values)):
            pending.extend([value for value in values if type(value) not in FREE])
    return TABLE_BYTES + ENTRY_BYTES * len(table)


def measure_function(function: FunctionType, pending: List[object]) -> int:
    """A closure and what it has captured. What a builtin closes over is the machine's."""
    if not str(function.__module__).startswith("vm.library."):
        pending.extend([cell.cell_contents for cell in function.__closure__ or ()])
    return CLOSURE_BYTES


def measure_box(box: List[object], pending: List[object]) -> int:
    """A variable that closures share."""
    pending.extend(box)
    return BOX_BYTES


def measure_pack(pack: Tuple[object, ...], pending: List[object]) -> int:
    """Several values: a pack, a key of several parts."""
    pending.extend(pack)
    return KEY_BYTES + PART_BYTES * len(pack)


def measure_entries(iterator: object, pending: List[object]) -> int:
    """What a loop still has before it, as pairs gave it: Python's iterator knows its list."""
    entries = [entry for inner in get_referents(iterator) if type(inner) is list for entry in inner]
    for entry in entries:
        pending.extend(entry)
    return ENTRY_BYTES * len(entries)


def measure_other(value: object, pending: List[object]) -> int:
    """Anything else, a cdata say: what Python says it takes, and all it refers to that is not `Apart`."""
    if isinstance(value, NOT_OWNED):
        return 0
    pending.extend(get_referents(value))
    return getsizeof(value)


MEASURES: Dict[type, Callable[..., int]] = {
    bytes: lambda text, pending: len(text),
    Table: measure_table,
    FunctionType: measure_function,
    list: measure_box,
    Stats: lambda stats, pending: stats.size_bytes(),
    Key: measure_pack,
    tuple: measure_pack,
    Stack: lambda stack, pending: payload_bytes(stack),
    Iterator: measure_entries,
    type(iter([])): measure_entries,
    EventValue: lambda event, pending: 0,
}
"""Adds to `pending` what a value of a type holds, and gives the bytes of the value itself."""
