"""What a second run attaches before it is loaded: the same as it would make, or it is let go and nothing is seen of it."""

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
from assembler import program as assembled
from conftest import COMMAND, NOBODY, ROOT, Ktap

from compiler.compile import compile_source
from ktap import early, kernel
from ktap.early import MAGIC, MAP, PROGRAM, RAW_TRACEPOINT, UPDATE, step
from ktap.objects import Objects, Stale
from ktap.prelude import is_quick

TAKEN = "this has run before"
COUNT = "n = 0 trace syscalls:sys_enter_getppid /execname == 'early_calls'/ { n += 1 } trace_end { print(n) }".replace(
    "'", '"'
)
CALLS = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(15, b"early_calls", 0, 0, 0)
for _ in range(1000): os.getppid()
"""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where entries will be, of ktap as the fixture `ktap` runs it and of this process."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield tmp_path / "cache" / "ktap"
    early.drop()
    early.begin(())


def entry(cache: Path) -> Path:
    (only,) = cache.glob("*.early")
    return only


def again(ktap: Ktap, *arguments: str) -> bool:
    """Run ktap; whether it took what was made early."""
    return TAKEN in ktap("-v", *arguments).stderr


# -- runs -------------------------------------------------------------------------------------


@pytest.mark.live
@pytest.mark.parametrize(
    "script",
    [
        "s = {} trace raw_syscalls:sys_enter { s[execname] += 1 } trace_end { print(len(s) > 0) }",
        "s = {} trace raw_syscalls:sys_enter { s[tid] <<< arg0 } tick-10ms { delete(s) }",
        'names = {"a", "b"} s = {} trace syscalls:sys_exit_read /ret == 1 || ret == 2/ { s[names[args.ret]] += 1 }',
        'print("before") n = 0 trace sched:sched_process_exec { n += 1 }',
        "s = {} profile-20hz { s[stack(3)] += 1 }",
        "n = 0 trace perf:cpu-clock:1000000 { n += 1 }",
        "s = {} trace syscalls:* { s[probename] += 1 }",
    ],
)
def test_the_second_run_takes_what_was_made_early(ktap: Ktap, script: str) -> None:
    arguments = ("-d", "0.05", "-e", script)
    assert [again(ktap, *arguments) for _ in range(3)] == [False, True, True]


@pytest.mark.live
@pytest.mark.parametrize(
    "arguments",
    [
        ("-e", "n = 0 trace sched:sched_switch { n += 1 }", "--", "true"),
        ("-p", str(os.getpid()), "-e", "n = 0 trace sched:sched_switch { n += 1 }"),
        ("--buffer", "perf", "-e", "trace sched:sched_process_exec { print(cpu) }"),
        ("--buffer", "ring", "-e", "trace sched:sched_process_exec { print(cpu) }"),
        ("--tier", "vm", "-e", "n = 0 trace sched:sched_process_exec { n += 1 }"),
        ("-e", "for (i = 1, 3) { t[i] = i } trace sched:sched_switch { n += t[1] }"),
        ("-e", "begin = gettimeofday_ns() trace sched:sched_switch { n += 1 }"),
        ("-e", "n = 0 trace sched:sched_switch { n += 1 } trace_begin { print(1) }"),
        ("--tier", "auto", "-e", "trace sched:sched_switch { s[gettimeofday_s()] += 1 }"),
        ("-e", "trace sched:sched_switch { s[ustack(2)] += 1 }"),
        ("-e", "tick-10ms { print(1) }"),
    ],
)
def test_runs_that_are_not_prepared(ktap: Ktap, arguments: tuple[str, ...], cache: Path) -> None:
    assert [again(ktap, "-d", "0.05", *arguments) for _ in range(2)] == [False, False]
    assert not list(cache.glob("*.early"))


@pytest.mark.live
def test_events_count_from_then_on(ktap: Ktap, environment: dict[str, str]) -> None:
    """Calls that are made while ktap is stopped on its way to the main chunk are all there."""
    arguments = ("-v", "--tier", "auto", "-e", COUNT)
    ktap(*arguments, "-d", "0.05")
    again_arguments = [*COMMAND, *arguments, "-d", "0.05"]
    command = [sys.executable, "-c", CALLS]
    running = subprocess.Popen(
        again_arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    while not attached(running.pid):
        assert running.poll() is None
        time.sleep(0.0002)
    running.send_signal(signal.SIGSTOP)
    subprocess.run(command, check=True)
    running.send_signal(signal.SIGCONT)
    out, errors = running.communicate(timeout=60)
    assert running.returncode == 0
    assert TAKEN in errors
    assert out == "1000\n"


def attached(pid: int) -> bool:
    """Whether a process holds a link of a BPF program."""
    directory = f"/proc/{pid}/fd"
    for name in os.listdir(directory):
        try:
            target = os.readlink(f"{directory}/{name}")
        except OSError:  # closed meanwhile
            continue
        if "bpf" in target and ("link" in target or "tracepoint" in target):
            return True
    return False


@pytest.mark.live
def test_a_second_start_loads_no_compiler(environment: dict[str, str], tmp_path: Path) -> None:
    """Neither lark nor llvmlite, nor what makes programs of handlers before events count."""
    command = [sys.executable, "-X", "importtime", "-m", "ktap", "--tier", "auto", "-d", "0.05"]
    script = "s = {} trace raw_syscalls:sys_enter { s[execname] += 1 } trace_end { print(len(s) > 0) }"
    runs = [
        subprocess.run([*command, "-e", script], capture_output=True, text=True, check=True, env=environment)
        for _ in range(2)
    ]
    found = [re.findall(r"^import time:.*\| +(\S+)$", done.stderr, re.MULTILINE) for done in runs]
    assert {"lark", "compiler.parse"} <= set(found[0])
    assert not [name for name in found[1] if name.split(".")[0] in ("lark", "llvmlite", "bcc", "rich", "elftools")]
    others = {"compiler.parse", "json", "socket", "subprocess", "ktap.recorder", "ktap.replay", "ktap.perf_source"}
    assert not others & set(found[1])
    assert [done.stdout for done in runs] == ["true\n", "true\n"]


LIGHT = """
import sys
sys.path.insert(0, {root!r})
from ktap import early, launch
early.begin({words!r})
assert early.take() is not None
print(*sorted(set(sys.modules) & {{"typing", "re", "contextlib", "collections", "functools", "enum", "resource", "ktap.cli"}}))
"""


@pytest.mark.live
def test_what_attaches_early_loads_quickly(ktap: Ktap, environment: dict[str, str]) -> None:
    words = ["-d", "0.05", "-e", "n = 0 trace sched:sched_switch { n += 1 }"]
    ktap(*words)
    code = LIGHT.format(root=str(ROOT), words=words)
    done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, env=environment)
    assert (done.stdout, done.stderr) == ("\n", "")


@pytest.mark.live
def test_a_script_that_has_changed(ktap: Ktap, tmp_path: Path) -> None:
    script = tmp_path / "a.kp"
    script.write_text("n = 0 trace sched:sched_switch { n += 1 }")
    assert not again(ktap, "-d", "0.05", str(script))
    assert again(ktap, "-d", "0.05", str(script))
    script.write_text("n = 0 trace sched:sched_switch { n += 2 }")
    assert not again(ktap, "-d", "0.05", str(script))
    assert again(ktap, "-d", "0.05", str(script))
    script.unlink()
    assert "cannot read" in ktap("-v", "-d", "0.05", str(script), status=2).stderr


@pytest.mark.live
def test_a_script_that_can_be_read_once(ktap: Ktap, environment: dict[str, str], tmp_path: Path, cache: Path) -> None:
    """A pipe is not looked into, also where the same name was a file before."""
    script = tmp_path / "a.kp"
    text = "n = 0 trace sched:sched_switch { n += 1 } trace_end { print(n >= 0) }"
    script.write_text(text)
    words = ("-d", "0.05", str(script))
    assert not again(ktap, *words)
    assert again(ktap, *words)
    script.unlink()
    os.mkfifo(script)
    for _ in range(2):
        running = subprocess.Popen(
            [*COMMAND, "-v", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
        )
        script.write_text(text)
        out, errors = running.communicate(timeout=60)
        assert (out, TAKEN.encode() in errors) == (b"true\n", False)


# -- entries that are not what they should be ---------------------------------------------------


@pytest.mark.live
def test_damaged_entries(ktap: Ktap, cache: Path) -> None:
    arguments = ("-d", "0.01", "-e", "n = 0 trace sched:sched_switch { n += 1 } trace_end { print(n >= 0) }")
    assert not again(ktap, *arguments)
    whole = entry(cache).read_bytes()
    damaged = [whole[:place] for place in (0, 5, 11, len(whole) // 2, len(whole) - 1)]
    damaged += [flipped(whole, place) for place in (0, 9, 30, len(whole) // 2, len(whole) - 1)]
    damaged.append(whole + b"x")
    for data in damaged:
        entry(cache).write_bytes(data)
        done = ktap("-v", *arguments)
        assert TAKEN not in done.stderr
        assert done.stdout == "true\n"
        assert entry(cache).read_bytes() == whole
    assert again(ktap, *arguments)


def flipped(data: bytes, place: int) -> bytes:
    return data[:place] + bytes((data[place] ^ 0x10,)) + data[place + 1 :]


MAP_STEP = step(MAP, (kernel.ARRAY, 4, 8, 1, 0), b"early")
RETURNS = step(PROGRAM, (kernel.RAW_TRACEPOINT, 0), b"early", kernel.RETURN_ZERO, b"")
HANGS = step(RAW_TRACEPOINT, (1,), b"sched_switch")


@pytest.mark.live
@pytest.mark.parametrize(
    "steps",
    [
        [MAP_STEP],
        [MAP_STEP, RETURNS, HANGS],
        [MAP_STEP, RETURNS, HANGS, HANGS],
        [step(MAP, (99, 4, 8, 1, 0), b"early")],
        [step(MAP, (kernel.ARRAY, 4, 8, 1, 0), b"\xff")],
        [MAP_STEP[:9]],
        [MAP_STEP + b"\xff\xff\xff\xff"],
        [step(UPDATE, (7,), bytes(4), bytes(8))],
        [MAP_STEP, step(UPDATE, (0,), bytes(4), b"")],
        [step(PROGRAM, (kernel.RAW_TRACEPOINT, 0), b"early", kernel.EXIT, b"")],
        [step(PROGRAM, (kernel.RAW_TRACEPOINT, 0), b"early", kernel.RETURN_ZERO, b"\xff\xff\xff\x7f\0")],
        [step(PROGRAM, (kernel.RAW_TRACEPOINT, 0), b"early", kernel.RETURN_ZERO, b"x")],
        [b"\xff"],
        [b""],
        [],
    ],
)
def test_entries_of_other_steps(ktap: Ktap, environment: dict[str, str], cache: Path, steps: list[bytes]) -> None:
    """Whatever an entry makes, the run is right, and the next one finds what this one has made."""
    words = ["-d", "0.01", "-e", "n = 0 trace sched:sched_switch { n += 1 } trace_end { print(n >= 0) }", "-v"]
    early.begin(words)
    early.keep("", b"", steps)
    made = entry(cache).read_bytes()
    done = ktap(*words)
    assert done.stdout == "true\n"
    assert TAKEN not in done.stderr
    assert entry(cache).read_bytes() != made
    assert TAKEN in ktap(*words).stderr


@pytest.mark.live
def test_an_entry_that_others_can_write(ktap: Ktap, cache: Path) -> None:
    arguments = ("-d", "0.01", "-e", "n = 0 trace sched:sched_switch { n += 1 }")
    assert not again(ktap, *arguments)
    entry(cache).chmod(0o666)
    assert not again(ktap, *arguments)
    assert again(ktap, *arguments)
    os.chown(entry(cache), NOBODY, NOBODY)
    assert not again(ktap, *arguments)


@pytest.mark.live
def test_another_kernel(ktap: Ktap, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["-d", "0.01", "-e", "n = 0 trace sched:sched_switch { n += 1 }"]
    ktap(*words)
    early.begin(words)
    assert early.take() is not None
    monkeypatch.setattr(early, "_kernel", lambda: b"another")
    early.begin(words)
    assert early.take() is None


@pytest.mark.live
def test_many_at_once(environment: dict[str, str], cache: Path) -> None:
    """Runs of one command line, whose entry is damaged meanwhile."""
    script = "n = 0 trace sched:sched_switch { n += 1 } trace_end { print(n >= 0) }"
    command = [*COMMAND, "-q", "-d", "0.05", "-e", script]
    for _ in range(3):
        pipe = subprocess.PIPE
        running = [subprocess.Popen(command, stdout=pipe, stderr=pipe, env=environment) for _ in range(6)]
        for path in cache.glob("*.early"):
            path.write_bytes(MAGIC)
        assert [each.communicate() for each in running] == [(b"true\n", b"")] * 6
    assert not [path for path in cache.iterdir() if path.suffix not in (".early", ".kpc", ".code")]


# -- objects ----------------------------------------------------------------------------------


def objects_with(steps: list[bytes]) -> Objects:
    """Objects of a run whose last one had these steps."""
    early.begin(["x"])
    early.keep("", b"", steps)
    early.begin(["x"])
    return Objects(lambda steps: None)


@pytest.mark.live
def test_what_is_taken_is_what_was_made() -> None:
    objects = objects_with([MAP_STEP, step(UPDATE, (0,), bytes(4), b"12345678")])
    assert objects.taking
    fd = objects.map(kernel.ARRAY, "early", 4, 8, 1)
    assert kernel.lookup(fd, bytes(4), 8) == b"12345678"
    objects.update(fd, bytes(4), b"12345678")
    assert early.live_ns() is None
    objects.finish()
    assert early.live_ns() is not None
    os.close(fd)


@pytest.mark.live
def test_what_differs_is_stale() -> None:
    objects = objects_with([MAP_STEP, MAP_STEP])
    with pytest.raises(Stale):
        objects.map(kernel.ARRAY, "early", 4, 16, 1)
    first = objects.map(kernel.ARRAY, "early", 4, 8, 1)
    with pytest.raises(Stale):
        objects.finish()
    os.close(first)
    objects.restart()
    assert not objects.taking
    fd = objects.map(kernel.ARRAY, "early", 4, 16, 1)
    objects.finish()
    assert early.live_ns() is None
    os.close(fd)


@pytest.mark.live
def test_what_cannot_be_noted_is_stale() -> None:
    objects = objects_with([MAP_STEP])
    with pytest.raises(Stale):
        objects.unfit()
    objects.restart()
    objects.unfit()


@pytest.mark.live
def test_nothing_is_left_of_what_nobody_takes() -> None:
    before = len(os.listdir("/proc/self/fd"))
    for steps in ([MAP_STEP, RETURNS, HANGS], [MAP_STEP, RETURNS, b"\xff"]):
        objects_with(steps).restart()
        assert len(os.listdir("/proc/self/fd")) == before
    early.begin(["x"])
    early.keep("", b"", [MAP_STEP])
    early.begin(["x"])
    early.drop()
    assert len(os.listdir("/proc/self/fd")) == before


# -- what may run after events count ------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "harmless"),
    [
        ("", True),
        ("s = {} n = 0 t = {1, 2, x = 3} trace a:b { for (i = 1, 9) { n += i } }", True),
        ('print("a") printf("%d", 1)', True),
        ("if (arg[1]) { n = 1 } else { n = 2 }", True),
        ("p = print p(1)", False),
        ("for (i = 1, 9) { }", False),
        ("while (n) { n = 0 }", False),
        ("for (k, v in pairs(t)) { }", False),
        ("function f() { } f()", False),
        ("n = gettimeofday_ns()", False),
        ('n = len("a")', False),
        ("print(print(1))", False),
        ("trace_begin { print(1) }", False),
        ("tick-1s { print(1) }", True),
        ("print(len(1))", False),
    ],
)
def test_what_is_quick(text: str, harmless: bool) -> None:
    made = compile_source(text, "a.kp").program
    assert is_quick(made) is harmless


def test_a_register_that_may_hold_something_else() -> None:
    """A jump around what loads the builtin."""
    made = assembled("JUMPIF 0 2\nBUILTIN 1 0\nCALL 1 0 0\nRETURN 0 0", constants=(b"print",))
    assert not is_quick(made)
