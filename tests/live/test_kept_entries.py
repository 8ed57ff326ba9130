"""Tables whose entries are removed by handlers in the kernel, which marks them and uses them again."""

from __future__ import annotations

import sys

import pytest
from conftest import Ktap

pytestmark = pytest.mark.live

CALLS, THREADS = 2000, 300
LOOP = f"import os\nfor _ in range({CALLS}): os.getppid()"
MANY_THREADS = f"""
import os, threading
for _ in range({THREADS}):
    thread = threading.Thread(target=os.getppid)
    thread.start()
    thread.join()
"""
PAIR = """
    begin = {} n = 0 again = 0
    trace syscalls:sys_enter_getppid {
        if (begin[tid] != nil) { again += 1 }
        begin[tid] = 7
    }
    trace syscalls:sys_exit_getppid {
        if (begin[tid] == 7) { n += 1 }
        begin[tid] = nil
        if (begin[tid] != nil) { again += 1 }
    }
    trace_end { print(n, again, len(begin)) }
"""


@pytest.mark.parametrize(("program", "calls"), [(LOOP, CALLS), (MANY_THREADS, THREADS)])
@pytest.mark.parametrize("entries", ["16384", "1024", "100"])
def test_an_entry_that_was_removed_is_not_there(ktap: Ktap, program: str, calls: int, entries: str) -> None:
    """More threads than entries that may be kept, too: those beyond are removed."""
    done = ktap(
        "-q", "--tier", "kernel", "--max-entries", entries, "-e", PAIR, "--", sys.executable, "-S", "-c", program
    )
    assert done.stdout.split() == [str(calls), "0", "0"]
    assert "lost" not in done.stderr


def test_entries_of_the_main_chunk_and_of_threads_that_go_on(ktap: Ktap) -> None:
    script = """
        t = {} t[1] = 5
        trace syscalls:sys_enter_getppid { t[tid] = 2 t[tid] = nil t[tid] = 3 }
        trace_end { print(len(t)) for (k, v in pairs(t)) { if (k == 1) { print(v) } else { print("thread", v) } } }
    """
    done = ktap("-q", "--tier", "kernel", "-e", script, "--", sys.executable, "-S", "-c", LOOP)
    assert sorted(done.stdout.split("\n")) == ["", "2", "5", "thread\t3"]
