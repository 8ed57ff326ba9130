"""The name of the running task, which programs read in place."""

from __future__ import annotations

import ctypes
import sys
import threading

import pytest
from conftest import Ktap

from ktap import kernel, task_name

pytestmark = pytest.mark.live


def test_the_place_is_that_of_the_name() -> None:
    if not kernel.reads_in_place():
        pytest.skip("programs cannot read the task in place here")
    place = task_name.offset()
    assert place is not None
    found: list[bytes] = []

    def named() -> None:
        ctypes.CDLL(None).prctl(15, b"other name 123", 0, 0, 0)
        found.append(task_name.own_task()[place : place + task_name.NAME_BYTES])

    thread = threading.Thread(target=named)
    thread.start()
    thread.join()
    assert found == [b"other name 123\0\0"]


@pytest.mark.parametrize("tier", ["vm", "kernel"])
@pytest.mark.parametrize("name", ["x", "exactly 15 byte"])
def test_names_in_events(ktap: Ktap, name: str, tier: str) -> None:
    rename = f'import ctypes, os; ctypes.CDLL(None).prctl(15, b"{name}", 0, 0, 0); os.getppid()'
    script = (
        "s = {} trace syscalls:sys_enter_getppid { s[execname] += 1 } trace_end { for (k in pairs(s)) { print(k) } }"
    )
    lines = ktap("-q", "--tier", tier, "-e", script, "--", sys.executable, "-S", "-c", rename).stdout.splitlines()
    assert name in lines
    assert all("\0" not in line for line in lines)
