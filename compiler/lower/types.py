"""Types that inference works with: sets of kinds, with the longest string and the parts of a key."""

from __future__ import annotations

from typing import FrozenSet, Tuple

from compiler.lower.flat import Constant
from vm.aggregate import Stats
from vm.named_tuple import NamedTuple
from vm.values import Address, Key, Stack, Table

KINDS = (
    "nil",
    "boolean",
    "integer",
    "string",
    "stack",
    "user stack",
    "address",
    "probename",
    "argstr",
    "stats",
    "key",
    "table",
    "function",
)
MAX_STRING_BYTES = 4096
"""The longest string that a handler in the kernel holds (PATH_MAX of linux/limits.h)."""


STACK_HEAD_BYTES = 16
"""Before the frames of a stack (see `compiler.lower.layouts`)."""
BYTES_KINDS = frozenset({"string", "stack", "user stack"})


class Type(NamedTuple):
    """What a value can be: one of `kinds`.

    `size_bytes` is the most a string takes, or a stack: its head, and 8 bytes a frame;
    `parts` are the types of the values of a multi-key. `signed` integers only exist in the language; nothing more is kept of them.
    """

    kinds: FrozenSet[str]
    size_bytes: int = 0
    parts: Tuple[Type, ...] = ()

    def can_be(self, kind: str) -> bool:
        """Whether a value of this type can be of `kind`."""
        return kind in self.kinds

    def is_only(self, *kinds: str) -> bool:
        """Whether every value of this type is of one of `kinds`."""
        return self.kinds <= frozenset(kinds)

    @property
    def is_bytes(self) -> bool:
        """Whether every value of this type is bytes in memory."""
        return self.kinds <= BYTES_KINDS

    @property
    def is_mixed(self) -> bool:
        """Whether values of several types may be of it, besides nil; an address is an integer here."""
        return len(self.kinds - {"nil"}) > 1 and not self.kinds <= {"nil", "integer", "address"}

    @property
    def is_either(self) -> bool:
        """Whether it is an integer or a string (or nil): such a value tells which."""
        return self.kinds - {"nil"} == {"integer", "string"}

    def without(self, kind: str) -> Type:
        """The type of the values that are not of `kind`."""
        return self._replace(kinds=self.kinds - {kind})

    def __str__(self) -> str:
        """As a reason names it: `nil or integer`."""
        names = sorted(self.kinds, key=KINDS.index)
        if self.parts:
            return "(" + ", ".join(map(str, self.parts)) + ")"
        return " or ".join(f"{name}[{self.size_bytes}]" if name == "string" else name for name in names) or "nothing"


NOTHING = Type(frozenset())
NIL = Type(frozenset({"nil"}))
BOOLEAN = Type(frozenset({"boolean"}))
INTEGER = Type(frozenset({"integer"}))
STATS = Type(frozenset({"stats"}))
FUNCTION = Type(frozenset({"function"}))
PROBENAME = Type(frozenset({"probename"}))
"""The name of an event, as its number: a string outside."""


def argstr(size_bytes: int) -> Type:
    """The text of an event, which is made outside of its raw record of at most so many bytes."""
    return Type(frozenset({"argstr"}), size_bytes)


def string(size_bytes: int) -> Type:
    """A string of at most so many bytes; there is room for one in any case, so that each has an address."""
    return Type(frozenset({"string"}), max(1, size_bytes))


def join(one: Type, other: Type) -> Type:
    """The type of a value that is of one type or the other."""
    if one == other or not other.kinds:
        return one
    if not one.kinds:
        return other
    parts = one.parts
    if len(one.parts) == len(other.parts):
        parts = tuple(join(a, b) for a, b in zip(one.parts, other.parts))
    elif one.can_be("key") and other.can_be("key"):
        return Type(frozenset({"key", "table"}))  # keys of different lengths: nothing the kernel can hold
    return Type(one.kinds | other.kinds, max(one.size_bytes, other.size_bytes), parts or other.parts)


def of_constant(constant: Constant) -> Type:
    """The type of a known value."""
    return of_value(constant.value)


def of_value(value: object) -> Type:
    """The type of a value of the VM."""
    if value is None:
        return NIL
    if isinstance(value, bool):
        return BOOLEAN
    if isinstance(value, Address):
        return Type(frozenset({"address"}))
    if isinstance(value, int):
        return INTEGER
    if isinstance(value, bytes):
        return string(len(value))
    if isinstance(value, Key):
        return Type(frozenset({"key"}), 0, tuple(of_value(part) for part in value.parts()))
    if isinstance(value, Table):
        return Type(frozenset({"table"}))
    if isinstance(value, Stats):
        return STATS
    if isinstance(value, Stack):
        return Type(
            frozenset({"user stack" if value.space == "user" else "stack"}), STACK_HEAD_BYTES + 8 * len(value.frames)
        )
    return FUNCTION
