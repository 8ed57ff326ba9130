"""What a script holds, in bytes: charged as it grows, counted exactly when the charges say it might be too much.

Whatever can grow charges an upper bound of its size as it is made. Nothing is noted when things are
dropped; instead, when the charges since the last count would pass what is left of the limit, a
*census* walks all the script can still reach and adds up what it finds. So garbage never makes a
script fail, and real growth always does.
"""

from __future__ import annotations

from gc import get_referents
from sys import getsizeof
from types import BuiltinFunctionType, CodeType, FunctionType, ModuleType
from typing import Callable, Iterable, List, Set

from vm.fault import Fault
from vm.limits import Limits

CLOSURE_BYTES = 240
BOX_BYTES = 120
MIN_ALLOWANCE_SHARE = 32
"""A census is done after 1/32 of the limit was charged at the earliest, so that a script near it still moves."""


class Apart:
    """Base of what values refer to and the script does not hold: the machine, its account, its C types."""

    __slots__ = ()


NOT_OWNED = (type, ModuleType, CodeType, BuiltinFunctionType, Apart)


class Account(Apart):
    """The charges of one machine. `roots` gives the objects a census starts from."""

    __slots__ = ("allowance", "charged", "dropped_keys", "held", "limit", "roots", "string_bytes", "table_entries")

    def __init__(self, limits: Limits, roots: Callable[[], Iterable[object]]) -> None:
        self.limit = limits.memory_bytes
        self.table_entries = limits.table_entries
        self.string_bytes = limits.string_bytes
        self.roots = roots
        self.charged = 0
        self.allowance = limits.memory_bytes
        self.held = 0
        """Bytes the last census found."""
        self.dropped_keys = 0
        """New keys that tables at their limit did not take."""

    def charge(self, size_bytes: int) -> None:
        """Note that so many bytes were taken. Raises Fault("memory")."""
        self.charged += size_bytes
        if self.charged > self.allowance:
            self.take_census(size_bytes)

    def take_census(self, coming_bytes: int = 0) -> None:
        """Count what the script holds. Raises Fault("memory") if that and what is coming passes the limit."""
        self.held = reachable_bytes(self.roots())
        if self.held + coming_bytes > self.limit:
            raise Fault("memory", f"out of memory: the script holds more than {readable(self.limit)}")
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
        return Fault("string", f"a string longer than {readable(self.string_bytes)}")


def readable(size_bytes: int) -> str:
    """`256 MiB`, `4 KiB`, `100 bytes`: the largest unit that divides evenly."""
    for unit, name in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if size_bytes >= unit and size_bytes % unit == 0:
            return f"{size_bytes // unit} {name}"
    return f"{size_bytes} bytes"


def reachable_bytes(roots: Iterable[object]) -> int:
    """The sizes of all objects reachable from `roots`, each counted once; what belongs to Python is not followed.

    Of a function only its closure is followed: its code and globals are the machine's. So are builtins
    with all they close over.
    """
    seen: Set[int] = set()
    pending: List[object] = list(roots)
    total = 0
    while pending:
        value = pending.pop()
        mark = id(value)
        if mark in seen or isinstance(value, NOT_OWNED):
            continue
        seen.add(mark)
        total += getsizeof(value)
        if type(value) is FunctionType:
            if not str(value.__module__).startswith("vm.library."):
                pending.extend(value.__closure__ or ())
        elif not isinstance(value, (int, bytes)):
            pending.extend(get_referents(value))
    return total
