"""Tracing one process and its children, and nothing else."""

from __future__ import annotations

import os
import subprocess
import time

import pytest
from tracing import WAYS, python, trace

pytestmark = pytest.mark.live

TREE = """
import os, threading
def calls():
    for _ in range(100): os.getppid()
def child(depth):
    pid = os.fork()
    if pid == 0:
        calls()
        if depth:
            child(depth - 1)
            child(depth - 1)
        os._exit(0)
    os.waitpid(pid, 0)
child(3)
thread = threading.Thread(target=calls)
thread.start()
thread.join()
calls()
"""
COUNT = """
var n = 0
trace syscalls:sys_enter_getppid { n += 1  pids[pid] = 1 }
trace_end { print(n, len(pids)) }
"""
OTHERS = "import os, time\nend = time.time() + 3\nwhile time.time() < end:\n os.getppid()\n time.sleep(0.001)"


@pytest.mark.parametrize("buffer", WAYS)
def test_children_and_threads_are_followed_from_their_first_call_on(buffer: str) -> None:
    processes = 1 + 2 + 4 + 8 + 1
    others = subprocess.Popen(python(OTHERS))
    try:
        traced = trace(COUNT, python(TREE), buffer=buffer)
    finally:
        others.kill()
        others.wait()
    assert traced.lines == [f"{100 * (processes + 1)}\t{processes}"]


def test_a_process_that_runs_already() -> None:
    code = "import os, time\nfor _ in range(200):\n os.getppid()\n time.sleep(0.01)"
    others, process = subprocess.Popen(python(OTHERS)), subprocess.Popen(python(code))
    try:
        script = "trace syscalls:sys_enter_getppid { print(pid, ppid) }"
        lines = trace(script, pid=process.pid, duration_s=0.5).lines
    finally:
        for one in (others, process):
            one.kill()
            one.wait()
    assert set(lines) == {f"{process.pid}\t{os.getpid()}"}


def test_one_processor_only() -> None:
    cpu = sorted(os.sched_getaffinity(0))[-1]
    code = """
import os
for cpu in sorted(os.sched_getaffinity(0)):
    os.sched_setaffinity(0, {cpu})
    for _ in range(50): os.getppid()
"""
    script = "trace syscalls:sys_enter_getppid { n[cpu] += 1 } trace_end { for (k, v in pairs(n)) { print(k, v) } }"
    assert trace(script, python(code), cpu=cpu).lines == [f"{cpu}\t50"]


def test_ktap_itself_is_left_out() -> None:
    """Every line printed would make events of its own, without end."""
    script = "trace syscalls:sys_enter_* { print(pid) }"
    lines = trace(script, python("import time; time.sleep(0.2)"), everyone=True).lines
    assert lines
    assert str(os.getpid()) not in lines


def test_events_of_everyone() -> None:
    script = "trace syscalls:sys_enter_getppid { n[execname] += 1 } trace_end { print(len(n) > 0) }"
    others = subprocess.Popen(python(OTHERS))
    try:
        time.sleep(0.1)
        assert trace(script, python("import time; time.sleep(0.2)"), everyone=True).lines == ["true"]
    finally:
        others.kill()
        others.wait()
