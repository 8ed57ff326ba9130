"""The backend without BPF: the same script on the same workload gives what it gives with BPF."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Iterator, Sequence

import pytest
from conftest import ROOT, Ktap
from tracing import SPIN, Traced, python, trace

from ktap import perf_instance
from ktap.backends import why_no_bpf
from vm.diagnostic import Refusal

pytestmark = [pytest.mark.live, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]


def both(script: str, command: Sequence[str]) -> tuple[Traced, Traced]:
    """What a script gives with BPF and without."""
    # without BPF the calls of others take room, too
    found = (trace(script, command), trace(script, command, backend="perf", buffer_bytes=1 << 26))
    for traced in found:
        assert not traced.losses and not traced.faults
    return found[0], found[1]


COUNT = """
trace {events} {{ n[{key}] += 1 }}
trace_end {{ for (k, v in sort_pairs(n)) {{ print(k, v) }} }}
"""
TREE = """
import os, threading
fd = os.open("/dev/null", os.O_RDWR)
for depth in range(3):
    pid = os.fork()
    if pid == 0:
        for _ in range(50): os.write(fd, b"xy")
        if depth == 1: os.execv("/bin/cat", ["cat", "/etc/hostname"])
        os._exit(0)
    os.waitpid(pid, 0)
thread = threading.Thread(target=lambda: [os.read(fd, 1) for _ in range(70)])
thread.start(); thread.join()
"""


@pytest.mark.parametrize(
    ("events", "key", "command"),
    [
        ("syscalls:sys_enter_*", "probename", ["/bin/cat", "/etc/hostname"]),
        ("syscalls:sys_exit_* /ret < 0/", "probename .. ' ' .. args.ret", ["/bin/cat", "/etc/nothing"]),
        ("syscalls:sys_enter_write /count == 2/", "execname .. ' ' .. args.fd .. args.count", python(TREE)),
        ("syscalls:sys_*_write, syscalls:sys_exit_read", "probename", python(TREE)),
        ("sched:sched_process_fork, sched:sched_process_exec", "probename .. ' ' .. execname", python(TREE)),
        ("sched:sched_process_exec", "args.filename", python(TREE)),
        (
            "sched:sched_process_exit",
            "execname .. ' ' .. args.comm .. ' ' .. (pid == args.pid && 1 || 0)",
            python(TREE),
        ),
        ("syscalls:sys_exit_* /execname == cat/", "probename .. execname", python(TREE)),
        ("sched:sched_process_exit /comm ~ 'c*t'/", "args.comm", python(TREE)),
        ("signal:signal_generate /sig == 17 || code > 70/", "args.sig .. ' ' .. args.code", python(TREE)),
    ],
)
def test_counts_are_the_same(events: str, key: str, command: Sequence[str]) -> None:
    with_bpf, without = both(COUNT.format(events=events, key=key), command)
    assert with_bpf.lines
    assert without.lines == with_bpf.lines


def test_values_are_the_same() -> None:
    script = """
    trace syscalls:sys_enter_getppid {
        print(argstr, arg0, arg1, execname, cgroup, pid == tid, ppid > 0, nsecs > 0)
        print(stack(3))
    }
    """
    with_bpf, without = both(script, python("import os\nos.getppid()"))
    assert with_bpf.lines[0].startswith("sys_getppid()\t")
    assert without.lines == with_bpf.lines


NAMES = """
import ctypes, os, threading
libc = ctypes.CDLL(None)
def named(name):
    libc.prctl(15, name, 0, 0, 0)
    os.getppid()
named(b"first"); named(b"second")
if os.fork() == 0:
    os.getppid(); named(b"third"); os._exit(0)
os.wait()
thread = threading.Thread(target=lambda: (os.getppid(), named(b"fourth")))
thread.start(); thread.join()
while len(os.listdir("/proc/self/task")) > 1: pass
with open("/proc/self/comm", "w") as file: file.write("a (b) c)")
os.getppid()
os.execv("/bin/true", ["true"])
"""


def test_names_are_those_of_the_moment() -> None:
    script = """
    trace syscalls:sys_enter_getppid { print(execname) }
    trace sched:sched_process_exec, sched:sched_process_exit { print(probename, execname) }
    """
    with_bpf, without = both(script, python(NAMES))
    assert "a (b) c)" in with_bpf.lines and "second" in with_bpf.lines
    assert without.lines == with_bpf.lines


INT80 = """
import ctypes, mmap, os, platform
GETPPID_32, code = 64, bytes([0xB8, 64, 0, 0, 0, 0xCD, 0x80, 0xC3])
pages = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
pages[: len(code)] = code
call = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(pages)))
assert call() == os.getppid()
for _ in range(10):
    call()
