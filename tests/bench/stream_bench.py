"""How many events a second the VM's handlers take, from the kernel to a table or a line of output.

    .venv/bin/python tests/bench/stream_bench.py [buffer ...]

A load makes getppid calls on one processor, as fast as they go; ktap has the other. Of each script is
shown: events handled by the time the load took, what was lost, ktap's own processor time an event, its
start included, and the events a second it is held to.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from typing import NamedTuple

CALLS = 2_000_000
LOAD = f"""
import os, sys, time
os.sched_setaffinity(0, {{sorted(os.sched_getaffinity(0))[-1]}})
getppid = os.getppid
start = time.perf_counter()
for _ in range({CALLS}): getppid()
print("load", time.perf_counter() - start, time.process_time(), file=sys.stderr)
"""


class Row(NamedTuple):
    """A script, what to call it, and the events a second it is held to."""

    name: str
    script: str
    least: int


ROWS = (
    Row("count by execname", "trace syscalls:sys_enter_getppid { s[execname] += 1 }", 500_000),
    Row("count by pid", "trace syscalls:sys_enter_getppid { s[pid] += 1 }", 0),
    Row("count by result", "trace syscalls:sys_exit_getppid { s[retval] += 1 }", 0),
    Row("enter and exit", "trace syscalls:sys_*_getppid { s[probename] += 1 }", 0),
    Row("four columns to a file", "trace syscalls:sys_enter_getppid { print(cpu, pid, execname, nsecs) }", 150_000),
    Row("argstr to a file", "trace syscalls:sys_enter_getppid { print(cpu, pid, execname, argstr) }", 150_000),
)
END = "trace_end { for (k, v in pairs(s)) { print(k, v) } }"


def run(row: Row, buffer: str) -> str:
    """One measurement, as a line of the table."""
    script = row.script + (END if "s[" in row.script else "")
    command = [sys.executable, "-m", "ktap", "--tier", "vm", "--buffer", buffer, "-o", "/dev/null", "-e", script]
    begin = os.times()
    done = subprocess.run([*command, "--", sys.executable, "-S", "-c", LOAD], stderr=subprocess.PIPE, text=True)
    end = os.times()
    found = re.search(r"^load (\S+) (\S+)$", done.stderr, re.M)
    if found is None:
        raise SystemExit(done.stderr)
    lost = sum(int(count) for count in re.findall(r"lost (\d+) events", done.stderr))
    used = end.children_user + end.children_system - begin.children_user - begin.children_system - float(found[2])
    handled = CALLS * (2 if "sys_*_" in row.script else 1) - lost
    held = f"{row.least:>10,}" if row.least else ""
    return (
        f"{row.name:<26}{buffer:<6}{handled / float(found[1]):>12,.0f}{lost:>12,}{used / handled * 1e9:>10,.0f}{held}"
    )


def main() -> None:
    """Measure every row on every buffer asked for."""
    print(f"{'':<26}{'':<6}{'events/s':>12}{'lost':>12}{'ns/event':>10}{'wanted':>10}")
    for row in ROWS:
        for buffer in sys.argv[1:] or ("ring", "perf"):
            print(run(row, buffer), flush=True)


if __name__ == "__main__":
    main()
