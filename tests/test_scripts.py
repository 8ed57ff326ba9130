"""The tools in scripts/ on workloads that are known."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import COMMAND, NOBODY, ROOT, TIMEOUT_S, Ktap

from compiler.compile import compile_source
from vm.verify import verify

SCRIPTS = ROOT / "scripts"
LESSONS = ROOT / "examples"
DD = ("dd", "if=/dev/zero", "of=/dev/null", "bs=1000", "count=50", "status=none")
"""Makes 50 reads and 50 writes of 1000 bytes, and few others."""
ROW = re.compile(r"^ *(?P<label>.*) \|@* *(?P<count>\d+)$", re.M)
CLEAR = "\x1b[2J\x1b[1;1H"

live = pytest.mark.live


def script(name: str) -> str:
    return str(SCRIPTS / f"{name}.kp")


def rows(output: str) -> dict[str, int]:
    """The rows of a histogram."""
    return {match["label"]: int(match["count"]) for match in ROW.finditer(output)}


def columns(output: str) -> list[list[str]]:
    return [line.split() for line in output.splitlines()]


@pytest.mark.parametrize("path", sorted(SCRIPTS.glob("*.kp")), ids=lambda path: path.stem)
def test_every_script_says_what_it_is_and_how_to_use_it(path: Path) -> None:
    text = path.read_text()
    first, about, _, usage = text.split("\n")[:4]
    assert first == "#!/usr/bin/env ktap"
    assert about.startswith(f"# {path.stem}: ")
    assert usage.startswith(f"#   ktap scripts/{path.name}")
    assert path.stat().st_mode & 0o111
    for option in set(re.findall(r"\barg\.(\w+)", text)):
        assert f"--{option}" in text, "an option that the header does not name"
    assert max(map(len, text.split("\n"))) <= 120


@pytest.mark.parametrize("path", sorted([*SCRIPTS.glob("*.kp"), *LESSONS.rglob("*.kp")]), ids=lambda path: path.name)
def test_every_script_compiles_without_a_warning(path: Path) -> None:
    result = compile_source(path.read_text(), path.name)
    assert not result.warnings
    verify(result.program)


def test_helloworld(ktap: Ktap) -> None:
    assert ktap(script("helloworld")).stdout == "Hello, world!\n"
    assert ktap(script("helloworld"), "Anna").stdout == "Hello, Anna!\n"


@live
def test_syscalls(ktap: Ktap) -> None:
    out = ktap(script("syscalls"), "--", *DD).stdout
    head, *lines = out.splitlines()
    assert head == "CPU     PID NAME             CALL"
    assert lines
    for line in lines:
        assert re.fullmatch(r" *\d+ +\d+ (python3?|ktap|dd) +sys_\w+(\(.*\)| -> 0x[0-9a-f]+)", line), line
    assert len([line for line in lines if "dd" in line and line.endswith("sys_write -> 0x3e8")]) == 50
    assert len([line for line in lines if "sys_read(fd: 0, " in line and line.endswith("count: 0x3e8)")]) == 50


@live
def test_syscalls_count(ktap: Ktap) -> None:
    out = ktap(script("syscalls_count"), "--", *DD).stdout
    found = rows(out)
    total = re.match(r"(\d+) system calls of (\d+) kinds\n\n", out)
    assert total
    assert found["write"] == 50
    assert 50 <= found["read"] < 60
    if len(found) < 20:
        assert sum(found.values()) == int(total[1])
        assert len(found) == int(total[2])
    assert list(found.values()) == sorted(found.values(), reverse=True)


@live
def test_syscalls_count_shows_as_many_as_asked_for(ktap: Ktap) -> None:
    out = ktap(script("syscalls_count"), "--top", "2", "--", *DD).stdout
    assert set(rows(out)) == {"read", "write"}
    assert out.endswith("... |\n")


@live
def test_syscalls_by_process(ktap: Ktap) -> None:
    twice = f"{' '.join(DD)}; {' '.join(DD)}; true"
    found = rows(ktap(script("syscalls_by_process"), "--", "sh", "-c", twice).stdout)
    assert 200 <= found["dd"] < 800
    assert found["sh"] > 0
    by_pid = rows(ktap(script("syscalls_by_process"), "--pid", "--", "sh", "-c", twice).stdout)
    each = [count for name, count in by_pid.items() if re.fullmatch(r"dd, \d+", name)]
    assert len(each) == 2
    assert sum(each) == found["dd"]


@live
def test_opensnoop(ktap: Ktap, tmp_path: Path) -> None:
    there, missing = tmp_path / "there", tmp_path / "missing"
    there.write_text("x")
    command = ("--", "sh", "-c", f"cat {there} {missing} >/dev/null 2>&1")
    head, *lines = columns(ktap(script("opensnoop"), *command).stdout)
    assert head == ["NAME", "PID", "RESULT", "PATH"]
    opened = [line for line in lines if line[3] == str(there)]
    failed = [line for line in lines if line[3] == str(missing)]
    assert len(opened) == len(failed) == 1
    assert opened[0][0] == failed[0][0] == "cat"
    assert opened[0][1] == failed[0][1]
    assert int(opened[0][2]) > 2
    assert failed[0][2] == "ENOENT"

    _, *lines = columns(ktap(script("opensnoop"), "--failed", *command).stdout)
    assert str(missing) in [line[3] for line in lines]
    assert all(line[2].isalpha() for line in lines)

    _, *lines = columns(ktap(script("opensnoop"), "--name", "sh", *command).stdout)
    assert {line[0] for line in lines} <= {"sh"}


@live
def test_execsnoop(ktap: Ktap) -> None:
    out = ktap(script("execsnoop"), "--", "sh", "-c", "true; env -i /bin/echo one two >/dev/null; true").stdout
    head, *lines = out.splitlines()
    assert head.split() == ["PID", "PPID", "RESULT", "COMMAND"]
    commands = [line.split(None, 3) for line in lines]
    shell = next(c for c in commands if re.match(r"\S*sh -c true;", c[3]))
    echo = next(c for c in commands if c[3] == "/bin/echo one two")
    assert echo[1] == shell[0]
    assert all(command[2] == "0" for command in commands)


@live
def test_errinfo(ktap: Ktap, tmp_path: Path) -> None:
    command = ("--", "cat", *[str(tmp_path / name) for name in ("a", "b", "c")])
    _, *lines = columns(ktap(script("errinfo"), *command, status=None).stdout)
    found = {(name, call, error): int(count) for name, call, error, count in lines}
    assert found["cat", "openat", "ENOENT"] >= 3
    counts = list(found.values())
    assert counts == sorted(counts, reverse=True)
    _, *lines = columns(ktap(script("errinfo"), "--lines", *command, status=None).stdout)
    assert len([line for line in lines if line[2:] == ["openat", "ENOENT"]]) == found["cat", "openat", "ENOENT"]


@live
def test_sctop(ktap: Ktap) -> None:
    out = ktap("-d", "2.5", script("sctop"), "1", "--top", "3", "--", "sh", "-c", "while :; do sleep 0.1; done").stdout
    before, *pictures = out.split(CLEAR)
    assert not before
    assert len(pictures) == 2
    for picture in pictures:
        title, calls, processes = picture.split("\n\n")
        assert re.fullmatch(r"\d\d:\d\d:\d\d  \d+ system calls in 1 s", title)
        assert calls.endswith("... |")
        assert {"sh", "sleep"} <= set(rows(processes))


@live
def test_syslatl(ktap: Ktap) -> None:
    out = ktap(script("syslatl"), "--over", "40000", "--call", "clock_nanosleep", "--", "sleep", "0.05").stdout
    match = re.match(r"clock_nanosleep: count 1, average (\d+) us, longest (\d+) us\n", out)
    assert match
    assert 50_000 <= int(match[1]) == int(match[2]) < 5_000_000
    assert list(rows(out).values()) == [1]


@live
def test_syslatl_of_all_calls(ktap: Ktap) -> None:
    out = ktap(script("syslatl"), "--", *DD).stdout
    calls = {name: int(count) for name, count in re.findall(r"^(\w+): count (\d+), ", out, re.M)}
    assert calls["write"] == 50
    assert calls["read"] >= 50


@live
def test_eventcount(ktap: Ktap) -> None:
    events = ("sched:sched_process_exec", "sched:sched_process_ex*")
    out = ktap(script("eventcount"), *events, "--", "sh", "-c", "/bin/true; /bin/true; exit 0").stdout
    assert rows(out) == {"sched_process_exec": 6, "sched_process_exit": 3}
    assert out.startswith("9 events of 2 kinds\n")


@live
def test_traceio(ktap: Ktap) -> None:
    out = ktap(script("traceio"), "--sizes", "--", *DD).stdout
    found = {line[0]: [int(word) for word in line[1:]] for line in columns(out) if line[1:] and line[0] == "dd"}
    reads, bytes_read, writes, bytes_written = found["dd"]
    assert (writes, bytes_written) == (50, 50_000)
    assert reads >= 50
    assert bytes_read >= 50_000
    _, sizes_of_reads, sizes_of_writes = re.split(r"\nsizes of \w+\n", out)
    assert rows(sizes_of_writes)["[512, 1K)"] == 50
    assert rows(sizes_of_reads)["[512, 1K)"] >= 50


@live
def test_sched_transition(ktap: Ktap) -> None:
    out = ktap(script("sched_transition"), "--", "sh", "-c", "sleep 0.01; sleep 0.01; sleep 0.01").stdout
    found = rows(out)
    total = re.match(r"(\d+) switches\n", out)
    assert total
    assert int(total[1]) >= 3
    assert any(name.startswith("sleep -> ") for name in found)
    lines = ktap(script("sched_transition"), "--lines", "--", "sleep", "0.01").stdout.splitlines()
    assert lines
    for line in lines:
        assert re.fullmatch(r" *\d+ +\d+ us  .+/\d+ -> .+/\d+", line), line


BUSY_THEN_ASLEEP = """
import time
open("/proc/self/comm", "w").write("workload")
while time.process_time() < 0.2: pass
time.sleep(0.3)
"""


@live
def test_schedtimes(environment: dict[str, str]) -> None:
    command = [*COMMAND, "-d", "10", script("schedtimes"), "--name", "workload"]
    tracer = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        assert tracer.stderr is not None
        assert tracer.stderr.readline().startswith("Tracing")
        time.sleep(0.1)
        subprocess.run([sys.executable, "-c", BUSY_THEN_ASLEEP], check=True)
        tracer.terminate()
        out, errors = tracer.communicate(timeout=TIMEOUT_S)
    finally:
        tracer.kill()
    assert tracer.returncode == 0, errors
    head, line = columns(out)
    assert head == ["NAME", "TID", "RUNNING", "WAITING", "SLEEPING"]
    running, waiting, sleeping = (float(word) for word in line[2:])
    assert 150 <= running < 600
    assert 300 <= sleeping < 3000
    assert waiting >= 0


# -- the recording ----------------------------------------------------------------------------

RECORDING = LESSONS / "syscalls.ktaprec"


def test_the_recording_is_small() -> None:
    assert RECORDING.stat().st_size < 300_000


def test_the_recording_counted(ktap: Ktap) -> None:
    out = ktap("--replay", str(RECORDING), script("syscalls_count")).stdout
    found = rows(out)
    assert len(found) == 20
    assert out.endswith("... |\n")
    assert found["read"] > found["write"] > 200
    assert ktap("--replay", str(RECORDING), script("syscalls_count")).stdout == out


@pytest.mark.root
def test_the_recording_needs_no_root(ktap: Ktap) -> None:
    nobody = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")
    done = ktap("--replay", str(RECORDING), script("syscalls_by_process"), prefix=nobody, cwd=ROOT)
    assert {"sh", "ls", "cat", "python3", "dd", "sleep"} <= set(rows(done.stdout))


def test_tools_on_the_recording(ktap: Ktap) -> None:
    def replayed(name: str, *options: str) -> list[list[str]]:
        return columns(ktap("--replay", str(RECORDING), script(name), *options).stdout)

    assert ["dd", "200", "819200"] in [[line[0], *line[3:]] for line in replayed("traceio") if len(line) == 5]
    started = [" ".join(line[3:]) for line in replayed("execsnoop")]
    assert "/usr/bin/cat /etc/hostname /nowhere" in started
    assert ["cat", "ENOENT", "/nowhere"] in [line[::2] + line[3:] for line in replayed("opensnoop", "--name", "cat")]
    assert any(line[:3] == ["cat", "openat", "ENOENT"] for line in replayed("errinfo"))
    assert any(line[:3] == ["clock_nanosleep:", "count", "2,"] for line in replayed("syslatl"))
    assert len(replayed("syscalls")) > 2000


@pytest.mark.parametrize("lesson", ["02_events", "03_counting", "04_filters", "05_joining", "06_distributions"])
def test_lessons_on_the_recording(ktap: Ktap, lesson: str) -> None:
    first = ktap("--replay", str(RECORDING), str(LESSONS / f"{lesson}.kp"))
    assert len(first.stdout.splitlines()) >= 10
    assert ktap("--replay", str(RECORDING), str(LESSONS / f"{lesson}.kp")).stdout == first.stdout


def test_the_lesson_of_timers_on_the_recording(ktap: Ktap) -> None:
    second, rest = ktap("--replay", str(RECORDING), str(LESSONS / "07_timers.kp")).stdout.splitlines()
    calls = int(second.removeprefix("1\t")) + int(rest.removeprefix("in the rest of a second:\t"))
    counted = ktap("--replay", str(RECORDING), script("syscalls_count")).stdout
    assert counted.startswith(f"{calls} system calls of ")


# -- lessons ----------------------------------------------------------------------------------


def test_the_first_lesson(ktap: Ktap) -> None:
    out = ktap(str(LESSONS / "01_hello.kp"), "Anna").stdout
    assert out.splitlines() == [
        "hello\t42",
        "Anna       has 4 letters",
        "1024\t0\t-3\t-1",
        "1\tred",
        "2\tgreen",
        "favourite\tblue",
    ]


def test_the_lesson_of_errors(ktap: Ktap) -> None:
    done = ktap(str(LESSONS / "08_errors.kp"), status=1)
    assert done.stdout == "half:\t50\ntrace_end runs in any case\n"
    assert "08_errors.kp:10:23: divide 0\n    return 100 * part / whole\n" in done.stderr
    assert "called from main chunk at " in done.stderr


def test_the_script_for_a_board(ktap: Ktap, tmp_path: Path) -> None:
    ktap("compile", str(LESSONS / "embedded" / "board.kp"), "-o", str(tmp_path / "board.kpc"))
    (tmp_path / "vm").symlink_to(ROOT / "vm")
    python = [sys.executable, "-S", "-m", "vm", "board.kpc", "--time"]
    done = subprocess.run(python, cwd=tmp_path, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert done.returncode == 0, done.stderr
    first, rightly, took = done.stdout.splitlines()
    assert re.fullmatch(r"\w+, \d+ processors, Linux .+", first)
    assert rightly == "100000 rounds computed rightly"
    assert re.fullmatch(r"that took \d+ us", took)


@live
def test_lessons_on_this_machine(ktap: Ktap) -> None:
    command = ("--", "sh", "-c", "cat /etc/passwd /nowhere >/dev/null 2>&1; true")
    events = ktap(str(LESSONS / "02_events.kp"), *command).stdout
    assert re.search(
        r"^cat\t\d+\topens something with flags\t\d+\n    the whole event:\tsys_openat\(dfd: ", events, re.M
    )
    assert events.endswith("\nthe end\n")
    counting = ktap(str(LESSONS / "03_counting.kp"), *command).stdout
    assert {"cat", "sh"} <= set(rows(counting))
    filters = ktap(str(LESSONS / "04_filters.kp"), *command).stdout
    assert rows(filters)["sys_exit_openat"] > 0
    joining = ktap(str(LESSONS / "05_joining.kp"), *command).stdout
    assert re.search(r"^cat +3 +\d+ us  /etc/passwd$", joining, re.M)
    assert re.search(r"^cat +-2 +\d+ us  /nowhere$", joining, re.M)
    distributions = ktap(str(LESSONS / "06_distributions.kp"), *command).stdout
    table, histogram = distributions.split("\n\n")
    calls = {line[0]: int(line[1]) for line in columns(table)[1:]}
    assert sum(rows(histogram).values()) == sum(calls.values())
    assert calls["cat"] > 10


@live
def test_the_lesson_of_timers(ktap: Ktap) -> None:
    command = ("--", "sh", "-c", "sleep 1.2; exit 0")
    lines = ktap(str(LESSONS / "07_timers.kp"), *command).stdout.splitlines()
    assert re.fullmatch(r"1\t\d+", lines[0])
    assert len(lines) == 2
    assert lines[1].startswith("in the rest of a second:\t")


@live
def test_profile(ktap: Ktap) -> None:
    dd = ("dd", "if=/dev/zero", "of=/dev/null", "bs=64K", "count=60000", "status=none")
    done = ktap("-q", script("profile"), "--name", "dd", "--", *dd)
    lines = done.stdout.splitlines()
    assert all(re.match(r"dd(;[^;]+)* \d+$", line) for line in lines)
    assert any(";vfs_read;" in line or ";ksys_read;" in line for line in lines)
