"""Tracepoint formats: the fields of a raw record, and functions that read their values from its bytes.

Source: `events/GROUP/NAME/format` of tracefs (Documentation/trace/events.rst, "Event formats").

What a field is as a value of the language:

=========================================  ===============================================
field                                      value
=========================================  ===============================================
integer, enum, bool, pointer               integer; 8 unsigned bytes wrap to signed
``char[N]``, ``__data_loc char[]``         string, cut at the first NUL
``__data_loc char[][N]``                   table of N strings from 1
arrays of other one-byte types, structs    string of all the bytes
arrays of integers of 2, 4 or 8 bytes      table of integers from 1
=========================================  ===============================================

A `__data_loc` field is a 32-bit word: offset from the start of the record in its low half, size in
bytes in its high half; for `__rel_loc` the offset counts from the end of the word itself. An array of
strings, which probes that a user defines may have, is as many such words.
"""

from __future__ import annotations

import re
from struct import Struct
from typing import Callable, Optional, Sequence

from vm.named_tuple import NamedTuple

INLINE, DATA_LOC, REL_LOC = "inline", "data_loc", "rel_loc"
"""Where the bytes of a field lie: in place, or behind a word that says where."""

INTEGER, POINTER, TEXT, TEXTS, BYTES, INTEGERS = "integer", "pointer", "text", "texts", "bytes", "integers"
"""What the bytes of a field are."""

ENTRY_ADDRESS, RETURN_FUNCTION, RETURN_ADDRESS = "__probe_ip", "__probe_func", "__probe_ret_ip"
"""Fields that only probes on functions have: at an entry; at a return, the function and where it returns to."""
RETVAL = "__probe_retval"
"""The field that holds what a function returned, in the record of a return probe."""

Raw = bytes
"""A raw record, from its `common_type` on."""

Reader = Callable[[Raw], object]
"""Reads a value of the language out of a raw record. Raises struct.error when the record is too short."""


class Field(NamedTuple):
    """One field: `type` as the file has it, without the brackets of an array."""

    name: str
    type: str
    offset: int
    size: int
    signed: bool
    kind: str
    place: str
    element_size: int
    """Size in bytes of one element of an array; of the field itself elsewhere."""
    declaration: str
    """The field as the file writes it, such as `char comm[16]`."""


class EventFormat(NamedTuple):
    """A tracepoint's record: the common fields, its own, and the C text of its print format."""

    group: str
    name: str
    id: int
    common: tuple[Field, ...]
    fields: tuple[Field, ...]
    print_format: str

    @property
    def numbered(self) -> Sequence[Field]:
        """What `arg0` and so on are: all fields, but in a record of ktap's own not what it adds at a return."""
        added = (RETVAL, RETURN_ADDRESS) if not self.id else ()
        return [field for field in self.fields if field.name not in added]

    @property
    def is_probe(self) -> bool:
        """Whether somebody has defined the event as a probe, or ktap has."""
        return self.field(ENTRY_ADDRESS) is not None or self.field(RETURN_FUNCTION) is not None

    @property
    def is_syscall(self) -> bool:
        """Whether the kernel prints it with code of its own, not by `print_format`."""
        return self.group == "syscalls"

    def field(self, name: str) -> Optional[Field]:
        """The field of that name, common ones too; None where there is none."""
        for field in self.fields + self.common:
            if field.name == name:
                return field
        return None


NAME = r"^name: (\S+|\S*(?:\(|::).*)$"
"""The second form is a function's, which C++ may have written."""
FIELD = re.compile(
    r"\tfield:(?P<declaration>[^;]*);\toffset:(?P<offset>\d+);\tsize:(?P<size>\d+);(\tsigned:(?P<signed>\d+);)?"
)
TEXT_ARRAY = re.compile(r"^(?P<type>\w+)\[\]\[\d+\] (?P<name>\w+)$")
ARRAY = re.compile(r"^(?P<type>.*?) ?(?P<name>\w*)\[(?P<length>[^\]]*)\]$")
WORDS = {2: "h", 4: "i", 8: "q"}
ELEMENT_SIZES = (
    (re.compile(r"\b(long|size_t|u64|s64|u?int64_t|__u64|__s64)\b|\*"), 8),
    (re.compile(r"\b(short|u16|s16|u?int16_t|__u16|__s16|__be16|__le16)\b"), 2),
    (re.compile(r"\b(char|u8|s8|bool|u?int8_t|__u8|__s8|cpumask_t)\b"), 1),
    (re.compile(r"\b(int|unsigned|u32|s32|u?int32_t|__u32|__s32|__be32|__le32)\b"), 4),
)
"""Element sizes of dynamic arrays, whose length the file does not say; anything else counts as bytes."""


