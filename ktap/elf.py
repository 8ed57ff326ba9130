"""Programs and libraries as files: their functions with the places in the file, their notes, their build id.

    binary = open_binary("/lib/x86_64-linux-gnu/libc.so.6")
    binary.functions      # of the dynamic table, the symbol table and a debug file where there is one

Addresses are those the file was linked at; offsets count from the start of the file, which is what the
kernel wants of a user probe. Source: System V ABI, chapters 4 and 5; gdb's manual, "Separate Debug
Files" and "MiniDebugInfo". pyelftools reads the files; it is imported here and nowhere else.
"""

from __future__ import annotations

import errno
import os
import stat
from bisect import bisect_right
from contextlib import contextmanager, suppress
from functools import cache, cached_property
from io import BytesIO
from struct import Struct
from struct import error as StructError  # it is a class
from typing import IO, TYPE_CHECKING, Dict, Iterator, List, Optional, Sequence, Tuple, cast

from vm.named_tuple import NamedTuple

if TYPE_CHECKING:
    from elftools.elf.elffile import ELFFile

DEBUG_ROOT = "/usr/lib/debug"
STAPSDT = ".note.stapsdt"
SDT_BASE = ".stapsdt.base"
THROWING = (b"__cxa_throw", b"_Unwind_RaiseException")
GO_SECTIONS = (".gopclntab", ".data.rel.ro.gopclntab")


class Function(NamedTuple):
    """A function: `version` is that of its symbol (`GLIBC_2.2.5`), empty where it has none."""

    name: str
    version: str
    address: int
    size: int
    offset: int
    indirect: bool
    """What the symbol points at chooses the function when a program starts (STT_GNU_IFUNC)."""


class Segment(NamedTuple):
    """A part of the file that is mapped (PT_LOAD)."""

    address: int
    offset: int
    size: int
    executable: bool


class Note(NamedTuple):
    """One note of a section: its type and what it holds."""

    kind: int
    data: bytes


class NotElf(Exception):
    """The file is no ELF file that can be read; the message says why."""


DAMAGE = (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError, MemoryError, StructError)
"""What pyelftools raises besides its own exception for files that are not what they say."""


@contextmanager
def _parsing() -> Iterator[None]:
    """Raises NotElf for whatever a damaged file makes of its parser."""
    ELFError: type[Exception] = ValueError
    with suppress(ImportError):
        from elftools.common.exceptions import ELFError

    try:
        yield
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        raise NotElf("is no ELF file that can be read (it names places before its start)") from error
    except (ELFError, *DAMAGE) as error:
        raise NotElf(f"is no ELF file that can be read ({error or type(error).__name__})") from error


def _read(file: IO[bytes]) -> ELFFile:
    try:
        from elftools.elf.elffile import ELFFile
    except ImportError:  # a board has nothing but the standard library
        from ktap.plain_elf import PlainElf

        with _parsing():
            return cast("ELFFile", PlainElf(file))
    with _parsing():
        return ELFFile(file)


