"""Scripts that people run most go to the kernel with every handler, and what they print there is right."""

from __future__ import annotations

import re
from typing import Sequence

import pytest
from tracing import Traced, python, trace

from ktap.explain import surveyed
from ktap.options import Options

pytestmark = pytest.mark.live

CALLS = 700
RENAME = "def rename(name):\n    with open('/proc/self/comm', 'w') as file: file.write(name)\n"


def whole(script: str, command: Sequence[str], everyone: bool = False) -> Traced:
    """A run in the kernel, which is refused where a handler stays outside; explain says the same."""
    found = surveyed(Options(code=script))
    assert found.probes and sorted(found.lowered) == list(range(len(found.probes))), found.reasons
    assert found.unchecked is None and all(program.accepted for program in found.programs)
    traced = trace(script, command, tier="kernel", everyone=everyone)
    assert not traced.faults and not traced.notices
    return traced


def rows(lines: Sequence[str]) -> dict[str, int]:
    """Lines of a text, a tab and a number."""
    return {name: int(count) for name, _, count in (line.rpartition("\t") for line in lines)}


def test_system_calls_by_process() -> None:
    script = """
        var s = {}
        trace syscalls:sys_enter_getppid { s[execname] += 1 }
        trace_end { for (name, n in pairs(s)) { print(name, n) } }
    """
    code = f"""{RENAME}
import os
for name, count in (("first", {CALLS}), ("second", {2 * CALLS})):
    if os.fork() == 0:
        rename(name)
        for _ in range(count): os.getppid()
        os._exit(0)
os.wait(), os.wait()
"""
    assert rows(whole(script, python(code)).lines) == {"first": CALLS, "second": 2 * CALLS}


def test_system_calls_by_name() -> None:
    script = """
        var s = {}
        trace syscalls:sys_enter_* { s[probename] += 1 }
        trace_end { for (name, n in pairs(s)) { print(name, n) } }
    """
    code = f"import os\nfor _ in range({CALLS}): os.getppid(), os.getpgid(0), os.getpgid(0)"
    found = rows(whole(script, python(code)).lines)
    assert (found["sys_enter_getppid"], found["sys_enter_getpgid"]) == (CALLS, 2 * CALLS)
    assert found["sys_enter_exit_group"] == 1


def test_sizes_of_reads_as_a_histogram() -> None:
    script = """
        var wanted, sizes = {}, {}
        trace syscalls:sys_enter_read /fd == 77/ { wanted[tid] = true }
        trace syscalls:sys_exit_read {
            if (wanted[tid]) { sizes["read"] <<< args.ret }
            wanted[tid] = nil
        }
        trace_end { hist(sizes) print(count(sizes["read"]), sum(sizes["read"]), min(sizes["read"]), max(sizes["read"])) }
    """
    code = f"""
import os
fd = os.dup2(os.open("/dev/zero", os.O_RDONLY), 77)
for _ in range({CALLS}):
    for size in (1, 3, 100, 4096): os.read(fd, size)
"""
    *histogram, last = whole(script, python(code)).lines
    counts = {m[1]: int(m[2]) for m in (re.match(r" *(\S.*?) \|@* +(\d+)$", line) for line in histogram) if m}
    assert {bucket: n for bucket, n in counts.items() if n} == {
        "[1, 2)": CALLS,
        "[2, 4)": CALLS,
        "[64, 128)": CALLS,
        "[4K, 8K)": CALLS,
    }
    assert last == f"{4 * CALLS}\t{4200 * CALLS}\t1\t4096"


def test_files_that_are_opened_and_what_came_of_it() -> None:
    script = """
        var paths = {}
        trace syscalls:sys_enter_openat { paths[tid] = user_string(args.filename) }
        trace syscalls:sys_exit_openat {
            if (paths[tid] != nil) { print(paths[tid], args.ret) }
            paths[tid] = nil
        }
    """
    code = """
import os
os.dup2(os.open("/dev/null", os.O_RDONLY), 70)
for number in range(100):
    try: os.open(f"/nowhere/{'long' * number}{number}", os.O_RDONLY)
    except OSError: pass
for _ in range(3): os.open("/dev/null", os.O_RDONLY)
"""
    lines = whole(script, python(code)).lines
    assert [line for line in lines if line.startswith("/nowhere/")] == [
        f"/nowhere/{'long' * number}{number}\t-2" for number in range(100)
    ]
    opened = [int(line.split("\t")[1]) for line in lines if line.startswith("/dev/null\t")]
    assert len(opened) == 4 and opened[1:] == list(range(opened[1], opened[1] + 3))


