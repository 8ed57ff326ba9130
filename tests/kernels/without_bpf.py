"""Functions of the kernel without BPF: the same answers as with it. Run on kernels that have such probes (see test_kernels)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Sequence

import pytest
from processor import HERE, words
from tracing import EVENTS, python, trace

from ktap import links
from ktap.functions import kernel_functions
from ktap.own_group import definitions, group_of
from ktap.perf_instance import TRACE_FULL
from ktap.perf_source import PerfSource
from ktap.settings import MISSED_RETURNS
from vm.limits import Limits

pytestmark = [
    pytest.mark.live,
    pytest.mark.skipif(links.probe_type() is None, reason="this kernel cannot probe its functions"),
]
CALLS = 100
WORK = f"""
import os
fd = os.open("/dev/null", os.O_RDWR)
for _ in range({CALLS}):
    os.write(fd, b"x"); os.read(fd, 1)
for name in ("/etc/hostname", "/etc/passwd", "/nothing/there"):
    try:
        os.read(os.open(name, os.O_RDONLY), 77)
    except OSError:
        pass
"""
SCRIPTS = {
    "entry, return and a place within": f"""
    var a = 0  var b = 0  var c = 0
    trace probe:write_null {{ a += 1 }}
    trace probe:write_null%return {{ b += retval }}
    trace probe:write_null{HERE.within} {{ c += 1 }}
    trace_end {{ print(a, b, c) }}
    """,
    "globs": """
    trace probe:vfs_[rw]* { n[probename] += 1 }
    trace_end { print(n["vfs_write"] >= 100, n["vfs_read"] >= 100, n["vfs_rename"]) }
    """,
    "returns of globs": """
    trace probe:vfs_[rw]*%return { n[probename, pid == tid, execname] += 1 }
    trace probe:vfs_[rw]* { m[probename] += 1 }
    trace_end { for (k, own, name, v in sort_pairs(n)) { if (k == "vfs_read" || k == "vfs_write") { print(k, own, name, v, m[k]) } } }
    """,
    "fetch arguments": """
    trace probe:do_sys_openat2 dfd=%di:s32 filename=+0(%si):ustring low=%di:b4@0/32 first=+u0(%si):u16[2]
        /filename ~ "/etc/[hp]*" || filename ~ "/no*"/ {
        print(args.dfd, args.filename, args.low, args.first[1], execname)
    }
    """,
    "parameters by name, members behind them": """
    trace probe:vfs_read /count == 77/ { print(args.count, args.file.f_inode.i_ino > 0, argstr != nil) }
    trace probe:do_sys_openat2%return /retval == -2/ { n[retval] += 1 }
    trace_end { print(n[-2] > 0) }
    """,
    "memory that handlers read": """
    trace probe:vfs_read /count == 77/ { print(kernel_string(args.file.f_path.dentry.d_name.name)) }
    trace probe:do_sys_openat2 { var s = user_string(arg2)  if (s == "/nothing/there") { print(s) } }
    """,
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_same_as_with_bpf(name: str) -> None:
    with_bpf, without = (trace(words(SCRIPTS[name]), python(WORK), tier=tier) for tier in ("vm", EVENTS))
    for traced in (with_bpf, without):
        assert not traced.losses and not traced.faults
    assert with_bpf.lines
    assert without.lines == with_bpf.lines


WIDE = "probe:[v-x]*_*"
"""A thousand functions and some."""


def test_a_thousand_functions_by_one_glob() -> None:
    """They cost a list of functions in an instance, not a probe each; every call is counted."""
    some = ("write_null", "vfs_open", "vfs_write")
    probes, shown = ", ".join(f"probe:{name}" for name in some), " || ".join(f'k == "{name}"' for name in some)
    script = f"""
    trace EVENTS {{ n[probename, execname] += 1 }}
    trace_end {{ for (k, name, v in sort_pairs(n)) {{ if ({shown}) {{ print(k, name, v) }} }} }}
    """
    limits = Limits()._replace(probes=30_000)
    with_bpf = trace(script.replace("EVENTS", probes), python(WORK))
    started = time.monotonic()
    without = trace(script.replace("EVENTS", WIDE), python(WORK), tier=EVENTS, limits=limits, buffer_bytes=1 << 24)
    assert isinstance(without.source, PerfSource)
    (stream,) = without.source.streams
    print(f"{len(stream.lines)} functions, {time.monotonic() - started:.1f} s in all")
    assert stream.tracer == "function" and len(stream.lines) > 1_000
    assert not without.losses and not without.faults and not without.notices
    assert [line for line in with_bpf.lines if line.startswith("write_null")] == [
        f"write_null\t{Path(sys.executable).name}\t{CALLS}"
    ]
    assert without.lines == with_bpf.lines
    assert not list(Path("/sys/kernel/tracing/instances").glob(f"{group_of(os.getpid())}*"))


def test_functions_that_find_no_room_are_counted() -> None:
    script = "var n = 0 trace probe:[u-w]*_* { n += 1 } trace_end { print(n > 0) }"
    traced = trace(script, python(WORK * 20), tier=EVENTS, limits=Limits()._replace(probes=30_000), buffer_bytes=4096)
    assert traced.lines == ["true"]
    assert traced.lost() > 0 and {loss.what for loss in traced.losses} == {TRACE_FULL}


def test_all_functions_of_one_name_are_probed() -> None:
    """By their addresses: the kernel takes no name that several functions have."""
    functions = kernel_functions().addresses(["name_show"])["name_show"]
    assert len(functions) > 1
    script = "trace probe:name_show { n[arg1] += 1 } trace_end { }"
    traced = trace(script, python("pass"), tier=EVENTS)
    assert isinstance(traced.source, PerfSource)
    assert len(traced.source.events) == len(functions)
    assert not any("left out" in notice for notice in traced.notices)


SLEEPERS = 30
SLEEPS = f"""
import threading, time
threads = [threading.Thread(target=time.sleep, args=(1.0,)) for _ in range({SLEEPERS})]
for thread in threads: thread.start()
for thread in threads: thread.join()
"""
"""More calls at once than the kernel keeps for the returns of one function."""


def test_returns_that_the_kernel_did_not_see_are_counted() -> None:
    script = "var n = 0 trace probe:hrtimer_nanosleep%return { n += 1 } trace_end { print(n) }"
    traced = trace(script, python(SLEEPS), tier=EVENTS)
    (seen,) = map(int, traced.lines)
    (loss,) = traced.losses
    assert seen < SLEEPERS <= seen + loss.events  # ktap sleeps too, and is missed like all others
    assert (loss.what, loss.where) == (MISSED_RETURNS, "probe:hrtimer_nanosleep%return")


MEMORY = "kernel_string(`linux_banner`, 5)" if kernel_functions().symbol("linux_banner") else "kernel_u32(`vfs_write`)"
"""Only some kernels tell where their data is."""
EVENT_PROBES = {
    "strings of system calls": """
    trace syscalls:sys_enter_openat { var s = user_string(arg2)
        if (s == "/etc/hostname" || s == "/nothing/there") { print(s, args.filename != 0, args.dfd, execname) } }
    trace syscalls:sys_exit_openat /ret == -2/ { n[probename] += 1 }
    trace_end { print(n["sys_exit_openat"] > 0) }
    """,
    "memory of system calls": """
    trace syscalls:sys_enter_write /count == 1 && fd == 3/ { n[user_u8(args.buf), user_buf(arg2, 1)] += 1 }
    trace_end { for (a, b, v in sort_pairs(n)) { print(a, b, v) } }
    """,
    "texts of tracepoints beside": f"""
    trace sched:sched_process_exec {{ print(args.filename != "", {MEMORY}) }}
    """,
}


@pytest.mark.parametrize("name", EVENT_PROBES)
def test_event_probes_fetch_the_same(name: str) -> None:
    with_bpf, without = (trace(EVENT_PROBES[name], python(WORK), tier=tier) for tier in ("vm", EVENTS))
    for traced in (with_bpf, without):
        assert not traced.losses and not traced.faults
    assert with_bpf.lines
    assert without.lines == with_bpf.lines
    assert not list(Path("/sys/kernel/tracing/instances").glob(f"{group_of(os.getpid())}*"))


def test_stacks_begin_with_the_function() -> None:
    script = "trace probe:write_null { print(stack(8))  exit() }"
    names = [line.strip().partition("+")[0] for line in trace(script, python(WORK), tier=EVENTS).lines]
    assert names[0] == "write_null" and HERE.system_call in names


def test_definitions_go_with_ktap_however_it_ends() -> None:
    script = (
        words("trace probe:do_sys_openat2 f=+0(%si):ustring { n[args.f] += 1 }")
        + words(" trace probe:ksys_write a=+0(%si):ustring b=+1(%si):ustring { n[args.a] += 1 }")
        + " trace probe:vfs_[rw]* { n[probename] += 1 }"
        + " trace syscalls:sys_enter_write { n[user_string(args.buf)] += 1 }"
    )
    for number in (signal.SIGTERM, signal.SIGKILL):
        command: Sequence[str] = [sys.executable, "-m", "ktap", "--backend", "perf", "-e", script]
        ktap = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
        assert ktap.stderr is not None
        assert any(b"Tracing" in line for line in ktap.stderr)
        group = group_of(ktap.pid)
        assert group in definitions("/sys/kernel/tracing")
        assert (Path("/sys/kernel/tracing/instances") / f"{group}.counted").exists()
        ktap.send_signal(number)
        ktap.wait()
        left = Path("/sys/kernel/tracing/instances")
        while group in definitions("/sys/kernel/tracing") or list(
            left.glob(f"{group}*")
        ):  # the whole run has a limit of time
            time.sleep(0.2)
    assert f"ktap_{os.getpid()}" not in Path("/sys/kernel/tracing/kprobe_events").read_text()


LONG = """
import os
fd = os.open("/dev/null", os.O_WRONLY)
for n in range(20):
    os.write(fd, b"q" * 9000); os.write(fd, b"short\\0")
"""


@pytest.mark.parametrize(
    "read, wanted",
    [
        ("user_string(arg2, 5)", "qqqqq 20, short 20"),
        ("user_buf(arg2, 5)", "qqqqq 20, short 20"),
        ("user_u8(arg2)", "113 20, 115 20"),
    ],
)
def test_the_beginning_of_long_buffers(read: str, wanted: str) -> None:
    """Arrays behind `+u` are refused by the kernel, and a string from every byte that is looked at filled the record."""
    script = f"""
    trace probe:ksys_write /count == 9000 || count == 6/ {{ n[{read}] += 1 }}
    trace_end {{ for (k, v in sort_pairs(n)) {{ print(k, v) }} }}
    """
    assert trace(script, python(LONG), tier=EVENTS).lines == wanted.replace(" ", "\t").split(",\t")
