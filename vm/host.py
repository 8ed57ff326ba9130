"""What a script may ask of the machine it runs on, behind one interface so that a replay can answer too."""

from __future__ import annotations

from typing import Optional, Protocol


class Host(Protocol):
    """Clock, names and symbols. A recording carries the answers of the machine it was made on."""

    def monotonic_ns(self) -> int:
        """CLOCK_MONOTONIC now, in ns."""

    def realtime_offset_ns(self) -> int:
        """What to add to a monotonic time to have the time since 1970, in ns."""

    def cpus(self) -> int:
        """Number of processors that are online."""

    def architecture(self) -> str:
        """`x86_64`, `aarch64`, …"""

    def kernel_release(self) -> str:
        """As uname -r prints it."""

    def kernel_address(self, symbol: str) -> Optional[int]:
        """The address of a kernel symbol, None when there is none (or it may not be read)."""

    def kernel_symbol(self, address: int) -> str:
        """`name+0x1c`, with ` [module]` where it lies in one; hexadecimal where no symbol is known."""

    def user_symbol(self, pid: int, address: int) -> str:
        """The same for an address of a process."""

    def run(self, command: str) -> int:
        """system(): run a command (only with --unsafe), return its status."""

    def send_signal(self, pid: int, number: int) -> None:
        """signal(): (only with --unsafe)."""
