"""Machines for tests: scripts or listings compiled, verified and given an output that is kept and made-up events."""

from __future__ import annotations

from typing import Dict, List, Optional, Sequence, Tuple, Union

from small_machine import MadeUpHost

from compiler.compile import compile_source
from vm.fault import Exit, Fault
from vm.idle import IdleEvent
from vm.limits import Limits
from vm.machine import Machine, Options
from vm.program import Program
from vm.verify import verify

LIMITS = Limits()


class Kept:
    """Output that is kept in memory."""

    def __init__(self) -> None:
        self.data = b""
        self.flushed = 0
        self.ticks: List[int] = []

    def write(self, data: bytes) -> None:
        self.data += data

    def flush(self) -> None:
        self.flushed = len(self.data)

    def tick(self, now_ns: int) -> None:
        self.ticks.append(now_ns)


class MadeUpHostWithSymbols(MadeUpHost):
    """Knows one symbol."""

    def kernel_address(self, symbol: str) -> Optional[int]:
        return {"vfs_read": 0xFFFFFFFF81000000}.get(symbol)


class Event(IdleEvent):
    """An event whose record is (time, point, {name: value})."""

    def __init__(self, name: bytes = b"made_up") -> None:
        super().__init__(MadeUpHost())
        self.probename = name

    def values(self) -> Dict[str, object]:
        values = self.record[2]
        assert isinstance(values, dict)
        return values

    @property
    def nsecs(self) -> int:
        time_ns = self.record[0]
        assert isinstance(time_ns, int)
        return time_ns

    @property
    def pid(self) -> object:
        return self.values().get("pid")

    @property
    def execname(self) -> object:
        return self.values().get("execname")

    @property
    def argstr(self) -> object:
        return self.values().get("argstr", b"text of the event")

    def field(self, path: str) -> object:
        return self.values().get(path)

    def task(self, path: str) -> object:
        return b"task " + path.encode()


def made(
    script: Union[str, Program],
    limits: Limits = LIMITS,
    host: Optional[MadeUpHost] = None,
    arguments: Optional[Dict[Union[int, bytes], object]] = None,
) -> Machine:
    """A machine for a script or a program."""
    compiled = compile_source(script, "test.kp").program if isinstance(script, str) else script
    verify(compiled)
    return Machine(compiled, Kept(), host or MadeUpHostWithSymbols(), Options(limits, arguments or {}))


def printed(machine: Machine) -> str:
    """What a machine has printed."""
    assert isinstance(machine.output, Kept)
    return machine.output.data.decode()


def told(script: str, limits: Limits = LIMITS, arguments: Optional[Dict[Union[int, bytes], object]] = None) -> str:
    """What the main chunk of a script prints; then `kind: message` of its fault, `exit N`."""
    machine = made(script, limits, arguments=arguments)
    try:
        machine.run_main()
    except Fault as fault:
        return f"{printed(machine)}{fault.kind}: {fault.message}\n"
    except Exit as leaving:
        return f"{printed(machine)}exit {leaving.status}\n"
    return printed(machine)


def delivered(machine: Machine, events: Sequence[Dict[str, object]]) -> Event:
    """Run the main chunk, then all handlers on each of the events, which are 10 ns apart."""
    machine.run_main()
    event = Event()
    bound = machine.bind([(event, range(len(machine.probes)))], machine.probes)
    machine.deliver(records(events), bound)
    return event


def records(events: Sequence[Dict[str, object]], first_ns: int = 10) -> List[Tuple[object, ...]]:
    """Records of point 0, 10 ns apart."""
    return [(first_ns + 10 * number, 0, values) for number, values in enumerate(events)]
