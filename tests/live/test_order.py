"""Handlers see events in order of time, whichever processor they fired on."""

from __future__ import annotations

import os

import pytest
from tracing import WAYS, python, trace

from ktap.transport import Drained, Order

pytestmark = pytest.mark.live

PING_PONG = """
import os
to, back = os.pipe(), os.pipe()
cpus = sorted(os.sched_getaffinity(0))
pid = os.fork()
os.sched_setaffinity(0, {cpus[0 if pid else -1]})
for _ in range(2000):
    if pid:
        os.write(to[1], b"seven.."); os.read(back[0], 7)
    else:
        os.read(to[0], 7); os.write(back[1], b"seven..")
if pid:
    os.wait()
"""


@pytest.mark.parametrize("buffer", WAYS)
def test_time_never_goes_back(buffer: str) -> None:
    script = """
    var last = 0
    var back = 0
    trace syscalls:sys_enter_*, syscalls:sys_exit_* {
        if (nsecs < last) { back += 1 }
        last = nsecs
        cpus[cpu] += 1
    }
    trace_end { print(back, len(cpus)) }
    """
    traced = trace(script, python(PING_PONG), buffer=buffer)
    assert not traced.losses
    back, cpus = map(int, traced.lines[0].split("\t"))
    assert back == 0
    assert cpus == min(2, len(os.sched_getaffinity(0)))


@pytest.mark.parametrize("buffer", WAYS)
def test_cause_comes_before_effect(buffer: str) -> None:
    """A byte written on one processor is read on another: the entry of write is before the exit of read."""
    script = """
    var written = 0
    var read = 0
    var wrong = 0
    trace syscalls:sys_enter_write /count == 7/ { written += 1 }
    trace syscalls:sys_exit_read /ret == 7/ { read += 1  if (read > written) { wrong += 1 } }
    trace_end { print(written, read, wrong) }
    """
    traced = trace(script, python(PING_PONG), buffer=buffer)
    assert traced.lines == ["4000\t4000\t0"]


def test_a_tick_comes_after_all_events_before_it() -> None:
    """What a tick sees and clears adds up to all events: none is counted twice or missed."""
    script = """
    var n = 0
    var total = 0
    var last = 0
    var wrong = 0
    trace syscalls:sys_enter_getppid { n += 1  last = nsecs }
    tick-20ms { total += n  n = 0  if (last > nsecs) { wrong += 1 } }
    trace_end { print(total + n, wrong) }
    """
    code = "import os, time\nfor _ in range(50):\n for _ in range(200): os.getppid()\n time.sleep(0.002)"
    assert trace(script, python(code)).lines == ["10000\t0"]


def test_records_later_than_the_horizon_are_held_back() -> None:
    order = Order()
    assert order.take(Drained([(5, 0), (2, 0), (9, 0)], 5)) == [(2, 0), (5, 0)]
    assert order.take(Drained([(7, 0)], None)) == []
    assert order.take(Drained([(8, 0), (7, 1)], 8)) == [(7, 0), (7, 1), (8, 0)]
    assert order.take(Drained([], 20)) == [(9, 0)]