"""


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="32-bit system calls as x86 has them")
@pytest.mark.parametrize("events", ["syscalls:*", "syscalls:sys_*_semget, syscalls:sys_enter_getppid"])
def test_system_calls_of_32_bit_programs_are_left_out(events: str) -> None:
    script = (
        f"trace {events} {{ n[probename] += 1 }}"
        + """
    trace_end { print(n.sys_enter_semget, n.sys_exit_semget, n.sys_enter_getppid) }
    """
    )
    assert trace(script, python(INT80), backend="perf").lines == ["nil\tnil\t1"]


RARE = (
    "getsid getpgid getpriority sched_getscheduler sched_getparam sched_rr_get_interval getresuid getresgid getgroups"
)
ASKING = """
import os
os.getsid(0); os.getpgid(0); os.getpriority(0, 0); os.sched_getscheduler(0); os.sched_getparam(0)
os.sched_rr_get_interval(0); os.getresuid(); os.getresgid(); os.getgroups()
"""


def test_many_system_calls_with_stacks() -> None:
    """They come by the tracepoint of all of them."""
    events = ", ".join(f"syscalls:sys_enter_{name}" for name in RARE.split())
    script = (
        f"trace {events} {{ n[probename, len(tostring(stack(2))) > 0] += 1 }}"
        + """
    trace_end { for (k, there, v in sort_pairs(n)) { print(k, there, v) } }
    """
    )
    with_bpf, without = both(script, python(ASKING))
    assert len(with_bpf.lines) > 8
    assert without.lines == with_bpf.lines


PARENTS = """
import ctypes, os, signal
libc = ctypes.CDLL(None)
def show(): os.lseek(-1, os.getppid(), 0)
try: show()
except OSError: pass
CLONE_PARENT, SIGCHLD = 0x8000, 17
shown = os.pipe()
for flags in (SIGCHLD, CLONE_PARENT | SIGCHLD):
    pid = libc.syscall(56, flags, 0, 0, 0, 0)
    if pid == 0:
        try: show()
        except OSError: pass
        os.write(shown[1], b"x")
        os._exit(0)
    os.read(shown[0], 1)
"""


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the number of clone is x86-64's")
def test_parents() -> None:
    script = "trace syscalls:sys_enter_lseek /fd == 0xffffffff/ { print(ppid == args.offset) }"
    for traced in both(script, python(PARENTS)):
        assert traced.lines == ["true"] * 3


def test_a_parent_that_has_ended_is_nil() -> None:
    code = """
import os, time
to, back = os.pipe(), os.pipe()
if os.fork() == 0:
    if os.fork() == 0:
        os.setsid(); os.read(to[0], 1); os.getpgid(0)
        os.write(back[1], b"x"); os._exit(0)
    os._exit(0)