RUN_QUEUE = """
    var woken, waited, runs, n = {}, {}, {}, 0
    trace sched:sched_wakeup, sched:sched_wakeup_new { woken[args.pid] = nsecs }
    trace sched:sched_switch {
        if (args.prev_state == 0 || args.prev_state & 0x100 != 0) { woken[args.prev_pid] = nsecs }
        var since = woken[args.next_pid]
        if (since != nil) {
            waited[args.next_comm] <<< nsecs - since
            woken[args.next_pid] = nil
        }
        runs[args.next_comm] += 1
    }
    trace_end {
        for (name, x in pairs(waited)) { print(name, count(x), sum(x), min(x), max(x), runs[name]) }
    }
"""


def test_how_long_tasks_wait_for_a_processor() -> None:
    """One sleeps often; two others share a processor and wait for one another. (Of what happens while ktap itself runs
    nothing is told, so there are fewer than there were.)
    """
    code = f"""{RENAME}
import os, time
def child(name, work):
    if os.fork() == 0:
        rename(name)
        work()
        os._exit(0)
def sleep():
    for _ in range(100): time.sleep(0.001)
def spin():
    os.sched_setaffinity(0, {{min(os.sched_getaffinity(0))}})
    end = time.monotonic() + 0.3
    while time.monotonic() < end: pass
child("qs-sleeper", sleep), child("qs-one", spin), child("qs-other", spin)
os.wait(), os.wait(), os.wait()
"""
    found = {}
    for line in whole(RUN_QUEUE, python(code), everyone=True).lines:
        name, *numbers = line.split("\t")
        found[name] = [int(number) for number in numbers]
    count, total_ns, least_ns, most_ns, runs = found["qs-sleeper"]
    assert 10 <= count <= runs and 0 <= least_ns <= most_ns <= total_ns
    waited_ns = found["qs-one"][1] + found["qs-other"][1]
    assert waited_ns > 100_000_000, "of 0.3 s one of them always waits"


STATES = """
    var RUNNING, WAITING, SLEEPING = 1, 2, 3
    var state, since, times, names = {}, {}, {}, {}
    function change(id, next, when) {
        if (state[id] != nil) { times[id, state[id]] += when - since[id] }
        state[id], since[id] = next, when
    }
    trace sched:sched_switch {
        var next = SLEEPING
        if (args.prev_state == 0 || args.prev_state & 0x100 != 0) { next = WAITING }
        change(args.prev_pid, next, nsecs)
        change(args.next_pid, RUNNING, nsecs)
        names[args.prev_pid] = args.prev_comm
    }
    trace sched:sched_wakeup, sched:sched_wakeup_new {
        if (state[args.pid] != RUNNING) { change(args.pid, WAITING, nsecs) }
    }
    trace_end {
        for (id, name in pairs(names)) { print(name, times[id, RUNNING], times[id, WAITING], times[id, SLEEPING]) }
    }
"""


def test_states_of_tasks() -> None:
    code = f"""{RENAME}
import os, time
rename("st-worker")
for _ in range(20):
    time.sleep(0.01)
    end = time.process_time() + 0.01
    while time.process_time() < end: pass
print(int(time.process_time() * 1e9), flush=True)
"""
    lines = [line for line in whole(STATES, python(code), everyone=True).lines if line.startswith("st-worker\t")]
    running_ns, _, sleeping_ns = (int(number) if number != "nil" else 0 for number in lines[0].split("\t")[1:])
    assert len(lines) == 1
    assert running_ns >= 100_000_000, "twenty times 10 ms of processor time"
    assert sleeping_ns >= 100_000_000, "twenty times 10 ms of sleep"


