"""What handlers in the kernel print: many records at once give what they give one by one, limits included."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Callable

import pytest
from made_machine import MadeUpHostWithSymbols

from compiler.compile import compile_source
from compiler.lower.types import BOOLEAN, INTEGER, NIL, PROBENAME, Type, join, string
from compiler.lower.values import Site
from ktap.captured import Plumbing
from ktap.sites import AT_ONCE, EventNames, outside, site_layout
from vm.event import Bulk
from vm.fault import Fault
from vm.machine import Machine
from vm.output import Output, StampedOutput
from vm.program import Program

EVENT_NAMES = (b"sched_switch", b"sched_wakeup")
NAMES_OF_EVENTS = EventNames(EVENT_NAMES.__getitem__, lambda number: bytes)
PLUMBING = Plumbing(MadeUpHostWithSymbols().kernel_symbol)
PROGRAM: Program = compile_source("", "empty.kp").program
Record = tuple[object, ...]

FORMATS = (
    Site("printf", (), (string(16), INTEGER, INTEGER), ((0, b"%s %d %d\n"),)),
    Site("printf", (), (INTEGER,), ((0, b"%5u|%x|%%\n"), (2, 255))),
    Site("printf", (), (), ((0, b"nothing\n"),)),
    Site("printf", (), (), ((0, b"%d %s\n"), (1, 7), (2, b"constant"))),
    Site("printf", (), (string(200), PROBENAME), ((0, b"%-8s%.3s\n"),)),
    Site("print", (), (INTEGER, string(16)), ((1, b"50%"), (3, None))),
    Site("print", (), ()),
)
SLOW = (
    Site("print", (), (join(INTEGER, NIL),)),
    Site("print", (), (BOOLEAN,)),
    Site("printf", (), (INTEGER, INTEGER), ((0, b"%*d\n"),)),
    Site("printf", (), (INTEGER,), ((0, b"%d %d\n"),)),
    Site("printf", (), (string(16),)),
)
"""Those that are printed one by one."""


def item(kind: Type, number: int) -> tuple[object, ...]:
    if kind.is_only("string"):
        text = b"task%d" % number
        return (text.ljust(16, b"\0"),) if kind.size_bytes == 16 else (text,)
    value = number % 2 if kind.is_only("probename") else -number
    return (0, value) if kind.can_be("nil") else (value,)


def records(site: Site, count: int) -> list[Record]:
    """Records as the buffers decode them."""
    made = []
    for number in range(count):
        named = {}
        for index, kind in enumerate(site.values):
            items = item(kind, number)
            named.update(zip((f"nil{index}", f"value{index}") if len(items) == 2 else (f"value{index}",), items))
        made.append((number, 0, 0, *(named[slot.name] for slot in site_layout(site).slots)))
    return made


def printed(site: Site, path: Path, how: Callable[[Bulk, Output], object], limit_bytes: int) -> bytes:
    """What a site prints into a file."""
    output = Output(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), limit_bytes=limit_bytes)
    machine = Machine(PROGRAM, output, MadeUpHostWithSymbols())
    handle = outside(site, machine, NAMES_OF_EVENTS, PLUMBING).handle
    assert isinstance(handle, Bulk)
    try:
        how(handle, output)
    except Fault as fault:
        output.write(str(fault.message).encode())
    output.close()
    return path.read_bytes()


@pytest.mark.parametrize("site", FORMATS, ids=range(len(FORMATS)))
@pytest.mark.parametrize("limit_bytes", [1 << 30, 1000])
def test_many_are_printed_as_each_is(site: Site, limit_bytes: int, tmp_path: Path) -> None:
    made = records(site, AT_ONCE + 100)
    event = outside(site, Machine(PROGRAM, Output(os.dup(1)), MadeUpHostWithSymbols()), NAMES_OF_EVENTS, PLUMBING).event

    def one_by_one(handle: Bulk, output: Output) -> None:
        for record in made:
            event.record = record
            handle(1, event)

    expected = printed(site, tmp_path / "one", one_by_one, limit_bytes)
    found = printed(site, tmp_path / "many", lambda handle, output: handle.many(made), limit_bytes)
    assert found == expected
    assert expected


@pytest.mark.parametrize("site", SLOW, ids=range(len(SLOW)))
def test_what_depends_on_values_is_printed_one_by_one(site: Site, tmp_path: Path) -> None:
    output = Output(os.open(tmp_path / "out", os.O_WRONLY | os.O_CREAT))
    machine = Machine(PROGRAM, output, MadeUpHostWithSymbols())
    assert not isinstance(outside(site, machine, NAMES_OF_EVENTS, PLUMBING).handle, Bulk)
    output.close()


def test_stamps_are_of_one_event_each(tmp_path: Path) -> None:
    output = StampedOutput(os.open(tmp_path / "out", os.O_WRONLY | os.O_CREAT), "out", None, lambda: b"")
    machine = Machine(PROGRAM, output, MadeUpHostWithSymbols())
    assert not isinstance(outside(FORMATS[0], machine, NAMES_OF_EVENTS, PLUMBING).handle, Bulk)
    output.close()
