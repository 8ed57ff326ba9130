"""Values in emitted code: what stands for a value of the language while IR is written."""

from __future__ import annotations

from typing import TYPE_CHECKING, Optional, Protocol, Sequence, Tuple

from compiler.ir import Writer
from compiler.lower.flat import Call
from compiler.lower.types import NIL, Type, of_value, string
from vm.named_tuple import NamedTuple

if TYPE_CHECKING:
    from compiler.lower.texts import Texts


class Value(NamedTuple):
    """A value as operands of the IR.

    `number` (i64) is an integer, an address, or 0 and 1 for a boolean. A string is NUL-free bytes at `pointer`:
    `length` of them, or up to the first NUL of `type.size_bytes` where `length` is None (then the rest is zero).
    An argstr is the `number` of its event; its record is the frame's. A stack is `type.size_bytes` of return addresses, the rest zeros. `isnil` (i1) tells nil where the type can be nil or else.
    """

    type: Type
    number: str = "0"
    isnil: str = "false"
    pointer: str = ""
    length: Optional[str] = None
    constant: Optional[bytes] = None
    """The bytes of a constant string; it has no pointer before one is asked for."""
    parts: Tuple[Value, ...] = ()
    """The values of a multi-key."""
    zeros: bool = False
    """Of a string whose length is known: it is padded all the same."""
    istext: str = "false"
    """Of an integer or a string: whether it is the string, as an i1. Of an integer the length is 0."""

    @property
    def is_padded(self) -> bool:
        """Whether the bytes behind it, up to `type.size_bytes` rounded up to 8, are zeros."""
        return self.length is None or self.zeros


NOTHING = Value(NIL, isnil="true")


def integer(number: str, kind: Type) -> Value:
    """A number that is never nil."""
    return Value(kind, number)


def of_constant(value: object) -> Value:
    """A known value: nil, a boolean, an integer or a string."""
    kind = of_value(value)
    if value is None:
        return NOTHING
    if isinstance(value, bytes):
        return Value(string(len(value)), constant=value)
    if isinstance(value, int):
        return Value(kind, str(int(value)))
    return Value(kind)


class Site(NamedTuple):
    """A place that sends a record: what the VM does with it (`print`, `printf`, `exit`, `fault`), and its values.

    For a fault `name` is its kind and `detail` what it says. `values` are the types of what is sent; constants
    among the arguments are in `constants`, by position. `frames` are the place and the calls around it.
    """

    name: str
    frames: Tuple[Call, ...]
    values: Tuple[Type, ...]
    constants: Tuple[Tuple[int, object], ...] = ()
    detail: str = ""


class Environment(Protocol):
    """What emission needs of the program around a handler."""

    writer: Writer

    def event(self, name: str, texts: Texts) -> Value:
        """The event's value by the name that EVENT has for it; `texts` has room for bytes."""

    def send(self, site: Site, values: Sequence[Value], texts: Texts) -> None:
        """Hand a record to the event buffer; code goes on behind it."""

    def is_named(self, number: str, name: bytes) -> str:
        """Whether the event of a number has a name, as an i1."""

    @property
    def plumbing(self) -> bool:
        """Whether a kernel stack may begin with frames that lead to the program itself."""

    def caller(self, space: str) -> str:
        """Where a function of the `kernel`, or of a process (`user`), returns to that begins here, as an i64; else 0."""

    def number(self, name: str) -> str:
        """A number that is known at load time (`realtime_offset`), as an i64."""