def test_memory_of_the_kernel_by_stack() -> None:
    script = """
        var bytes, total, calls = {}, 0, 0
        trace kmem:kmalloc { bytes[stack(10)] += args.bytes_alloc total += args.bytes_alloc calls += 1 }
        trace_end {
            var all = 0
            for (where, n in pairs(bytes)) { all += n }
            print(all == total, calls)
            for (where, n in pairs(bytes)) { print(n) print(where) }
        }
    """
    code = "import os\nfor _ in range(200):\n    for end in os.pipe(): os.close(end)"
    traced = whole(script, python(code))
    agrees, _, calls = traced.lines[0].partition("\t")
    assert agrees == "true" and int(calls) >= 200
    stacks = re.split(r"^(\d+)$", traced.output.split("\n", 1)[1], flags=re.M)[1:]
    pipes = sum(int(n) for n, where in zip(stacks[::2], stacks[1::2]) if "alloc_pipe_info" in where)
    assert pipes >= 200 * 100, "a pipe is described in more than 100 bytes"


def test_errors_by_name() -> None:
    script = """
        var names = {[2] = "ENOENT", [9] = "EBADF", [20] = "ENOTDIR"}
        var s = {}
        trace syscalls:sys_exit_close, syscalls:sys_exit_chdir /ret < 0/ { s[names[-args.ret] || "other"] += 1 }
        trace_end { for (name, n in pairs(s)) { print(name, n) } }
    """
    code = """
import os
def attempt(call, *arguments):
    try: call(*arguments)
    except OSError: pass
for _ in range(30): attempt(os.close, 7777)
for _ in range(40): attempt(os.chdir, "/nowhere/at/all")
for _ in range(50): attempt(os.chdir, "/dev/null/x")
for _ in range(60): attempt(os.chdir, "x" * 300)
"""
    assert rows(whole(script, python(code)).lines) == {"EBADF": 30, "ENOENT": 40, "ENOTDIR": 50, "other": 60}


def test_top_readers_are_printed_and_cleared() -> None:
    """What all prints together tell is exactly what was read."""
    script = """
        var bytes = {}
        function show() { for (name, n in pairs(bytes)) { print(name, n) } delete(bytes) }
        trace syscalls:sys_exit_read /ret == 4093/ { bytes[execname] += args.ret }
        tick-100ms { show() }
        trace_end { show() }
    """
    reads = 20_000
    code = f"""{RENAME}
import os
fd = os.open("/dev/zero", os.O_RDONLY)
for name in ("reader-1", "reader-2", "reader-3"):
    if os.fork() == 0:
        rename(name)
        for _ in range({reads}): os.read(fd, 4093)
        os._exit(0)
for _ in range(3): os.wait()
"""
    totals: dict[str, int] = {}
    for line in whole(script, python(code)).lines:
        name, number = line.split("\t")
        totals[name] = totals.get(name, 0) + int(number)
    assert totals == {f"reader-{number}": 4093 * reads for number in (1, 2, 3)}


EXACT = """
    var x, total, printed, printed_n = 0, 0, 0, 0
    var sums, samples, per_thread, mine, all = {}, {}, {}, {}, nil
    function show() {
        for (name, n in pairs(sums)) { printed += n }
        for (name, s in pairs(samples)) { printed_n += count(s) }
        delete(sums)
        delete(samples)
    }
    trace syscalls:sys_enter_lseek /fd == 77/ {
        x = x + 1
        total += args.offset
        sums[execname] += args.offset
        samples[execname] <<< args.offset
        all <<< args.offset
        per_thread[tid] += 1
        mine[tid] = (mine[tid] || 0) + 1
    }
    tick-100ms { show() }
    trace_end {
        show()
        var a, b = 0, 0
        for (id, n in pairs(per_thread)) { a += n }
        for (id, n in pairs(mine)) { b += n }
        print(x, total, printed, printed_n, count(all), sum(all), min(all), max(all), a, b, len(mine))
    }
"""
PROCESSES, SEEKS = 8, 60_000


def test_counts_are_exact_under_load() -> None:
    """Many processes on all processors, while a tick prints and clears."""
    code = f"""
import os
fd = os.dup2(os.open("/dev/null", os.O_RDONLY), 77)
for _ in range({PROCESSES}):
    if os.fork() == 0:
        seek = os.lseek
        for offset in range({SEEKS}): seek(fd, offset, 0)
        os._exit(0)
for _ in range({PROCESSES}): os.wait()
"""
    n, total = PROCESSES * SEEKS, PROCESSES * SEEKS * (SEEKS - 1) // 2
    traced = whole(EXACT, python(code))
    assert traced.lines == [f"{n}\t{total}\t{total}\t{n}\t{n}\t{total}\t0\t{SEEKS - 1}\t{n}\t{n}\t{PROCESSES}"]
    assert not traced.losses
