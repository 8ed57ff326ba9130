"""Without BPF the kernel drops events whose strings are too long for it, and does not count them: ktap does.

Run on kernels that have event probes and probes of functions (see test_kernels). Meanwhile others make the same
calls all the time, so that what comes as counting begins or ends on a processor would show.
"""

from __future__ import annotations

import os
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Iterator

import pytest
from processor import words
from tracing import EVENTS, Traced, python, trace

from ktap import counted_instance, links, perf_probes
from ktap.own_group import OwnGroup
from ktap.perf_counts import TOO_LONG
from ktap.perf_event import Attribute
from ktap.perf_instance import TRACE_FULL
from ktap.perf_probes import UNKNOWN_AT_RETURN
from ktap.perf_source import FULL
from vm.diagnostic import Refusal

pytestmark = [
    pytest.mark.live,
    pytest.mark.skipif(links.probe_type() is None, reason="this kernel cannot probe its functions"),
]
SHORT, LONG = 60, 40
CALLS = f"""
import os
os.dup2(os.open("/dev/null", os.O_WRONLY), 77)
for n in range({SHORT}):
    os.write(77, b"short\\0")
    if n < {LONG}:
        os.write(77, b"q" * 9000)
"""
BUSY = """
import os, time
fd = os.open("/dev/null", os.O_WRONLY)
while True:
    for _ in range(10): os.write(fd, b"busy\\0")
    time.sleep(0.0005)
"""
PROBES = {
    "event probe": "syscalls:sys_enter_write { var s = user_string(args.buf)  if (args.fd == 77) { n[s] += 1 } }",
    "function": """probe:ksys_write fd=%di a=+0(%si):ustring b=+1(%si):ustring {
        if (args.fd == 77) { n[args.a] += 1 } m[args.b] += 1 }""",
}


@contextmanager
def busy() -> Iterator[None]:
    """All processors make calls with short strings."""
    others = [subprocess.Popen(python(BUSY)) for _ in range(2)]
    try:
        time.sleep(0.3)
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def only_long(traced: Traced, name: str) -> None:
    """Every call with a short string was handled, every one with a long string told, and nothing else."""
    assert not traced.faults and not [notice for notice in traced.notices if "string" in notice]
    assert traced.lines == [f"short\t{SHORT}"]
    assert [(loss.what, loss.where.split()[0], loss.events) for loss in traced.losses] == [(TOO_LONG, name, LONG)]


@pytest.mark.parametrize("kind", PROBES)
def test_each_is_counted_while_others_are_busy(kind: str) -> None:
    probe = words(PROBES[kind])
    script = f"trace {probe} trace_end {{ for (k, v in sort_pairs(n)) {{ print(k, v) }} }}"
    with busy():
        for _ in range(2):
            only_long(trace(script, python(CALLS), tier=EVENTS, everyone=True), probe.split()[0])


@pytest.mark.parametrize("kind", PROBES)
def test_none_where_there_are_none(kind: str) -> None:
    """Only the beginning and the end of counting could make one."""
    script = f"trace {words(PROBES[kind])} trace_end {{ }}"
    with busy():
        for _ in range(4):
            assert not trace(script, duration_s=0.1, tier=EVENTS, everyone=True).losses


@pytest.mark.parametrize("kind", PROBES)
def test_until_a_handler_ends_it_and_on_one_processor(kind: str) -> None:
    """What came and is not handled any more is not lost; all calls with long strings are made before the last short one."""
    probe = words(PROBES[kind])
    ends = probe.replace("n[", f"total += 1 if (total == {SHORT}) {{ exit() }} n[")
    script = f"var total = 0 trace {ends} trace_end {{ print(total) }}"
    code = f"import os\nos.sched_setaffinity(0, {{1}}){CALLS}" + "for n in range(500): os.write(77, b'later\\0')\n"
    with busy():
        traced = trace(script, python(code), tier=EVENTS, everyone=True, cpu=1)
    assert traced.lines == [str(SHORT)] and not traced.faults
    assert [(loss.what, loss.events) for loss in traced.losses] == [(TOO_LONG, LONG)]


@pytest.mark.parametrize("kind", PROBES)
def test_with_those_that_find_no_room(kind: str) -> None:
    """In a ring of one page both are lost, and told by what they were lost for; all in all, it is every call."""
    probe = words(PROBES[kind])
    script = f"var all = 0 trace {probe.replace('{', '{ all += 1 ', 1)} trace_end {{ print(all) }}"
    code = CALLS.replace(f"range({SHORT})", "range(3000)").replace(f"n < {LONG}", "n % 3 == 0")
    traced = trace(script, python(code), tier=EVENTS, buffer_bytes=4096)
    lost = {
        what: sum(loss.events for loss in traced.losses if loss.what == what) for what in (TOO_LONG, TRACE_FULL, FULL)
    }
    print(traced.lines, lost)
    assert sum(lost.values()) == traced.lost() and int(traced.lines[0]) + traced.lost() == 4000
    assert lost[TOO_LONG] and lost[TRACE_FULL] + lost[FULL]


