"""Static markers of programs and libraries (`sdt:/path:provider:name`): where they are, and their arguments.

Each is a note of the section `.note.stapsdt`: the marker's address, the base and the semaphore that the
file was linked with, then provider, name and the arguments as the assembler had their operands. Source:
the SystemTap wiki, "UserSpaceProbeImplementation"; the assemblers' operands of x86-64 and arm64.
"""

from __future__ import annotations

import re
import struct
from fnmatch import translate
from typing import Iterator, List, Optional, Tuple

from ktap.demand import BYTES, USER, Binary, Expression, Number, Place, Read
from ktap.elf import Binary as File
from ktap.fetch import Argument, Shape, instruction_of
from ktap.registers import Machine, Part
from ktap.user_functions import NoEvent, Spot, Written, open_target
from vm.named_tuple import NamedTuple
from vm.values import wrap

STAPSDT_KIND = 3
WORD_BYTES = 8


class Marker(NamedTuple):
    """A place of a marker; one name may have several."""

    provider: str
    name: str
    spot: Spot
    arguments: str
    """As the note has them: `8@%rdx -4@112(%rsp)`."""


class Operand(NamedTuple):
    """One argument as the note has it."""

    size_bytes: int
    signed: bool
    text: str


def markers(binary: File) -> List[Marker]:
    """All markers of a file, in the order of its notes."""
    found = []
    order = "<" if binary.little_endian else ">"
    words = f"{order}3{'Q' if binary.word_bytes == WORD_BYTES else 'I'}"
    for note in binary.sdt_notes:
        if note.kind != STAPSDT_KIND:
            continue
        head = struct.calcsize(words)
        texts = note.data[head:].split(b"\0")
        if len(note.data) < head or len(texts) < 3:  # a damaged file
            continue
        address, base, semaphore = struct.unpack_from(words, note.data)
        provider, name, arguments = (text.decode("utf-8", "replace") for text in texts[:3])
        moved = binary.sdt_base - base if binary.sdt_base else 0  # prelink moves the file, not its notes
        offset = binary.offset_of(address + moved)
        if offset is None:
            continue
        counter = binary.offset_of(semaphore + moved) if semaphore else 0
        found.append(Marker(provider, name, Spot(binary.path, offset, address + moved, counter or 0), arguments))
    return found


def find_markers(written: Written) -> List[Marker]:
    """The markers an event means: `PROVIDER:NAME`, a name alone, or globs of these. Raises NoEvent."""
    if written.returns:
        raise NoEvent("a marker has no return")
    binary = open_target(written.target)
    known = markers(binary)
    if not known:
        raise NoEvent(f"{binary.path} has no static markers", "programs have them that are built with <sys/sdt.h>")
    provider, colon, name = written.symbol.partition(":")
    if not colon:
        provider, name = "*", provider
    match = re.compile(f"{translate(provider)[:-2]}:{translate(name)}").match
    found = [marker for marker in known if match(f"{marker.provider}:{marker.name}")]
    if not found:
        names = sorted({f"{marker.provider}:{marker.name}" for marker in known})
        raise NoEvent(f"{binary.path} has no marker `{written.symbol}`", "it has " + ", ".join(names[:12]))
    return found


# -- arguments ------------------------------------------------------------------------------------

OPERAND = re.compile(r"(?:(-?)([1248])(f?)@)?(\[[^\]]*\]|[^\s\[(]*\([^)]*\)|\S+)")


def operands(text: str) -> Iterator[Operand]:
    """The arguments of a note apart; floating-point ones have size 0, for they are in no register of pt_regs."""
    for sign, size, floating, operand in OPERAND.findall(text):
        yield Operand(0 if floating else int(size or WORD_BYTES), bool(sign) or not size, operand)


def marker_arguments(marker: Marker, binary: File, machine: Machine) -> List[Tuple[Argument, bool]]:
    """The arguments as `arg1` and so on, each with whether it can be read; what cannot is 0."""
    read = read_x86 if machine.name == "x86_64" else read_arm64
    found = []
    for number, operand in enumerate(operands(marker.arguments), 1):
        what = read(operand, Reach(machine, marker.spot, binary)) if operand.size_bytes else None
        shape = Shape("s" if operand.signed else "u", operand.size_bytes or WORD_BYTES)
        found.append((Argument(f"arg{number}", Number(0) if what is None else what, shape), what is not None))
    return found


