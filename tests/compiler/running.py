"""Runs scripts on the machine, without a kernel and without the command around it."""

from __future__ import annotations

from typing import Optional

from compiler.compile import builtin_names, compile_tree
from compiler.parse import parse
from vm.fault import Exit, Fault
from vm.limits import Limits
from vm.machine import Machine, Options
from vm.verify import verify

LIMITS = Limits()


class Sink:
    """Keeps what is printed."""

    def __init__(self) -> None:
        self.data = b""

    def write(self, data: bytes) -> None:
        self.data += data

    def flush(self) -> None:
        pass


class Host:
    """A machine where nothing happens."""

    def monotonic_ns(self) -> int:
        return 1

    def realtime_offset_ns(self) -> int:
        return 0

    def cpus(self) -> int:
        return 1

    def architecture(self) -> str:
        return "none"

    def kernel_release(self) -> str:
        return "0"

    def kernel_address(self, symbol: str) -> Optional[int]:
        return 4096 if symbol == "known" else None

    def kernel_symbol(self, address: int) -> str:
        return hex(address)

    def user_symbol(self, pid: int, address: int) -> str:
        return hex(address)

    def run(self, command: str) -> int:
        return 0

    def send_signal(self, pid: int, number: int) -> None:
        pass


def run(text: str, *arguments: object, folding: bool = True, limits: Limits = LIMITS) -> str:
    """What a script prints, its handlers being run once each in order after the main chunk.

    A fault ends the run and adds a line `FAULT line:column: message` and one `from function line:column`
    for every caller.
    """
    program = compile_tree(parse(text, "test.kp").script, builtin_names(), folding).program
    verify(program)
    sink = Sink()
    machine = Machine(program, sink, Host(), Options(limits, arguments={0: b"test.kp"}))
    try:
        machine.run_main(*arguments)
        for number, probe in enumerate(machine.probes):
            machine.run_handler(number, probe.event)
    except Fault as fault:
        inner, *outer = fault.frames
        told = f"FAULT {inner.span.line}:{inner.span.column}: {fault.message}\n"
        told += "".join(f"from {frame.function} {frame.span.line}:{frame.span.column}\n" for frame in outer)
        return sink.data.decode() + told
    except Exit:
        return sink.data.decode() + "EXIT\n"
    return sink.data.decode()
