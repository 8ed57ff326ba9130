"""This machine as scripts may ask about it."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from vm.local_host import LocalHost, read_symbols

KALLSYMS = """\
ffffffff81000000 T _text
ffffffff81000100 T vfs_read
ffffffff81000200 t helper
ffffffff81000300 D some_data
ffffffff81000200 t helper_alias
ffffffffc0000000 t in_module\t[btrfs]
ffffffffc0000100 t helper\t[btrfs]
0000000000000000 T hidden
"""


@pytest.fixture
def kallsyms(tmp_path: Path) -> str:
    path = tmp_path / "kallsyms"
    path.write_text(KALLSYMS)
    return str(path)


def test_kernel_symbols(kallsyms: str) -> None:
    host = LocalHost(kallsyms=kallsyms)
    assert host.kernel_address("vfs_read") == 0xFFFFFFFF81000100
    assert host.kernel_address("some_data") == 0xFFFFFFFF81000300
    assert host.kernel_address("helper") == 0xFFFFFFFF81000200
    assert host.kernel_address("hidden") is None and host.kernel_address("nowhere") is None
    assert host.kernel_symbol(0xFFFFFFFF81000100) == "vfs_read+0x0"
    assert host.kernel_symbol(0xFFFFFFFF81000142) == "vfs_read+0x42"
    assert host.kernel_symbol(0xFFFFFFFFC0000010) == "in_module+0x10 [btrfs]"
    assert host.kernel_symbol(0xFFFFFFFF80000000) == "0xffffffff80000000"


def test_symbols_are_read_once_and_only_when_asked_for(kallsyms: str) -> None:
    host = LocalHost(kallsyms=kallsyms)
    host.cpus()
    assert host.known is None
    host.kernel_symbol(1)
    os.unlink(kallsyms)
    assert host.kernel_address("vfs_read") == 0xFFFFFFFF81000100


def test_no_symbols(tmp_path: Path) -> None:
    assert read_symbols(str(tmp_path / "missing")) == ([], [], {})
    assert LocalHost(kallsyms=str(tmp_path / "missing")).kernel_symbol(16) == "0x10"


def test_the_clock() -> None:
    host = LocalHost()
    before = time.monotonic_ns()
    assert before <= host.monotonic_ns() <= time.monotonic_ns()
    offset_ns = host.realtime_offset_ns()
    assert abs(time.time_ns() - (host.monotonic_ns() + offset_ns)) < 1_000_000_000
    assert host.realtime_offset_ns() == offset_ns


def test_names() -> None:
    host = LocalHost()
    assert host.cpus() == os.cpu_count()
    assert host.architecture() == os.uname().machine
    assert host.kernel_release() == os.uname().release


def test_user_symbols() -> None:
    assert LocalHost().user_symbol(1, 255) == "0xff"
    assert LocalHost(lambda pid, address: f"{pid}:{address}").user_symbol(1, 255) == "1:255"


def test_commands_and_signals() -> None:
    host = LocalHost()
    assert host.run("exit 3") == 3
    assert host.run("kill -9 $$") == 128 + 9
    child = subprocess.Popen(["sleep", "60"])
    host.send_signal(child.pid, signal.SIGTERM)
    assert child.wait() == -signal.SIGTERM