class Reach(NamedTuple):
    """What operands may name."""

    machine: Machine
    spot: Spot
    binary: File

    def register(self, name: str, signed: bool = False) -> Optional[Place]:
        """A register or a part of one; None for others."""
        part = self.machine.parts.get(name) or self.machine.registers.get(name)
        return None if part is None else _place(part, signed)

    def symbol(self, text: str) -> Optional[Expression]:
        """The address of `name`, `name+8`, once the file is loaded; None for an unknown name."""
        name, sign, offset = re.match(r"([^+-]*)([+-]?)(.*)", text).groups()  # type: ignore[union-attr]  # always matches
        address = self.binary.address_named(name)
        if address is None:
            return None
        behind = int(sign + offset, 0) if offset else 0
        return _plus(instruction_of(self.machine), address + behind - self.spot.address)


def _place(part: Part, signed: bool) -> Place:
    return Place(part.offset, part.size_bytes, signed)


def _plus(what: Expression, number: int) -> Expression:
    return Binary("ADD", what, Number(wrap(number))) if number else what


def _memory(operand: Operand, address: Expression) -> Read:
    return Read(USER, BYTES, address, operand.size_bytes)


X86_MEMORY = re.compile(
    r"(?P<displacement>[^(]*)\((?:%(?P<base>\w+))?\s*(?:,\s*%(?P<index>\w+)\s*(?:,\s*(?P<scale>\d))?)?\)$"
)
SUM = re.compile(r"[+-]?(0[xX][0-9a-fA-F]+|\d+)([+-](0[xX][0-9a-fA-F]+|\d+))*$")


def _sum(text: str) -> int:
    """`-80`, `16+8`."""
    return sum(int(part, 0) for part in re.findall(r"[+-]?(?:0[xX][0-9a-fA-F]+|\d+)", text))


def read_x86(operand: Operand, reach: Reach) -> Optional[Expression]:
    """`%rax`, `$-5`, `-80(%rbx)`, `8(%rax,%rcx,4)`, `name+4(%rip)`; None for what has no meaning here."""
    text = operand.text
    if text.startswith("%"):
        return reach.register(text[1:])
    if text.startswith("$"):
        return Number(wrap(_sum(text[1:]))) if SUM.match(text[1:]) else reach.symbol(text[1:])
    if SUM.match(text):
        return _memory(operand, Number(wrap(_sum(text))))
    found = X86_MEMORY.match(text)
    if found is None:
        address = reach.symbol(text)
        return None if address is None else _memory(operand, address)
    displacement, base = found["displacement"].strip(), found["base"]
    if base == "rip" and displacement and not SUM.match(displacement):
        address = reach.symbol(displacement)
        return None if address is None else _memory(operand, address)
    if displacement and not SUM.match(displacement):
        return None
    address = reach.register(base) if base else Number(0)
    if found["index"] and address is not None:
        index = reach.register(found["index"])
        shift = {1: 0, 2: 1, 4: 2, 8: 3}.get(int(found["scale"] or 1))
        if index is None or shift is None:
            return None
        address = Binary("ADD", address, Binary("SHL", index, Number(shift)))
    return None if address is None else _memory(operand, _plus(address, _sum(displacement)))


LOW_BITS = re.compile(r"#?:lo12:(?P<name>[^+\s]+)(\+(?P<offset>\d+))?$")
ARM64_INDEX = re.compile(r"(?P<register>[wx]\d+)(?:\s*,\s*(?P<how>lsl|sxtw|uxtw|sxtx)\s*#?(?P<shift>\d+)?)?$")


def read_arm64(operand: Operand, reach: Reach) -> Optional[Expression]:
    """`x0`, `xzr`, `42`, `[sp, 16]`, `[x0, x1, lsl 3]`, `[x0, w1, sxtw 2]`, `[x0, #:lo12:name]`; None for all others."""
    text = operand.text
    if text in ("xzr", "wzr"):
        return Number(0)
    number = text.lstrip("#")
    if SUM.match(number):
        return Number(wrap(_sum(number)))
    if not text.startswith("["):
        return reach.register(text) or reach.symbol(text)
    base, _, behind = text[1:-1].partition(",")
    address: Optional[Expression] = reach.register(base.strip())
    behind = behind.strip()
    if address is None:
        return None
    if not behind:
        return _memory(operand, address)
    if SUM.match(behind.lstrip("#")):
        return _memory(operand, _plus(address, _sum(behind.lstrip("#"))))
    low = LOW_BITS.match(behind)
    if low is not None:  # the register has the symbol's page
        linked = reach.binary.address_named(low["name"])
        offset = None if linked is None else linked + int(low["offset"] or 0)
        return None if offset is None else _memory(operand, _plus(address, offset & 0xFFF))
    found = ARM64_INDEX.match(behind)
    index = reach.register(found["register"], found["how"] == "sxtw") if found is not None else None
    if found is None or index is None:
        return None
    return _memory(operand, Binary("ADD", address, Binary("SHL", index, Number(int(found["shift"] or 0)))))
