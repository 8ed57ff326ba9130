"""Every kind of event that a script can name fires, by every way to write it, on both tiers.

What each tells is tested elsewhere: tracepoints, raw tracepoints and timers beside this file; functions, markers,
counters and watchpoints in tests/user; functions of the kernel in tests/kernels.
"""

from __future__ import annotations

import pytest
from tracing import trace

from ktap.elf import open_binary
from ktap.functions import kernel_functions
from ktap.libraries import find_file

pytestmark = pytest.mark.live

PYTHON = "/usr/bin/python3"
"""It has markers."""
CALLS = 25
CODE = f"""
import gc, os
fd = os.open("/dev/null", os.O_WRONLY)
for _ in range({CALLS}):
    os.getppid(); os.write(fd, b"x"); gc.collect()
sum(range(3_000_000))
"""
LIBC = find_file("libc") or ""
GETPPID = next(one.offset for one in open_binary(LIBC).functions if one.name == "getppid")
ROWS = [
    ("sched:sched_process_exit", "sched_process_exit", 1),
    ("syscalls:sys_enter_w*", "sys_enter_write", CALLS),
    ("syscalls:*", "sys_exit_getppid", CALLS),
    ("syscalls", "sys_enter_getppid", CALLS),
    ("sched:*", "sched_process_exit", 1),
    ("*:*", "sys_enter", CALLS),
    ("raw:sched_process_exit", "sched_process_exit", 1),
    (f"probe:{LIBC}:getppid", "getppid", CALLS),
    ("probe:libc:getppid", "getppid", CALLS),
    ("probe:libc:getpp*", "getppid", CALLS),
    (f"probe:libc:{GETPPID:#x}", "getppid", CALLS),
    ("probe:libc:getppid%return", "getppid", CALLS),
    ("probe:libc:getppid sp=%sp:u64 c=$comm", "getppid", CALLS),
    (f"sdt:{PYTHON}:python:gc__done", "gc__done", CALLS),
    (f"sdt:{PYTHON}:*", "gc__start", CALLS),
    ("perf:page-faults", "page-faults", 10),
    ("perf:task-clock:1000000", "task-clock", 1),
    ("profile-997hz", "profile-997hz", 1),
    ("sched:sched_process_exit, probe:libc:getppid", "getppid", CALLS),
]
OF_KERNEL = [
    ("probe:vfs_write", "vfs_write", CALLS),
    ("probe:vfs_wri*", "vfs_write", CALLS),
    ("probe:vfs_write+0x0", "vfs_write", CALLS),
    ("probe:vfs_write%return", "vfs_write", CALLS),
    ("ftrace:function /ip==vfs_wri*/", "function", CALLS),
]
WITHOUT_KPROBES = pytest.mark.skipif(
    not kernel_functions().can_be_probed(), reason="this kernel cannot probe its functions"
)


@pytest.mark.parametrize("tier", ["vm", "auto"])
@pytest.mark.parametrize(
    ("event", "name", "least"), [*ROWS, *(pytest.param(*row, marks=WITHOUT_KPROBES) for row in OF_KERNEL)]
)
def test_it_fires(event: str, name: str, least: int, tier: str) -> None:
    script = f'var n = {{}} trace {event} {{ n[probename] += 1 }} trace_end {{ print(n["{name}"]) }}'
    traced = trace(script, [PYTHON, "-S", "-E", "-c", CODE], tier=tier)
    (count,) = traced.lines
    assert int(count) >= least


def test_timers_and_the_ends() -> None:
    script = """
    var ticks = 0
    trace_begin { print("begin") }
    tick-10ms { ticks += 1  if (ticks == 3) { exit() } }
    trace_end { print("end", ticks) }
    """
    assert trace(script).lines == ["begin", "end\t3"]
