"""Builtins that ask the event or the host: reads, stacks, symbols, tasks, time, terminal, unsafe."""

from __future__ import annotations

import os
import sys
import time
from typing import Iterator

import pytest
from small_machine import MadeUpEvent, SmallMachine

from vm.fault import Fault
from vm.limits import Limits
from vm.values import Address, Cdata, Stack

KERNEL = 0xFFFF888000001000 - (1 << 64)
NUMBER = bytes(range(0x81, 0x89))


@pytest.fixture
def machine() -> SmallMachine:
    machine = SmallMachine(Limits(event_string_bytes=16))
    machine.event = MadeUpEvent(
        {
            ("user", "string", 0x1000): b"/etc/passwd\0rest",
            ("user", "string", 0x2000): None,
            ("user", "bytes", 0x1000): b"\0" * 15 + b"x" * 20,
            ("user", "bytes", 0x3000): NUMBER,
            ("user", "bytes", 0x4000): b"\1",
            ("user", "bytes", 0x5000): None,
            ("kernel", "string", KERNEL % (1 << 64)): b"name",
            ("kernel", "bytes", KERNEL % (1 << 64)): NUMBER,
        }
    )
    return machine


def test_strings(machine: SmallMachine) -> None:
    assert machine.run("user_string", 0x1000) == b"/etc/passwd"
    assert machine.run("user_string", 0x1000, 4) == b"/etc"
    assert machine.run("user_string", 0x1000, 1 << 40) == b"/etc/passwd"
    assert machine.run("user_string", 0x2000) is None
    assert machine.run("user_string", None) is None
    assert machine.run("user_string") is None
    assert machine.run("kernel_string", KERNEL) == b"name"
    assert machine.run("kernel_string", Address(KERNEL)) == b"name"
    assert machine.run("kernel_string", Cdata("char *", KERNEL, lambda key: None)) == b"name"
    with pytest.raises(Fault, match="user_string: a string of -1 bytes"):
        machine.run("user_string", 0x1000, -1)


def test_buffers(machine: SmallMachine) -> None:
    assert machine.run("user_buf", 0x1000, 16) == b"\0" * 15 + b"x"
    assert machine.run("user_buf", 0x1000, 1000) == b"\0" * 15 + b"x"
    assert machine.run("user_buf", 0x5000, 5) is None
    assert machine.run("user_buf", None, 5) is None
    assert machine.run("user_buf", 0x1000) is None
    with pytest.raises(Fault, match="user_buf: a buffer of -5 bytes"):
        machine.run("user_buf", 0x1000, -5)


