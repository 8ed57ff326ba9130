"""The kernel's own types (BTF): structures by name, and the arguments of raw tracepoints.

The file is walked once, which takes about 50 ms for the 120,000 types of a distribution's kernel; so it
is opened when the first type is asked for. Types come out as vm.c_types has them, and structures that
are named within others stay names (`Named`) until they are looked into.

Source: Documentation/bpf/btf.rst, linux/btf.h.
"""

from __future__ import annotations

import re
import struct
from array import array
from functools import cache
from typing import Dict, Iterable, List, Optional, Tuple

from vm.c_types import Array, Float, Function, Integer, Member, Named, Pointer, Structure, Type, Void
from vm.cdata import find_member
from vm.named_tuple import NamedTuple

PATH = "/sys/kernel/btf/vmlinux"
MAGIC = 0xEB9F

INT, PTR, ARRAY, STRUCT, UNION, ENUM, FWD, TYPEDEF = 1, 2, 3, 4, 5, 6, 7, 8
VOLATILE, CONST, RESTRICT, FUNC, FUNC_PROTO, VAR, FLOAT, TYPE_TAG, ENUM64 = 9, 10, 11, 12, 13, 14, 16, 18, 19
QUALIFIERS = (VOLATILE, CONST, RESTRICT, TYPE_TAG)

EXTRA_WORDS = {INT: 1, ARRAY: 3, VAR: 1, 17: 1}
"""Words behind a type's first three (17 is BTF_KIND_DECL_TAG)."""
ENTRY_WORDS = {STRUCT: 3, UNION: 3, ENUM: 2, FUNC_PROTO: 2, 15: 3, ENUM64: 3}
"""Words for each of its entries (15 is BTF_KIND_DATASEC)."""
PREFIXES = {"struct": (STRUCT, FWD), "union": (UNION, FWD), "enum": (ENUM, ENUM64)}
FEW_NAMES = 16
"""So many functions are looked up one by one."""
MOST_DEPTH = 64
"""How deep unnamed types may be nested."""


class Argument(NamedTuple):
    """An argument of a raw tracepoint; the name is empty where BTF has none."""

    name: str
    type: Type


class Prototype(NamedTuple):
    """A function of the kernel: its id in BTF, its parameters and what it returns."""

    id: int
    arguments: Tuple[Argument, ...]
    result: Type


