"""System calls: numbers against the headers' facts, and names against this machine's events."""

from __future__ import annotations

import os
import platform

import pytest

from ktap import syscalls
from ktap.tracefs import find


@pytest.mark.parametrize(
    ("architecture", "event", "number"),
    [
        ("x86_64", "sys_enter_read", 0),
        ("x86_64", "sys_exit_newstat", 4),
        ("x86_64", "sys_enter_rt_sigreturn", 15),
        ("x86_64", "sys_enter_sendfile64", 40),
        ("x86_64", "sys_enter_newuname", 63),
        ("x86_64", "sys_enter_umount", 166),
        ("x86_64", "sys_enter_openat", 257),
        ("x86_64", "sys_enter_rseq", 334),
        ("x86_64", "sys_enter_uretprobe", 335),
        ("x86_64", "sys_enter_pidfd_send_signal", 424),
        ("x86_64", "sys_enter_clone3", 435),
        ("x86_64", "sys_enter_file_setattr", 469),
        ("aarch64", "sys_enter_io_setup", 0),
        ("aarch64", "sys_enter_openat", 56),
        ("aarch64", "sys_enter_newfstatat", 79),
        ("aarch64", "sys_enter_newfstat", 80),
        ("aarch64", "sys_enter_sync_file_range", 84),
        ("aarch64", "sys_enter_arm64_personality", 92),
        ("aarch64", "sys_enter_mmap", 222),
        ("aarch64", "sys_enter_wait4", 260),
        ("aarch64", "sys_enter_clone3", 435),
        ("x86_64", "sys_enter_nothing", None),
        ("x86_64", "sched_switch", None),
        ("riscv64", "sys_enter_read", None),
    ],
)
def test_numbers(architecture: str, event: str, number: int | None) -> None:
    assert syscalls.event_number(architecture, event) == number


@pytest.mark.parametrize("architecture", sorted(syscalls.TABLES))
def test_tables_have_no_name_and_no_number_twice(architecture: str) -> None:
    words = [word for word in syscalls.TABLES[architecture].split() if word[0] != "@"]
    assert len(words) == len(set(words)) == len(syscalls.numbers(architecture)) == len(syscalls.names(architecture))
    assert syscalls.names(architecture)[syscalls.numbers(architecture)["openat"]] == "openat"


def test_what_the_two_architectures_share() -> None:
    """From 424 on all architectures have the same numbers (include/uapi/asm-generic/unistd.h)."""
    late = [{name: n for name, n in syscalls.numbers(a).items() if n >= 424} for a in ("x86_64", "aarch64")]
    assert late[0] == late[1]


@pytest.mark.live
def test_every_system_call_of_this_machine_has_its_number() -> None:
    names = [name.name for name in find().match("syscalls:*")]
    missing = [name for name in names if syscalls.event_number(platform.machine(), name) is None]
    assert missing == []


def test_numbers_are_those_of_the_headers() -> None:
    """The C library's headers, where they are installed, know the same numbers under the macros' names."""
    path = "/usr/include/x86_64-linux-gnu/asm/unistd_64.h"
    if not os.path.exists(path):
        pytest.skip(f"no {path}")
    renamed = {"stat": "newstat", "fstat": "newfstat", "lstat": "newlstat", "uname": "newuname"}
    renamed |= {"sendfile": "sendfile64", "umount2": "umount"}
    with open(path) as header:
        for line in header:
            words = line.split()
            if line.startswith("#define __NR_"):
                name = words[1].removeprefix("__NR_")
                assert syscalls.numbers("x86_64").get(renamed.get(name, name)) == int(words[2]), name
