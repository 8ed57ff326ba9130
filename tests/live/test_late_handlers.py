"""Handlers in the kernel whose memory is brought into RAM by the system call itself: they run when it returns."""

from __future__ import annotations

from pathlib import Path

import pytest
from tracing import python, trace

pytestmark = pytest.mark.live

PATHS = 40
TOUCH = """
import ctypes, mmap, os, sys
libc = ctypes.CDLL(None, use_errno=True)
path = sys.argv[1]
count = os.path.getsize(path) // 4096
names = mmap.mmap(os.open(path, os.O_RDONLY), 0, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE)
start = ctypes.addressof(ctypes.c_char.from_buffer(names))
for page in range(count):
    libc.truncate(ctypes.c_void_p(start + 4096 * page), 0)
"""
"""Every page of the file begins with a path; none of them was touched before the system call does."""


@pytest.fixture
def paths(tmp_path: Path) -> Path:
    file = tmp_path / "paths"
    file.write_bytes(b"".join(f"/nowhere/{number}".encode().ljust(4096, b"\0") for number in range(PATHS)))
    return file


SCRIPTS = {
    "printed": "trace syscalls:sys_enter_truncate { print(user_string(args.path)) }",
    "joined": """
        var paths = {}
        trace syscalls:sys_enter_truncate /length == 0/ { paths[tid] = user_string(args.path) || "?" }
        trace syscalls:sys_exit_truncate { if (paths[tid] != nil) { print(paths[tid]) paths[tid] = nil } }
    """,
    "counted": """
        trace syscalls:sys_enter_truncate { s[user_string(args.path) || "?"] += 1 }
        s = {}
        trace_end { for (k, v in sort_pairs(s)) { print(k) } }
    """,
    "by two handlers": """
        var last = {}
        trace syscalls:sys_enter_truncate { last[tid] = user_string(args.path) }
        trace syscalls:sys_enter_truncate { print(last[tid]) }
    """,
}


@pytest.mark.parametrize("buffer", ["ring", "perf"])
@pytest.mark.parametrize("tier", ["vm", "kernel"])
@pytest.mark.parametrize("script", SCRIPTS.values(), ids=SCRIPTS)
def test_every_path_is_there(paths: Path, script: str, tier: str, buffer: str) -> None:
    traced = trace(script, [*python(TOUCH), str(paths)], tier=tier, buffer=buffer)
    found = [line for line in traced.lines if line.startswith("/nowhere/")]
    assert sorted(found) == sorted(f"/nowhere/{number}" for number in range(PATHS))
    assert not traced.losses


def test_the_time_is_that_of_the_entry(paths: Path) -> None:
    """What is left to the return of a call began before it, and is not run twice."""
    script = """
        var begun, n = {}, 0
        trace syscalls:sys_enter_truncate { begun[tid] = nsecs n += 1 if (user_string(args.path) == "x") { n += 1 } }
        trace syscalls:sys_exit_truncate { if (begun[tid] != nil) { if (begun[tid] > nsecs) { n += 1000 } } }
        trace syscalls:sys_enter_truncate { all += 1 }
        all = 0
        trace_end { print(n == all, n >= 40) }
    """
    assert trace(script, [*python(TOUCH), str(paths)], tier="kernel").lines == ["true\ttrue"]


def test_a_call_that_does_not_return_is_counted(tmp_path: Path) -> None:
    """Its memory is not there while it waits, so its handler has not run when tracing ends."""
    code = """
import ctypes, mmap, os, signal, sys
libc = ctypes.CDLL(None)
room = mmap.mmap(-1, 4096)
start = ctypes.addressof(ctypes.c_char.from_buffer(room))
reader, writer = os.pipe()
if os.fork() == 0:
    libc.read(reader, ctypes.c_void_p(start), 77)
    os._exit(0)
import time
time.sleep(0.3)
"""
    script = """
        trace syscalls:sys_enter_read /count == 77/ { n += 1 print(user_string(args.buf)) }
        n = 0
        trace_end { print("end", n) }
    """
    traced = trace(script, python(code), tier="kernel")
    assert traced.lines == ["end\t0"]
    assert [(loss.where, loss.events) for loss in traced.losses] == [("syscalls:sys_enter_read", 1)]