def test_at_returns() -> None:
    """Strings of the call's arguments; definitions may fetch them there on some kernels (Linux 6.11)."""
    script = """
    trace probe:ksys_write%return {
        var s = user_string(args.buf)  if (args.fd == 77 && user_string(args.buf + 1)) { n[s] += 1 } }
    trace_end { for (k, v in sort_pairs(n)) { print(k, v) } }
    """
    with busy():
        try:
            traced = trace(script, python(CALLS), tier=EVENTS, everyone=True)
        except Refusal as refusal:
            assert UNKNOWN_AT_RETURN in str(refusal.diagnostics)
            pytest.skip("this kernel fetches none at returns")
        only_long(traced, "probe:ksys_write%return")


def test_beside_what_else_comes_through_an_instance() -> None:
    """Many tracepoints and a tracer of functions."""
    script = f"""
    trace {PROBES["event probe"]}
    trace timer:* {{ m[probename] += 1 }}
    trace probe:vfs_[a-w]* {{ m[probename] += 1 }}
    trace_end {{ for (k, v in sort_pairs(n)) {{ print(k, v) }} }}
    """
    traced = trace(script, python(CALLS), tier=EVENTS, everyone=True)
    long = [loss for loss in traced.losses if loss.what == TOO_LONG]
    assert traced.lines == [f"short\t{SHORT}"]
    assert [(loss.where, loss.events) for loss in long] == [("syscalls:sys_enter_write", LONG)]


def test_of_several_each_is_told() -> None:
    script = """
    trace syscalls:sys_enter_write { if (user_string(args.buf) == "short" && args.fd == 77) { n.short += 1 } }
    trace syscalls:sys_enter_pwrite64 { n[user_string(args.buf)] += 1 }
    trace_end { print(n.short, n.other) }
    """
    code = CALLS + 'os.pwrite(77, b"other\\0", 0)\nfor _ in range(7): os.pwrite(77, b"q" * 5000, 0)\n'
    traced = trace(script, python(code), tier=EVENTS)
    assert traced.lines == [f"{SHORT}\t1"]
    assert {(loss.what, loss.where, loss.events) for loss in traced.losses} == {
        (TOO_LONG, "syscalls:sys_enter_write", LONG),
        (TOO_LONG, "syscalls:sys_enter_pwrite64", 7),
    }


@pytest.mark.parametrize("kind", PROBES)
def test_where_they_cannot_be_counted_that_is_said(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counted_instance, "HISTOGRAM", "hist:keys=no_such_key:size={size}")
    monkeypatch.setattr(perf_probes, "counting", lambda *arguments: ())
    script = f"trace {words(PROBES[kind])} trace_end {{ for (k, v in sort_pairs(n)) {{ print(k, v) }} }}"
    traced = trace(script, python(CALLS), tier=EVENTS)
    assert traced.lines == [f"short\t{SHORT}"] and not traced.losses
    assert [notice for notice in traced.notices if "are lost and not counted" in notice]


def test_a_return_whose_call_ran_before_is_said_to_be_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It begins when the definition that counts is there, and the one that fetches is not."""
    fifo, opened, readers = tmp_path / "fifo", OwnGroup.open, []
    os.mkfifo(fifo)
    held = os.open(fifo, os.O_RDWR)

    def open_one(group: OwnGroup, attribute: Attribute, text: bytes, cpu: int, what: str, leader: int = -1) -> int:
        fd = opened(group, attribute, text, cpu, what, leader)
        if not readers:
            readers.append(subprocess.Popen(["cat", fifo], stdout=subprocess.DEVNULL))
            while "pipe_read" not in Path(f"/proc/{readers[0].pid}/stack").read_text():
                time.sleep(0.01)
        return fd

    monkeypatch.setattr(OwnGroup, "open", open_one)
    script = "trace probe:ksys_read%return a=+0($retval):ustring b=+1($retval):ustring { n[args.a, args.b] += 1 }"
    try:
        traced = trace(script, python(f"open({str(fifo)!r}, 'w').write('x')"), tier=EVENTS)
    finally:
        os.close(held)
        for reader in readers:
            reader.kill()
            reader.wait()
    assert [(loss.what, loss.events) for loss in traced.losses] == [(TOO_LONG, 1)]
    assert [notice for notice in traced.notices if "up to 1 of the events with long strings" in notice]
