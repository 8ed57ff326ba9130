"""Compiled scripts as files: the `.kpc` image.

All numbers are little-endian. The header is 24 bytes::

    8s magic   H version   H zero   I number of sections   I size of the image   I checksum

Then the sections, each a tag of four characters, the length of its payload (I) and the payload. A tag
that begins with a capital is required: a reader that does not know it refuses the image; one that
begins with a small letter is optional and skipped where it is not known.

====  ==================================================================================================
tag   payload
====  ==================================================================================================
Name  the script's name
Pool  constants: their number; each a byte (0 nil, 1 false, 2 true, 3 integer, 4 string) and its value
Func  functions: their number; each its name, parameters, variadic (0, 1), registers, upvalues (their
      number; each from_register (0, 1), slot and name) and number of instructions
Code  the instructions of all functions in order, 8 bytes each: opcode, zero, three operands (`<BBhhh`)
Line  the spans of all functions in order, as runs: instructions they cover, then line, column (against
      the span before), end line (against line) and end column (against column)
text  the script's text, left out when it is stripped
====  ==================================================================================================

Within Pool, Func and Line a number is a variable-length integer (7 bits a byte, lowest first, the high
bit set on all but the last), one that can be negative is zigzag-coded before (0, -1, 1, -2, …), and a
string is its length and its bytes. Nothing depends on the machine or the time: the same program gives
the same bytes.

The checksum is the CRC-32 (as zlib and gzip have it) of the whole image without the checksum's own four
bytes. It is there to tell damage (a truncated copy, a worn flash) from a good file; it is no protection
against malice and needs to be none, since every program is verified before it runs. CRC-32 finds every
single burst of errors up to 32 bits, costs 4 bytes, and is in the smallest of CPython builds (binascii).
"""

from __future__ import annotations

from binascii import crc32
from struct import Struct
from typing import Optional, Sequence

from vm.diagnostic import Diagnostic, Refusal
from vm.named_tuple import NamedTuple
from vm.opcodes import NUMBERS, OPCODES
from vm.program import (
    MAX_CODE,
    MAX_COLUMN,
    MAX_CONSTANTS,
    MAX_FUNCTIONS,
    MAX_INSTRUCTIONS,
    MAX_REGISTERS,
    MAX_UPVALUES,
    Constant,
    Function,
    Instruction,
    Program,
    Span,
    Upvalue,
)

MAGIC = b"\x89KPC\r\n\x1a\n"
"""A byte that is no ASCII, the name, and line ends that a transfer as text would damage."""
VERSION = 1
"""The version of images this module writes; it reads this one only. A change of the opcode table is a new version."""
MAX_IMAGE_BYTES = 1 << 24
MAX_SECTIONS = 64

HEADER = Struct("<8sHHIII")
CHECKSUM_OFFSET = HEADER.size - 4
SECTION = Struct("<4sI")
INSTRUCTION = Struct("<BBhhh")
REQUIRED = (b"Name", b"Pool", b"Func", b"Code", b"Line")
TEXT = b"text"


class Damage(Exception):
    """An image is not as it should be; the text says in what."""


def is_image(data: bytes) -> bool:
    """Whether `data` begins as an image does (its first 8 bytes suffice)."""
    return data[:8] == MAGIC


def dump(program: Program) -> bytes:
    """The image of a program that passes `vm.verify`. Raises Refusal when it is larger than an image may be."""
    sections = [
        (b"Name", _bytes_of(program.source_name)),
        (b"Pool", _write_constants(program.constants)),
        (b"Func", _write_functions(program.functions)),
        (b"Code", _write_code(program.functions)),
        (b"Line", _write_spans(program.functions)),
    ]
    if program.source is not None:
        sections.append((TEXT, _bytes_of(program.source)))
    image = assemble(sections)
    if len(image) > MAX_IMAGE_BYTES:
        message = f"the script is too large for an image: {len(image)} bytes, at most {MAX_IMAGE_BYTES}"
        raise Refusal([Diagnostic(program.source_name, None, message)])
    return image


def load(data: bytes, name: str = "image") -> Program:
    """The program in an image, not verified yet. `name` is that of the file, for messages.

    Raises Refusal (status 1) for anything but a whole image of a version this module knows.
    """
    try:
        return _read_program(sections(data))
    except Damage as damage:
        raise Refusal([Diagnostic(name, None, str(damage))]) from None


def assemble(parts: Sequence[tuple[bytes, bytes]], version: int = VERSION) -> bytes:
    """An image of sections (tag, payload) as they are, with the right lengths and checksum."""
    body = b"".join(SECTION.pack(tag, len(payload)) + payload for tag, payload in parts)
    head = HEADER.pack(MAGIC, version, 0, len(parts), HEADER.size + len(body), 0)[:CHECKSUM_OFFSET]
    return head + crc32(body, crc32(head)).to_bytes(4, "little") + body


