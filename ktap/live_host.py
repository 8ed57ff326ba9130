"""The running machine, with the symbols of its processes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Optional

from vm.local_host import LocalHost

if TYPE_CHECKING:
    from ktap.address_spaces import AddressSpaces
    from ktap.user_symbols import UserSymbols


class LiveHost(LocalHost):
    """A `vm.host.Host` that names addresses of processes."""

    def __init__(self) -> None:
        super().__init__(self._symbol_of)
        self._spaces: Optional[AddressSpaces] = None
        self._symbols: Optional[UserSymbols] = None

    @property
    def spaces(self) -> AddressSpaces:
        """What is known of the memory of processes; a source that has stacks of them has it watch."""
        if self._spaces is None:
            from ktap.address_spaces import AddressSpaces

            self._spaces = AddressSpaces()
        return self._spaces

    def _symbol_of(self, pid: int, address: int) -> str:
        """See ktap.user_symbols."""
        if self._symbols is None:
            from ktap.user_symbols import UserSymbols

            self._symbols = UserSymbols(self.spaces)
        return self._symbols.name(pid, address)
