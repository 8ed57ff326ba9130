"""The values of the language, as Python objects.

=========  ============================================================================
nil        None
boolean    bool
integer    int, always within signed 64 bits; `Address` is one that prints as its symbol
string     bytes
table      `Table`
function   a plain Python function (`Function`), closures of scripts and builtins alike
stack      `Stack`
stats      `vm.aggregate.Stats`
cdata      `Cdata`
=========  ============================================================================

and three that only pass through: `Key` (what `t[a, b]` is indexed with), `Iterator` (what pairs
gives a `for`), `EventValue` (the `e` of older scripts). Every class of ours has a `type_name` and a
method `text(host)`, the bytes that tostring gives.

Functions are called as ``f(depth, *arguments)``. One result is returned as itself, none or several as
a plain tuple (a *pack*); no value is a plain tuple, so that ``type(result) is tuple`` tells them apart.
A pack that starts with `TAIL` is a tail call still to be made (see `Machine.call`).
"""

from __future__ import annotations

import re
from types import FunctionType
from typing import Callable, Dict, Final, Iterable, List, Optional, Protocol, Sequence, Tuple

from vm.event import Event
from vm.fault import Fault
from vm.host import Host
from vm.named_tuple import NamedTuple

MIN_INTEGER: Final = -(1 << 63)
MAX_INTEGER: Final = (1 << 63) - 1
MAX_KEY_PARTS: Final = 64

Function = FunctionType
TAIL: Final = object()
"""Starts the pack that stands for a tail call: ``(TAIL, function, arguments)``."""


def wrap(number: int) -> int:
    """`number` as a signed 64-bit integer, two's complement."""
    return ((number + 0x8000000000000000) & 0xFFFFFFFFFFFFFFFF) - 0x8000000000000000


class Accountant(Protocol):
    """What a table asks when it grows (`vm.memory.Account` is the one there is)."""

    table_entries: int

    def drop(self, table: Table, keys: int = 1) -> None:
        """Note that a table at its limit did not take new keys."""

    def charge(self, size_bytes: int) -> None:
        """Note that so many bytes were taken. Raises Fault("memory")."""


class Address(int):
    """An address: an integer that prints as its symbol. `pid` is 0 for a kernel address."""

    type_name = "address"
    pid: int

    def __new__(cls, value: int, pid: int = 0) -> Address:
        """An address of the kernel, or of process `pid`."""
        address = super().__new__(cls, wrap(value))
        address.pid = pid
        return address

    def text(self, host: Host) -> bytes:
        """The symbol and offset, or the number in hexadecimal."""
        number = int(self) & 0xFFFFFFFFFFFFFFFF
        name = host.user_symbol(self.pid, number) if self.pid else host.kernel_symbol(number)
        return name.encode("utf-8", "surrogateescape")


class Stack(NamedTuple):
    """A call stack, innermost frame first; `space` is `kernel` or `user`, `pid` is 0 for the kernel."""

    frames: Tuple[int, ...]
    space: str = "kernel"
    pid: int = 0

    @property
    def type_name(self) -> str:
        """Always `stack`."""
        return "stack"

    def text(self, host: Host) -> bytes:
        """One frame a line, each with its symbol, a newline after each; an empty stack says that there is none."""
        lines = self.names(host) or (f"[no {self.space} stack]",)
        return "".join([f"{line}\n" for line in lines]).encode("utf-8", "surrogateescape")

    def names(self, host: Host) -> Sequence[str]:
        """Each frame's symbol. Behind the first, frames are where calls return to: their symbol is that of the call."""
        symbol = host.kernel_symbol if self.space == "kernel" else lambda frame: host.user_symbol(self.pid, frame)
        first = [symbol(frame & ADDRESS_MASK) for frame in self.frames[:1]]
        return first + [caller_symbol(symbol, frame & ADDRESS_MASK) for frame in self.frames[1:]]


ADDRESS_MASK: Final = 0xFFFFFFFFFFFFFFFF
DIGITS: Final = re.compile(r"[0-9a-f]+")


def caller_symbol(symbol: Callable[[int], str], address: int) -> str:
    """The symbol of the call that returns to an address: a function may end with a call that never returns."""
    name, plus, behind = symbol(max(address - 1, 0)).rpartition("+0x")
    offset = DIGITS.match(behind)
    if not plus or offset is None:
        return symbol(address)
    return f"{name}+{int(offset[0], 16) + 1:#x}{behind[offset.end() :]}"


