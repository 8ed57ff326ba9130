"""Names of addresses of processes: `work+0x1c [program]`, `py::load:/x.py+0x8 [jit]`, `[libx.so.1+0x4c2d]`.

A file's symbols are read from the very file that a process has mapped, as long as it can be reached; one
that has taken its path since is told by its build id (or its inode), and not read.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from contextlib import suppress
from functools import lru_cache
from typing import Dict, Iterator, Optional, Set, Tuple

from ktap.address_spaces import AddressSpaces, Mapping
from ktap.demangle import demangle
from ktap.elf import Binary, NotElf
from ktap.jit_map import JitMap

MOST_FILES = 256
MOST_JIT_MAPS = 256
MOST_NAMES = 1 << 16
"""So many are kept."""
VDSO, VSYSCALL = "[vdso]", "[vsyscall]"
ADDRESS_MASK = (1 << 64) - 1

Identity = Tuple[str, int]
"""A file's build id and 0, or its path and its inode."""


class UserSymbols:
    """See above."""

    def __init__(self, spaces: AddressSpaces) -> None:
        self.spaces = spaces
        self._files: OrderedDict[Identity, Binary] = OrderedDict()
        self._missing: Set[Tuple[int, Identity]] = set()
        self._jit_maps: OrderedDict[int, JitMap] = OrderedDict()
        self._names: Dict[Tuple[Mapping, int], str] = {}
        """By what is mapped and the address in it."""

    def name(self, pid: int, address: int) -> str:
        """`name+0x1c [libc.so.6]`, `[libc.so.6+0x1c]` where only the file is known; hexadecimal for nothing."""
        address &= ADDRESS_MASK
        mapping = self.spaces.at(pid, address)
        if mapping is not None:
            known = self._names.get((mapping, address))
            if known is not None:
                return known
            if self._has_symbols(pid, mapping):
                return self._keep(mapping, address, self._in_file(pid, mapping, address))
        made = self._jit_map(pid).at(address)
        if made is not None:
            return f"{printable(made[0])}+{made[1]:#x} [jit]"
        if mapping is None:
            return f"{address:#x}"
        if mapping.path.startswith("["):  # such as the page where instructions under probes are run: [uprobes]
            return f"{printable(mapping.path[:-1])}+{address - mapping.start:#x}]"
        return f"{address:#x} [anon]"

    def _has_symbols(self, pid: int, mapping: Mapping) -> bool:
        """Whether what is mapped may have symbols of its own; memory that has a name is a program's, or a JIT's."""
        if mapping.build_id or not mapping.path.startswith(ANONYMOUS):
            return bool(mapping.build_id) or mapping.path.startswith(("/", "[v"))
        return mapping.path.startswith(MEMORY_FILE) and self._binary(pid, mapping) is not None

    def _keep(self, mapping: Mapping, address: int, name: str) -> str:
        if len(self._names) >= MOST_NAMES:
            self._names.clear()
        self._names[mapping, address] = name
        return name

    def _in_file(self, pid: int, mapping: Mapping, address: int) -> str:
        module = printable(os.path.basename(mapping.path) if mapping.path.startswith("/") else mapping.path[1:-1])
        if mapping.path == VSYSCALL:
            return f"[{module}+{address - mapping.start:#x}]"
        offset = address - mapping.start + mapping.offset
        binary = self._binary(pid, mapping)
        if binary is None:
            told = f" build-id {mapping.build_id}" if mapping.build_id else ""
            return f"[{module}+{offset:#x}{told}]"
        linked = binary.address_of(offset)
        function = binary.function_at(linked) if linked is not None else None
        if function is None or linked is None:
            return f"[{module}+{offset:#x}]"
        return f"{printable(demangle(function.name))}+{linked - function.address:#x} [{module}]"

    # -- files --------------------------------------------------------------------------------

    def _binary(self, pid: int, mapping: Mapping) -> Optional[Binary]:
        """The file that is mapped, None where it cannot be reached any more."""
        identity = (mapping.build_id, 0) if mapping.build_id else (mapping.path, mapping.inode)
        found = self._files.get(identity)
        if found is None and (pid, identity) not in self._missing:
            found = vdso() if mapping.path == VDSO else self._open(pid, mapping)
            if found is None:
                if len(self._missing) >= MOST_NAMES:
                    self._missing.clear()
                self._missing.add((pid, identity))
        if found is not None:
            self._files[identity] = found
            self._files.move_to_end(identity)
            if len(self._files) > MOST_FILES:
                self._files.popitem(last=False)
        return found

    def _open(self, pid: int, mapping: Mapping) -> Optional[Binary]:
        for path, is_it in self._places(pid, mapping):
            with suppress(OSError, NotElf):
                binary = Binary(path)
                same = binary.build_id == mapping.build_id if mapping.build_id else binary.inode == mapping.inode
                if same or (is_it and not mapping.build_id):
                    return binary
        return None

    def _places(self, pid: int, mapping: Mapping) -> Iterator[Tuple[str, bool]]:
        """Where the file may be found, and whether what is there is the file for certain."""
        path = mapping.path[: -len(DELETED)] if mapping.path.endswith(DELETED) else mapping.path
        if self.spaces.is_running(pid):
            yield f"/proc/{pid}/map_files/{mapping.start:x}-{mapping.end:x}", True
            yield f"/proc/{pid}/root{path}", False
        yield path, False

    # -- code that no file has ----------------------------------------------------------------

    def _jit_map(self, pid: int) -> JitMap:
        found = self._jit_maps.get(pid)
        if found is None:
            found = self._jit_maps[pid] = JitMap(pid)
            if len(self._jit_maps) > MOST_JIT_MAPS:
                self._jit_maps.popitem(last=False)
        self._jit_maps.move_to_end(pid)
        return found


MEMORY_FILE = "/memfd:"
ANONYMOUS = ("//anon", "/dev/zero", MEMORY_FILE, "/SYSV", "/anon_hugepage")
"""How the names of mappings begin that no file stands behind."""
DELETED = " (deleted)"


def printable(text: str) -> str:
    """A name without what could command a terminal: programs choose the names of their symbols."""
    return text if text.isprintable() else "".join(sign if sign.isprintable() else "?" for sign in text)


@lru_cache(maxsize=1)
def vdso() -> Optional[Binary]:
    """The code that the kernel gives every process, as this one has it."""
    with suppress(OSError, NotElf, ValueError):
        with open("/proc/self/maps") as file:
            line = next((line for line in file if line.rstrip().endswith(VDSO)), "")
        start, end = (int(number, 16) for number in line.split()[0].split("-"))
        with open("/proc/self/mem", "rb") as memory:
            memory.seek(start)
            return Binary(VDSO, memory.read(end - start))
    return None
