"""`ktap list`: events with their fields."""

from __future__ import annotations

import pytest
from conftest import Ktap

from ktap import btf, listing

PYTHON = "/usr/bin/python3"
"""A program with markers (Debian builds it so)."""
SWITCH = "prev_comm prev_pid prev_prio prev_state next_comm next_pid next_prio"


@pytest.mark.live
def test_a_line_an_event(ktap: Ktap) -> None:
    assert ktap("list", "sched:sched_switch").stdout == f"sched:sched_switch {SWITCH}\n"
    assert ktap("-le", "sched:sched_switch").stdout == f"sched:sched_switch {SWITCH}\n"
    everything = ktap("list").stdout.splitlines()
    assert f"sched:sched_switch {SWITCH}" in everything
    group = ktap("list", "sched").stdout.splitlines()
    assert group == [line for line in everything if line.startswith("sched:")] == sorted(set(group), key=group.index)


@pytest.mark.live
def test_a_name_without_its_group(ktap: Ktap) -> None:
    assert ktap("list", "sched_switch").stdout == f"sched:sched_switch {SWITCH}\n"
    names = [line.split()[0] for line in ktap("-le", "*er_openat").stdout.splitlines()]
    assert names == ["syscalls:sys_enter_openat"]
    assert (
        ktap("list", "*nosuch*", status=1).stderr == "ktap: no event matches `*nosuch*`; ktap list shows the events\n"
    )


@pytest.mark.live
def test_fields_with_their_types(ktap: Ktap) -> None:
    shown = ktap("list", "-v", "sched:sched_switch").stdout
    assert shown.splitlines()[:3] == [
        "sched:sched_switch",
        "    arg0  args.prev_comm   string   char prev_comm[16]",
        "    arg1  args.prev_pid    integer  pid_t prev_pid",
    ]
    assert shown.splitlines()[-1] == "          argstr           string   as in the trace file"
    mapped = ktap("list", "-v", "raw_syscalls:sys_enter").stdout
    assert "    arg1  args.args  table    unsigned long args[6]" in mapped


@pytest.mark.live
def test_how_a_text_is_made_where_the_kernels_own_cannot_be(ktap: Ktap) -> None:
    shown = ktap("list", "-v", "writeback:writeback_single_inode").stdout
    assert shown.splitlines()[-1].endswith("name=value pairs: `jiffies` cannot be evaluated here")


@pytest.mark.live
def test_raw_tracepoints(ktap: Ktap) -> None:
    assert ktap("list", "raw:sched_switch").stdout == "raw:sched_switch preempt prev next prev_state\n"
    assert ktap("list", "-v", "raw:sched_switch").stdout.splitlines() == [
        "raw:sched_switch",
        "    arg0  args.preempt     bool",
        "    arg1  args.prev        struct task_struct *",
        "    arg2  args.next        struct task_struct *",
        "    arg3  args.prev_state  unsigned int",
    ]
    assert len(ktap("list", "raw:").stdout.splitlines()) > 100
    done = ktap("list", "raw:sched_swich", status=1)
    assert done.stderr == "ktap: no raw tracepoint matches `sched_swich`; ktap list 'raw:*' shows them\n"


@pytest.mark.live
def test_no_such_event(ktap: Ktap) -> None:
    done = ktap("list", "sched:sched_swich", status=1)
    assert done.stderr == "ktap: unknown event `sched:sched_swich`; did you mean `sched:sched_switch`?\n"
    assert ktap("list", "zz*:*", status=1).stderr == "ktap: no event matches `zz*:*`; ktap list shows the events\n"


@pytest.mark.parametrize(
    ("pattern", "lines"),
    [
        ("tick", ["tick-N  every N (s sec ms"]),
        ("profile-*", ["profile-N  every N (s sec"]),
        ("timers", ["tick-N     every N", "profile-N  every N"]),
        ("watch", ["watch:ADDRESS:BYTES:MODE  memory is used"]),
        ("watch:0x601040:8:w", ["watch:ADDRESS:BYTES:MODE  memory is used"]),
        ("trace_*", ["trace_begin  once", "trace_end    once"]),
    ],
)
def test_events_that_are_made_by_writing_them(ktap: Ktap, pattern: str, lines: list[str]) -> None:
    shown = ktap("list", pattern).stdout.splitlines()
    assert len(shown) == len(lines)
    assert all(line.startswith(beginning) for line, beginning in zip(shown, lines))


@pytest.mark.live
def test_values_of_every_kind(ktap: Ktap) -> None:
    def shown(pattern: str) -> str:
        return ktap("list", "-v", pattern).stdout

    assert "arg2  args.value  integer" in shown("watch:")
    assert "perf:cpu-clock\n" in shown("perf") and "arg1  args.period  integer" in shown("perf")
    functions = shown("probe:libc:mallo*")
    assert "probe:libc:malloc  0x" in functions and "retval  integer  what it returns" in functions
    markers = shown(f"sdt:{PYTHON}:gc__*")
    assert f"sdt:{PYTHON}:python:gc__start arg1\n" in markers and "    arg1  integer, signed, " in markers
    assert ktap("list", "sdt", status=1).stderr == (
        "ktap: markers are found by their program or library; as in ktap list sdt:libc or ktap -lm FILE\n"
    )


@pytest.mark.live
def test_functions_and_markers_of_a_file(ktap: Ktap) -> None:
    assert ktap("-lf", "libc").stdout == ktap("list", "probe:libc:*").stdout == ktap("list", "probe:libc").stdout
    assert ktap("list", f"probe:{PYTHON}").stdout == ktap("list", f"probe:{PYTHON}:*").stdout
    assert "probe:libc:malloc\n" in ktap("-lf", "libc").stdout
    assert ktap("-lm", PYTHON).stdout == ktap("list", f"sdt:{PYTHON}").stdout
    assert f"sdt:{PYTHON}:python:line arg1 arg2 arg3\n" in ktap("-lm", PYTHON).stdout
    assert "no library or program `nosuch`" in ktap("-lf", "nosuch", status=1).stderr


def test_a_kernel_without_types(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(btf, "kernel_types", lambda: None)
    with pytest.raises(listing.Refusal, match="does not tell the types") as refusal:
        listing.list_events("raw:*", False)
    assert refusal.value.status == 3