def _open(path: str) -> IO[bytes]:
    """Open a plain file; others, which might never come to an end, raise NotElf. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise NotElf("is no plain file")
    return open(descriptor, "rb")


class Binary:
    """One file, as it was when it was read. Make it with `open_binary`."""

    def __init__(self, path: str, data: Optional[bytes] = None) -> None:
        """`data` is what lies at no path, in memory. Raises OSError, and NotElf."""
        self.path = path
        with _open(path) if data is None else BytesIO(data) as file, _parsing():
            self.inode = os.fstat(file.fileno()).st_ino if data is None else 0
            elf = _read(file)
            self.machine = elf.get_machine_arch()
            self.word_bytes = elf.elfclass // 8
            self.segments = tuple(_segments(elf))
            self._code_ends = _code_ends(elf)
            strings = [_section(elf, name) for name in (".dynstr", ".strtab")]
            self.throws = any(b"\0%s\0" % name in table for name in THROWING for table in strings)
            """It can throw exceptions, or panic: there is code in it, or that it asks for, which does."""
            self.moves_stacks = any(elf.get_section_by_name(name) is not None for name in GO_SECTIONS)
            """Its stacks are moved while it runs: a program in Go."""
            self.build_id = _build_id(elf)
            self._debug_link = _debug_link(elf)
            self._own = tuple(_symbols(elf))
            self._mini = _section(elf, ".gnu_debugdata")
            self.sdt_notes = tuple(_notes(elf, STAPSDT))
            base = elf.get_section_by_name(SDT_BASE)
            self.sdt_base: int = base["sh_addr"] if base is not None else 0
            self.little_endian: bool = elf.little_endian

    def offset_of(self, address: int) -> Optional[int]:
        """Where the file holds what is loaded at an address, None where it holds none of it."""
        for segment in self.segments:
            if segment.address <= address < segment.address + segment.size:
                return address - segment.address + segment.offset
        return None

    def address_of(self, offset: int) -> Optional[int]:
        """The address that a place of the file is loaded at."""
        for segment in self.segments:
            if segment.offset <= offset < segment.offset + segment.size:
                return offset - segment.offset + segment.address
        return None

    @cached_property
    def functions(self) -> Tuple[Function, ...]:
        """Every function that has a name and lies in code, by name and version once, in the tables' order."""
        found: Dict[Tuple[str, int], Function] = {}
        code = [(s.address, s.address + s.size, s.offset - s.address) for s in self.segments if s.executable]
        for symbol in (*self._own, *self._extra()):
            name, version, address, size, _, indirect = symbol
            for start, end, behind in code:
                if start <= address < end:
                    found.setdefault(
                        (name, address), Function(name, version, address, size, address + behind, indirect)
                    )
                    break
        return tuple(found.values())

    def _extra(self) -> List[Function]:
        """Symbols of a debug file, and of the small table some distributions put in a section (xz)."""
        found: List[Function] = []
        if self._mini:
            import lzma

            try:
                with _parsing():
                    found += _symbols(_read(BytesIO(lzma.decompress(self._mini))))
            except (lzma.LZMAError, NotElf):
                found = []
        for path in self._debug_files():
            try:
                with _open(path) as file, _parsing():
                    elf = _read(file)
                    if self._is_described_by(elf, file):
                        return found + list(_symbols(elf))
            except (OSError, NotElf):
                continue
        return found

    def _is_described_by(self, elf: ELFFile, file: IO[bytes]) -> bool:
        """Whether a debug file is of this very build: places of another one would be within instructions."""
        if self.build_id:
            return _build_id(elf) == self.build_id
        import zlib

        file.seek(0)
        return zlib.crc32(file.read()) == self._debug_link[1]

    def _debug_files(self) -> Iterator[str]:
        if self.build_id:
            yield f"{DEBUG_ROOT}/.build-id/{self.build_id[:2]}/{self.build_id[2:]}.debug"
        name, _ = self._debug_link
        if name:
            directory = os.path.dirname(self._real_path())
            for place in (directory, f"{directory}/.debug", f"{DEBUG_ROOT}{directory}"):
                yield f"{place}/{name}"

    def _real_path(self) -> str:
        """The path without links, or as it is where they lead nowhere: through a process that has ended meanwhile."""
        try:
            return os.path.realpath(self.path)
        except OSError:
            return self.path

    def first_bytes(self, offsets: Sequence[int], size: int) -> List[bytes]:
        """What the file has at places. Raises OSError and NotElf."""
        with _open(self.path) as file:
            return [os.pread(file.fileno(), size, offset) for offset in offsets]

    def address_named(self, name: str) -> Optional[int]:
        """The address of a function or a variable, None where the file's own tables have none of the name."""
        with _open(self.path) as file, _parsing():
            return _address_named(_read(file), name)

    @cached_property
    def _sorted(self) -> Tuple[List[int], List[Function]]:
        ordered = sorted(self.functions, key=lambda function: (function.address, function.size, function.name))
        return [function.address for function in ordered], ordered

    def function_at(self, address: int) -> Optional[Function]:
        """The function an address lies in, None where no symbol tells."""
        addresses, ordered = self._sorted
        place = bisect_right(addresses, address) - 1
        if place < 0:
            return None
        first = bisect_right(addresses, addresses[place] - 1)
        same = ordered[first : place + 1]
        named = [function for function in same if not function.name.startswith("_")] or same
        found = named[-1]
        end = found.address + found.size if found.size else self._section_end(found.address)
        return found if address < end else None

    def _section_end(self, address: int) -> int:
        """Where a symbol without a size ends at the latest: assembler code has such, and no more behind it."""
        return next((end for start, end in self._code_ends if start <= address < end), address + 1)


@cache
def _opened(path: str, inode: int, changed_ns: int) -> Binary:
    return Binary(path)


def open_binary(path: str) -> Binary:
    """A file, read once as long as it stays the same. Raises OSError, and NotElf."""
    status = os.stat(path)
    return _opened(path, status.st_ino, status.st_mtime_ns)


def is_elf(path: str) -> bool:
    """Whether a file begins as ELF files do."""
    try:
        with open(path, "rb") as file:
            return file.read(4) == b"\x7fELF"
    except OSError:
        return False


# -- parts of a file ------------------------------------------------------------------------------


def _segments(elf: ELFFile) -> Iterator[Segment]:
    for segment in elf.iter_segments():
        if segment["p_type"] == "PT_LOAD":
            yield Segment(segment["p_vaddr"], segment["p_offset"], segment["p_filesz"], bool(segment["p_flags"] & 1))


EXECUTABLE = 4
"""SHF_EXECINSTR."""


def _code_ends(elf: ELFFile) -> Tuple[Tuple[int, int], ...]:
    """Start and end of every section of code; of the segments where a file has no sections."""
    sections = [(s["sh_addr"], s["sh_addr"] + s["sh_size"]) for s in elf.iter_sections() if s["sh_flags"] & EXECUTABLE]
    return tuple(sections or [(s.address, s.address + s.size) for s in _segments(elf) if s.executable])


