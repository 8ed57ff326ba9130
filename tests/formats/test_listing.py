"""`ktap list`: events with their fields."""

from __future__ import annotations

import pytest
from conftest import Ktap

from ktap import btf, listing

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


def test_a_kernel_without_types(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(btf, "kernel_types", lambda: None)
    with pytest.raises(listing.Refusal, match="does not tell the types") as refusal:
        listing.list_events("raw:*", False)
    assert refusal.value.status == 3
