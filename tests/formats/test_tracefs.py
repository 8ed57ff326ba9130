"""The tracing file system: names, globs, what is told for an event that is not there or a tracefs that is not."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from ktap import tracefs
from ktap.tracefs import Tracefs, TracepointName, describe_unknown, find
from vm.diagnostic import Refusal

NAMES = [
    TracepointName(*name.split(":"))
    for name in (
        "sched:sched_switch",
        "sched:sched_wakeup",
        "sched:sched_wakeup_new",
        "syscalls:sys_enter_openat",
        "syscalls:sys_exit_openat",
        "raw_syscalls:sys_enter",
        "timer:tick_stop",
    )
]


@pytest.fixture
def mounted(tmp_path: Path) -> Tracefs:
    (tmp_path / "available_events").write_text("".join(f"{name}\n" for name in NAMES))
    return Tracefs(str(tmp_path))


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("sched:sched_switch", ["sched:sched_switch"]),
        ("sched:*", ["sched:sched_switch", "sched:sched_wakeup", "sched:sched_wakeup_new"]),
        ("sched", ["sched:sched_switch", "sched:sched_wakeup", "sched:sched_wakeup_new"]),
        ("s*:sched_w*", ["sched:sched_wakeup", "sched:sched_wakeup_new"]),
        ("*:*", [str(name) for name in NAMES]),
        ("*", [str(name) for name in NAMES]),
        ("*:sys_e[nx]*_openat", ["syscalls:sys_enter_openat", "syscalls:sys_exit_openat"]),
        ("sched:sched_wakeu?", ["sched:sched_wakeup"]),
        ("tp:timer", ["timer:tick_stop"]),
        ("tp:timer:tick_stop", ["timer:tick_stop"]),
        ("sched:sched_swich", []),
        ("sched:SCHED_SWITCH", []),
        ("nothing", []),
        ("sched:s.*", []),
    ],
)
def test_events_by_name_and_glob(mounted: Tracefs, pattern: str, expected: list[str]) -> None:
    assert [str(name) for name in mounted.match(pattern)] == expected


@pytest.mark.parametrize(
    ("pattern", "message", "hint"),
    [
        ("sched:sched_swich", "unknown event `sched:sched_swich`", "did you mean `sched:sched_switch`?"),
        ("sched_switch", "unknown event `sched_switch`", "did you mean `sched:sched_switch`?"),
        ("shed:sched_switch", "unknown event group `shed`", "did you mean `sched:sched_switch`?"),
        ("tracepoint:sched:other", "unknown event group `tracepoint`", "did you mean `sched:other`?"),
        ("libc:malloc", "unknown event group `libc`", "did you mean `probe:libc:malloc`?"),
        ("prob:vfs_read", "unknown event group `prob`", "did you mean `probe:vfs_read`?"),
        ("std:python3:line", "unknown event group `std`", "did you mean `sdt:python3:line`?"),
        ("tik-1s", "unknown event `tik-1s`", "did you mean `tick-1s`?"),
        ("sched:swich", "unknown event `sched:swich`", "did you mean `sched:sched_switch`?"),
        ("sched_swich", "unknown event `sched_swich`", "did you mean `sched:sched_switch`?"),
        ("shed:other", "unknown event group `shed`", "did you mean `sched:other`?"),
        ("syscals", "unknown event `syscals`", "did you mean `syscalls` or `raw_syscalls`?"),
        ("tp:syscals", "unknown event `syscals`", "did you mean `syscalls` or `raw_syscalls`?"),
        ("zzz:*", "no event matches `zzz:*`", "ktap list shows the events"),
        ("sched:zzz", "unknown event `sched:zzz`", "ktap list 'sched:*' shows the events of the group"),
        ("qqq", "unknown event `qqq`", "ktap list shows the events"),
    ],
)
def test_what_is_told_for_an_event_that_is_not_there(
    mounted: Tracefs, pattern: str, message: str, hint: str | None
) -> None:
    assert describe_unknown(pattern, NAMES) == (message, hint)
    assert mounted.unknown(pattern) == (message, hint)


def test_no_tracefs(tmp_path: Path) -> None:
    with pytest.raises(Refusal) as refusal:
        find([str(tmp_path / "a"), str(tmp_path / "b")])
    assert refusal.value.status == 3
    path = tmp_path / "a"
    assert refusal.value.render() == (
        f"ktap: cannot open {path}: not mounted; mount -t tracefs tracefs {path}, or run ktap doctor"
    )


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (errno.EACCES, "cannot open /t: permission denied; run as root, or replay a recording with ktap --replay FILE"),
        (errno.EPERM, "cannot open /t: not permitted; run as root, or replay a recording with ktap --replay FILE"),
        (errno.EIO, "cannot open /t: Input/output error; run ktap doctor"),
    ],
)
def test_a_tracefs_that_cannot_be_read(monkeypatch: pytest.MonkeyPatch, number: int, expected: str) -> None:
    def refuse(path: str, mode: str) -> None:
        raise OSError(errno.ENOENT if path.startswith("/missing") else number, tracefs.os.strerror(number))

    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(Refusal) as refusal:
        find(["/missing", "/t"])
    assert refusal.value.render() == f"ktap: {expected}"


def test_the_second_place_is_found(tmp_path: Path, mounted: Tracefs) -> None:
    assert find([str(tmp_path / "nothing"), mounted.root]).root == mounted.root


def test_a_format_that_is_not_there(mounted: Tracefs) -> None:
    with pytest.raises(Refusal) as refusal:
        mounted.format(TracepointName("sched", "sched_switch"))
    assert refusal.value.status == 3


@pytest.mark.live
def test_this_machine() -> None:
    names = find().names()
    assert TracepointName("sched", "sched_switch") in names
    assert len(names) == len(set(names)) > 100
    assert len(find().match("syscalls:sys_enter_*")) == len(find().match("syscalls:sys_exit_*")) > 200


def test_an_event_of_exact_name_is_found_without_the_list(tmp_path: Path) -> None:
    event = tmp_path / "events" / "sched" / "sched_switch"
    event.mkdir(parents=True)
    (event / "enable").write_text("0\n")
    (tmp_path / "events" / "enable").write_text("0\n")
    (tmp_path / "events" / "sched" / "enable").write_text("0\n")
    mounted = Tracefs(str(tmp_path))
    assert mounted.match("sched:sched_switch") == [TracepointName("sched", "sched_switch")]
    (tmp_path / "available_events").write_text("sched:sched_switch\n")
    for other in (
        "sched:.",
        "sched:..",
        "sched:../sched",
        "sched:sched_switch/",
        "..:sched",
        ":sched",
        "sched:sched_swatch",
    ):
        assert mounted.match(other) == []


def test_what_runs_of_ktap_define_for_themselves_is_nobodys_event(tmp_path: Path) -> None:
    """Who opened it would keep that run from removing it."""
    names = "sched:sched_switch\nktap_123_456:e0\nktap_group:event\n"
    (tmp_path / "available_events").write_text(names)
    found = [str(name) for name in Tracefs(str(tmp_path)).match("*:*")]
    assert found == ["sched:sched_switch", "ktap_group:event"]
