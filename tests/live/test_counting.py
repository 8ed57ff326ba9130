"""Counts of known workloads are exact, or what was lost makes up for what is missing."""

from __future__ import annotations

import sys
import threading

import pytest
from tracing import TRANSPORTS, WAYS, python, trace

from compiler.lower import partition
from ktap.live import UNMADE
from vm.limits import Limits

pytestmark = pytest.mark.live

COUNT = """
var n = 0
trace syscalls:sys_enter_getppid { n += 1 }
trace_end { print(n) }
"""
TWO_PROCESSES = """
import os
pid = os.fork()
os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[0 if pid else -1]})
for _ in range(%d):
    os.getppid()
if pid:
    os.wait()
"""


@pytest.mark.parametrize("buffer", WAYS)
def test_every_call_is_counted(buffer: str) -> None:
    calls = 20_000
    traced = trace(COUNT, python(f"import os\nfor _ in range({calls}): os.getppid()"), buffer=buffer)
    assert not traced.losses
    assert traced.lines == [str(calls)]


@pytest.mark.parametrize("buffer", TRANSPORTS)
def test_a_million_calls_on_each_of_two_processors(buffer: str) -> None:
    calls = 1_000_000
    traced = trace(COUNT, python(TWO_PROCESSES % calls), buffer=buffer)
    assert int(traced.lines[0]) + traced.lost() == 2 * calls
    assert int(traced.lines[0]) > 0


@pytest.mark.parametrize("buffer", TRANSPORTS)
def test_a_buffer_that_is_too_small_loses_and_says_exactly_how_many(buffer: str) -> None:
    calls = 100_000
    code = f"import os\nfor _ in range({calls}): os.getppid()"
    script = """
    var n = 0
    trace syscalls:sys_enter_getppid { n += 1  if (n == 1) { for (i = 1, 99999) { } } }
    trace_end { print(n) }
    """
    traced = trace(script, python(code), buffer=buffer, buffer_bytes=4096)
    assert traced.lost() > 0
    assert int(traced.lines[0]) + traced.lost() == calls
    assert {(loss.what, loss.where) for loss in traced.losses} == {
        (f"{buffer} buffer full", "syscalls:sys_enter_getppid")
    }


@pytest.mark.parametrize("buffer", WAYS)
def test_entry_and_exit_come_in_pairs(buffer: str) -> None:
    script = """
    trace syscalls:sys_enter_getppid { enters[tid] += 1 }
    trace syscalls:sys_exit_getppid { exits[tid] += 1  sums[tid] += retval }
    trace_end { for (k, v in pairs(enters)) { print(v, exits[k], sums[k] > 0) } }
    """
    traced = trace(script, python("import os\nfor _ in range(1000): os.getppid()"), buffer=buffer)
    assert not traced.losses
    assert traced.lines == ["1000\t1000\ttrue"]


@pytest.mark.parametrize("buffer", TRANSPORTS)
def test_records_of_different_kinds_and_sizes(buffer: str) -> None:
    """Fixed ones, ones with a string, ones with a stack: all through one buffer."""
    script = """
    trace syscalls:sys_enter_getppid { n["plain"] += 1 }
    trace syscalls:sys_enter_openat { var s = user_string(arg2)  if (s == "/dev/null") { n["open"] += 1 } }
    trace syscalls:sys_enter_dup3 { n["stack " .. (len(tostring(stack(2))) > 0 && 1 || 0)] += 1 }
    trace sched:sched_process_exec { n[args.filename] += 1 }
    trace_end { for (k, v in sort_pairs(n)) { print(k, v) } }
    """
    code = """
import os
for n in range(500):
    os.getppid()
    if n % 5 == 0:
        os.close(os.open("/dev/null", os.O_RDONLY))
    if n % 50 == 0:
        os.dup2(0, 100, False)
"""
    traced = trace(script, python(code), buffer=buffer)
    assert not traced.losses
    assert traced.lines[1:] == ["open\t100", "plain\t500", "stack 1\t10"]
    assert traced.lines[0].startswith("/") and traced.lines[0].endswith("\t1")


