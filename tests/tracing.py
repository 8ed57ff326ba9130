"""Runs a script on this machine's events, inside the process of the test, with its handlers in the VM."""

from __future__ import annotations

import gc
import os
import sys
from typing import NamedTuple, Optional, Sequence

from compiler.compile import compile_source
from ktap.child import Child
from ktap.live_host import LiveHost
from ktap.options import Options
from ktap.session import KernelTypes
from ktap.sources import machine_source
from vm.event import Loss
from vm.limits import Limits
from vm.machine import Machine
from vm.machine import Options as MachineOptions
from vm.run import Run, RunOptions

LIMITS = Limits()
TRANSPORTS = ("ring", "perf")
EVENTS = "events"
"""In place of a transport or a tier: the backend without BPF."""
WAYS = (*TRANSPORTS, EVENTS)


class Sink:
    """Keeps what is printed."""

    def __init__(self) -> None:
        self.data = b""

    def write(self, data: bytes) -> None:
        self.data += data

    def flush(self) -> None:
        """There is nothing to let out."""

    def tick(self, now_ns: int) -> None:
        """Nor is there any later."""


class Traced(NamedTuple):
    """What a run gave."""

    output: str
    losses: Sequence[Loss]
    notices: Sequence[str]
    faults: Sequence[str]
    source: object

    @property
    def lines(self) -> list[str]:
        return self.output.splitlines()

    def lost(self) -> int:
        return sum(loss.events for loss in self.losses)


def trace(
    script: str,
    command: Sequence[str] = (),
    *,
    buffer: str = "auto",
    buffer_bytes: Optional[int] = None,
    pid: Optional[int] = None,
    cpu: Optional[int] = None,
    duration_s: Optional[float] = None,
    everyone: bool = False,
    tier: str = "vm",
    backend: str = "bpf",
    unsafe: bool = False,
    limits: Limits = LIMITS,
) -> Traced:
    """Trace until the command ends, or for a time. Only the command and its children, unless `everyone`.

    Raises Refusal for a script that cannot be traced.
    """
    sink, notices, faults = Sink(), [], []
    machine = Machine(
        compile_source(script, "test.kp").program, sink, LiveHost(), MachineOptions(limits, types=KernelTypes())
    )
    child = Child(command) if command else None
    if EVENTS in (buffer, tier):
        buffer, tier, backend = "auto", "vm", "perf"
    options = Options(
        buffer=buffer, buffer_bytes=buffer_bytes, pid=pid, cpu=cpu, tier=tier, backend=backend, unsafe=unsafe
    )
    held = child.held() if child and not everyone else None
    source = machine_source(machine, options, held, notices.append)
    run = Run(
        machine,
        source,
        RunOptions(
            duration_ns=None if duration_s is None else int(duration_s * 1e9),
            start=child.start if child else None,
            finished=child.ended if child else None,
        ),
        faults.append,
    )
    try:
        outcome = run.execute()
    finally:
        source.close()
        if child is not None:
            child.stop()
    return Traced(sink.data.decode("utf-8", "surrogateescape"), outcome.losses, notices, faults, source)


SPIN = """
import os, time
end = time.time() + 1.5
for cpu in sorted(os.sched_getaffinity(0))[1:]:
    if os.fork() == 0:
        os.sched_setaffinity(0, {cpu})
        break
else:
    os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[0]})
while time.time() < end: pass
"""
"""Python code that keeps every processor at work for a while: Linux 6.18 takes no samples of those that stand idle."""


def python(code: str) -> list[str]:
    """A command that runs Python code."""
    return [sys.executable, "-S", "-E", "-c", code]


def open_files() -> set[str]:
    """The descriptors of this process, without those of garbage."""
    gc.collect()
    return set(os.listdir("/proc/self/fd"))
