"""Nothing stays behind in the kernel, however tracing ends."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tracing import TRANSPORTS, open_files, python, trace

from ktap import kernel
from vm.diagnostic import Refusal

pytestmark = pytest.mark.live

SCRIPT = """
trace syscalls:* { n[probename] += 1 }
trace sched:sched_switch /prev_pid == 0/ { n[args.next_comm] += 1 }
profile-19hz { n[cpu] += 1 }
"""


def objects_of(pid: int) -> dict[int, set[int]]:
    """Ids of the programs, maps and links that a process holds, by the command that lists all of a kind."""
    found: dict[int, set[int]] = {kernel.PROGRAM_NEXT_ID: set(), kernel.MAP_NEXT_ID: set(), kernel.LINK_NEXT_ID: set()}
    for path in Path(f"/proc/{pid}/fdinfo").iterdir():
        text = path.read_text()
        for command, name in zip(found, ("prog_id", "map_id", "link_id")):
            match = re.search(rf"^{name}:\s*(\d+)$", text, re.M)
            if match:
                found[command].add(int(match[1]))
    return found


def remain(objects: dict[int, set[int]]) -> set[int]:
    return {number for command, ids in objects.items() for number in ids & set(kernel.object_ids(command))}


@pytest.mark.parametrize("buffer", TRANSPORTS)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_everything(buffer: str, number: signal.Signals, environment: dict[str, str]) -> None:
    command = [sys.executable, "-m", "ktap", "--tier", "vm", "--buffer", buffer, "-e", SCRIPT]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL) as ktap:
        assert ktap.stderr is not None
        assert b"Tracing" in ktap.stderr.readline()
        objects = objects_of(ktap.pid)
        assert len(objects[kernel.PROGRAM_NEXT_ID]) >= 4
        assert remain(objects)
        ktap.send_signal(number)
        ktap.wait(timeout=20)
    deadline = time.monotonic() + 10
    while remain(objects) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not remain(objects)
    instances = os.listdir("/sys/kernel/tracing/instances")
    assert not [name for name in instances if name.startswith(f"ktap_{ktap.pid}_")]


def test_closing_gives_back_every_file() -> None:
    before = open_files()
    for buffer in TRANSPORTS:
        trace(SCRIPT, python("pass"), buffer=buffer)
    assert open_files() == before


def test_a_refusal_gives_back_every_file() -> None:
    before = open_files()
    with pytest.raises(Refusal):
        trace("trace sched:sched_switch, sched:nothing { }", duration_s=0.1)
    assert open_files() == before
