"""The table of builtins as a table: complete, documented, cheap to ask."""

from __future__ import annotations

import subprocess
import sys

import pytest
from small_machine import SmallMachine

from vm.fault import KINDS, Fault
from vm.library import Library, install, rows
from vm.library.builtin import Builtin, add, builtin, parse_parameters
from vm.values import Function

ROWS = {row.name: row for row in rows()}

PROMISED = set(
    [
        "print",
        "printf",
        "sprintf",
        "print_hist",
        "print_folded",
        "pairs",
        "sort_pairs",
        "len",
        "delete",
        "tostring",
        "tonumber",
        "stringof",
        "exit",
        "stack",
        "ustack",
        "ksym",
        "usym",
        "ipof",
        "user_string",
        "kernel_string",
        "user_buf",
        "kernel_u8",
        "kernel_u16",
        "kernel_u32",
        "kernel_u64",
        "user_u8",
        "user_u16",
        "user_u32",
        "user_u64",
        "gettimeofday_ns",
        "gettimeofday_us",
        "gettimeofday_ms",
        "gettimeofday_s",
        "strftime",
        "num_cpus",
        "arch",
        "kernel_v",
        "curr_taskinfo",
        "in_interrupt",
        "in_iowait",
        "print_trace_clock",
        "system",
        "signal",
        "print_backtrace",
        "count",
        "sum",
        "avg",
        "min",
        "max",
        "hist",
        "lhist",
        "ansi.clear_screen",
        "ansi.set_color",
        "ansi.set_color2",
        "ansi.set_color3",
        "ansi.reset_color",
        "ansi.new_line",
        "table.new",
        "table.clear",
        "table.count",
        "string.sub",
        "string.find",
        "string.len",
        "string.upper",
        "string.lower",
        "string.rep",
        "string.split",
        "kdebug.trace_by_id",
        "kdebug.trace_end",
        "kdebug.tracepoint",
        "kdebug.kprobe",
        "kdebug.probe",
        "kdebug.probe_end",
        "timer.tick",
        "timer.profile",
        "net.ip_sock_saddr",
        "net.ip_sock_daddr",
        "net.format_ip_addr",
        "net.ntop",
        "ffi.cdef",
        "ffi.cast",
        "ffi.sizeof",
        "ffi.new",
        "ffi.C",
    ]
)


def test_all_that_the_language_has() -> None:
    assert set(ROWS) == PROMISED


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS.keys())
def test_every_row(row: Builtin) -> None:
    assert row.help
    assert len(row.help) < 120
    assert "\n" not in row.help
    assert set(row.faults) <= set(KINDS)
    assert row.tiers
    assert row.signature == f"{row.name}({row.parameters})"
    parse_parameters(row.parameters)
    made = row.make(SmallMachine())
    assert row.name == "ffi.C" or type(made) is Function


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS.keys())
def test_every_builtin_refuses_what_it_does_not_take(row: Builtin) -> None:
    """For each parameter with a type: something that is of no type it could have."""
    function = SmallMachine().library[row.name]
    for place, parameter in enumerate(parse_parameters(row.parameters)):
        if parameter.types is not None:
            right = [(p.types or (int,))[0] for p in parse_parameters(row.parameters)[:place]]
            before = [SAMPLES[kind.__name__] for kind in right]
            with pytest.raises(Fault) as caught:
                function(0, *before, True)  # type: ignore[operator]
            assert caught.value.message == f"{row.name}: argument {place + 1} is boolean, expected {parameter.expected}"


def sample_values() -> dict[str, object]:
    from vm.aggregate import Keeping, Stats
    from vm.values import Table

    machine = SmallMachine()
    return {
        "int": 1,
        "bytes": b"char",
        "Table": Table(machine.account),
        "function": lambda depth, *_: None,
        "Stats": Stats(Keeping(False, ())),
    }


SAMPLES = sample_values()


def test_a_name_can_be_used_once() -> None:
    with pytest.raises(ValueError, match="two builtins are named print"):
        add(ROWS["print"])
    with pytest.raises(ValueError, match="two builtins"):
        builtin("len", "", "")(lambda machine, depth: None)


def test_the_library_makes_each_builtin_once() -> None:
    library = install(SmallMachine())
    assert isinstance(library, Library)
    assert library["print"] is library["print"]
    with pytest.raises(KeyError):
        library["no_such_builtin"]


def test_print_alone_imports_one_family() -> None:
    text = (
        "import sys; sys.path.insert(0, 'tests')\n"
        "from small_machine import SmallMachine\n"
        "SmallMachine().run('print', b'hello')\n"
        "families = [m for m in sys.modules if m.startswith('vm.library.')]\n"
        "assert sorted(families) == ['vm.library.builtin', 'vm.library.printing'], families\n"
        "slow = {'vm.declaration', 'vm.c_types', 'vm.cdata', 'socket', 'ctypes', 'subprocess'} & set(sys.modules)\n"
        "assert not slow, slow\n"
    )
    subprocess.run([sys.executable, "-S", "-c", text], check=True)


def test_extra_arguments_are_dropped_and_missing_ones_are_nil() -> None:
    machine = SmallMachine()
    assert machine.run("string.upper", b"a", b"b", 3) == b"A"
    assert machine.run("string.sub", b"abc", 2, None, None) == b"bc"
    assert machine.run("num_cpus", 1, 2) == 4
