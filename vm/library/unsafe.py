"""What only --unsafe opens: system, signal."""

from __future__ import annotations

from typing import Optional

from vm.fault import Fault
from vm.library.builtin import NOTHING, Machine, builtin, event_pid


def demand(machine: Machine, name: str) -> None:
    """Raise Fault unsafe unless --unsafe was given."""
    if not machine.unsafe:
        raise Fault("unsafe", f"{name} is not allowed without --unsafe", "run ktap with --unsafe to allow it")


@builtin("system", "command: string", "integer", ("unsafe",))
def system(machine: Machine, depth: int, command: bytes) -> int:
    """run a shell command and give its status; only with --unsafe"""
    demand(machine, "system")
    if b"\0" in command:
        raise Fault("argument", "system: the command holds a zero byte")
    machine.output.flush()
    return machine.host.run(command.decode("utf-8", "surrogateescape"))


@builtin(
    "signal",
    "number: integer, pid?: integer",
    "",
    ("unsafe",),
)
def signal(machine: Machine, depth: int, number: int, pid: Optional[int] = None) -> object:
    """send a signal to the event's process or to pid; only with --unsafe"""
    demand(machine, "signal")
    target = event_pid(machine) if pid is None else pid
    if target is None:
        raise Fault("argument", "signal: outside of an event it needs a pid")
    if target < 1:
        raise Fault("argument", f"signal: no process has the number {target}")
    try:
        machine.host.send_signal(target, number)
    except (OSError, ValueError, OverflowError) as error:
        raise Fault("argument", f"signal: {error}") from None
    return NOTHING
