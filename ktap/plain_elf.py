"""ELF files as pyelftools shows them, as far as ktap.elf asks, with the standard library alone: for boards that lack it.

Source: System V ABI, chapters 4 and 5; elf.h.
"""

from __future__ import annotations

import zlib
from struct import Struct
from typing import IO, Dict, Iterator, List, Mapping, Optional, Union

Value = Union[int, str]

HEADERS = {64: "HHIQQQIHHHHHH", 32: "HHIIIIIHHHHHH"}
SECTIONS = {64: "IIQQQQIIQQ", 32: "IIIIIIIIII"}
SEGMENTS = {64: "IIQQQQQQ", 32: "IIIIIIII"}
SECTION_NAMES = ("name", "type", "flags", "addr", "offset", "size", "link", "info", "addralign", "entsize")
SEGMENT_NAMES = {
    64: ("type", "flags", "offset", "vaddr", "paddr", "filesz", "memsz", "align"),
    32: ("type", "offset", "vaddr", "paddr", "filesz", "memsz", "flags", "align"),
}
TYPES = {2: "SHT_SYMTAB", 8: "SHT_NOBITS", 11: "SHT_DYNSYM"}
LOADED = {1: "PT_LOAD"}
MACHINES = {62: "x64", 183: "AArch64", 3: "x86", 40: "ARM", 243: "RISC-V", 22: "IBM S/390", 21: "64-bit PowerPC"}
COMPRESSED = 1 << 11
COMPRESSION_BYTES = {64: 24, 32: 12}
"""Of the header of a compressed section."""


class Segment:
    """A program header."""

    def __init__(self, fields: Mapping[str, Value]) -> None:
        self._fields = fields

    def __getitem__(self, name: str) -> Value:
        """A field by its name in elf.h, types by theirs."""
        return self._fields[name]


class Section(Segment):
    """A section header."""

    def __init__(self, elf: PlainElf, fields: Mapping[str, Value], name: str = "") -> None:
        super().__init__(fields)
        self._elf = elf
        self.name = name

    def data(self) -> bytes:
        """What the section holds. Raises ValueError for what ends before its end."""
        offset, size, flags = self["sh_offset"], self["sh_size"], self["sh_flags"]
        assert isinstance(offset, int) and isinstance(size, int) and isinstance(flags, int)
        if self["sh_type"] == "SHT_NOBITS":
            return b""
        found = self._elf.read(offset, size)
        return zlib.decompress(found[COMPRESSION_BYTES[self._elf.elfclass] :]) if flags & COMPRESSED else found


class PlainElf:
    """One file. Raises ValueError, IndexError and struct.error for files that are damaged or none."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        start = self.read(0, 16)
        if start[:4] != b"\x7fELF" or start[4] not in (1, 2) or start[5] not in (1, 2):
            raise ValueError("it does not begin like one")
        self.elfclass = 32 * start[4]
        self.little_endian = start[5] == 1
        self._order = "<" if self.little_endian else ">"
        header = Struct(self._order + HEADERS[self.elfclass])
        values = header.unpack(self.read(16, header.size))
        _, self._machine, _, _, segments, sections, _, _, segment_bytes, segment_count, section_bytes, count, names = (
            values
        )
        self._segments = self._table(
            segments, segment_bytes, segment_count, SEGMENTS, SEGMENT_NAMES[self.elfclass], "p_"
        )
        rows = self._table(sections, section_bytes, count, SECTIONS, SECTION_NAMES, "sh_") if sections else []
        self.sections: List[Section] = [Section(self, row) for row in rows]
        text = self.sections[names].data() if rows else b""
        for section in self.sections:
            place = section["sh_name"]
            assert isinstance(place, int)
            section.name = text[place : text.find(b"\0", place)].decode("utf-8", "replace")

    def read(self, offset: int, size: int) -> bytes:
        """A part of the file. Raises ValueError where it ends before."""
        self._file.seek(offset)
        found = self._file.read(size)
        if len(found) != size:
            raise ValueError("it ends too early")
        return found

    def _table(
        self, offset: int, size: int, count: int, kinds: Mapping[int, str], names: tuple[str, ...], prefix: str
    ) -> List[Dict[str, Value]]:
        row = Struct(self._order + kinds[self.elfclass])
        if count and size < row.size:
            raise ValueError("the rows of a table are too short")
        data = self.read(offset, size * count)
        types = TYPES if prefix == "sh_" else LOADED
        found = []
        for at in range(0, size * count, size or 1):
            fields: Dict[str, Value] = {prefix + name: value for name, value in zip(names, row.unpack_from(data, at))}
            kind = fields[f"{prefix}type"]
            assert isinstance(kind, int)
            found.append({**fields, f"{prefix}type": types.get(kind, str(kind))})
        return found

    def get_machine_arch(self) -> str:
        """The kind of processor."""
        return MACHINES.get(self._machine, "<unknown>")

    def iter_segments(self) -> Iterator[Segment]:
        """All program headers."""
        return (Segment(row) for row in self._segments)

    def iter_sections(self) -> Iterator[Section]:
        """All sections."""
        return iter(self.sections)

    def get_section(self, number: int) -> Section:
        """A section by its number."""
        return self.sections[number]

    def get_section_by_name(self, name: str) -> Optional[Section]:
        """The first section of a name."""
        return next((section for section in self.sections if section.name == name), None)