class BooleanKey:
    """Stands for a boolean among the keys of a table, where Python would take True for 1."""

    __slots__ = ("value",)

    def __init__(self, value: bool) -> None:
        self.value = value


TRUE_KEY: Final = BooleanKey(True)
FALSE_KEY: Final = BooleanKey(False)


def inner_key(key: object) -> object:
    """The key as a table holds it."""
    if type(key) is bool:
        return TRUE_KEY if key else FALSE_KEY
    return key


def outer_key(key: object) -> object:
    """The key as a script sees it."""
    return key.value if type(key) is BooleanKey else key


class Key(Tuple[object, ...]):
    """Several values that are one key, as in `t[a, b]`. Booleans are held as `BooleanKey`s; made by `make_key`."""

    __slots__ = ()
    type_name = "key"

    def parts(self) -> Tuple[object, ...]:
        """The values as a script sees them."""
        return tuple([outer_key(part) for part in self])

    def text(self, host: Host) -> bytes:
        """The parts joined with `, `; a stack without its last newline."""
        texts = [tostring(part, host) for part in self.parts()]
        return b", ".join([text[:-1] if type(part) is Stack else text for part, text in zip(self, texts)])


def make_key(parts: Iterable[object]) -> Key:
    """The multi-key of `parts`; keys among them are spread. Raises Fault("key") for nil and for too many parts."""
    flat: List[object] = []
    for part in parts:
        if part is None:
            raise Fault("key", "nil cannot be part of a key")
        if type(part) is Key:
            flat.extend(part)
        else:
            flat.append(inner_key(part))
    if len(flat) > MAX_KEY_PARTS:
        raise Fault("key", f"a key of more than {MAX_KEY_PARTS} parts")
    return Key(flat)


TABLE_BYTES: Final = 304
KEY_BYTES: Final = 64
PART_BYTES: Final = 48
"""A multi-key, and each of its parts."""
ENTRY_BYTES: Final = 160
"""An upper bound of what one more entry takes: its share of a dict that has just grown, an integer key and value."""


class Table(Dict[object, object]):
    """A table. What Python's own dict methods see are inner keys (see `inner_key`); scripts go through the methods here."""

    __slots__ = ("account",)
    type_name = "table"
    __hash__ = object.__hash__  # type: ignore[assignment]  # a table is a key by what it is, not by what it holds
    __eq__ = object.__eq__
    __ne__ = object.__ne__

    def __init__(self, account: Accountant) -> None:
        self.account = account
        account.charge(TABLE_BYTES)

    def read(self, key: object) -> object:
        """The value under `key`, None where there is none."""
        return self.get(key if type(key) is not bool else inner_key(key))

    def put(self, key: object, value: object) -> None:
        """Assign: nil removes; a new key over the entry limit is dropped and counted.

        Raises Fault("key") for a nil key and Fault("memory").
        """
        if key is None:
            raise Fault("key", "nil cannot be a key")
        if type(key) is bool:
            key = inner_key(key)
        if value is None:
            self.pop(key, None)
            return
        account = self.account
        if key not in self:
            if len(self) >= account.table_entries:
                account.drop(self)
                return
            size_bytes = ENTRY_BYTES
            if type(key) is not int:
                size_bytes += payload_bytes(key)
            if type(value) is not int:
                size_bytes += payload_bytes(value)
            account.charge(size_bytes)
        elif type(value) is not int:
            account.charge(payload_bytes(value))
        self[key] = value

    def entries(self) -> List[Tuple[object, object]]:
        """A snapshot: (key, value) as a script sees them, in order of insertion."""
        return [(outer_key(key), value) for key, value in self.items()]

    def append(self, values: Iterable[object]) -> None:
        """Put `values` under consecutive integers, from the first free one on; a nil among them leaves a hole."""
        free = 1
        while free in self:
            free += 1
        for number, value in enumerate(values, free):
            if value is not None:
                self.put(number, value)

    def text(self, host: Host) -> bytes:
        """Always `table`: an address would make two runs differ."""
        return b"table"


CDATA_BYTES: Final = 1_000
"""A cdata with all that reads its members."""