class Btf:
    """Types by name: see vm.c_types.Types."""

    def __init__(self, data: bytes) -> None:
        """Raises ValueError for what is no BTF of this machine's byte order."""
        if len(data) < 24 or struct.unpack_from("=H", data)[0] != MAGIC:
            raise ValueError("no BTF of this machine's byte order")
        header, types, types_bytes, strings, strings_bytes = struct.unpack_from("=4xIIIII", data)
        self._strings = data[header + strings : header + strings + strings_bytes]
        self._words = array("I", data[header + types : header + types + types_bytes])
        self._offsets, self._names = _index(self._words)
        self._found: Dict[str, Optional[Type]] = {}
        self._enumerators: Optional[Dict[int, Optional[int]]] = None

    def find(self, name: str) -> Optional[Type]:
        """The type called `struct NAME`, `union NAME`, `enum NAME` or NAME, None if there is none."""
        if name not in self._found:
            prefix, _, rest = name.partition(" ")
            kinds = PREFIXES.get(prefix) if rest else (TYPEDEF, INT, FLOAT)
            number = self._number(rest or name, kinds) if kinds is not None else None
            self._found[name] = None if number is None else self._type(number, 0)
        return self._found[name]

    def raw_tracepoint(self, name: str) -> Optional[Tuple[Argument, ...]]:
        """The arguments of a raw tracepoint; None where the kernel has none of that name."""
        typedef = self._number(f"btf_trace_{name}", (TYPEDEF,))
        if typedef is None:
            return None
        proto = self._words[self._offsets[self._words[self._offsets[typedef] + 2]] + 2]
        named = self._number(f"__traceiter_{name}", (FUNC,))
        if named is not None:  # the typedef's own arguments have no names
            proto = self._words[self._offsets[named] + 2]
        return self._arguments(proto)[1:]

    def raw_tracepoints(self) -> List[str]:
        """The names of all raw tracepoints."""
        return sorted(name.decode() for name in re.findall(rb"(?<=\0btf_trace_)\w+(?=\0)", self._strings))

    def functions(self, names: Iterable[str]) -> Dict[str, Prototype]:
        """The functions of some names, those that there are."""
        found: Dict[str, Prototype] = {}
        for name, number in self._numbers(names).items():
            proto = self._words[self._offsets[number] + 2]
            result = self._reference(self._words[self._offsets[proto] + 2], 0)
            found[name] = Prototype(number, self._arguments(proto), result)
        return found

    def _numbers(self, names: Iterable[str]) -> Dict[str, int]:
        """The ids of functions."""
        wanted = list(names)
        if len(wanted) <= FEW_NAMES:
            numbers = {name: self._number(name, (FUNC,)) for name in wanted}
            return {name: number for name, number in numbers.items() if number is not None}
        places = {self._strings.find(b"\0" + name.encode() + b"\0") + 1: name for name in wanted}
        found: Dict[str, int] = {}
        for number, place in enumerate(self._names):
            name = places.get(place) if place else None
            if name is not None and self._kind(number) == FUNC:
                found.setdefault(name, number)
        return found

    def variable(self, name: str) -> Optional[int]:
        """The id of a per-CPU variable of the kernel, None where there is none."""
        return self._number(name, (VAR,))

    def enumerator(self, name: str) -> Optional[int]:
        """The value of an enumerator; None where there is none, or several that differ."""
        if self._enumerators is None:
            self._enumerators = self._read_enumerators()
        return self._enumerators.get(self._strings.find(b"\0" + name.encode() + b"\0") + 1)

    def preempt_count(self) -> Optional[Tuple[int, int]]:
        """The per-CPU variable that has the preemption count, and its offset there: Linux 6.2 to 6.14 keep it in `pcpu_hot`."""
        plain, hot = self.variable("__preempt_count"), self.variable("pcpu_hot")
        if plain is not None or hot is None:
            return None if plain is None else (plain, 0)
        structure = self.find("struct pcpu_hot")
        found = find_member(structure, "preempt_count") if isinstance(structure, Structure) else None
        return None if found is None else (hot, found[0] // 8)

    # -- reading ----------------------------------------------------------------------------------

    def _number(self, name: str, kinds: Tuple[int, ...]) -> Optional[int]:
        """The id of the first type of a name and one of some kinds, those in front first."""
        place = self._strings.find(b"\0" + name.encode() + b"\0") + 1
        if place == 0:
            return None
        found: Dict[int, int] = {}
        start = 0
        while True:
            try:
                number = self._names.index(place, start)
            except ValueError:
                break
            found.setdefault(self._kind(number), number)
            start = number + 1
        return next((found[kind] for kind in kinds if kind in found), None)

    def _kind(self, number: int) -> int:
        return self._words[self._offsets[number] + 1] >> 24 & 31

    def _text(self, offset: int) -> str:
        return self._strings[offset : self._strings.index(b"\0", offset)].decode()

    def _arguments(self, proto: int) -> Tuple[Argument, ...]:
        at = self._offsets[proto]
        count = self._words[at + 1] & 0xFFFF
        pairs = [(self._words[place], self._words[place + 1]) for place in range(at + 3, at + 3 + 2 * count, 2)]
        return tuple(Argument(self._text(name), self._reference(number, 0)) for name, number in pairs)

    def _reference(self, number: int, depth: int) -> Type:
        """A type as another one mentions it: by name where it has one."""
        if number == 0:
            return Void()
        at = self._offsets[number]
        kind = self._kind(number)
        name = self._text(self._words[at])
        if name and kind == TYPEDEF:
            return Named(name)
        if name and kind in (STRUCT, UNION):
            return Named(f"{'struct' if kind == STRUCT else 'union'} {name}")
        return self._type(number, depth + 1)

    def _type(self, number: int, depth: int) -> Type:
        """A type itself."""
        if number == 0 or depth > MOST_DEPTH:
            return Void()
        at = self._offsets[number]
        name_offset, info, size = self._words[at : at + 3]
        kind, name = info >> 24 & 31, self._text(name_offset)
        if kind in QUALIFIERS or kind == TYPEDEF:
            return self._reference(size, depth)
        if kind == PTR:
            return Pointer(self._reference(size, depth))
        if kind == INT:
            return Integer(name, size, bool(self._words[at + 3] >> 24 & 1))
        if kind in (ENUM, ENUM64):
            return Integer(f"enum {name}".rstrip(), size, bool(info >> 31))
        if kind == ARRAY:
            return Array(self._reference(self._words[at + 3], depth), self._words[at + 5])
        if kind in (STRUCT, UNION):
            return self._structure(at, f"{'struct' if kind == STRUCT else 'union'} {name}".rstrip(), depth)
        if kind == FUNC_PROTO:
            return Function(self._reference(size, depth))
        if kind == FLOAT:
            return Float(name, size)
        return Void(f"{'union' if info >> 31 else 'struct'} {name}" if kind == FWD else name or "void")

    def _read_enumerators(self) -> Dict[int, Optional[int]]:
        """All enumerators by the places of their names."""
        words = self._words
        found: Dict[int, Optional[int]] = {}
        for number, at in enumerate(self._offsets):
            info = words[at + 1] if number else 0
            kind, signed = info >> 24 & 31, info >> 31
            if kind not in (ENUM, ENUM64):
                continue
            step = ENTRY_WORDS[kind]
            for place in range(at + 3, at + 3 + step * (info & 0xFFFF), step):
                value = words[place + 1] | (words[place + 2] << 32 if kind == ENUM64 else 0)
                bits = 64 if kind == ENUM64 else 32
                if signed and value >> (bits - 1):
                    value -= 1 << bits
                name = words[place]
                found[name] = value if found.get(name, value) == value else None
        return found

    def _structure(self, at: int, name: str, depth: int) -> Structure:
        info, size = self._words[at + 1], self._words[at + 2]
        bit_fields = info >> 31
        members = []
        for place in range(at + 3, at + 3 + 3 * (info & 0xFFFF), 3):
            label, number, offset = self._words[place : place + 3]
            bits = offset >> 24 if bit_fields else 0
            offset_bits = offset & 0xFFFFFF if bit_fields else offset
            members.append(Member(self._text(label), self._reference(number, depth), offset_bits, bits))
        alignment = next(n for n in (8, 4, 2, 1) if size % n == 0)
        return Structure(name, tuple(members), size, alignment)


def _index(words: array[int]) -> Tuple[array[int], array[int]]:
    """Of every type, by its id: where it starts in the words, and the place of its name."""
    extra = [EXTRA_WORDS.get(kind, 0) + 3 for kind in range(32)]
    entry = [ENTRY_WORDS.get(kind, 0) for kind in range(32)]
    offsets, names = array("I", [0]), array("I", [0])
    add_offset, add_name = offsets.append, names.append
    at, end = 0, len(words)
    while at < end:
        add_offset(at)
        add_name(words[at])
        info = words[at + 1]
        kind = info >> 24 & 31
        at += extra[kind] + entry[kind] * (info & 0xFFFF)
    return offsets, names


@cache
def kernel_types() -> Optional[Btf]:
    """The running kernel's types, None where it has no BTF."""
    try:
        with open(PATH, "rb") as file:
            return Btf(file.read())
    except (OSError, ValueError):
        return None