def parse_format(group: str, text: str) -> EventFormat:
    """The format in a `format` file. Raises ValueError when the text is no format file."""
    head, _, print_format = text.partition("\nprint fmt: ")
    name = re.search(NAME, head, re.M)
    number = re.search(r"^ID: (\d+)$", head, re.M)
    if name is None or number is None:
        raise ValueError(f"no event format: {text[:60]!r}")
    fields = [_field(match) for match in FIELD.finditer(head)]
    common = tuple(f for f in fields if f.name.startswith("common_"))
    own = tuple(f for f in fields if not f.name.startswith("common_"))
    return EventFormat(group, name[1], int(number[1]), common, own, print_format.rstrip("\n"))


def _field(match: re.Match[str]) -> Field:
    declaration = match["declaration"].strip()
    size, signed = int(match["size"]), match["signed"] == "1"
    place, rest = INLINE, declaration
    for word, where in (("__data_loc ", DATA_LOC), ("__rel_loc ", REL_LOC)):
        if declaration.startswith(word):
            place, rest = where, declaration[len(word) :]
    texts = TEXT_ARRAY.match(rest) if place == DATA_LOC else None
    if texts is not None:
        offset, kind = int(match["offset"]), texts["type"]
        return Field(texts["name"], kind, offset, size, signed, TEXTS, place, 1, declaration)
    if place != INLINE:  # written `__data_loc char[] name`
        type_name, _, name = rest.replace("[]", "").rpartition(" ")
        element = _element_size(type_name)
        return _array(name, type_name, int(match["offset"]), size, signed, place, element, declaration)
    array = ARRAY.match(rest)
    if array:
        length = array["length"]
        element = size // int(length) if length.isdigit() and int(length) and size else _element_size(array["type"])
        return _array(array["name"], array["type"], int(match["offset"]), size, signed, place, element, declaration)
    type_name, _, name = re.sub(r"\*(\w+)$", r"* \1", rest).rpartition(" ")
    kind = POINTER if "*" in type_name else INTEGER if size in (1, 2, 4, 8) else BYTES
    return Field(name, type_name, int(match["offset"]), size, signed, kind, place, size, declaration)


def _array(
    name: str, type_name: str, offset: int, size: int, signed: bool, place: str, element: int, declaration: str
) -> Field:
    plain = type_name.replace("const ", "").strip()
    kind = TEXT if plain == "char" else INTEGERS if element in WORDS else BYTES
    return Field(name, type_name, offset, size, signed, kind, place, element, declaration)


def _element_size(type_name: str) -> int:
    return next((size for pattern, size in ELEMENT_SIZES if pattern.search(type_name)), 1)


def cut(data: bytes) -> bytes:
    """A C string: what comes before the first NUL."""
    end = data.find(b"\0")
    return data if end < 0 else data[:end]


def locate(field: Field) -> Callable[[Raw], bytes]:
    """A function that gives the bytes of a field, following `__data_loc` and `__rel_loc`."""
    offset, end = field.offset, field.offset + field.size
    if field.place == INLINE:
        if field.size == 0:  # an array that reaches to the end of the record
            return lambda raw: bytes(raw[offset:])
        return lambda raw: bytes(raw[offset:end])
    word = Struct("=HH").unpack_from
    base = end if field.place == REL_LOC else 0

    def behind(raw: Raw) -> bytes:
        first, second = word(raw, offset)
        start, size = (first, second) if LITTLE_ENDIAN else (second, first)
        return bytes(raw[base + start : base + start + size])

    return behind


LITTLE_ENDIAN = Struct("=H").pack(1) == b"\1\0"


def integer_reader(offset: int, size: int, signed: bool) -> Callable[[Raw], int]:
    """A function that reads an integer of 1, 2, 4 or 8 bytes, as a signed 64-bit number."""
    letter = {1: "b", **WORDS}[size]
    unpack = Struct("=" + (letter if signed or size == 8 else letter.upper())).unpack_from

    def read(raw: Raw) -> int:
        value: int = unpack(raw, offset)[0]
        return value

    return read


def locate_each(field: Field) -> Callable[[Raw], list[bytes]]:
    """A function that gives the bytes of each string of an array."""
    words = Struct(f"={field.size // 2}H").unpack_from

    def behind(raw: Raw) -> list[bytes]:
        numbers = words(raw, field.offset)
        starts, sizes = (numbers[::2], numbers[1::2]) if LITTLE_ENDIAN else (numbers[1::2], numbers[::2])
        return [bytes(raw[start : start + size]) for start, size in zip(starts, sizes)]

    return behind


def reader(field: Field, table: Callable[[Sequence[object]], object]) -> Reader:
    """A function that reads the field's value; `table` makes the language's table of a list of integers or strings."""
    if field.kind in (INTEGER, POINTER):
        return integer_reader(field.offset, field.size, field.signed)
    if field.kind == TEXTS:
        each = locate_each(field)
        return lambda raw: table([cut(text) for text in each(raw)])
    find = locate(field)
    if field.kind == TEXT:
        return lambda raw: cut(find(raw))
    if field.kind == BYTES:
        return find
    element = field.element_size
    letter = WORDS[element] if field.signed or element == 8 else WORDS[element].upper()

    def integers(raw: Raw) -> object:
        data = find(raw)
        return table(Struct(f"={len(data) // element}{letter}").unpack_from(data))

    return integers
