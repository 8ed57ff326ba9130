"""The ktap command on live events: commands and their children, processes, processors, loss, how it ends."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Iterator

import pytest
from conftest import COMMAND, NOBODY, Ktap

from ktap import kernel

pytestmark = pytest.mark.live

TRACING = "Tracing... Hit Ctrl-C to end.\n"


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """A program that says its process number, waits for a line, and makes 1000 calls of getppid."""
    path = tmp_path / "calls.py"
    path.write_text("import os\nprint(os.getpid(), flush=True)\ninput()\nfor _ in range(1000): os.getppid()\n")
    return path


@pytest.fixture
def calls(script: Path) -> Iterator[subprocess.Popen[str]]:
    running = subprocess.Popen([sys.executable, script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert running.stdout is not None
    running.stdout.readline()
    yield running
    running.kill()
    running.wait()
    running.stdout.close()


COUNT = "n = 0 trace syscalls:sys_enter_getppid { n += 1 } trace_end { print(n) }"


def test_a_command_is_traced_from_its_first_call_to_its_last(ktap: Ktap) -> None:
    done = ktap("-e", "trace syscalls:* { print(execname, probename) }", "--", "true")
    lines = [line.split("\t") for line in done.stdout.splitlines()]
    assert ["true", "sys_exit_execve"] in lines
    assert lines[-1] == ["true", "sys_enter_exit_group"]
    assert done.stderr == TRACING


def test_only_the_command_and_its_children_are_traced(ktap: Ktap) -> None:
    code = "import os\nif os.fork(): os.wait()\nfor _ in range(100): os.getppid()"
    done = ktap("-q", "-e", COUNT, "--", sys.executable, "-c", code)
    assert done.stdout == "200\n"


def test_simple_tracing(ktap: Ktap) -> None:
    done = ktap("-s", "-q", "--", "true")
    lines = [line.split("\t") for line in done.stdout.splitlines()]
    assert all(len(line) == 4 and line[0].isdigit() and line[1].isdigit() for line in lines)
    assert lines[-1][2:] == ["true", "sys_exit_group(error_code: 0)"]


def test_simple_tracing_of_chosen_events(ktap: Ktap) -> None:
    done = ktap("-s", "-q", "sched:sched_process_exec", "sched:sched_process_exit", "--", "true")
    first, last = done.stdout.splitlines()
    assert "sched_process_exec: filename=" in first
    assert "sched_process_exit: comm=true" in last


def test_one_process(environment: dict[str, str], calls: subprocess.Popen[str]) -> None:
    """Others make the same calls meanwhile; they are not counted."""
    running = subprocess.Popen(
        [*COMMAND, "-p", str(calls.pid), "-e", COUNT],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    assert running.stderr is not None
    assert running.stderr.readline() == TRACING
    calls.communicate("go\n")
    for _ in range(100):
        os.getppid()
    running.send_signal(signal.SIGINT)
    assert running.communicate(timeout=60) == ("1000\n", "")
    assert running.returncode == 0


def test_one_processor(ktap: Ktap) -> None:
    """The command makes a hundred calls on every processor that it may use."""
    last = max(os.sched_getaffinity(0))
    everywhere = (
        "import os\nfor cpu in os.sched_getaffinity(0):\n    os.sched_setaffinity(0, {cpu})\n"
        "    for _ in range(100): os.getppid()"
    )
    script = "trace syscalls:sys_enter_getppid { s[cpu] += 1 } trace_end { for (k, v in pairs(s)) { print(k, v) } }"
    done = ktap("-C", str(last), "-q", "-e", script, "--", sys.executable, "-c", everywhere)
    assert done.stdout == f"{last}\t100\n"


@pytest.mark.parametrize("tier", ["vm", "auto"])
def test_what_compiles_is_not_traced(tier: str, environment: dict[str, str]) -> None:
    """LLVM has a process of its own, which has ended when the first event can be seen."""
    script = (
        "trace syscalls:*, kmem:*, exceptions:* { s[ppid] += 1 last = argstr }"
        " trace_end { for (k, v in pairs(s)) { print(k) } }"
    )
    command = [*COMMAND, "--tier", tier, "-q", "-d", "200ms", "-e", script]
    ktap = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    makers = ktap.communicate(timeout=60)[0].split()
    assert makers and str(ktap.pid) not in makers


@pytest.mark.parametrize(("tier", "late_us"), [("vm", 0), ("kernel", 1_000_000)])
def test_stamps_are_the_time_of_events(ktap: Ktap, tier: str, late_us: int) -> None:
    """In the kernel a line is sent a little after its handler began."""
    done = ktap("-T", "-q", "--tier", tier, "-e", "trace syscalls:sys_enter_* { print(nsecs) print() }", "--", "true")
    lines = done.stdout.splitlines()
    assert len(lines) > 10
    stamps = [line.partition("] ") for line in lines]
    assert all(re.fullmatch(r"\[\d+\.\d{6}", stamp) for stamp, _, _ in stamps)
    for (stamp, _, nsecs), (other, _, nothing) in zip(stamps[::2], stamps[1::2]):
        begun_us = int(nsecs) // 1000
        assert nothing == ""
        assert begun_us <= microseconds(stamp) <= microseconds(other) <= begun_us + late_us


def microseconds(stamp: str) -> int:
    return int(stamp[1:].replace(".", ""))


def test_dry_run(ktap: Ktap) -> None:
    done = ktap("--dry-run", "-e", 'trace sched:* { print("no") } trace_end { print("no") }')
    assert (done.stdout, done.stderr) == ("", "ktap: dry run: 2 probes set, no handler run\n")
    done = ktap("-d", "-e", "trace sched:sched_swich { }", status=1)
    assert "did you mean `sched:sched_switch`?" in done.stderr


def test_exit_from_a_tick(ktap: Ktap) -> None:
    done = ktap(
        "-q", "-e", 'trace syscalls:* { n += 1 } tick-200ms { exit(5) } trace_end { print("the end") }', status=5
    )
    assert done.stdout == "the end\n"


@pytest.mark.parametrize("buffer", ["perf", "ring"])
def test_loss_is_counted_exactly(ktap: Ktap, buffer: str) -> None:
    """What was delivered and what is owned up to add up to what was done."""
    code = "import os\nfor _ in range(200000): os.getppid()"
    words = ("-q", "--buffer", buffer, "--buffer-bytes", "4K", "-e", COUNT, "--", sys.executable, "-c", code)
    done = ktap(*words, status=None)
    counted = int(done.stdout)
    lost = sum(int(line.split()[2]) for line in done.stderr.splitlines() if line.startswith("ktap: lost "))
    assert counted + lost == 200_000
    assert done.returncode == 0
    if lost:
        assert f"events: {buffer} buffer full (syscalls:sys_enter_getppid)" in done.stderr
        ktap("--fail-on-loss", *words, status=4)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)
def test_nothing_is_left_behind(environment: dict[str, str], number: signal.Signals) -> None:
    """Neither programs nor maps nor links, whoever else may trace at the same time."""
    running = subprocess.Popen(
        [*COMMAND, "-e", "trace sched:sched_process_* { s[execname] += 1 } trace_end { print(1) }"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    assert running.stderr is not None
    assert running.stderr.readline() == TRACING
    mine = held_by(running.pid)
    assert mine
    running.send_signal(number)
    output, errors = running.communicate(timeout=60)
    assert running.returncode == (-number if number == signal.SIGKILL else 0)
    assert (output, errors) == ("" if number == signal.SIGKILL else "1\n", "")
    deadline = time.monotonic() + 20
    while mine & set(kernel.object_ids(kernel.PROGRAM_NEXT_ID)):
        assert time.monotonic() < deadline, "programs stay loaded"
        time.sleep(0.05)


def held_by(pid: int) -> set[int]:
    """The numbers of the BPF programs that a process holds."""
    found = set()
    for entry in Path(f"/proc/{pid}/fdinfo").iterdir():
        for line in entry.read_text().splitlines():
            if line.startswith("prog_id:"):
                found.add(int(line.split()[1]))
    return found


AS_NOBODY = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")


def test_no_privilege(environment: dict[str, str]) -> None:
    environment["XDG_CACHE_HOME"] = "/nonexistent"
    words = [*AS_NOBODY, *COMMAND, "-e", "trace sched:sched_switch { }"]
    done = subprocess.run(words, env=environment, cwd="/", capture_output=True, text=True, check=False)
    assert done.returncode == 3
    assert done.stdout == ""
    assert done.stderr.startswith("ktap: ")
    assert "run as root" in done.stderr or "run with sudo" in done.stderr
    words = [*AS_NOBODY, *COMMAND, "-e", "print(1)"]
    done = subprocess.run(words, env=environment, cwd="/", capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "1\n", "")


def test_no_tracefs(environment: dict[str, str]) -> None:
    """In a mount namespace of its own, where it is not mounted."""
    hide = "umount /sys/kernel/tracing; umount /sys/kernel/debug/tracing /sys/kernel/debug 2>/dev/null"
    command = f"{hide}; {' '.join(COMMAND)} -e 'trace sched:sched_switch {{ }}'"
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", command], env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (3, "")
    assert "mount -t tracefs" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_reader_that_goes_away_while_events_come(environment: dict[str, str]) -> None:
    line = f"{' '.join(COMMAND)} -q -e 'trace syscalls:* {{ print(execname) }}' | head -3 >/dev/null"
    begin = time.monotonic()
    done = subprocess.run(["sh", "-c", line], env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr == "ktap: standard output: its reader has gone\n"
    assert time.monotonic() - begin < 30
