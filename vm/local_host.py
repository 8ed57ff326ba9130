"""The machine this runs on, as scripts may ask about it: standard library and /proc only."""

from __future__ import annotations

import os
import time
from bisect import bisect_right
from typing import Callable, Dict, List, Optional

from vm.named_tuple import NamedTuple

KALLSYMS = "/proc/kallsyms"


class Symbols(NamedTuple):
    """Kernel symbols: the code's in order of address, and addresses by name (the first of a name counts)."""

    addresses: List[int]
    names: List[str]
    by_name: Dict[str, int]


def read_symbols(path: str = KALLSYMS) -> Symbols:
    """Parse kallsyms (`ffffffff81000000 T name [module]`). Where addresses are hidden, they are 0 and left out."""
    code: List[tuple[int, str]] = []
    by_name: Dict[str, int] = {}
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as lines:
            for line in lines:
                address_text, kind, name, *module = line.split()
                address = int(address_text, 16)
                if address:
                    by_name.setdefault(name, address)
                    if kind in "tTwW":
                        code.append((address, " ".join([name, *module])))
    except OSError:
        return Symbols([], [], {})
    code.sort()
    return Symbols([address for address, _ in code], [name for _, name in code], by_name)


class LocalHost:
    """A `vm.host.Host`. `user_symbol_of` names addresses of processes; without it they are hexadecimal."""

    def __init__(self, user_symbol_of: Optional[Callable[[int, int], str]] = None, kallsyms: str = KALLSYMS) -> None:
        self.user_symbol_of = user_symbol_of
        self.kallsyms = kallsyms
        self.offset_ns: Optional[int] = None
        self.known: Optional[Symbols] = None

    @property
    def symbols(self) -> Symbols:
        """The kernel's symbols, read when first asked for: that takes a tenth of a second."""
        if self.known is None:
            self.known = read_symbols(self.kallsyms)
        return self.known

    def monotonic_ns(self) -> int:
        """CLOCK_MONOTONIC now, in ns."""
        return time.monotonic_ns()

    def realtime_offset_ns(self) -> int:
        """What to add to a monotonic time to have the time since 1970; taken once, so that times of one run agree."""
        if self.offset_ns is None:
            before = time.monotonic_ns()
            now = time.time_ns()
            self.offset_ns = now - (before + time.monotonic_ns()) // 2
        return self.offset_ns

    def cpus(self) -> int:
        """Number of processors that are online."""
        return os.cpu_count() or 1

    def architecture(self) -> str:
        """`x86_64`, `aarch64`, …"""
        return os.uname().machine

    def kernel_release(self) -> str:
        """As uname -r prints it."""
        return os.uname().release

    def kernel_address(self, symbol: str) -> Optional[int]:
        """The address of a kernel symbol, None when there is none or it may not be read."""
        return self.symbols.by_name.get(symbol)

    def kernel_symbol(self, address: int) -> str:
        """`name+0x1c`, `name+0x1c [module]`; hexadecimal where no symbol is known."""
        symbols = self.symbols
        place = bisect_right(symbols.addresses, address) - 1
        if place < 0:
            return f"{address:#x}"
        name, _, module = symbols.names[place].partition(" ")
        offset = address - symbols.addresses[place]
        return f"{name}+{offset:#x}" + (f" {module}" if module else "")

    def user_symbol(self, pid: int, address: int) -> str:
        """The same for an address of a process."""
        return self.user_symbol_of(pid, address) if self.user_symbol_of else f"{address:#x}"

    def run(self, command: str) -> int:
        """system(): run a command, return its exit status, as a shell gives it."""
        status = os.waitstatus_to_exitcode(os.system(command))
        return status if status >= 0 else 128 - status

    def send_signal(self, pid: int, number: int) -> None:
        """signal(). Raises OSError."""
        os.kill(pid, number)
