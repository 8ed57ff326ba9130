"""C types: their sizes, and the places of their members as the C ABI has them.

Layout follows the System V ABI, as gcc and clang do on Linux, every scalar aligned to its size (so not
i386). Raises Fault argument for types that cannot be.
"""

from __future__ import annotations

from typing import Dict, List, Optional, Protocol, Tuple, Union

from vm.fault import Fault
from vm.memory import Apart
from vm.named_tuple import NamedTuple

MOST_NAMES = 50
"""So many typedefs may lead to one another."""


class Void(NamedTuple):
    """`void`, and structures of which only the name is known."""

    name: str = "void"


class Integer(NamedTuple):
    """An integer, also an enumeration."""

    name: str
    size_bytes: int
    signed: bool


class Float(NamedTuple):
    """A floating number: it takes its place, but the language cannot read it."""

    name: str
    size_bytes: int


class Named(NamedTuple):
    """A type by its name (`struct sk_buff`, `pid_t`), looked up when it is needed."""

    name: str


class Pointer(NamedTuple):
    """A pointer."""

    target: Type


class Array(NamedTuple):
    """An array; one without a length has 0 elements."""

    element: Type
    length: int


class Function(NamedTuple):
    """A function: it has a name, nothing calls it."""

    result: Type


class Member(NamedTuple):
    """A member of a structure. `bits` is the width of a bit-field, 0 for all others."""

    name: str
    type: Type
    offset_bits: int
    bits: int = 0


class Structure(NamedTuple):
    """A structure or union; members without a name are structures whose members count as its own."""

    name: str
    members: Tuple[Member, ...]
    size_bytes: int
    alignment_bytes: int


Type = Union[Void, Integer, Float, Named, Pointer, Array, Function, Structure]


class Types(Protocol):
    """Where types are looked up by name: what cdef declared, or the kernel's own (BTF)."""

    def find(self, name: str) -> Optional[Type]:
        """The type called `struct NAME`, `union NAME`, `enum NAME` or NAME (a typedef), None if there is none."""