def test_several_probes_of_one_event_share_its_record() -> None:
    script = """
    trace syscalls:sys_enter_dup3 /oldfd == 0/ { n["zero"] += 1 }
    trace syscalls:sys_enter_dup3 /oldfd != 0/ { n["other"] += 1 }
    trace syscalls:sys_enter_dup3 { n["all"] += 1 }
    trace syscalls:sys_enter_d* /oldfd < 2/ { n["low"] += 1 }
    trace_end { for (k, v in sort_pairs(n)) { print(k, v) } }
    """
    code = "import os\nfor n in range(30): os.dup2(n % 3, 100, False)"
    traced = trace(script, python(code))
    assert traced.lines == ["all\t30", "low\t20", "other\t20", "zero\t10"]


def test_more_filters_of_one_event_than_a_point_has_bits() -> None:
    probes = "\n".join(f"trace syscalls:sys_enter_dup3 /oldfd == {n}/ {{ n[{n}] += 1 }}" for n in range(9))
    script = probes + "\ntrace_end { for (k, v in sort_pairs(n)) { print(k, v) } }"
    code = (
        "import os\nfds = [os.open('/dev/null', 0) for _ in range(20)]\nfor n in range(90): os.dup2(n % 9, 100, False)"
    )
    assert trace(script, python(code)).lines == [f"{n}\t10" for n in range(9)]


def test_a_glob_of_all_system_calls() -> None:
    script = """
    trace syscalls:* { n[probename] += 1 }
    trace_end { print(n["sys_enter_getppid"], n["sys_exit_getppid"], n["sys_enter_execve"]) }
    """
    assert trace(script, python("import os\nfor _ in range(77): os.getppid()")).lines == ["77\t77\t1"]


KEYS_IN_BURSTS = """
n = 0
trace sched:*, timer:*, irq:* { n += 1 s[probename, execname, pid] += 1 t[probename, cpu, tid] <<< 1 }
trace_end {
    var sum_of_s = 0
    var sum_of_t = 0
    for (a, b, c, v in pairs(s)) { sum_of_s += v }
    for (a, b, c, v in pairs(t)) { sum_of_t += count(v) }
    print(n, sum_of_s, sum_of_t)
}
"""


def test_keys_that_come_while_interrupts_are_off() -> None:
    """Many new ones at once, for which the kernel then gets no memory."""
    traced = trace(KEYS_IN_BURSTS, everyone=True, duration_s=1, tier="kernel")
    events, *sums = map(int, traced.lines[0].split())
    assert events > 0
    assert sums == [events, events]
    assert {loss.what for loss in traced.losses} <= {"fired while the same program ran"}


def test_entries_without_memory_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partition, "comes_in_bursts", lambda event: False)
    script = "n = 0 trace timer:* { n += 1 s[nsecs, cpu] += 1 } trace_end { var sum = 0 "
    script += "for (a, b, v in pairs(s)) { sum += v } print(n, sum) }"
    traced = trace(script, everyone=True, duration_s=0.5, tier="kernel", limits=Limits(table_entries=100_000))
    events, kept = map(int, traced.lines[0].split())
    lost = [loss for loss in traced.losses if loss.what != "fired while the same program ran"]
    assert {(loss.what, loss.where) for loss in lost} <= {(UNMADE, "s")}
    assert kept + sum(loss.events for loss in lost) == events


@pytest.mark.parametrize("tier", ["vm", "kernel"])
def test_switches_from_the_tracer_itself(tier: str) -> None:
    """Without them a task would not be seen to run that takes over from the tracer."""
    script = f"""
    begun = 0 ended = 0
    trace sched:sched_switch /next_pid == {threading.get_native_id()}/ {{ begun += 1 }}
    trace sched:sched_switch /prev_pid == {threading.get_native_id()}/ {{ ended += 1 }}
    trace_end {{ print(begun, ended) }}
    """
    begun, ended = map(int, trace(script, everyone=True, duration_s=0.5, tier=tier).lines[0].split())
    assert min(begun, ended) > 10
    assert 0.5 <= begun / ended <= 2, "a kernel may hide what its supervisor's tasks do"


@pytest.mark.skipif(sys.maxsize < 2**32, reason="needs a 64-bit Python")
def test_numbers_are_signed_64_bit() -> None:
    script = "trace syscalls:sys_exit_close /ret < 0/ { print(retval, arg1, args.ret, args.__syscall_nr) }"
    code = "import os\ntry: os.close(-1)\nexcept OSError: pass"
    lines = trace(script, python(code)).lines
    assert lines and all(line.startswith("-9\t-9\t-9\t") for line in lines)