os.wait()
time.sleep(0.1)
os.write(to[1], b"x"); os.read(back[0], 1)
"""
    script = "trace syscalls:sys_enter_setsid, syscalls:sys_enter_getpgid { print(probename, ppid == nil) }"
    lines = trace(script, python(code), backend="perf").lines
    assert lines[-1] == "sys_enter_getpgid\ttrue"


def test_interrupts() -> None:
    script = """
    trace irq:softirq_entry { n[in_interrupt()] += 1 }
    trace syscalls:sys_enter_nanosleep, syscalls:sys_enter_clock_nanosleep { m[in_interrupt()] += 1 }
    tick-1s { exit() }
    trace_end { print(len(n), n[true] > 0, m[true]) }
    """
    code = "import time\nfor _ in range(100): time.sleep(0.005)"
    assert trace(script, python(code), everyone=True, backend="perf").lines == ["1\ttrue\tnil"]


def test_a_timer_on_every_processor() -> None:
    script = "profile-97hz { n[cpu] += 1 } trace_end { for (k, v in sort_pairs(n)) { print(k, v) } }"
    traced = trace(script, python(SPIN), duration_s=1, everyone=True, backend="perf")
    counts = [int(line.split("\t")[1]) for line in traced.lines]
    assert len(counts) == len(os.sched_getaffinity(0))
    assert all(40 <= count <= 130 for count in counts), counts


def test_what_is_not_known_is_nil_and_said() -> None:
    traced = trace(
        "trace syscalls:sys_enter_getppid { print(uid, gid, pid > 0) }",
        python("import os\nos.getppid()"),
        backend="perf",
    )
    assert traced.lines == ["nil\tnil\ttrue"]
    assert any("gid and uid are nil" in notice for notice in traced.notices)


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("trace sched:sched_switch { print(curtask.pid) }", "`curtask.pid` takes BPF"),
        ("trace raw:sched_switch { print(arg1) }", "`raw:sched_switch` takes BPF"),
        ("trace sched:sched_switch /uid == 0/ { }", "looks at `uid` takes BPF"),
        ("trace sched:sched_process_exec { print(kernel_u64(0xffffffff81000000)) }", "reading memory of the kernel"),
    ],
)
def test_what_takes_bpf_is_refused_at_its_place(script: str, message: str) -> None:
    with pytest.raises(Refusal) as caught:
        trace(script, duration_s=0.1, backend="perf")
    (diagnostic,) = caught.value.diagnostics
    assert message in diagnostic.message
    assert diagnostic.span is not None and diagnostic.span.line == 1


MANY = "task:*, signal:*, sched:sched_process_*"
"""So many tracepoints that they come through an instance."""
PYTHON = Path(sys.executable).name[:15]
"""The name of a task that runs Python code."""


def test_many_tracepoints_are_the_same() -> None:
    script = f"""
    trace {MANY} {{ n[probename, execname] += 1  if (nsecs < last) {{ back += 1 }} last = nsecs }}
    trace sched:sched_process_exec /execname == "cat"/ {{ print(args.filename, argstr != "") }}
    trace_end {{
        for (k, v in pairs(n)) {{ total += v }}
        print(n["sched_process_fork", "{PYTHON}"], n["sched_process_exec", "cat"], n["sched_process_exit", "{PYTHON}"],
            n["task_newtask", "{PYTHON}"], n["signal_generate", "{PYTHON}"], back)
    }}
    """
    script = "var last = 0  var back = 0  var total = 0" + script
    with_bpf, without = both(script, python(TREE))
    assert with_bpf.lines[-1].endswith("\t0")
    assert with_bpf.lines[-1].startswith("4\t1\t")
    assert without.lines == with_bpf.lines


def test_without_an_instance_they_are_perf_events(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise PermissionError(13, "no instances here")

    monkeypatch.setattr(perf_instance, "OwnInstance", refuse)
    script = f"""
    trace {MANY} {{ n[probename, execname] += 1 }}
    trace_end {{ print(n["sched_process_fork", "{PYTHON}"], n["task_newtask", "{PYTHON}"], n["sched_process_exec", "cat"]) }}
    """
    assert trace(script, python(TREE), backend="perf").lines == ["4\t4\t1"]


def test_an_instance_that_is_too_small_says_how_many_events_it_lost() -> None:
    events = "timer:*, sched:sched_switch"
    script = f"var n = 0 trace {events} {{ n += 1  for (i = 1, 2000) {{ }} }} trace_end {{ print(n > 0) }}"
    code = "import time\nfor _ in range(3000): time.sleep(0.0001)"
    traced = trace(script, python(code), backend="perf", buffer_bytes=4096, everyone=True)
    assert traced.lines == ["true"]
    assert {loss.what for loss in traced.losses} == {"tracefs buffer full"}
    assert {loss.where for loss in traced.losses} <= {f"processor {cpu}" for cpu in os.sched_getaffinity(0)}


def test_a_kernel_without_event_probes_is_named() -> None:
    """Where it has them, tests/kernels/without_bpf.py shows what they fetch."""
    script = "trace syscalls:sys_enter_openat { print(user_string(arg2)) exit() }"
    try:
        assert trace(script, ["/bin/cat", "/etc/hostname"], backend="perf").lines
    except Refusal as refusal:
        (diagnostic,) = refusal.diagnostics
        assert "no event probes" in str(diagnostic.hint)
        assert diagnostic.span is not None


LOST = """
var n = 0
trace syscalls:sys_enter_getsid { n += 1  if (n == 1) { for (i = 1, 99999) { } } }
trace_end { print(n) }
"""


def test_a_buffer_that_is_too_small_loses_and_says_exactly_how_many() -> None:
    calls = 100_000
    traced = trace(LOST, python(f"import os\nfor _ in range({calls}): os.getsid(0)"), backend="perf", buffer_bytes=4096)
    assert traced.lost() > 0
    assert int(traced.lines[0]) + traced.lost() == calls
    assert [(loss.what, loss.where) for loss in traced.losses] == [("perf buffer full", "syscalls:sys_enter_getsid")]


# -- choosing ---------------------------------------------------------------------------------------

NO_BPF = (sys.executable, str(ROOT / "tests/no_bpf.py"))
SHORT = "var n = 0 trace syscalls:sys_enter_getppid { n += 1 } trace_end { print(n) }"
CALLS = (sys.executable, "-c", "import os\nfor _ in range(300): os.getppid()")


def test_where_bpf_is_refused_perf_events_serve_and_it_is_said(ktap: Ktap) -> None:
    done = ktap("-q", "-e", SHORT, "--", *CALLS, prefix=NO_BPF)
    assert done.stdout == "300\n"
    assert "without BPF (bpf(2): Operation not permitted)" in done.stderr
    assert "slower, same answers" in done.stderr


def test_without_the_capabilities_of_bpf(ktap: Ktap) -> None:
    drop = ("setpriv", "--bounding-set", "-bpf,-sys_admin", "--inh-caps", "-bpf,-sys_admin")
    done = ktap("-q", "-e", SHORT, "--", *CALLS, prefix=drop)
    assert done.stdout == "300\n"
    assert "without BPF" in done.stderr


def test_bpf_that_is_asked_for_is_not_replaced(ktap: Ktap) -> None:
    done = ktap("-q", "--backend", "bpf", "-e", SHORT, status=3, prefix=NO_BPF)
    assert "cannot trace" in done.stderr


def test_with_bpf_nothing_is_said(ktap: Ktap) -> None:
    assert why_no_bpf() is None
    done = ktap("-q", "-e", SHORT, "--", *CALLS)
    assert (done.stdout, done.stderr) == ("300\n", "")


@pytest.mark.parametrize("option", [("--tier", "kernel"), ("--buffer", "ring")])
def test_what_does_not_go_together(ktap: Ktap, option: tuple[str, str]) -> None:
    done = ktap("--backend", "perf", *option, "-e", SHORT, status=2)
    assert f"{option[0]}" in done.stderr and "takes BPF" in done.stderr


def test_doctor_and_explain_say_which(ktap: Ktap) -> None:
    done = ktap("doctor", prefix=NO_BPF)
    assert "perf, without BPF (bpf(2): Operation not permitted)" in done.stdout
    assert "tracing works" in done.stdout
    done = ktap("explain", "-e", "trace sched:sched_switch /prev_pid == 0/ { print(cpu) }", prefix=NO_BPF)
    assert "all handlers run in the VM: without BPF" in done.stdout
    assert "prev_pid == 0" in done.stdout and "a perf event of the tracepoint" in done.stdout


STANDARD = [sys.executable, "-S", "-E", "-c"]


@pytest.mark.parametrize(
    ("script", "printed"),
    [
        (SHORT.replace("{ n += 1 }", "/pid != 0/ { n += 1  last = argstr }"), "300\n"),
        ("var n = 0 trace probe:libc:getppid { n += 1 } trace_end { print(n) }", "300\n"),
        ("trace sched:sched_process_exec { print(args.filename) s[stack(3)] += 1 }", f"{sys.executable}\n"),
    ],
)
def test_a_compiled_script_takes_nothing_but_the_standard_library(
    ktap: Ktap, tmp_path: Path, script: str, printed: str
) -> None:
    compiled = tmp_path / "count.kpc"
    ktap("compile", "-e", script, "-o", str(compiled))
    code = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
sys.argv = ["ktap", "-q", {str(compiled)!r}, "--", *{CALLS!r}]
from ktap.cli import main
try:
    main()
finally:
    ours = ("ktap", "compiler", "vm", "__main__")
    others = {{name.partition(".")[0] for name in sys.modules}} - sys.stdlib_module_names - set(ours)
    sys.stderr.write(" ".join(sorted(others)) + "!\\n")
"""
    done = subprocess.run([*STANDARD, code], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout == printed, done.stderr
    assert done.stderr.splitlines()[-1] == "!"
    assert "llvmlite, which makes the programs, is not installed" in done.stderr


# -- what remains -----------------------------------------------------------------------------------

EVERYTHING = f"""
trace syscalls:*, {MANY} {{ n[probename] += 1 }}
trace sched:sched_switch /prev_pid == 0/ {{ n[args.next_comm] += 1 }}
profile-19hz {{ n[cpu] += 1 }}
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_nothing(number: signal.Signals, environment: dict[str, str]) -> None:
    command = [sys.executable, "-m", "ktap", "--backend", "perf", "-e", EVERYTHING]
    ktap = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
    assert ktap.stderr is not None
    assert any(b"Tracing" in line for line in ktap.stderr)
    assert list(instances(ktap.pid))
    ktap.send_signal(number)
    ktap.wait(timeout=60)
    end = time.monotonic() + 30
    while list(instances(ktap.pid)) and time.monotonic() < end:
        time.sleep(0.05)
    assert not list(instances(ktap.pid))


def instances(pid: int) -> Iterator[str]:
    return (name for name in os.listdir("/sys/kernel/tracing/instances") if f"ktap_{pid}_" in name)


def test_closing_gives_back_every_file() -> None:
    trace(EVERYTHING, python("pass"), backend="perf")
    before = set(os.listdir("/proc/self/fd"))
    trace(EVERYTHING, python("pass"), backend="perf")
    with pytest.raises(Refusal):
        trace("trace sched:sched_switch, sched:nothing { }", duration_s=0.1, backend="perf")
    assert set(os.listdir("/proc/self/fd")) == before


def test_programs_of_others_keep_no_event_from_it() -> None:
    """A run with BPF beside it, whose programs sit on the same tracepoints and whose follower does."""
    script = "trace sched:sched_process_fork { n[args.child_comm] += 1 }"
    command = [sys.executable, "-m", "ktap", "--backend", "bpf", "--tier", "vm", "-e", script, "--", "sleep", "1000"]
    other = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
    try:
        assert other.stderr is not None
        assert b"Tracing" in other.stderr.readline()
        script = "var n = 0 trace sched:sched_process_fork { n += 1 } trace_end { print(n) }"
        traced = trace(script, python(TREE), backend="perf")
        assert traced.lines == ["4"]
        assert any("sched:sched_process_fork: BPF programs of another" in notice for notice in traced.notices)
    finally:
        other.terminate()
        other.wait()


RECORDED = """
n = 0
trace syscalls:sys_enter_getppid { n += 1 }
trace syscalls:* { s[probename] += 1 }
trace sched:sched_process_exec, sched:sched_process_fork { print(cpu, pid, ppid, uid, cgroup, argstr) }
trace sched:sched_process_exit { print(stack(3), execname, ppid) }
profile-100hz { s["timer"] += 1 }
trace_end { print(n, num_cpus(), kernel_v(), arch()) for (k, v in sort_pairs(s)) { print(k, v) } }
"""
ORPHAN = """
import os, time
for _ in range(300): os.getppid()
if os.fork() == 0:
    if os.fork() == 0:
        time.sleep(0.2)
        os._exit(0)
    os._exit(0)
os.wait()
time.sleep(0.3)
"""


def test_a_recording_gives_the_same_output_again(ktap: Ktap, tmp_path: Path) -> None:
    """What is not known of an event (the parent of an orphan) is not known in the replay."""
    file = str(tmp_path / "recording")
    live = ktap("-q", "--backend", "perf", "--record", file, "-e", RECORDED, "--", *python(ORPHAN)).stdout
    assert "300\t" in live and f"\t{PYTHON}\tnil\n" in live
    for _ in range(2):
        assert ktap("--replay", file, "-e", RECORDED).stdout == live
    other = "n = 0 trace syscalls:sys_enter_getppid /execname == 'nobody'/ { n += 1 } trace_end { print(n, uid) }"
    assert ktap("--replay", file, "-e", other).stdout.startswith("0\t")