WORDS: Dict[str, Tuple[int, bool]] = {
    "char": (1, True),
    "signed char": (1, True),
    "unsigned char": (1, False),
    "short": (2, True),
    "unsigned short": (2, False),
    "int": (4, True),
    "unsigned int": (4, False),
    "long long": (8, True),
    "unsigned long long": (8, False),
    "_Bool": (1, False),
    "bool": (1, False),
    **{f"{prefix}{bits}{suffix}": (bits // 8, signed)
       for bits in (8, 16, 32, 64)
       for prefix, suffix, signed in (
           ("u", "", False), ("s", "", True), ("__u", "", False), ("__s", "", True),
           ("__le", "", False), ("__be", "", False), ("uint", "_t", False), ("int", "_t", True),
       )},
    "pid_t": (4, True), "uid_t": (4, False), "gid_t": (4, False), "mode_t": (4, False),
    "loff_t": (8, True), "time64_t": (8, True), "gfp_t": (4, False), "sector_t": (8, False),
}  # fmt: skip
"""Integers that have the same size everywhere."""
POINTER_SIZED = {
    "long": True,
    "unsigned long": False,
    "size_t": False,
    "ssize_t": True,
    "uintptr_t": False,
    "intptr_t": True,
}
FLOATS = {"float": 4, "double": 8, "long double": 16}


def refusal(message: str, hint: Optional[str] = None) -> Fault:
    """The fault for a declaration that cannot be taken."""
    return Fault("argument", f"C declaration: {message}", hint)


class Scope(Apart):
    """Types by name: C's own, in front of what `beyond` knows. Sizes are those of the architecture."""

    def __init__(self, beyond: Optional[Types] = None, pointer_bytes: int = 8, char_signed: bool = True) -> None:
        self.beyond = beyond
        self.pointer_bytes = pointer_bytes
        self.types: Dict[str, Type] = {name: Integer(name, *row) for name, row in WORDS.items()}
        self.types["char"] = Integer("char", 1, char_signed)
        self.types.update({name: Integer(name, pointer_bytes, signed) for name, signed in POINTER_SIZED.items()})
        self.types.update({name: Float(name, size_bytes) for name, size_bytes in FLOATS.items()})
        self.types["void"] = Void()

    def find(self, name: str) -> Optional[Type]:
        """See Types.find: what the scope declares comes first."""
        found = self.types.get(name)
        return self.beyond.find(name) if found is None and self.beyond is not None else found

    def resolve(self, type: Type) -> Type:
        """The type behind names. Raises Fault argument for a name that nothing declares."""
        rounds = 0
        while isinstance(type, Named):
            found = self.find(type.name)
            rounds += 1
            if found is None or rounds > MOST_NAMES:
                raise refusal(f"`{type.name}` is not declared", "declare it with ffi.cdef")
            type = found
        return type

    def size_bytes(self, type: Type) -> int:
        """sizeof(type). Raises Fault argument for a type that has none."""
        type = self.resolve(type)
        if isinstance(type, Pointer):
            return self.pointer_bytes
        if isinstance(type, Array):
            return type.length * self.size_bytes(type.element)
        if isinstance(type, (Void, Function, Named)):
            raise refusal(f"`{show(type)}` has no size")
        return type.size_bytes

    def alignment_bytes(self, type: Type) -> int:
        """_Alignof(type)."""
        type = self.resolve(type)
        if isinstance(type, Structure):
            return type.alignment_bytes
        if isinstance(type, Array):
            return self.alignment_bytes(type.element)
        return self.size_bytes(type)


class Layout:
    """Places members one after the other (or, in a union, over each other)."""

    def __init__(self, scope: Scope, union: bool) -> None:
        self.scope = scope
        self.union = union
        self.wanted: List[Tuple[str, Type, Optional[int], int]] = []

    def add(self, name: str, type: Type, bits: Optional[int], aligned: int) -> None:
        """Note a member; `bits` is the width of a bit-field, `aligned` what an attribute demands (0: nothing)."""
        resolved = self.scope.resolve(type) if not isinstance(type, (Pointer, Array)) else type
        if bits is not None and (not isinstance(resolved, Integer) or not 0 <= bits <= 8 * resolved.size_bytes):
            raise refusal(f"a bit-field of {bits} bits in `{show(type)}`")
        if bits == 0 and name:
            raise refusal("a bit-field of 0 bits has no name")
        self.wanted.append((name, type, bits, aligned))

    def finish(self, name: str, packed: bool, aligned: int) -> Structure:
        """Place the members. Raises Fault argument for a member without a size or a wrong alignment."""
        place_bits, largest_bits, alignment = 0, 0, check_alignment(aligned)
        members: List[Member] = []
        for member_name, type, bits, member_aligned in self.wanted:
            size_bits = 8 * self.scope.size_bytes(type)
            natural = 1 if packed else self.scope.alignment_bytes(type)
            natural = max(natural, check_alignment(member_aligned or 1))
            start = 0 if self.union else place_bits
            if bits is None:
                start = round_up(start, 8 * natural)
                end = start + size_bits
            else:
                if member_aligned:
                    start = round_up(start, 8 * member_aligned)
                if bits == 0 or (not packed and start // size_bits != (start + bits - 1) // size_bits):
                    start = round_up(start, size_bits)
                end = start + bits
            if member_name or bits is None:
                members.append(Member(member_name, type, start, bits or 0))
                alignment = max(alignment, natural)
            place_bits = end
            largest_bits = max(largest_bits, end)
        size_bytes = round_up(round_up(largest_bits, 8) // 8, alignment)
        return Structure(name, tuple(members), size_bytes, alignment)


def check_alignment(aligned: int) -> int:
    """The alignment, which must be a power of two."""
    if aligned < 1 or aligned & (aligned - 1) or aligned > 1 << 16:
        raise refusal(f"an alignment of {aligned}")
    return aligned


def round_up(number: int, multiple: int) -> int:
    """The next multiple."""
    return -(-number // multiple) * multiple


def show(type: Type) -> str:
    """The type as C has it, without what is inside of a structure."""
    if isinstance(type, Pointer):
        return show(type.target) + ("*" if isinstance(type.target, Pointer) else " *")
    if isinstance(type, Array):
        return f"{show(type.element)}[{type.length}]"
    if isinstance(type, Function):
        return f"{show(type.result)} (…)"
    return type.name
