"""Recordings of live runs, replayed: by the same script and by others, by anybody, cut off by a kill."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from conftest import COMMAND, NOBODY, Ktap

pytestmark = pytest.mark.live

CALLS = "import os\nfor _ in range(1000): os.getppid()\nos.stat('/etc/hostname')"
SCRIPT = """
n = 0
trace syscalls:sys_enter_getppid { n += 1 }
trace syscalls:sys_enter_newfstatat /execname ~ "python*"/ { print(user_string(args.filename)) }
trace sched:sched_process_exec, sched:sched_process_fork, kmem:mm_page_alloc { print(cpu, pid, ppid, argstr) }
trace sched:sched_process_exit { print(stack(3)) print(curtask.comm, strftime("%Y", gettimeofday_ns())) }
trace raw:sched_process_exec { print(args.old_pid, args.bprm.filename > 0) }
trace_end { print(n, num_cpus(), kernel_v(), arch()) }
"""


@pytest.fixture
def script(tmp_path: Path) -> str:
    path = tmp_path / "script.kp"
    path.write_text(SCRIPT)
    return str(path)


def test_the_same_script_gives_the_same_output(ktap: Ktap, script: str, tmp_path: Path) -> None:
    file, live_output = str(tmp_path / "recording"), tmp_path / "live"
    ktap("-o", str(live_output), "--record", file, script, "--", sys.executable, "-c", CALLS)
    live = live_output.read_text()
    assert "/etc/hostname\n" in live
    assert live.splitlines()[-1].startswith("1000\t")
    for _ in range(2):
        done = ktap("--replay", file, script)
        assert done.stdout == live
        assert "Ctrl-C" not in done.stderr


@pytest.mark.root
def test_anybody_can_replay(ktap: Ktap, script: str, tmp_path: Path) -> None:
    file = str(tmp_path / "recording")
    ktap("-q", "-o", "/dev/null", "--record", file, script, "--", "true")
    assert os.stat(file).st_mode & 0o777 == 0o600  # it has what only root may see
    prefix = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")
    place = Path(tempfile.mkdtemp(prefix="ktap-"))
    copy = place / "recording"
    shutil.copy(file, copy)
    try:
        place.chmod(0o755)
        copy.chmod(0o644)
        code = "n = 0 trace *:* { n += 1 } trace_end { print(n > 10) }"
        assert ktap("--replay", str(copy), "-e", code, prefix=prefix, cwd=Path("/")).stdout == "true\n"
    finally:
        shutil.rmtree(place)


def test_another_script_runs_on_it(ktap: Ktap, script: str, tmp_path: Path) -> None:
    file = str(tmp_path / "recording")
    ktap("-q", "-o", "/dev/null", "--record", file, script, "--", sys.executable, "-c", CALLS)
    code = "s = {} trace syscalls:* { s[execname, probename] += 1 } trace_end { for (a, b, v in sort_pairs(s)) { print(a, b, v) } }"
    assert "sys_enter_getppid\t1000\n" in ktap("--replay", file, "-e", code).stdout
    done = ktap("--replay", file, "-e", "trace sched:sched_switch { }", status=1)
    assert "`sched:sched_switch` is not in the recording; it has syscalls:sys_enter_getppid" in done.stderr


def test_timers_and_stacks(ktap: Ktap, tmp_path: Path) -> None:
    file = str(tmp_path / "recording")
    code = 'n = 0 profile-200hz { n += 1 s[stack(4)] += 1 } s = {} tick-50ms { print("tick") } trace_end { print(n, len(s)) }'
    work = "import time\nend = time.monotonic() + 0.5\nwhile time.monotonic() < end: pass"
    live = ktap("-q", "--record", file, "-e", code, "--", sys.executable, "-c", work).stdout
    replay = ktap("--replay", file, "-e", code).stdout
    assert replay.splitlines()[-1] == live.splitlines()[-1]
    assert replay.count("tick") >= 8
    assert ktap("--replay", file, "-e", code).stdout == replay
    other = ktap("--replay", file, "-e", "profile-99hz { }", status=1)
    assert "`profile-99hz` is not in the recording; it has profile-200hz" in other.stderr


def test_losses_are_recorded(ktap: Ktap, tmp_path: Path) -> None:
    file = str(tmp_path / "recording")
    code = "n = 0 trace syscalls:sys_enter_getppid { n += 1 } trace_end { print(n) }"
    calls = CALLS.replace("1000", "300000")
    live = ktap("-q", "--buffer-bytes", "4096", "--record", file, "-e", code, "--", sys.executable, "-c", calls)
    replay = ktap("--replay", file, "-e", code)
    assert replay.stdout == live.stdout
    assert "lost" in live.stderr
    assert replay.stderr == live.stderr
    ktap("--replay", file, "--fail-on-loss", "-e", code, status=4)


def test_a_recording_that_was_killed(ktap: Ktap, tmp_path: Path, environment: dict[str, str]) -> None:
    file = tmp_path / "recording"
    code = "trace syscalls:sys_enter_getppid { }"
    work = "import os, time\nwhile True:\n  os.getppid()\n  time.sleep(0.001)"
    words = [*COMMAND, "-q", "--record", str(file), "-e", code, "--", sys.executable, "-c", work]
    running = subprocess.Popen(words, env=environment)
    deadline = time.monotonic() + 60
    while not file.exists() or file.stat().st_size < 2000:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    running.send_signal(signal.SIGKILL)
    running.wait()
    done = ktap("--replay", str(file), "-e", "n = 0 trace syscalls:* { n += 1 } trace_end { print(n > 100) }")
    assert done.stdout == "true\n"
    assert done.stderr == f"ktap: {file} has no end: it is replayed up to there\n"


def test_a_recording_that_cannot_be_written(ktap: Ktap, tmp_path: Path) -> None:
    done = ktap("--record", str(tmp_path / "no" / "file"), "-e", "trace syscalls:* { }", "--", "true", status=2)
    assert "cannot write" in done.stderr
    done = ktap("--record", "/dev/full", "-e", "trace syscalls:* { }", "--", "true", status=1)
    assert "No space left on device" in done.stderr


def test_what_is_no_recording(ktap: Ktap, tmp_path: Path) -> None:
    done = ktap("--replay", str(tmp_path / "nothing"), "-e", "trace syscalls:* { }", status=2)
    assert done.stderr == f"ktap: cannot read {tmp_path}/nothing: No such file or directory\n"
    (tmp_path / "text").write_text("text")
    done = ktap("--replay", str(tmp_path / "text"), "-e", "trace syscalls:* { }", status=2)
    assert done.stderr == f"ktap: {tmp_path}/text is no recording of ktap; ktap --record FILE makes one\n"


def test_a_script_without_probes(ktap: Ktap, tmp_path: Path) -> None:
    file = str(tmp_path / "recording")
    assert ktap("--record", file, "-e", "print(1)").stdout == "1\n"
    done = ktap("--replay", file, "-e", "print(1)", status=2)
    assert "nothing was recorded in it" in done.stderr
