"""The running machine, with the symbols of its processes."""

from __future__ import annotations

import os
from collections import OrderedDict
from typing import TYPE_CHECKING, Optional

from vm.local_host import LocalHost

if TYPE_CHECKING:
    from ktap.libbcc import UserSymbols

MOST_PROCESSES = 64
"""Processes whose symbols are kept; each takes as much memory as its symbols."""


class LiveHost(LocalHost):
    """A `vm.host.Host` that names addresses of processes through BCC's library, where it is installed."""

    def __init__(self) -> None:
        super().__init__(self._symbol_of)
        self._processes: OrderedDict[int, Optional[UserSymbols]] = OrderedDict()

    def _symbol_of(self, pid: int, address: int) -> str:
        """`name+0x1c [libc.so.6]`; `[libc.so.6]+0x1c` where only the file is known; hexadecimal for nothing."""
        address &= (1 << 64) - 1
        symbols = self._symbols(pid)
        place = symbols.at(address) if symbols is not None else None
        if place is None:
            return f"{address:#x}"
        module = f"[{os.path.basename(place.module)}]" if place.module else ""
        if place.symbol is None:
            return f"{module}+{place.offset:#x}"
        return f"{place.symbol}+{place.offset:#x} {module}".rstrip()

    def _symbols(self, pid: int) -> Optional[UserSymbols]:
        if pid not in self._processes:
            from ktap.libbcc import UserSymbols

            try:
                self._processes[pid] = UserSymbols(pid)
            except (ImportError, OSError):
                self._processes[pid] = None
            if len(self._processes) > MOST_PROCESSES:
                oldest = self._processes.popitem(last=False)[1]
                if oldest is not None:
                    oldest.close()
        self._processes.move_to_end(pid)
        return self._processes[pid]