def payload_bytes(value: object) -> int:
    """What a value takes beyond a machine word or two: the bytes of a string, the parts of a key, the frames of a stack."""
    if isinstance(value, bytes):
        return len(value)
    if isinstance(value, Key):
        return KEY_BYTES + sum([PART_BYTES + payload_bytes(part) for part in value])
    if isinstance(value, Stack):
        return 128 + 40 * len(value.frames)
    return 0


class Iterator:
    """What pairs and sort_pairs give: (key, value) pairs as a script sees them, taken when the loop began."""

    __slots__ = ("entries",)
    type_name = "iterator"

    def __init__(self, entries: List[Tuple[object, object]]) -> None:
        self.entries = entries

    def text(self, host: Host) -> bytes:
        """Always `iterator`."""
        return b"iterator"


class Cdata:
    """A typed pointer: `declaration` is its C type, `member` reads what `p.name` or `p[n]` asks for.

    `member` is given the name (bytes) or the index (int); it raises Fault for what the type does not have.
    """

    __slots__ = ("address", "declaration", "member")
    type_name = "cdata"

    def __init__(self, declaration: str, address: int, member: Callable[[object], object]) -> None:
        self.declaration = declaration
        self.address = address
        self.member = member

    def text(self, host: Host) -> bytes:
        """The type and the address: `struct task_struct * 0xffff888003e1c000`."""
        return f"{self.declaration} {self.address & 0xFFFFFFFFFFFFFFFF:#x}".encode()


class EventValue:
    """The `e` of older scripts: `e.name`, `e.tostring()`; any other member is read as an event variable."""

    __slots__ = ("event",)
    type_name = "event"

    def __init__(self, event: Event) -> None:
        self.event = event

    def member(self, name: object) -> object:
        """`e.name`, `e.tostring`; None for what there is not."""
        if name == b"name":
            return getattr(self.event, "probename")  # noqa: B009
        if name == b"tostring":
            return lambda depth, *_: self.line()
        return None

    def line(self) -> object:
        """The event as a line with its end: older scripts print it as it is, and expect a line an event."""
        text = getattr(self.event, "argstr")  # noqa: B009
        return text + b"\n" if isinstance(text, bytes) else text

    def text(self, host: Host) -> bytes:
        """The event as text."""
        return tostring(getattr(self.event, "argstr"), host)  # noqa: B009


class Printable(Protocol):
    """What values that are not Python's own have in common."""

    type_name: str

    def text(self, host: Host) -> bytes:
        """The value as tostring gives it."""


PLAIN_TYPES: Final[Dict[type, str]] = {
    type(None): "nil",
    bool: "boolean",
    int: "integer",
    bytes: "string",
    FunctionType: "function",
}


def type_name(value: object) -> str:
    """The name of a value's type, as messages use it."""
    name: Optional[str] = PLAIN_TYPES.get(type(value))
    return name if name is not None else str(value.type_name)  # type: ignore[attr-defined]


NAMES_WITH_ARTICLE: Final[Dict[str, str]] = {
    "nil": "nil",
    "integer": "an integer",
    "address": "an address",
    "iterator": "an iterator",
    "event": "an event",
    "stats": "a stats value",
    "cdata": "a cdata value",
}


def describe(value: object) -> str:
    """The value's type as a sentence has it: `a table`, `an integer`, `nil`."""
    name = type_name(value)
    return NAMES_WITH_ARTICLE.get(name) or f"a {name}"


def tostring(value: object, host: Host) -> bytes:
    """The value as print shows it."""
    if isinstance(value, bytes):
        return value
    if type(value) is int:
        return b"%d" % value
    if value is None:
        return b"nil"
    if value is True or value is False:
        return b"true" if value else b"false"
    if isinstance(value, FunctionType):
        return b"function"
    printable: Printable = value  # type: ignore[assignment]
    return printable.text(host)


def order(key: object) -> tuple[int, object]:
    """What keys of any types are sorted by: booleans, integers, strings, multi-keys by part, stacks, the rest."""
    if isinstance(key, bool):
        return 0, key
    if isinstance(key, int):
        return 1, int(key)
    if isinstance(key, bytes):
        return 2, key
    if isinstance(key, Key):
        return 3, tuple([order(part) for part in key.parts()])
    if isinstance(key, Stack):
        return 4, (key.space, key.pid, key.frames)
    return 5, type_name(key)
