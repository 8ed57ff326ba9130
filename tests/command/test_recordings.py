"""--record and --replay as a user has them: the same output every time, without privilege; what is refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import COMMAND, NOBODY, Ktap

COUNT = "trace syscalls:* { s[probename] += 1 } trace_end { for (k, v in sort_pairs(s)) { print(k, v) } }"
PRINT = "trace syscalls:sys_enter_* { print(nsecs, cpu, pid, execname, argstr) }"


@pytest.fixture
def recording(ktap: Ktap, tmp_path: Path) -> tuple[str, str]:
    """A recording of a command's system calls, and what the script printed meanwhile."""
    done = ktap("-q", "--record", "calls.ktaprec", "-e", COUNT, "--", "true")
    assert done.stderr == ""
    return str(tmp_path / "calls.ktaprec"), done.stdout


@pytest.mark.live
def test_a_replay_prints_what_the_run_printed(ktap: Ktap, recording: tuple[str, str]) -> None:
    path, printed = recording
    assert "sys_enter_exit_group\t1\n" in printed
    for _ in range(2):
        done = ktap("--replay", path, "-e", COUNT)
        assert (done.stdout, done.stderr) == (printed, "")


@pytest.mark.live
def test_another_script_without_privilege(
    environment: dict[str, str], ktap: Ktap, recording: tuple[str, str], tmp_path: Path
) -> None:
    path, _ = recording
    as_root = ktap("--replay", path, "-e", PRINT).stdout
    assert as_root.endswith("sys_exit_group(error_code: 0)\n")
    environment["XDG_CACHE_HOME"] = "/nonexistent"
    as_nobody = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", *COMMAND]
    with open(path, "rb") as file:
        done = subprocess.run(
            [*as_nobody, "--replay", "/dev/stdin", "-e", PRINT],
            stdin=file,
            env=environment,
            cwd="/",
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.stderr == "" or "cannot read /dev/stdin" in done.stderr
    if not done.stderr:
        assert done.stdout == as_root


@pytest.mark.live
def test_stamps_are_the_recording_s(ktap: Ktap, recording: tuple[str, str]) -> None:
    path, _ = recording
    first = ktap("-T", "--replay", path, "-e", PRINT).stdout
    assert first == ktap("-T", "--replay", path, "-e", PRINT).stdout
    assert first.startswith("[")


@pytest.mark.live
def test_recording_on_a_full_disk(ktap: Ktap) -> None:
    done = ktap("-q", "--record", "/dev/full", "-e", COUNT, "--", "true", status=1)
    assert done.stderr == "ktap: cannot write /dev/full: No space left on device\n"


@pytest.mark.live
def test_recording_on_a_disk_that_fills_up(ktap: Ktap, tmp_path: Path) -> None:
    """The trace ends, and the file that could not be finished is named."""
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], check=True)
    try:
        noise = "import os\nwhile True: os.getppid(), os.urandom(100)"
        words = ("-q", "-d", "5", "--record", f"{disk}/r", "-e", "trace syscalls:* { n += 1 }")
        done = ktap(*words, "--", sys.executable, "-c", noise, status=1)
        assert f"{disk}/r" in done.stderr
    finally:
        subprocess.run(["umount", disk], check=True)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "is no recording"), (b"print(1)\n", "is no recording"), (b"\0" * 1000, "is no recording")],
    ids=["empty", "text", "zeros"],
)
def test_no_recording(ktap: Ktap, tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "file").write_bytes(content)
    done = ktap("--replay", "file", "-e", COUNT, status=2)
    assert done.stdout == ""
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_no_such_recording(ktap: Ktap) -> None:
    done = ktap("--replay", "nosuch", "-e", COUNT, status=2)
    assert done.stderr == "ktap: cannot read nosuch: No such file or directory\n"


def test_a_recording_that_cannot_be_written(ktap: Ktap) -> None:
    done = ktap("--record", "/nosuch/file", "-e", COUNT, status=2)
    assert done.stderr == "ktap: cannot write /nosuch/file: No such file or directory\n"
