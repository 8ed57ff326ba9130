"""Functions and markers without BPF: the same answers, and definitions in the kernel that go with ktap, however it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Sequence

import pytest
from c_program import compiled
from processor import words
from tracing import EVENTS, Traced, python, trace

from ktap import perf_dangers, sources
from ktap.libraries import find_file
from ktap.own_group import GROUP, OwnGroup, definitions, group_of
from ktap.perf_source import PerfSource
from vm.diagnostic import Refusal
from vm.limits import Limits

pytestmark = pytest.mark.live
TRACEFS = "/sys/kernel/tracing"
LIBC_PATH = str(find_file("libc"))
LIBC = """
import ctypes
libc = ctypes.CDLL(None)
libc.getenv.restype = ctypes.c_void_p
for n in range(40):
    libc.getenv(b"HOME"); libc.getenv(b"(fault)")
    libc.strtol(b"1234", None, 10)
    libc.access(b"/etc/nothing/" + b"x" * n, 4)
libc.access(ctypes.c_void_p(16), 0)
"""


def both(script: str, command: Sequence[str]) -> tuple[Traced, Traced]:
    found = trace(script, command), trace(script, command, tier=EVENTS)
    for traced in found:
        assert not traced.losses and not traced.faults
    return found


@pytest.mark.parametrize(
    "script",
    [
        "trace probe:libc:access { print(probename, user_string(arg1), arg2 & 0xffffffff, argstr != nil, execname) }",
        words("trace probe:libc:access path=+0(%di):string mode=%si:u32 first=+0(%di):u8 /mode == 4/")
        + " { print(args.path, args.mode, args.first) }",
        "trace probe:libc:getenv name=+0($arg1):string /name ~ 'H*' || name == '(fault)'/ { n[args.name] += 1 }"
        " trace_end { print(n['HOME'], n['(fault)']) }",
        "trace probe:libc:strtol%return { n[retval, probename] += 1 } trace_end { print(n[1234, 'strtol']) }",
        "trace probe:libc:getenv { n[user_u32(arg1), user_buf(arg1, 3)] += 1 }"
        " trace_end { for (a, b, v in sort_pairs(n)) { if (v >= 40) { print(a, b, v) } } }",
    ],
)
def test_functions_of_libc(script: str) -> None:
    with_bpf, without = both(script, python(LIBC))
    assert with_bpf.lines
    assert without.lines == with_bpf.lines


def test_stacks_of_functions() -> None:
    script = "trace probe:libc:access { s[len(tostring(ustack(3))) > 0, ustack(1)] += 1 } trace_end { print(len(s)) }"
    with_bpf, without = both(script, python(LIBC))
    assert without.lines == with_bpf.lines == ["1"]


PYTHON = "/usr/bin/python3"
MARKED = "def f(): pass\nfor n in range(25): f()"


def test_markers_with_their_strings() -> None:
    script = f"""
    trace sdt:{PYTHON}:python:import__find__load__done {{ n[user_string(arg1), arg2] += 1 }}
    trace_end {{ for (k, found, v in sort_pairs(n)) {{ if (k == "colorsys") {{ print(k, found, v) }} }} }}
    """
    command = [PYTHON, "-S", "-E", "-c", "import colorsys"]
    with_bpf, without = both(script, command)
    assert with_bpf.lines == ["colorsys\t1\t1"]
    assert without.lines == with_bpf.lines


def test_what_cannot_be_fetched_is_refused() -> None:
    with pytest.raises(Refusal, match="more than a value and an offset"):
        trace("trace probe:libc:access { print(user_string(arg1 + arg2)) }", duration_s=0.1, tier=EVENTS)


# -- definitions ------------------------------------------------------------------------------------

SCRIPT = """
trace probe:libc:access { n[user_string(arg1)] += 1 }
trace probe:libc:mem* { m += 1 }
"""


def groups() -> set[str]:
    return set(definitions(TRACEFS))


def test_the_end_of_a_run_removes_its_definitions() -> None:
    trace("var m = 0" + SCRIPT, python("pass"), tier=EVENTS)
    assert group_of(os.getpid()) not in groups()


def test_what_the_kernel_does_not_take_is_said_and_nothing_stays() -> None:
    own = OwnGroup(TRACEFS)
    try:
        with pytest.raises(OSError, match="Invalid argument") as caught:
            own.define("uprobe_events", "p", [f"{LIBC_PATH}:0x26000", f"{LIBC_PATH}:0x26010 a=%none"])
        assert "register" in str(caught.value)
    finally:
        own.close()
    assert own.name not in groups()


def started(environment: dict[str, str]) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "ktap", "--backend", "perf", "-e", "var m = 0" + SCRIPT]
    ktap = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
    assert ktap.stderr is not None
    assert any(b"Tracing" in line for line in ktap.stderr)
    assert group_of(ktap.pid) in groups()
    return ktap


def gone(group: str, patience_s: float = 30) -> bool:
    end = time.monotonic() + patience_s
    while group in groups() and time.monotonic() < end:
        time.sleep(0.05)
    return group not in groups()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_no_definition(number: signal.Signals, environment: dict[str, str]) -> None:
    ktap = started(environment)
    group = group_of(ktap.pid)
    ktap.send_signal(number)
    ktap.wait(timeout=60)
    assert gone(group)


def test_killed_with_all_its_helpers_the_next_run_cleans_up(environment: dict[str, str]) -> None:
    ktap = started(environment)
    group = group_of(ktap.pid)
    for child in Path(f"/proc/{ktap.pid}/task/{ktap.pid}/children").read_text().split():
        os.kill(int(child), signal.SIGKILL)
    ktap.kill()
    ktap.wait(timeout=60)
    assert group in groups()
    own = OwnGroup(TRACEFS)
    try:
        own.define("uprobe_events", "p", [f"{LIBC_PATH}:0x26000"])
        assert group not in groups()
        assert own.name in groups()
        assert own.name == GROUP.fullmatch(own.name)[0]  # type: ignore[index]  # it does
    finally:
        own.close()
    assert own.name not in groups()


def test_a_place_that_the_kernel_refuses_is_left_out_of_many(tmp_path: Path) -> None:
    """An instruction that it cannot step over, among functions that are all one definition."""
    source = "\n".join(f"__attribute__((noipa)) int each_{n}(int x) {{ return x + {n}; }}" for n in range(8))
    source += (
        '\n__asm__(".globl each_bad\\n.type each_bad, @function\\neach_bad: hlt #0\\nret\\n.size each_bad, 8\\n");'
    )
    source = source if os.uname().machine == "aarch64" else source.replace("hlt #0", "hlt")
    calls = " + ".join(f"each_{n}(argc)" for n in range(8))
    program = compiled(
        tmp_path / "each",
        f"{source}\nint pause(void); int main(int argc, char **argv) {{ return argc > 1 ? pause() : ({calls}) < 0; }}",
    )
    script = f"trace probe:{program}:each_* {{ n[probename] += 1 }} trace_end {{ print(len(n)) }}"
    running = subprocess.Popen([str(program), "on"])  # the kernel looks at instructions where a process has them
    try:
        with_bpf, without = both(script, [str(program)])
    finally:
        running.kill()
        running.wait()
    assert without.lines == with_bpf.lines == ["8"]
    for traced in (with_bpf, without):
        assert any("left out" in notice for notice in traced.notices)
    assert isinstance(
        without.source, PerfSource
    )  # it is tried alone: refused among others it costs all their going again
    assert [stream.label.partition(" and ")[2] for stream in without.source.streams] == ["7 more", ""]


def test_functions_of_libc_come_and_go_together() -> None:
    """Hundreds by one glob are one event, whatever some of them begin with."""
    script = "var n = 0 trace probe:libc:[s-w]* { n += 1 } trace_end { print(n > 100) }"
    limits = Limits()._replace(probes=30_000)
    without = trace(script, python(LIBC), tier=EVENTS, limits=limits, buffer_bytes=1 << 24)
    assert without.lines == ["true"]
    assert isinstance(without.source, PerfSource)
    first, *doubtful = without.source.streams
    assert len(without.source.events) > 300 and len(doubtful) < 30
    assert first.label.endswith(f" and {len(without.source.events) - len(doubtful) - 1} more")
    assert group_of(os.getpid()) not in groups()


STRING = words("trace probe:libc:getenv name=+0(%di):string { n[args.name] += 1 } trace_end { print(n['HOME'] >= 40) }")

NUMBER = "trace probe:libc:getenv { if (arg1 != 0) { n += 1 } } n = 0 trace_end { print(n >= 40) }"


def without_types() -> None:
    """A kernel without BTF does not tell whether it is one that may write behind its page."""


def test_long_strings_where_a_warning_is_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    setting = tmp_path / "panic_on_warn"
    monkeypatch.setattr(perf_dangers, "PANIC_ON_WARN", str(setting))
    setting.write_text("1\n")
    with pytest.raises(Refusal) as caught:
        trace(STRING, python(LIBC), tier=EVENTS)
    told = caught.value.diagnostics[0]
    assert "fetches strings, and this machine is to panic where the kernel warns" in told.message
    assert told.hint is not None and told.hint.startswith("--unsafe")
    assert trace(NUMBER, python(LIBC), tier=EVENTS).lines == ["true"]
    assert trace(STRING, python(LIBC), tier=EVENTS, unsafe=True).lines == ["true"]
    setting.write_text("0\n")
    assert trace(STRING, python(LIBC), tier=EVENTS).lines == ["true"]


def test_long_strings_on_a_kernel_that_may_write_behind_their_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "kernel_types", without_types)
    with pytest.raises(Refusal, match="write behind the page"):
        trace(STRING, python(LIBC), tier=EVENTS)
    assert trace(NUMBER, python(LIBC), tier=EVENTS).lines == ["true"]
