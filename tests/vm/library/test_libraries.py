"""The kdebug, timer, table and net libraries."""

from __future__ import annotations

import sys
from typing import Optional

import pytest
from small_machine import MadeUpEvent, SmallMachine

from vm.c_types import Type
from vm.declaration import Declarations
from vm.fault import Fault
from vm.values import Table

HANDLER = lambda depth, *_: None  # noqa: E731


@pytest.mark.parametrize(
    ("call", "event", "takes_event"),
    [
        (("kdebug.probe", b"tp:syscalls"), b"syscalls:*", True),
        (("kdebug.probe", b"tp:sched:sched_switch"), b"sched:sched_switch", True),
        (("kdebug.probe", b"tp:"), b"*:*", True),
        (("kdebug.probe", b"kprobe:vfs_read"), b"probe:vfs_read", True),
        (("kdebug.probe", b"kretprobe:vfs_read"), b"probe:vfs_read%return", True),
        (("kdebug.probe", b"uprobe:/bin/sh:main"), b"probe:/bin/sh:main", True),
        (("kdebug.probe", b"sched:sched_switch"), b"sched:sched_switch", True),
        (("kdebug.probe", b"trace_end"), b"trace_end", True),
        (("kdebug.trace_by_id", 316), b"id:316", False),
        (("kdebug.tracepoint", b"sched_switch"), b"raw:sched_switch", False),
        (("kdebug.tracepoint", b"sched:sched_switch"), b"raw:sched_switch", False),
        (("kdebug.kprobe", b"vfs_read"), b"probe:vfs_read", False),
        (("kdebug.trace_end",), b"trace_end", False),
        (("kdebug.probe_end",), b"trace_end", False),
        (("timer.tick", b"1s"), b"tick-1s", False),
        (("timer.tick", b"tick-10ms"), b"tick-10ms", False),
        (("timer.tick", 5), b"tick-5s", False),
        (("timer.profile", b"99hz"), b"profile-99hz", False),
        (("timer.profile", b"profile-99hz"), b"profile-99hz", False),
    ],
)
def test_probes_of_older_scripts(call: tuple[object, ...], event: bytes, takes_event: bool) -> None:
    machine = SmallMachine()
    machine.run(str(call[0]), *call[1:], HANDLER)
    assert machine.probes == [(event, None, HANDLER, takes_event)]


def test_probes_with_a_filter() -> None:
    machine = SmallMachine()
    machine.run("kdebug.probe", b"tp:sched", HANDLER, b"prev_pid == 0")
    ids = Table(machine.account)
    ids.append((4, 7))
    machine.run("kdebug.trace_by_id", ids, HANDLER, b"pid == 1")
    assert [probe[:2] for probe in machine.probes] == [
        (b"sched:*", b"prev_pid == 0"),
        (b"id:4", b"pid == 1"),
        (b"id:7", b"pid == 1"),
    ]


@pytest.mark.parametrize("wrong", [0, -1, b"x", True])
def test_ids_that_are_none(wrong: object) -> None:
    machine = SmallMachine()
    ids = Table(machine.account)
    ids.append((wrong,))
    with pytest.raises(Fault, match="the id of a tracepoint is an integer above 0"):
        machine.run("kdebug.trace_by_id", ids, HANDLER)


def test_tables() -> None:
    machine = SmallMachine()
    table = machine.run("table.new", 10, 20)
    assert isinstance(table, Table)
    assert machine.account.charged > 0
    table.append((b"a", b"b"))
    assert machine.run("table.count", table) == 2
    machine.run("table.clear", table)
    assert machine.run("table.count", table) == 0


def native(address: str) -> int:
    """An IPv4 address as a program that loads its 4 bytes sees it."""
    return int.from_bytes(bytes(int(part) for part in address.split(".")), sys.byteorder)


def test_network_addresses_as_text() -> None:
    machine = SmallMachine()
    for address in ("127.0.0.1", "255.255.255.255", "0.0.0.0", "10.1.2.200"):
        assert machine.run("net.format_ip_addr", native(address)) == address.encode()
        assert machine.run("net.ntop", native(address)) == address.encode()
        assert machine.run("net.ntop", native(address).to_bytes(4, sys.byteorder)) == address.encode()
    assert machine.run("net.ntop", b"\0" * 15 + b"\1") == b"::1"
    assert machine.run("net.format_ip_addr", -1) == b"255.255.255.255"
    assert machine.run("net.format_ip_addr", None) is None
    assert machine.run("net.ntop", None) is None
    with pytest.raises(Fault, match=r"^net.ntop: 5 bytes are no address"):
        machine.run("net.ntop", b"12345")


SOCK = """struct sock_common { union { long skc_addrpair; struct { u32 skc_daddr; u32 skc_rcv_saddr; }; }; };
struct sock { struct sock_common __sk_common; int rest; };"""


class Kernel:
    """Types as BTF would give them."""

    def __init__(self) -> None:
        self.declarations = Declarations()
        self.declarations.declare(SOCK)

    def find(self, name: str) -> Optional[Type]:
        return self.declarations.types.get(name)


def test_addresses_of_sockets() -> None:
    machine = SmallMachine()
    machine.types = Kernel()
    place = 0xFFFF888000001000
    data = bytes([10, 0, 0, 2, 10, 0, 0, 1])
    machine.event = MadeUpEvent({("kernel", "bytes", place): data, ("kernel", "bytes", place + 4): data[4:]})
    for argument in (place - (1 << 64), machine.run("ffi.cast", b"struct sock *", place - (1 << 64))):
        assert machine.run("net.ip_sock_saddr", argument) == native("10.0.0.1")
        assert machine.run("net.ip_sock_daddr", argument) == native("10.0.0.2")
    assert machine.run("net.ip_sock_saddr", None) is None
    with pytest.raises(Fault) as caught:
        machine.run("net.ip_sock_saddr", 5)
    assert caught.value.kind == "event"


def test_addresses_of_sockets_need_the_type() -> None:
    with pytest.raises(Fault, match=r"^net.ip_sock_daddr: `struct sock` cannot be looked into$"):
        SmallMachine().run("net.ip_sock_daddr", 5)