FUNCTION, INDIRECT_FUNCTION = 2, 10
"""STT_FUNC, and STT_GNU_IFUNC, which has the first number that is left to operating systems."""
SYMBOL_TABLES = ("SHT_SYMTAB", "SHT_DYNSYM")
SYMBOLS = {64: "IBBHQQ", 32: "IIIBBH"}
"""Elf64_Sym (name, info, other, section, value, size) and Elf32_Sym (name, value, size, info, other, section)."""


def _symbols(elf: ELFFile) -> List[Function]:
    """Functions of a file's tables; their offsets are left 0.

    The tables are unpacked here: pyelftools takes some 50 us a symbol, and large programs have 100,000.
    """
    versions = _versions(elf)
    row = Struct(("<" if elf.little_endian else ">") + SYMBOLS[elf.elfclass])
    wide = elf.elfclass == 64
    found: List[Function] = []
    for section in elf.iter_sections():
        if section["sh_type"] not in SYMBOL_TABLES:
            continue
        dynamic = section["sh_type"] == "SHT_DYNSYM"
        table, strings = section.data(), elf.get_section(section["sh_link"]).data()
        rows = row.iter_unpack(table[: len(table) // row.size * row.size])
        for index, (place, *rest) in enumerate(rows):
            info, _, number, address, size = rest if wide else (*rest[2:], *rest[:2])
            kind = info & 15
            if kind not in (FUNCTION, INDIRECT_FUNCTION) or not number or not place:
                continue
            text = strings[place : strings.find(b"\0", place)].decode("utf-8", "replace")
            name, _, version = text.partition("@")
            if dynamic:
                version = versions[index] if index < len(versions) else ""
            if name:
                found.append(Function(name, version.lstrip("@"), address, size, 0, kind == INDIRECT_FUNCTION))
    return found


def _address_named(elf: ELFFile, name: str) -> Optional[int]:
    row = Struct(("<" if elf.little_endian else ">") + SYMBOLS[elf.elfclass])
    wanted = name.encode()
    for section in elf.iter_sections():
        if section["sh_type"] in SYMBOL_TABLES:
            table, strings = section.data(), elf.get_section(section["sh_link"]).data()
            for place, *rest in row.iter_unpack(table[: len(table) // row.size * row.size]):
                _, _, number, address, _ = rest if elf.elfclass == 64 else (*rest[2:], *rest[:2])
                if number and strings.startswith(wanted + b"\0", place):
                    return int(address)
    return None


def _versions(elf: ELFFile) -> Sequence[str]:
    """The version of every dynamic symbol, by its index; empty where the file has none."""
    numbers = elf.get_section_by_name(".gnu.version")
    table = elf.get_section_by_name(".gnu.version_d")
    if numbers is None or table is None:
        return ()
    import struct

    names: Dict[int, str] = {}
    strings = elf.get_section_by_name(".dynstr")
    data, text = table.data(), strings.data() if strings is not None else b""
    order = "<" if elf.little_endian else ">"
    place = 0
    while place + 20 <= len(data):  # Elf_Verdef, Elf_Verdaux
        _, _, index, _, _, first, following = struct.unpack_from(f"{order}HHHHIII", data, place)
        (name,) = struct.unpack_from(f"{order}I", data, place + first)
        names[index] = text[name : text.find(b"\0", name)].decode("utf-8", "replace")
        if not following:
            break
        place += following
    words = numbers.data()
    found = struct.unpack_from(f"{order}{len(words) // 2}H", words)
    return [names.get(number & 0x7FFF, "") if number & 0x7FFF > 1 else "" for number in found]


def _section(elf: ELFFile, name: str) -> bytes:
    section = elf.get_section_by_name(name)
    return section.data() if section is not None else b""


def _notes(elf: ELFFile, name: str) -> Iterator[Note]:
    """The notes of a section (Elf_Nhdr: sizes of owner and data, type; each part padded to 4 bytes)."""
    import struct

    data = _section(elf, name)
    order = "<" if elf.little_endian else ">"
    place = 0
    while place + 12 <= len(data):
        owner, size, kind = struct.unpack_from(f"{order}III", data, place)
        start = place + 12 + (owner + 3 & ~3)
        if start + size > len(data):
            return
        yield Note(kind, data[start : start + size])
        place = start + (size + 3 & ~3)


NT_GNU_BUILD_ID = 3


def _build_id(elf: ELFFile) -> str:
    """The build id in hexadecimal, empty where there is none."""
    notes = _notes(elf, ".note.gnu.build-id")
    return next((note.data.hex() for note in notes if note.kind == NT_GNU_BUILD_ID), "")


def _debug_link(elf: ELFFile) -> Tuple[str, int]:
    """The name of the debug file and its checksum, behind the name at a multiple of 4 bytes; an empty name for none."""
    data = _section(elf, ".gnu_debuglink")
    checksum = int.from_bytes(data[-4:], "little" if elf.little_endian else "big")
    return data.partition(b"\0")[0].decode("utf-8", "replace"), checksum
