"""Members of the kernel's structures, reached by names: `curtask.real_parent.tgid`, `args.prev.comm`.

A path becomes one memory read, whose address is made of the reads of the pointers on the way; so it is
made in the kernel when the event fires, and what cannot be read is nil.
"""

from __future__ import annotations

import sys
from typing import Iterator, Sequence

from ktap.demand import BYTES, KERNEL, Binary, Expression, Number, Read
from vm.c_types import Array, Integer, Named, Pointer, Scope, Structure, Type, show
from vm.c_types import Member as StructureMember
from vm.cdata import CHARACTER_NAMES, find_member
from vm.fault import Fault
from vm.named_tuple import NamedTuple

POINTER_BYTES = 8
TASK = Pointer(Named("struct task_struct"))


class Member(NamedTuple):
    """How a member's bytes become a value: text up to its NUL, or an integer, `bits` wide (0: all) from bit `shift`."""

    path: str
    read: Read
    text: bool = False
    signed: bool = False
    shift: int = 0
    bits: int = 0

    def value(self, data: bytes) -> object:
        """The value in the bytes that were read."""
        if self.text:
            return data.partition(b"\0")[0]
        number = int.from_bytes(data, sys.byteorder)
        bits = self.bits or 8 * len(data)
        number = number >> self.shift & (1 << bits) - 1
        if (self.signed or bits == 64) and number >> bits - 1:
            number -= 1 << bits
        return number


class Unreachable(Exception):
    """There is no such member; `known` are the names there are."""

    def __init__(self, message: str, name: str = "", known: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.name = name
        self.known = known


def follow(scope: Scope, path: str, base: Expression, type: Type, names: Sequence[str]) -> Member:
    """The member that is reached from a pointer of a type. Raises Unreachable."""
    address, current = base, type
    for name in names[:-1]:
        address, current = _step(scope, address, current, name)
    structure, start = _structure(scope, address, current, names[-1])
    offset_bits, member = _find(structure, names[-1])
    kind = _resolved(scope, member.type)
    if member.bits:
        first, last = offset_bits // 8, (offset_bits + member.bits - 1) // 8
        signed = isinstance(kind, Integer) and kind.signed
        read = _read(start, first, last - first + 1)
        shift = offset_bits - 8 * first
        if sys.byteorder == "big":
            shift = 8 * (last - first + 1) - shift - member.bits
        return Member(path, read, False, signed, shift, member.bits)
    if isinstance(kind, Integer):
        return Member(path, _read(start, offset_bits // 8, kind.size_bytes), signed=kind.signed)
    if isinstance(kind, Pointer):
        return Member(path, _read(start, offset_bits // 8, POINTER_BYTES))
    if isinstance(kind, Array) and kind.length:
        element = _resolved(scope, kind.element)
        if isinstance(element, Integer) and element.name in CHARACTER_NAMES:
            return Member(path, _read(start, offset_bits // 8, kind.length), text=True)
    raise Unreachable(f"`{path}` is a `{show(member.type)}`, which is no value: go on to a member of it")


def _step(scope: Scope, address: Expression, type: Type, name: str) -> tuple[Expression, Type]:
    """One member further: where it points, or where the structure within lies, and the type there."""
    structure, start = _structure(scope, address, type, name)
    offset_bits, member = _find(structure, name)
    kind = _resolved(scope, member.type)
    if isinstance(kind, Pointer):
        return _read(start, offset_bits // 8, POINTER_BYTES), kind
    return _behind(start, offset_bits // 8), Pointer(member.type)


def _structure(scope: Scope, address: Expression, type: Type, name: str) -> tuple[Structure, Expression]:
    """The structure a pointer points at."""
    kind = _resolved(scope, type)
    target = _resolved(scope, kind.target) if isinstance(kind, Pointer) else kind
    if not isinstance(target, Structure) or not isinstance(kind, Pointer):
        raise Unreachable(f"`{show(type)}` has no members, so no `{name}`")
    return target, address


def _find(structure: Structure, name: str) -> tuple[int, StructureMember]:
    """The place of a member in bits, and the member. Raises Unreachable."""
    found = find_member(structure, name)
    if found is None:
        known = list(_names(structure))
        raise Unreachable(f"`{structure.name}` has no member `{name}`", name, known)
    return found


def _names(structure: Structure) -> Iterator[str]:
    """The names of all members, those of structures without a name in it too."""
    for member in structure.members:
        if member.name:
            yield member.name
        elif isinstance(member.type, Structure):
            yield from _names(member.type)


def _resolved(scope: Scope, type: Type) -> Type:
    try:
        return scope.resolve(type)
    except Fault as fault:
        raise Unreachable(f"the kernel's types have no `{show(type)}`") from fault


def _read(address: Expression, offset_bytes: int, size_bytes: int) -> Read:
    return Read(KERNEL, BYTES, _behind(address, offset_bytes), size_bytes)


def _behind(address: Expression, offset_bytes: int) -> Expression:
    return Binary("ADD", address, Number(offset_bytes)) if offset_bytes else address
