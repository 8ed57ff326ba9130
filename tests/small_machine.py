"""A small machine for tests of builtins: the real values and accounts, an output that is kept, a made-up event."""

from __future__ import annotations

from typing import Dict, List, Optional, Tuple

from vm.aggregate import Keeping
from vm.library import install
from vm.limits import Limits
from vm.memory import Account


class Written:
    def __init__(self) -> None:
        self.data = b""
        self.flushed = 0

    def write(self, data: bytes) -> None:
        self.data += data

    def flush(self) -> None:
        self.flushed = len(self.data)


class MadeUpHost:
    def __init__(self) -> None:
        self.commands: List[str] = []
        self.signals: List[Tuple[int, int]] = []

    def monotonic_ns(self) -> int:
        return 5_000_000_123

    def realtime_offset_ns(self) -> int:
        return 1_700_000_000_000_000_000

    def cpus(self) -> int:
        return 4

    def architecture(self) -> str:
        return "x86_64"

    def kernel_release(self) -> str:
        return "6.18.0"

    def kernel_address(self, symbol: str) -> Optional[int]:
        return None

    def kernel_symbol(self, address: int) -> str:
        return f"k_{address:x}+0x1"

    def user_symbol(self, pid: int, address: int) -> str:
        return f"u{pid}_{address:x}"

    def run(self, command: str) -> int:
        self.commands.append(command)
        return 3

    def send_signal(self, pid: int, number: int) -> None:
        if number > 64:
            raise ValueError("no such signal")
        self.signals.append((pid, number))


class MadeUpEvent:
    """Memory at (space, kind, address); None there is what could not be read."""

    def __init__(self, memory: Optional[Dict[Tuple[str, str, int], Optional[bytes]]] = None) -> None:
        self.record: Tuple[object, ...] = ()
        self.pid = 42
        self.memories = memory or {}
        self.stacks: Dict[str, object] = {}
        self.states: Dict[str, object] = {}

    def field(self, path: str) -> object:
        return None

    def task(self, path: str) -> object:
        return None

    def memory(self, space: str, kind: str, address: int, size: int) -> Optional[bytes]:
        found = self.memories[space, kind, address]
        return None if found is None else found[:size]

    def stack(self, space: str, depth: int, skip: int) -> object:
        return self.stacks[space, depth, skip] if (space, depth, skip) in self.stacks else self.stacks[space]

    def state(self, name: str) -> object:
        return self.states[name]


class SmallMachine:
    def __init__(
        self, limits: Optional[Limits] = None, unsafe: bool = False, keeping: Optional[Keeping] = None
    ) -> None:
        self.output = Written()
        self.host = MadeUpHost()
        self.limits = limits or Limits()
        self.account = Account(self.limits, lambda: ())
        self.keeping = keeping or Keeping(True, ())
        self.event: Optional[MadeUpEvent] = None
        self.unsafe = unsafe
        self.types = None
        self.probes: List[Tuple[bytes, Optional[bytes], object, bool]] = []
        self.library = install(self)

    def call(self, depth: int, function: object, *arguments: object) -> object:
        return function(depth + 1, *arguments)

    def now_ns(self) -> int:
        return self.host.monotonic_ns()

    def probe(self, event: bytes, filter: Optional[bytes], handler: object, takes_event: bool) -> None:
        self.probes.append((event, filter, handler, takes_event))

    def run(self, name: str, *arguments: object) -> object:
        """Call a builtin."""
        return self.library[name](0, *arguments)

    def printed(self, name: str, *arguments: object) -> bytes:
        """What a call of a builtin prints."""
        before = len(self.output.data)
        self.run(name, *arguments)
        return self.output.data[before:]
