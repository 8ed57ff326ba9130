"""Typed pointers: what `p.name` and `p[n]` read, by the C types of `vm.c_types`.

Numbers and enumerations are integers, arrays of char are strings, pointers are cdata again (nil for
NULL), structures and other arrays are cdata that point at them. What cannot be read is nil.
"""

from __future__ import annotations

import sys
from typing import Callable, Optional, Tuple

from vm.c_types import Array, Integer, Member, Named, Pointer, Scope, Structure, Type, show
from vm.fault import Fault
from vm.values import Cdata, wrap

Memory = Callable[[int, int], Optional[bytes]]
"""Reads (address, size in bytes); None where that cannot be read. Raises Fault event for what was not captured."""

CHARACTER_NAMES = ("char", "signed char", "unsigned char")


class Buffer:
    """Memory that a script holds itself, from address 0 on."""

    __slots__ = ("content",)

    def __init__(self, content: bytes) -> None:
        self.content = content

    def read(self, address: int, size_bytes: int) -> Optional[bytes]:
        """The bytes, None where they do not all lie in it."""
        end = address + size_bytes
        return self.content[address:end] if 0 <= address <= end <= len(self.content) else None


class View:
    """How memory is seen: types from `scope`, bytes from `memory`, and from `beyond` what pointers lead to."""

    __slots__ = ("beyond", "memory", "scope")

    def __init__(self, scope: Scope, memory: Memory, beyond: Memory) -> None:
        self.scope = scope
        self.memory = memory
        self.beyond = beyond

    def pointer(self, target: Type, address: int) -> Cdata:
        """A cdata that points at `address`, where a `target` lies."""
        return Cdata(show(Pointer(target)), wrap(address), lambda key: self.member(target, address, key))

    def member(self, target: Type, address: int, key: object) -> object:
        """What `p.name` (a string) or `p[n]` (an integer) reads. Raises Fault argument and event."""
        if isinstance(key, int) and not isinstance(key, bool):
            return self.read(target, address + int(key) * self.scope.size_bytes(target))
        found = self.scope.resolve(target)
        name = key.decode("utf-8", "replace") if isinstance(key, bytes) else None
        if isinstance(found, Pointer) and name is not None:
            raise Fault("argument", f"`{show(found)}` has no members: p[0] is what it points at")
        if not isinstance(found, Structure) or name is None:
            raise Fault("argument", f"`{show(found)}` has no members")
        place = find_member(found, name)
        if place is None:
            raise Fault("argument", f"`{show(found)}` has no member `{name}`")
        offset_bits, member = place
        if member.bits:
            return self.bit_field(member, address, offset_bits)
        return self.read(member.type, address + offset_bits // 8)

    def read(self, type: Type, address: int) -> object:
        """The value of a `type` that lies at `address`."""
        found = self.scope.resolve(type)
        if isinstance(found, Integer):
            data = self.memory(address, found.size_bytes)
            return None if data is None else wrap(int.from_bytes(data, sys.byteorder, signed=found.signed))
        if isinstance(found, Pointer):
            data = self.memory(address, self.scope.pointer_bytes)
            number = int.from_bytes(data or b"", sys.byteorder)
            return View(self.scope, self.beyond, self.beyond).pointer(found.target, number) if number else None
        if isinstance(found, Array):
            element = self.scope.resolve(found.element)
            if isinstance(element, Integer) and element.name in CHARACTER_NAMES and found.length:
                data = self.memory(address, found.length)
                return None if data is None else data.partition(b"\0")[0]
            return self.pointer(found.element, address)
        if isinstance(found, Structure):
            return self.pointer(type if isinstance(type, Named) else found, address)
        raise Fault("argument", f"a `{show(found)}` cannot be read", "there are integers, strings and pointers only")

    def bit_field(self, member: Member, address: int, offset_bits: int) -> Optional[int]:
        """The value of a bit-field, from the bytes it lies in."""
        first, last = offset_bits // 8, (offset_bits + member.bits - 1) // 8
        data = self.memory(address + first, last - first + 1)
        if data is None:
            return None
        number = int.from_bytes(data, sys.byteorder)
        shift = offset_bits - 8 * first
        if sys.byteorder == "big":
            shift = 8 * len(data) - shift - member.bits
        value = (number >> shift) & ((1 << member.bits) - 1)
        type = self.scope.resolve(member.type)
        if isinstance(type, Integer) and type.signed and value >> (member.bits - 1):
            value -= 1 << member.bits
        return wrap(value)


def find_member(structure: Structure, name: str) -> Optional[Tuple[int, Member]]:
    """A member by name, also one of a structure without a name in it: its place in bits from the start, and it."""
    for member in structure.members:
        if member.name == name and name:
            return member.offset_bits, member
        if not member.name and isinstance(member.type, Structure):
            inner = find_member(member.type, name)
            if inner is not None:
                return member.offset_bits + inner[0], inner[1]
    return None
