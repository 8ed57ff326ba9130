"""What the text of live events needs of the kernel besides their records: see ktap.pointer_format.KernelNames.

Source: kernel/kallsyms.c (`%pS`, `%ps`), `printk_formats` of tracefs, and ktap.kernel_data.
"""

from __future__ import annotations

from bisect import bisect_right
from contextlib import suppress
from typing import TYPE_CHECKING, Callable, Mapping, Optional, Sequence

from vm.c_types import Structure
from vm.named_tuple import NamedTuple

if TYPE_CHECKING:
    from ktap.kernel_data import KernelData

KALLSYMS = "/proc/kallsyms"
CODE = frozenset("tTwW")
DATA = frozenset("dDbBrRvV")
ALL_SYMBOLS = 1000
"""So many symbols of data are there only where the kernel was built to keep all of them (KALLSYMS_ALL)."""
BOUNDS = ("_stext", "_end")
"""Where the kernel's own symbols are; outside are offsets of per-CPU variables, which no address is named for."""
MODULES = "/proc/modules"
MARKS = ("$", ".L", "L0")
"""How names begin that mark where code and data are (arm64's `$x`, `$d`), which are no symbols (is_mapping_symbol)."""
SLOTS = (" [__builtin__kprobes]", " [__builtin__ftrace]")
"""Pages of instructions that kallsyms lists, but the kernel names no address after."""
REACH_BYTES = 1 << 16
"""How far behind its beginning code may reach that is last in its module, or a BPF program, whose size nobody tells."""
MASK = (1 << 64) - 1


class Symbol(NamedTuple):
    """A symbol, what is added for the module it is of, and where the next one starts (its own address: unknown)."""

    address: int
    name: bytes
    module: bytes
    end: int


class SymbolTable:
    """The symbols of one kallsyms file, as the kernel itself would look them up."""

    def __init__(self, symbols: Sequence[tuple[int, str, str, str]], ends: Mapping[bytes, int] = {}) -> None:
        """`symbols` are address, kind, name and module (` [name]` or empty), in any order; `ends` are modules'."""
        self._ends = ends
        whole = sum(kind in DATA for _, kind, _, _ in symbols) >= ALL_SYMBOLS
        ordered = sorted(symbols, key=lambda symbol: symbol[0])
        firsts: list[tuple[int, str, str, str]] = []
        for symbol in ordered:  # of several at one address the kernel takes the first
            if not firsts or firsts[-1][0] != symbol[0]:
                firsts.append(symbol)
        self.addresses = [symbol[0] for symbol in firsts]
        bounds = {name: address for address, _, name, module in ordered if name in BOUNDS and not module}
        start, stop = bounds.get("_stext", 0), bounds.get("_end", MASK)
        self.entries: list[Optional[Symbol]] = []
        for place, (address, kind, name, module) in enumerate(firsts):
            following = firsts[place + 1][0] if place + 1 < len(firsts) else address
            shown = module not in SLOTS if module else (start <= address < stop and (whole or kind in CODE))
            self.entries.append(Symbol(address, name.encode(), module.encode(), following) if shown else None)

    def find(self, address: int) -> Optional[Symbol]:
        """The symbol an address lies in, None where the kernel names none."""
        place = bisect_right(self.addresses, address) - 1
        symbol = self.entries[place] if place >= 0 else None
        if symbol is None or not symbol.module:
            return symbol
        return symbol if address < max(self._ends.get(symbol.module, 0), symbol.address + REACH_BYTES) else None


