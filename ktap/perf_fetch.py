"""What is computed of a sample's registers and of the memory that the kernel has fetched for it.

Registers come with a sample as such. Memory comes as fetch arguments of a definition in the kernel's own words
(ktap.own_group); beside each number stands a string from the same place, which tells whether there was any
memory at all, for the number itself does not; beside each string a number, for its text may be what the kernel writes
where there was none.

Source: Documentation/trace/kprobetrace.rst; kernel/trace/trace_probe_kernel.h (FAULT_STRING).
"""

from __future__ import annotations

import os
import re
import struct
import sys
from typing import AbstractSet, Callable, Dict, Iterator, List, Optional, Sequence, Tuple

from ktap.demand import OPERATORS, STRING, USER, Binary, Expression, Number, Passed, Place, Read, Symbol, Text, Value
from ktap.event_format import EventFormat
from ktap.fetch import COMM, MOST_STRING_BYTES, Shape
from ktap.fetched import COMM_BYTES, FUNCTION, Part, Recipe
from ktap.registers import MACHINES, SAMPLED, WORD_BYTES
from vm.named_tuple import NamedTuple
from vm.values import wrap

FAULT = b"(fault)"
MOST_ELEMENTS = 64
MOST_TEXT_BYTES = 63
"""Of a fetch argument (MAX_ARGSTR_LEN)."""
MOST_BYTES_AT_ONCE = MOST_ELEMENTS * WORD_BYTES
"""Of memory in one fetch argument."""
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
FUNCTION_OFFSET = 8
"""Where the records of probes have the address of the function, or of the place."""

Cell = Callable[[bytes], Optional[bytes]]
"""Finds a value in the record that the kernel has made; None where there was no memory."""
Cells = Dict[Expression, Cell]
"""By what is fetched: memory, and arguments of a call that returns."""
Number64 = Callable[["Instant"], Optional[int]]


class Instant(NamedTuple):
    """What is known of the moment a probe fired."""

    registers: bytes
    """As struct pt_regs has them."""
    raw: bytes
    """The record of the probe."""
    name: bytes


class Inexpressible(Exception):
    """The kernel has no words for what is to be fetched; the message says what."""


# -- registers ------------------------------------------------------------------------------------