def sections(data: bytes) -> dict[bytes, bytes]:
    """The sections of an image by tag, after all checks that do not need their meaning. Raises Damage."""
    if not is_image(data):
        raise Damage("not a ktap image")
    if len(data) < HEADER.size:
        raise Damage(f"truncated at {len(data)} bytes, within the header")
    _, version, zero, number, size, checksum = HEADER.unpack_from(data)
    if version > VERSION:
        raise Damage(f"made by a newer ktap: image version {version}, this ktap reads {VERSION}")
    if version < VERSION:
        raise Damage(f"made by an older ktap: image version {version}, this ktap reads {VERSION}; compile it again")
    if len(data) < size:
        raise Damage(f"truncated at {len(data)} of {size} bytes")
    if len(data) > size:
        raise Damage(f"{len(data) - size} bytes too many behind its end")
    if size > MAX_IMAGE_BYTES:
        raise Damage(f"too large: {size} bytes, at most {MAX_IMAGE_BYTES}")
    if crc32(data[HEADER.size :], crc32(data[:CHECKSUM_OFFSET])) != checksum:
        raise Damage("its checksum does not match: the file is damaged")
    if zero or number > MAX_SECTIONS:
        raise Damage("damaged header")
    return _split(data, number)


def _split(data: bytes, number: int) -> dict[bytes, bytes]:
    """The payloads of the sections that `data` has behind its header."""
    found: dict[bytes, bytes] = {}
    position = HEADER.size
    for _ in range(number):
        if len(data) - position < SECTION.size:
            raise Damage(f"truncated at {position} bytes: a section is missing")
        tag, length = SECTION.unpack_from(data, position)
        position += SECTION.size
        if length > len(data) - position:
            raise Damage(f"damaged section {_text(tag)}: longer than the file")
        if tag in found:
            raise Damage(f"damaged: two sections {_text(tag)}")
        if tag not in REQUIRED and not b"a" <= tag[:1] <= b"z":
            raise Damage(f"made by a newer ktap: it needs a section {_text(tag)} that this ktap does not know")
        found[tag] = data[position : position + length]
        position += length
    if position != len(data):
        raise Damage("damaged: bytes behind the last section")
    for tag in REQUIRED:
        if tag not in found:
            raise Damage(f"damaged: section {_text(tag)} is missing")
    return found


def _text(tag: bytes) -> str:
    return ascii(tag.decode("latin-1"))


# -- writing ----------------------------------------------------------------------------------


def _bytes_of(text: str) -> bytes:
    """Names of files and texts of scripts keep bytes that are no UTF-8, as Python has them (PEP 383)."""
    return text.encode("utf-8", "surrogateescape")


def _name_of(text: str) -> bytes:
    """Names of functions and variables are for people: UTF-8, whatever an event in them was written with."""
    return text.encode("utf-8", "backslashreplace")


