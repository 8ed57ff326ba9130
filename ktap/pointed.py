"""What is read through typed pointers: `ffi.cast("struct sk_buff *", arg0).dev.ifindex`, without running it.

The same steps that vm.cdata takes on addresses are taken on expressions over the event; each read of
memory on the way is noted, so that it can be made when the event fires.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Callable, Optional, Tuple, Union

from ktap.abstract import EXPRESSIONS, Known, Pointed, Symbol, Task
from ktap.demand import ANY, BYTES, Binary, Expression, Number, Read, Value
from vm.c_types import Array, Integer, Pointer, Structure, Type
from vm.cdata import CHARACTER_NAMES, find_member
from vm.fault import Fault

if TYPE_CHECKING:
    from vm.declaration import Declarations

Note = Callable[[Read], None]
SOCKET = "struct sock *"
SOCKET_MEMBERS = {
    "net.ip_sock_saddr": ("__sk_common", "skc_rcv_saddr"),
    "net.ip_sock_daddr": ("__sk_common", "skc_daddr"),
}
"""Builtins that read members of a socket, and which."""


def cast(scope: Declarations, text: str, symbol: Optional[Symbol]) -> Optional[Symbol]:
    """What ffi.cast gives; None where it is not known, or no C type."""
    address = address_of(symbol)
    if address is None:
        return None
    try:
        type = scope.resolve(scope.type_named(text))
    except Fault:
        return None  # said with its place when it runs
    if isinstance(type, Pointer):
        return Pointed(type.target, address)
    return address if isinstance(type, Integer) and type.size_bytes == 8 else None


def address_of(symbol: Optional[Symbol]) -> Optional[Expression]:
    """The address a value has as a pointer, None where it is not known."""
    if isinstance(symbol, Pointed):
        return symbol.address
    if isinstance(symbol, Task):
        return Value(symbol.path) if symbol.path == "curtask" else None
    return symbol if isinstance(symbol, EXPRESSIONS) else None


def member(scope: Declarations, pointed: Pointed, key: Optional[Symbol], note: Note) -> Optional[Symbol]:
    """What `p.name` or `p[n]` gives."""
    try:
        if isinstance(key, Number):
            return _read(
                scope, pointed.target, _behind(pointed.address, key.value * scope.size_bytes(pointed.target)), note
            )
        if isinstance(key, Known) and isinstance(key.value, bytes):
            return _named(scope, pointed, key.value.decode("utf-8", "replace"), note)
    except Fault:
        return None  # likewise
    return None


def socket_member(scope: Declarations, symbol: Optional[Symbol], names: Tuple[str, ...], note: Note) -> None:
    """Note what is read for a member of a socket."""
    current = cast(scope, SOCKET, symbol)
    for name in names:
        if isinstance(current, Pointed):
            current = member(scope, current, Known(name.encode()), note)


def _named(scope: Declarations, pointed: Pointed, name: str, note: Note) -> Optional[Symbol]:
    structure = scope.resolve(pointed.target)
    found = find_member(structure, name) if isinstance(structure, Structure) else None
    if found is None:
        return None
    offset_bits, inner = found
    if inner.bits:
        first, last = offset_bits // 8, (offset_bits + inner.bits - 1) // 8
        note(Read(ANY, BYTES, _behind(pointed.address, first), last - first + 1))
        return None
    return _read(scope, inner.type, _behind(pointed.address, offset_bits // 8), note)


def _read(scope: Declarations, type: Type, address: Expression, note: Note) -> Optional[Symbol]:
    kind = scope.resolve(type)
    if isinstance(kind, (Integer, Pointer)):
        read = Read(ANY, BYTES, address, scope.size_bytes(kind))
        note(read)
        return Pointed(kind.target, read) if isinstance(kind, Pointer) else read
    if isinstance(kind, Array):
        element = scope.resolve(kind.element)
        if isinstance(element, Integer) and element.name in CHARACTER_NAMES and kind.length:
            note(Read(ANY, BYTES, address, kind.length))
            return None
        return Pointed(kind.element, address)
    return Pointed(type, address) if isinstance(kind, Structure) else None


def _behind(address: Expression, offset_bytes: int) -> Union[Expression, Binary]:
    return Binary("ADD", address, Number(offset_bytes)) if offset_bytes else address