@pytest.mark.parametrize("bits", [8, 16, 32, 64])
@pytest.mark.parametrize(("space", "place"), [("user", 0x3000), ("kernel", KERNEL)])
def test_numbers(machine: SmallMachine, space: str, place: int, bits: int) -> None:
    expected = int.from_bytes(NUMBER[: bits // 8], sys.byteorder, signed=bits == 64)
    assert machine.run(f"{space}_u{bits}", place) == expected
    assert machine.run(f"{space}_u{bits}", None) is None


def test_numbers_that_cannot_be_read(machine: SmallMachine) -> None:
    assert machine.run("user_u64", 0x5000) is None
    assert machine.run("user_u32", 0x4000) is None
    assert machine.run("user_u8", 0x4000) == 1


def test_what_was_not_captured_is_told(machine: SmallMachine) -> None:
    with pytest.raises(Fault) as caught:
        machine.run("kernel_u32", -1)
    assert (caught.value.kind, caught.value.message, caught.value.hint) == (
        "event",
        "kernel_u32: the memory at 0xffffffffffffffff was not captured when the event fired",
        "give kernel_u32 an argument of the event itself, as in kernel_u32(arg1)",
    )
    machine.event = None
    with pytest.raises(Fault, match="user_string: there is memory to read in the handler of an event only") as caught:
        machine.run("user_string", 0x1000)
    assert caught.value.kind == "event"


def test_stacks(machine: SmallMachine) -> None:
    assert machine.event is not None
    stack, user = Stack((1, 2)), Stack((3,), "user", 42)
    machine.event.stacks = {"kernel": stack, "user": user, ("user", 5, 2): None}
    assert machine.run("stack") == stack
    assert machine.run("stack", 10, 1) == stack
    assert machine.run("ustack") == user
    assert machine.run("ustack", 5, 2) is None
    assert machine.printed("print_backtrace") == b"k_1+0x1\nk_1+0x2\n"
    machine.event.stacks = {("kernel", 127, 0): stack}
    assert machine.run("stack", 1000) == stack
    with pytest.raises(Fault, match="ustack: the user stack was not captured for this event"):
        machine.run("ustack")
    for name, arguments, message in (
        ("stack", (0,), "stack: a stack of 0 frames"),
        ("ustack", (1, -1), "ustack: -1 frames to skip"),
    ):
        with pytest.raises(Fault, match=message):
            machine.run(name, *arguments)
    machine.event = None
    assert machine.run("stack") is None
    assert machine.printed("print_backtrace") == b""


def test_symbols(machine: SmallMachine) -> None:
    for name in ("ksym", "ipof"):
        assert machine.printed("print", machine.run(name, 0x10)) == b"k_10+0x1\n"
        assert machine.run(name, None) is None
    assert machine.printed("print", machine.run("usym", 0x10)) == b"u42_10\n"
    assert machine.printed("print", machine.run("usym", 0x10, 7)) == b"u7_10\n"
    assert machine.printed("print", machine.run("usym", Address(0x10, 9))) == b"u9_10\n"
    assert machine.run("usym") is None
    machine.event = None
    with pytest.raises(Fault, match="usym: outside of an event it needs a pid"):
        machine.run("usym", 0x10)


def test_the_machine_and_the_task(machine: SmallMachine) -> None:
    assert [machine.run(name) for name in ("num_cpus", "arch", "kernel_v")] == [4, b"x86_64", b"6.18.0"]
    assert machine.event is not None
    machine.event.states = {"in_interrupt": True, "in_iowait": False, "prio": 120}
    assert machine.run("in_interrupt") is True
    assert machine.run("in_iowait") is False
    assert machine.run("curr_taskinfo", b"prio") == 120
    with pytest.raises(Fault, match="curr_taskinfo: `other` was not captured for this event"):
        machine.run("curr_taskinfo", b"other")
    machine.event = None
    assert machine.run("in_iowait") is None


def test_time(machine: SmallMachine) -> None:
    now_ns = 1_700_000_005_000_000_123
    units = {"ns": 1, "us": 1000, "ms": 10**6, "s": 10**9}
    for unit, ns in units.items():
        assert machine.run(f"gettimeofday_{unit}") == now_ns // ns
    assert machine.printed("print_trace_clock") == b"    5.000000\n"


@pytest.fixture
def utc() -> Iterator[None]:
    before = os.environ.get("TZ")
    os.environ["TZ"] = "UTC"
    time.tzset()
    yield
    os.environ.pop("TZ")
    if before is not None:
        os.environ["TZ"] = before
    time.tzset()


@pytest.mark.usefixtures("utc")
def test_strftime(machine: SmallMachine) -> None:
    assert machine.run("strftime", b"%Y-%m-%d %H:%M:%S", 1_700_000_005_999_999_999) == b"2023-11-14 22:13:25"
    assert machine.run("strftime", b"%s|\xff", -1) == b"-1|\xff"
    assert machine.run("strftime", b"", 0) == b""
    for ns in (-(1 << 63), (1 << 63) - 1):
        assert isinstance(machine.run("strftime", b"%Y", ns), bytes)
    for format in (b"%Y\0", b"%Y" * 501):
        with pytest.raises(Fault, match="strftime: a format is at most 1000 bytes, none of them zero"):
            machine.run("strftime", format, 0)


def test_a_time_the_c_library_refuses(machine: SmallMachine, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OverflowError("out of range")

    monkeypatch.setattr(time, "localtime", refuse)
    with pytest.raises(Fault, match="strftime: no such time or format: out of range"):
        machine.run("strftime", b"%Y", 0)


def test_escape_sequences(machine: SmallMachine) -> None:
    assert machine.printed("ansi.clear_screen") == b"\x1b[2J\x1b[1;1H"
    assert machine.printed("ansi.set_color", 32) == b"\x1b[32m"
    assert machine.printed("ansi.set_color2", 1, 32) == b"\x1b[1;32m"
    assert machine.printed("ansi.set_color3", 1, 32, 40) == b"\x1b[1;32;40m"
    assert machine.printed("ansi.reset_color") == b"\x1b[0m"
    assert machine.printed("ansi.new_line") == b"\n"


def test_unsafe_builtins_need_the_option(machine: SmallMachine) -> None:
    for name, argument in (("system", b"true"), ("signal", 15)):
        with pytest.raises(Fault, match=f"{name} is not allowed without --unsafe") as caught:
            machine.run(name, argument)
        assert caught.value.kind == "unsafe"
    assert (machine.host.commands, machine.host.signals) == ([], [])


def test_system() -> None:
    machine = SmallMachine(unsafe=True)
    machine.run("print", b"before")
    assert machine.run("system", b"ls \xff") == 3
    assert machine.host.commands == ["ls \udcff"]
    assert machine.output.flushed == len(b"before\n")
    with pytest.raises(Fault, match="zero byte"):
        machine.run("system", b"a\0b")


def test_signal() -> None:
    machine = SmallMachine(unsafe=True)
    machine.run("signal", 9, 77)
    machine.event = MadeUpEvent()
    machine.run("signal", 15)
    assert machine.host.signals == [(77, 9), (42, 15)]
    with pytest.raises(Fault, match="signal: no such signal"):
        machine.run("signal", 99)
    for pid in (0, -1):
        with pytest.raises(Fault, match=f"signal: no process has the number {pid}"):
            machine.run("signal", 9, pid)
    machine.event = None
    with pytest.raises(Fault, match="signal: outside of an event it needs a pid"):
        machine.run("signal", 9)