def _number(value: int) -> bytes:
    """A variable-length integer, of 0 … 2**64 - 1."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _signed(value: int) -> bytes:
    return _number(value << 1 if value >= 0 else ~value << 1 | 1)


def _string(value: bytes) -> bytes:
    return _number(len(value)) + value


def _write_constants(constants: Sequence[Constant]) -> bytes:
    return _number(len(constants)) + b"".join(map(_constant, constants))


def _constant(value: Constant) -> bytes:
    if value is None:
        return b"\0"
    if isinstance(value, bool):
        return b"\2" if value else b"\1"
    if isinstance(value, int):
        return b"\3" + _signed(value)
    return b"\4" + _string(value)


def _write_functions(functions: Sequence[Function]) -> bytes:
    out = [_number(len(functions))]
    for function in functions:
        out.append(_string(_name_of(function.name)))
        facts = (function.parameters, int(function.variadic), function.registers, len(function.upvalues))
        out.extend(map(_number, facts))
        for upvalue in function.upvalues:
            out.append(_number(int(upvalue.from_register)) + _number(upvalue.slot) + _string(_name_of(upvalue.name)))
        out.append(_number(len(function.code)))
    return b"".join(out)


def _write_code(functions: Sequence[Function]) -> bytes:
    pack = INSTRUCTION.pack
    return b"".join(pack(NUMBERS[op], 0, a, b, c) for function in functions for op, a, b, c in function.code)


def _write_spans(functions: Sequence[Function]) -> bytes:
    out = []
    line, column = 1, 1
    for function in functions:
        spans = function.spans
        start = 0
        while start < len(spans):
            span = spans[start]
            end = start + 1
            while end < len(spans) and spans[end] == span:
                end += 1
            out.append(_number(end - start))
            deltas = (span.line - line, span.column - column, span.end_line - span.line, span.end_column - span.column)
            out.extend(map(_signed, deltas))
            line, column = span.line, span.column
            start = end
    return b"".join(out)


# -- reading ----------------------------------------------------------------------------------


class Reader:
    """Reads the numbers and strings of one section; whatever is not there raises Damage."""

    __slots__ = ("data", "position", "tag")

    def __init__(self, tag: bytes, data: bytes) -> None:
        self.tag = tag
        self.data = data
        self.position = 0

    def damage(self, what: str) -> Damage:
        """The exception to raise, with the section and the place in it."""
        return Damage(f"damaged section {_text(self.tag)}: {what} at byte {self.position}")

    def number(self, most: int, what: str) -> int:
        """A variable-length integer of 0 … `most`."""
        data, position = self.data, self.position
        value = shift = 0
        while True:
            if position >= len(data):
                raise self.damage(f"truncated {what}")
            byte = data[position]
            position += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                break
            shift += 7
            if shift > 63:
                raise self.damage(f"{what} out of range")
        if value > most:
            raise self.damage(f"{what} out of range")
        self.position = position
        return value

    def signed(self, what: str) -> int:
        """A signed 64-bit integer."""
        value = self.number((1 << 64) - 1, what)
        return value >> 1 if not value & 1 else ~(value >> 1)

    def string(self, what: str) -> bytes:
        """A string of bytes."""
        length = self.number(MAX_IMAGE_BYTES, what)
        end = self.position + length
        if end > len(self.data):
            raise self.damage(f"truncated {what}")
        value = self.data[self.position : end]
        self.position = end
        return value

    def name(self, what: str) -> str:
        """A string of UTF-8."""
        value = self.string(what)
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError:
            raise self.damage(f"{what} is not UTF-8") from None

    def end(self) -> None:
        """Raises Damage unless all has been read."""
        if self.position != len(self.data):
            raise self.damage("bytes too many")


class Header(NamedTuple):
    """A function without its code."""

    name: str
    parameters: int
    variadic: bool
    registers: int
    upvalues: tuple[Upvalue, ...]
    instructions: int


def _read_program(found: dict[bytes, bytes]) -> Program:
    headers = _read_headers(Reader(b"Func", found[b"Func"]))
    code = _read_code(found[b"Code"], sum(header.instructions for header in headers))
    spans = _read_spans(Reader(b"Line", found[b"Line"]), headers)
    functions = []
    start = 0
    for header in headers:
        end = start + header.instructions
        functions.append(Function(*header[:5], tuple(code[start:end]), tuple(spans[start:end])))
        start = end
    text: Optional[bytes] = found.get(TEXT)
    return Program(
        found[b"Name"].decode("utf-8", "surrogateescape"),
        _read_constants(Reader(b"Pool", found[b"Pool"])),
        tuple(functions),
        None if text is None else text.decode("utf-8", "surrogateescape"),
    )


def _read_constants(reader: Reader) -> tuple[Constant, ...]:
    number = reader.number(MAX_CONSTANTS, "number of constants")
    simple: tuple[Constant, ...] = (None, False, True)
    constants: list[Constant] = []
    for _ in range(number):
        kind = reader.number(4, "kind of constant")
        if kind < 3:
            constants.append(simple[kind])
        elif kind == 3:
            constants.append(reader.signed("integer"))
        else:
            constants.append(reader.string("string"))
    reader.end()
    return tuple(constants)


def _read_headers(reader: Reader) -> list[Header]:
    headers = []
    total = 0
    for _ in range(reader.number(MAX_FUNCTIONS, "number of functions")):
        name = reader.name("function name")
        parameters = reader.number(MAX_REGISTERS, "number of parameters")
        variadic = reader.number(1, "flag") == 1
        registers = reader.number(MAX_REGISTERS, "number of registers")
        upvalues = tuple(
            Upvalue(
                reader.number(1, "flag") == 1,
                reader.number(max(MAX_REGISTERS, MAX_UPVALUES), "upvalue slot"),
                reader.name("upvalue name"),
            )
            for _ in range(reader.number(MAX_UPVALUES, "number of upvalues"))
        )
        instructions = reader.number(MAX_INSTRUCTIONS, "number of instructions")
        total += instructions + len(upvalues)
        if total > MAX_CODE:
            raise reader.damage("too many instructions")
        headers.append(Header(name, parameters, variadic, registers, upvalues, instructions))
    reader.end()
    return headers


def _read_code(data: bytes, number: int) -> list[Instruction]:
    if len(data) != number * INSTRUCTION.size:
        raise Damage(f"damaged section 'Code': {len(data)} bytes for {number} instructions")
    names = [row.name for row in OPCODES]
    code = []
    for index, (opcode, zero, a, b, c) in enumerate(INSTRUCTION.iter_unpack(data)):
        if opcode >= len(names) or zero:
            raise Damage(f"damaged section 'Code': no such opcode at byte {index * INSTRUCTION.size}")
        code.append(Instruction(names[opcode], a, b, c))
    return code


def _read_spans(reader: Reader, headers: Sequence[Header]) -> list[Span]:
    spans: list[Span] = []
    line, column = 1, 1
    end = 0
    for header in headers:
        end += header.instructions
        while len(spans) < end:
            run = reader.number(end - len(spans), "run of instructions")
            line += reader.signed("line")
            column += reader.signed("column")
            end_line = line + reader.signed("end line")
            end_column = column + reader.signed("end column")
            if run == 0 or not all(1 <= place <= MAX_COLUMN for place in (line, column, end_line, end_column)):
                raise reader.damage("place out of range")
            spans.extend([Span(line, column, end_line, end_column)] * run)
    reader.end()
    return spans