class Registers:
    """Between the order of a sample and that of struct pt_regs."""

    def __init__(self, machine: str) -> None:
        known = MACHINES[machine].registers
        names = SAMPLED[machine].split()
        present = [(bit, name) for bit, name in enumerate(names) if name in known]
        self.mask = sum(1 << bit for bit, _ in present)
        self.count = len(present)
        self._unpack = struct.Struct(f"={self.count}Q").unpack
        size = max(part.offset for part in known.values()) // WORD_BYTES + 1
        self._places = [known[name].offset // WORD_BYTES for _, name in present]
        self._pack = struct.Struct(f"={size}Q").pack
        self._size = size
        self.offsets = frozenset(known[name].offset for _, name in present)
        """Where pt_regs has those that are sampled."""

    def image(self, sampled: bytes) -> bytes:
        """The registers of a sample as struct pt_regs has them."""
        words = [0] * self._size
        if sampled:
            for place, word in zip(self._places, self._unpack(sampled)):
                words[place] = word
        return self._pack(*words)


# -- fetch arguments ------------------------------------------------------------------------------

NamesOf = Callable[[Expression], Optional[str]]
"""The kernel's word for a register or a field; None where it has none."""


def register_names(machine: str) -> NamesOf:
    """The words for registers."""
    by_offset = {part.offset: name for name, part in MACHINES[machine].registers.items()}

    def name_of(what: Expression) -> Optional[str]:
        if isinstance(what, Place) and what.size_bytes == WORD_BYTES and what.offset in by_offset:
            return f"%{by_offset[what.offset]}"
        return f"$arg{what.number}" if isinstance(what, Passed) else None

    return name_of


def field_names(event: EventFormat) -> NamesOf:
    """The words for the fields of a tracepoint."""
    by_place = {(field.offset, field.size): field.name for field in event.fields}

    def name_of(what: Expression) -> Optional[str]:
        name = by_place.get((what.offset, what.size_bytes)) if isinstance(what, Place) else None
        return f"${name}" if name else None

    return name_of


class Words(NamedTuple):
    """How the kernel's words are made."""

    name_of: NamesOf
    process_is_default: bool
    """Memory without a `u` is the process's: in its own functions."""


def pointer_text(address: Expression, offset: int, user: bool, words: Words) -> str:
    """Memory at an address and an offset: `+8(%di)`, `+u0(+16($arg))`, `@0x1234`. Raises Inexpressible."""
    if isinstance(address, Binary) and address.operator in ("ADD", "SUB") and isinstance(address.right, Number):
        moved = address.right.value if address.operator == "ADD" else -address.right.value
        return pointer_text(address.left, offset + moved, user, words)
    if isinstance(address, Binary) and address.operator == "ADD" and isinstance(address.left, Number):
        return pointer_text(address.right, offset + address.left.value, user, words)
    sign = "u" if user and not words.process_is_default else ""
    if isinstance(address, (Number, Symbol)):
        if sign:
            raise Inexpressible("memory of the process at an address that is written out")
        if isinstance(address, Number):
            return f"@{(address.value + offset) & 0xFFFFFFFFFFFFFFFF:#x}"
        return f"@{address.name}{offset:+}" if offset else f"@{address.name}"
    if isinstance(address, Read):
        if address.most_bytes != WORD_BYTES or address.length is not None or address.kind == STRING:
            raise Inexpressible("a pointer that is no word")
        inner: Optional[str] = pointer_text(address.address, 0, address.space == USER, words)
    else:
        inner = words.name_of(address)
    if inner is None:
        raise Inexpressible("an address that is computed of more than a value and an offset")
    return f"{'+' if offset >= 0 else '-'}{sign}{abs(offset)}({inner})"


class Fetches:
    """Collects what is to be fetched for one event, each thing once."""

    def __init__(self, words: Words) -> None:
        self._words = words
        self._values: List[str] = []
        self._checks: List[str] = []
        """They come last: there is room for a page of strings."""
        self._names: Dict[Expression, Tuple[str, ...]] = {}

    @property
    def arguments(self) -> List[str]:
        """As a definition has them."""
        return [*self._values, *self._checks]

    @property
    def fetched(self) -> AbstractSet[Expression]:
        """What is fetched."""
        return self._names.keys()

    def add(self, what: Expression) -> None:
        """Note all memory that an expression looks at. Raises Inexpressible."""
        if isinstance(what, Binary):
            self.add(what.left)
            self.add(what.right)
        elif isinstance(what, Read) and what not in self._names:
            if what.length is not None:
                raise Inexpressible("a number of bytes that is computed")
            self.add(what.address)  # where a pointer cannot be read the kernel leaves what is behind it as it was
            self._names[what] = self._fetch(what)
        elif isinstance(what, Passed):
            self._names[what] = (self._argument(self._values, f"$arg{what.number}:u64"),)

    def _fetch(self, read: Read) -> Tuple[str, ...]:
        numbers = read.most_bytes in (1, 2, 4, 8) or read.kind == STRING
        # there are no arrays behind `+u`; without it an address below TASK_SIZE is the process's, too
        text = pointer_text(read.address, 0, read.space == USER and numbers, self._words)
        if read.kind == STRING:
            names = (self._string(self._values, read, 0), self._argument(self._values, f"{text}:u{8 * WORD_BYTES}"))
            if not self._words.process_is_default or read.most_bytes > MOST_BYTES_AT_ONCE:
                return names
            return (*names, self._argument(self._values, f"{text}:{_type(read.most_bytes + 7 & ~7)}"))
        value = self._argument(self._values, f"{text}:{_type(read.most_bytes)}")
        return (value, *(self._string(self._checks, read, end) for end in _ends(read, self._words.process_is_default)))

    def _string(self, arguments: List[str], read: Read, offset: int) -> str:
        text = pointer_text(read.address, offset, False, self._words)  # the type says whose it is
        return self._argument(arguments, f"{text}:{'ustring' if read.space == USER else 'string'}")

    def _argument(self, arguments: List[str], text: str) -> str:
        if len(text) > MOST_TEXT_BYTES:
            raise Inexpressible(f"a fetch argument as long as {text}")
        known = next((one for one in self.arguments if one.partition("=")[2] == text), None)
        if known is None:
            known = f"k{len(self._values) + len(self._checks)}={text}"
            arguments.append(known)
        return known.partition("=")[0]

    def cells(self, event: EventFormat) -> Cells:
        """How each value is found in the record that the kernel makes, whose format is known now."""
        own = min(field.offset for field in event.fields if not field.name.startswith("__probe_"))
        zeroed = Zeroed(own + PAGE_BYTES) if self._words.process_is_default else None
        found: Cells = {}
        for what, names in self._names.items():
            cell = _cell(what, names, event, zeroed)
            pointers = [found[one] for one in _reads(what.address)] if isinstance(what, Read) else []
            found[what] = _guarded(cell, pointers) if pointers else cell
        return found


class Zeroed(NamedTuple):
    """What is particular to the records of probes on programs (kernel/trace/trace_uprobe.c): memory that could not be
    read is zeros in them; a string of 4096 bytes or more is none; and all the values of one have a page, so that a
    string that ends where that does may have been cut."""

    end: int


def _reads(address: Expression) -> Iterator[Read]:
    """The pointers that an address is computed of."""
    if isinstance(address, Binary):
        yield from _reads(address.left)
        yield from _reads(address.right)
    elif isinstance(address, Read):
        yield address


def _guarded(cell: Cell, pointers: Sequence[Cell]) -> Cell:
    """What lies behind pointers, which must have been there themselves."""
    return lambda raw: None if any(pointer(raw) is None for pointer in pointers) else cell(raw)


def _ends(read: Read, zeroed: bool) -> Sequence[int]:
    """The bytes of memory that tell whether there is any: pages are there or not, and a word lies in one.

    The string from each is as long as the text there. Of the kernel's functions the last byte has to do: a record of
    perf has 8 KiB (PERF_MAX_TRACE_SIZE), and for a larger one the kernel drops the event and does not count it.
    """
    last = read.most_bytes - 1
    return (0, last) if zeroed and read.most_bytes > WORD_BYTES else (last,)


def _type(size_bytes: int) -> str:
    """A type of so many bytes."""
    if size_bytes in (1, 2, 4, 8):
        return f"u{8 * size_bytes}"
    for element in (1, 2, 4, 8):
        if size_bytes % element == 0 and size_bytes // element <= MOST_ELEMENTS:
            return f"u{8 * element}[{size_bytes // element}]"
    raise Inexpressible(f"{size_bytes} bytes at once")


def _cell(read: Expression, names: Tuple[str, ...], event: EventFormat, zeroed: Optional[Zeroed]) -> Cell:
    fields = [event.field(name) for name in names]
    first, *rest = [field.offset for field in fields if field is not None]
    assert len(rest) == len(names) - 1
    if not isinstance(read, Read):
        return lambda raw: raw[first : first + WORD_BYTES]
    if read.kind == STRING:
        return _string_cell(read.most_bytes - 1, first, rest, zeroed)
    end, ends = first + read.most_bytes, list(zip(_ends(read, zeroed is not None), rest))

    def cell(raw: bytes) -> Optional[bytes]:
        data = raw[first:end]
        return data if all(_is_there(raw, at, data[place:], zeroed) for place, at in ends) else None

    return cell


STRINGS = re.compile(r"string(?:\[(?P<count>\d+)\])?$")


def strings_bytes(arguments: Sequence[str]) -> int:
    """What the strings among fetch arguments take of a record at most."""
    found = (STRINGS.search(argument) for argument in arguments)
    return MOST_STRING_BYTES * sum(int(match["count"] or 1) for match in found if match is not None)


def _string_cell(most: int, first: int, rest: Sequence[int], zeroed: Optional[Zeroed]) -> Cell:
    """A string, the word that it begins with and, where it is short enough to be fetched so, too, its bytes."""
    word, bytes_at = rest[0], rest[1] if len(rest) > 1 else None

    def cell(raw: bytes) -> Optional[bytes]:
        found = _text_at(raw, first)
        if found == FAULT and raw[word : word + WORD_BYTES] != FAULT + b"\0":
            return None
        if zeroed is not None and (found is None or (len(found) < most and _end_of(raw, first) >= zeroed.end)):
            data = b"" if bytes_at is None else raw[bytes_at : bytes_at + most]
            return data.partition(b"\0")[0] if data[:1].strip(b"\0") else None
        if found is None and zeroed is None and not raw[word]:
            return b""
        return found[:most] if found is not None else None

    return cell


def _is_there(raw: bytes, at: int, data: bytes, zeroed: Optional[Zeroed]) -> bool:
    """Whether there was memory where `data` is from; the string that begins there tells, as far as it was fetched."""
    if zeroed is not None and data[0]:
        return True
    found = _text_at(raw, at)
    if found is None:  # before Linux 6.14 an empty string of a process is none (strncpy_from_user_nofault)
        return zeroed is None and not data[0]
    return found != FAULT or FAULT.startswith(data[: len(FAULT)])


def _end_of(raw: bytes, at: int) -> int:
    word = int.from_bytes(raw[at : at + 4], sys.byteorder)
    return (word & 0xFFFF) + (word >> 16)


def _text_at(raw: bytes, at: int) -> Optional[bytes]:
    """A string of a record; None for one without even an end (older kernels say so that there was no memory)."""
    word = int.from_bytes(raw[at : at + 4], sys.byteorder)
    return raw[word & 0xFFFF :][: word >> 16].partition(b"\0")[0] if word >> 16 else None


def behind_record(what: Expression, recipe: Optional[Recipe]) -> Expression:
    """An expression over the record that a recipe makes, as one over what the record is made of. Raises Inexpressible."""
    if isinstance(what, Binary):
        return what._replace(left=behind_record(what.left, recipe), right=behind_record(what.right, recipe))
    if isinstance(what, Read):
        length = None if what.length is None else behind_record(what.length, recipe)
        return what._replace(address=behind_record(what.address, recipe), length=length)
    if isinstance(what, Place) and recipe is not None:
        part = next((part for part in recipe.parts if part.offset == what.offset), None)
        if part is None or part.shape.size_bytes != WORD_BYTES or part.shape.bits or part.shape.length:
            raise Inexpressible("a pointer that is no word")
        return part.what
    return what


# -- values ---------------------------------------------------------------------------------------


def number_of(what: Expression, cells: Cells) -> Number64:
    """How an expression is computed of an instant; None where memory was not there."""
    if isinstance(what, Number):
        value = what.value
        return lambda instant: value
    if isinstance(what, Place):
        start, end, signed = what.offset, what.offset + what.size_bytes, what.signed
        return lambda instant: int.from_bytes(instant.registers[start:end], sys.byteorder, signed=signed)
    if what == FUNCTION:
        return lambda instant: int.from_bytes(
            instant.raw[FUNCTION_OFFSET : FUNCTION_OFFSET + WORD_BYTES], sys.byteorder
        )
    if isinstance(what, Binary):
        left, right, compute = number_of(what.left, cells), number_of(what.right, cells), OPERATORS[what.operator][1]

        def both(instant: Instant) -> Optional[int]:
            first, second = left(instant), right(instant)
            return None if first is None or second is None else wrap(compute(first, second))

        return both
    if isinstance(what, (Read, Passed)):
        cell = cells[what]

        def fetched(instant: Instant) -> Optional[int]:
            data = cell(instant.raw)
            return None if data is None else int.from_bytes(data, sys.byteorder)

        return fetched
    assert isinstance(what, (Value, Symbol, Text))
    raise Inexpressible(f"`{what.value.decode(errors='replace') if isinstance(what, Text) else what.name}`")


def record_maker(recipe: Recipe, cells: Cells) -> Callable[[Instant], bytes]:
    """Makes the record that a recipe describes; what was not or could not be fetched is 0, or no string."""
    parts = [part for part in recipe.parts if _is_known(part.what, cells)]
    texts = [part for part in parts if part.shape.letter == "S"]
    fixed = [(part, _bytes_of(part, cells)) for part in parts if part.shape.letter != "S"]

    def make(instant: Instant) -> bytes:
        record = bytearray(recipe.fixed_bytes)
        record[4:8] = instant.raw[4:8]
        for part, value in fixed:
            data = value(instant)
            record[part.offset : part.offset + len(data)] = data
        for part in texts:
            found = _text(part, cells, instant)
            record[part.offset : part.offset + 4] = (len(found) << 16 | len(record)).to_bytes(4, sys.byteorder)
            record += found
        return bytes(record)

    return make


def _is_known(what: Expression, cells: Cells) -> bool:
    """Whether all that a value takes is fetched; what nobody asks for is not."""
    if isinstance(what, Binary):
        return _is_known(what.left, cells) and _is_known(what.right, cells)
    return what in cells if isinstance(what, (Read, Passed)) else True


def _text(part: Part, cells: Cells, instant: Instant) -> bytes:
    if part.what == COMM:
        return instant.name.ljust(COMM_BYTES, b"\0")
    if isinstance(part.what, Text):
        return part.what.value + b"\0"
    assert isinstance(part.what, Read)
    found = cells[part.what](instant.raw)
    return b"" if found is None else found + b"\0"


def _cut_bits(data: bytes, shape: Shape) -> bytes:
    """The elements of an array, each made the bit field in it where it is one."""
    if not shape.bits:
        return data
    size, mask = shape.size_bytes, (1 << shape.bits) - 1
    numbers = [int.from_bytes(data[at : at + size], sys.byteorder) for at in range(0, len(data), size)]
    return b"".join([(number >> shape.shift & mask).to_bytes(size, sys.byteorder) for number in numbers])


def _bytes_of(part: Part, cells: Cells) -> Callable[[Instant], bytes]:
    shape = part.shape
    if shape.length:
        assert isinstance(part.what, Read)
        cell, size = cells[part.what], shape.size_bytes * shape.length
        return lambda instant: _cut_bits(cell(instant.raw) or bytes(size), shape)
    compute, size, mask = number_of(part.what, cells), shape.size_bytes, (1 << 8 * shape.size_bytes) - 1

    def value(instant: Instant) -> bytes:
        number = (compute(instant) or 0) & 0xFFFFFFFFFFFFFFFF
        if shape.bits:
            number = number >> shape.shift & (1 << shape.bits) - 1
        return (number & mask).to_bytes(size, sys.byteorder)

    return value
