"""print, printf, sprintf, print_hist."""

from __future__ import annotations

import pytest
from small_machine import SmallMachine

from vm.aggregate import Keeping, Stats
from vm.fault import Fault
from vm.limits import Limits
from vm.values import Address, Stack, Table, make_key


def table_of(machine: SmallMachine, *entries: tuple[object, object]) -> Table:
    table = Table(machine.account)
    for key, value in entries:
        table.put(key, value)
    return table


def test_print() -> None:
    machine = SmallMachine()
    assert machine.run("print") == ()
    assert machine.output.data == b"\n"
    assert machine.printed("print", 1, b"a b", None, True, make_key((b"x", 2))) == b"1\ta b\tnil\ttrue\tx, 2\n"
    assert machine.printed("print", Address(16), Stack((1, 2))) == b"k_10+0x1\tk_1+0x1\nk_1+0x2\n\n"


def test_printf_prints_and_sprintf_gives() -> None:
    machine = SmallMachine()
    assert machine.printed("printf", b"%s has %d%%\n", b"cpu", 7) == b"cpu has 7%\n"
    assert machine.run("sprintf", b"%04x", 255) == b"00ff"
    assert machine.printed("printf", b"%s %s", None, False) == b"nil false"
    with pytest.raises(Fault, match=r"^sprintf: no argument for `%d` \(the 1st\)$"):
        machine.run("sprintf", b"%d")


def test_a_string_over_the_limit() -> None:
    machine = SmallMachine(Limits(string_bytes=100))
    with pytest.raises(Fault) as caught:
        machine.run("sprintf", b"%s%s", b"x" * 60, b"x" * 60)
    assert caught.value.kind == "string"
    assert machine.printed("printf", b"%s%s", b"x" * 60, b"x" * 60) == b"x" * 120


@pytest.mark.parametrize("name", ["printf", "sprintf"])
def test_the_format_is_a_string(name: str) -> None:
    for arguments in ((), (7,), (None,)):
        with pytest.raises(Fault, match=rf"^{name}: argument 1 is (nil|integer), expected string$"):
            SmallMachine().run(name, *arguments)


def test_print_hist() -> None:
    machine = SmallMachine()
    stats = Stats(Keeping(False, ()))
    stats.add(5)
    table = table_of(machine, (b"one", 1), (True, 2), (make_key((1, b"x")), 5), (b"stats", stats))
    drawn = machine.printed("print_hist", table).split(b"\n")
    assert [line.split(b"|")[0].strip() for line in drawn[1:-1]] == [b"1, x", b"true", b"one", b"stats"]
    assert machine.printed("print_hist", table, 2).split(b"\n")[-2].strip() == b"... |"
    assert machine.printed("print_hist", table, -1).count(b"\n") == 2
    assert machine.printed("print_hist", table, None).split(b"\n") == drawn


def test_print_hist_shows_twenty_rows() -> None:
    machine = SmallMachine()
    table = table_of(machine, *((n, n) for n in range(30)))
    assert machine.printed("print_hist", table).count(b"\n") == 22


def test_print_hist_of_what_is_no_count() -> None:
    machine = SmallMachine()
    with pytest.raises(Fault, match="print_hist: the value of k is a string, expected an integer"):
        machine.run("print_hist", table_of(machine, (b"k", b"v")))
    with pytest.raises(Fault, match="the value of k is a boolean"):
        machine.run("print_hist", table_of(machine, (b"k", True)))