def read_table(path: str = KALLSYMS) -> SymbolTable:
    """Parse kallsyms; hidden addresses (zeros) are left out. Raises OSError."""
    symbols: list[tuple[int, str, str, str]] = []
    with open(path, encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            address_text, kind, name, *module = line.split()
            address = int(address_text, 16)
            if address and not name.startswith(MARKS):
                symbols.append((address, kind, name, f" {module[0]}" if module else ""))
    return SymbolTable(symbols, module_ends())


def module_ends(path: str = MODULES) -> dict[bytes, int]:
    """Where modules end, by what follows their symbols (` [name]`); empty where nobody tells."""
    found: dict[bytes, int] = {}
    with suppress(OSError), open(path, "rb") as lines:
        for line in lines:
            name, size, *_, address = line.partition(b"(")[0].split()
            found[b" [%s]" % name] = int(address, 16) + int(size)
    return found


def with_offset(symbol: Optional[Symbol], address: int) -> bytes:
    """`vfs_read+0x9e/0x150 [module]`; hexadecimal where there is no symbol."""
    if symbol is None:
        return b"0x%x" % address
    return b"%s+0x%x/0x%x%s" % (symbol.name, address - symbol.address, symbol.end - symbol.address, symbol.module)


def without_offset(symbol: Optional[Symbol], address: int) -> bytes:
    """`vfs_read [module]`."""
    return symbol.name + symbol.module if symbol is not None else b"0x%x" % address


def read_constant_strings(text: str) -> dict[int, bytes]:
    """The strings of a `printk_formats` file (`0xffffffff828195af : "thaw_processes"`) by address."""
    found: dict[int, bytes] = {}
    for line in text.split("\n"):
        address, colon, quoted = line.partition(" : ")
        if colon:
            found[int(address, 16)] = quoted.strip()[1:-1].encode("utf-8", "surrogateescape")
    return found


class LiveNames:
    """This kernel's names; each source is read when something is first asked of it."""

    def __init__(self, root: Callable[[], str], kallsyms: str = KALLSYMS) -> None:
        """`root` gives the place where tracefs is mounted."""
        self._root = root
        self._kallsyms = kallsyms
        self._table: Optional[SymbolTable] = None
        self._constant: Optional[dict[int, bytes]] = None
        self._data: Optional[KernelData] = None
        self._asked = False
        self._hashes: Optional[bool] = None
        self._constants: dict[str, Optional[int]] = {}

    def _find(self, address: int) -> Optional[Symbol]:
        if self._table is None:
            try:
                self._table = read_table(self._kallsyms)
            except OSError:
                self._table = SymbolTable([])
        return self._table.find(address)

    def symbol(self, address: int) -> bytes:
        """See KernelNames."""
        return with_offset(self._find(address), address)

    def symbol_name(self, address: int) -> bytes:
        """See KernelNames."""
        return without_offset(self._find(address), address)

    def string(self, address: int) -> bytes:
        """See KernelNames; `(0x…)` where nothing can be read."""
        if address == 0:
            return b"(null)"
        if self._constant is None:
            self._constant = read_constant_strings(self._read("printk_formats"))
        text = self._constant.get(address)
        if text is None:
            data = self._kernel_data()
            text = data.string(address) if data is not None else None
        return b"(0x%x)" % address if text is None else text

    def pointer(self, address: int) -> bytes:
        """See KernelNames; the address itself where the kernel cannot be asked for its hash."""
        if self._hashes is None:
            self._hashes = self._read("options/hash-ptr").strip() != "0"
        data = self._kernel_data() if self._hashes else None
        return b"%016x" % (address & MASK) if data is None else data.pointer(address)

    def constant(self, name: str) -> Optional[int]:
        """See KernelNames."""
        if name not in self._constants:
            self._constants[name] = self._find_constant(name)
        return self._constants[name]

    def _find_constant(self, name: str) -> Optional[int]:
        from ktap.btf import kernel_types

        types = kernel_types()
        if types is None:
            return None
        if name.startswith("sizeof("):
            found = types.find(name[len("sizeof(") : -1])
            return found.size_bytes if isinstance(found, Structure) else None
        if name == "vmemmap_base":
            from ktap.page_base import page_base

            data = self._kernel_data()
            try:
                return None if data is None else page_base(types, data)
            except OSError:
                return None
        return types.enumerator(name)

    def _kernel_data(self) -> Optional[KernelData]:
        if not self._asked:
            self._asked = True
            from ktap.kernel_data import KernelData

            try:
                self._data = KernelData()
            except OSError:
                return None
        return self._data

    def _read(self, path: str) -> str:
        try:
            with open(f"{self._root()}/{path}", encoding="utf-8", errors="surrogateescape") as file:
                return file.read()
        except OSError:
            return ""
