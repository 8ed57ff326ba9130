"""What handlers in the kernel cost, against bpftrace: both in one run, in turns, medians.

    .venv/bin/python tests/bench/kernel_bench.py [--quick] [ROW ...]

ROW is `event`, `start`, `stop` or `stream`; all of them without one. bpftrace takes about half a minute
to let go of all system calls: `--quick` leaves out what needs it, and measures fewer times. The goals
are printed with the ratios, and nothing fails on time. Takes root and Linux 6 or so; a C compiler makes
the load (a loop of getppid calls), bpftrace what is compared with: what is missing is said and left out.
"""

from __future__ import annotations

import compileall
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Callable, NamedTuple, Optional

from ktap import kernel

ROOT = Path(__file__).resolve().parent.parent.parent
KTAP = str(Path(sys.executable).parent / "ktap")
BPFTRACE = shutil.which("bpftrace")
LOAD_NAME = "ktapload"
LOAD_CODE = f"""
#define _GNU_SOURCE
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
static double now(void) {{
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return t.tv_sec * 1e9 + t.tv_nsec;
}}
int main(int count, char **words) {{
    long calls = atol(words[1]);
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(sysconf(_SC_NPROCESSORS_ONLN) - 1, &set);
    sched_setaffinity(0, sizeof set, &set);
    double begin = now();
    prctl(PR_SET_NAME, "{LOAD_NAME}");
    for (long i = 0; i < calls; i++)
        syscall(SYS_getppid);
    prctl(PR_SET_NAME, "done");
    double end = now();
    printf("%.3f\\n", (end - begin) / calls);
    return 0;
}}
"""
"""Prints the ns of a call, of its own processor time: others who run meanwhile do not count. While it is named LOAD_NAME it enters as many system calls as it is told, and one."""
CALLS, STREAMED_CALLS = 1_000_000, 3_000_000
ROUNDS, QUICK_ROUNDS = 9, 3
SETTLED_S = 0.25
"""A tracer whose events have not changed for so long is attached."""
PATIENCE_S = 60.0


class Row(NamedTuple):
    """Two scripts that do the same, and how much of bpftrace's cost ktap's may take."""

    name: str
    ktap: str
    bpftrace: Optional[str]
    goal: float
    slow: bool = False
    """bpftrace takes long to stop."""


COUNT = Row(
    "count by name",
    "s = {} trace raw_syscalls:sys_enter { s[execname] += 1 }",
    "tracepoint:raw_syscalls:sys_enter { @[comm] = count(); }",
    0.6,
)
ALL_SYSCALLS = Row(
    "count by system call",
    "s = {} trace syscalls:sys_enter_* { s[probename] += 1 }",
    "tracepoint:syscalls:sys_enter_* { @[probe] = count(); }",
    0.6,
    slow=True,
)
LATENCY = Row(
    "latency by system call",
    """begin = {} time = {}
    trace raw_syscalls:sys_enter { begin[tid] = nsecs }
    trace raw_syscalls:sys_exit {
        var b = begin[tid]
        if (b) { time[args.id] <<< nsecs - b  begin[tid] = nil }
    }
    trace_end { for (k, v in pairs(time)) { print(k) print_hist(v) } }""",
    """tracepoint:raw_syscalls:sys_enter { @begin[tid] = nsecs; }
    tracepoint:raw_syscalls:sys_exit /@begin[tid]/ {
        @[args->id] = hist(nsecs - @begin[tid]); delete(@begin[tid]);
    }""",
    0.7,
)
EMPTY = Row("empty handler", "trace raw_syscalls:sys_enter { }", None, 1.3)
EVENT_ROWS = (EMPTY, COUNT, ALL_SYSCALLS, LATENCY)
STREAM = Row(
    "printf",
    f'trace raw_syscalls:sys_enter /execname == "{LOAD_NAME}"/ {{ printf("%s %d %d\\n", execname, pid, arg0) }}',
    f'tracepoint:raw_syscalls:sys_enter /comm == "{LOAD_NAME}"/ {{ printf("%s %d %d\\n", comm, pid, args->id); }}',
    5.0,
)


def ktap_command(script: str) -> list[str]:
    """ktap with all handlers in the kernel."""
    return [KTAP, "-q", "--tier", "kernel", "-e", script]


def bpftrace_command(script: str) -> list[str]:
    return [BPFTRACE or "bpftrace", "-e", script]


# -- tracers ----------------------------------------------------------------------------------


class Tracer:
    """A tracer that runs: when it was attached, how long it took to stop, its peak of memory."""

    def __init__(self, command: list[str], output: Optional[Path] = None, cache: Optional[str] = None) -> None:
        environment = {**os.environ, **({"XDG_CACHE_HOME": cache} if cache else {})}
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  # lives as long as the tracer
        with open(output or os.devnull, "wb") as file:
            begin = time.perf_counter()
            self.process = subprocess.Popen(command, stdout=file, stderr=self._errors, env=environment)
        self.attached_ms = (self._wait_attached(begin) - begin) * 1e3

    def _wait_attached(self, begin: float) -> float:
        """When its events were last seen to change."""
        last, found = begin, 0
        while found == 0 or time.perf_counter() < last + SETTLED_S:
            now = self._events()
            if now != found:
                found, last = now, time.perf_counter()
            if self.process.poll() is not None or time.perf_counter() > begin + PATIENCE_S:
                raise SystemExit(f"{self.process.args}: did not attach\n{self.errors()}")
            time.sleep(0.0003)
        return last

    def _events(self) -> int:
        """How many perf events and links of BPF programs it holds."""
        directory = f"/proc/{self.process.pid}/fd"
        count = 0
        for name in os.listdir(directory):
            try:
                target = os.readlink(f"{directory}/{name}")
            except FileNotFoundError:  # closed meanwhile
                continue
            count += "perf_event" in target or ("bpf" in target and ("link" in target or "tracepoint" in target))
        return count

    def errors(self) -> str:
        """What it has written to standard error."""
        self._errors.seek(0)
        return self._errors.read().decode(errors="replace")

    def stop(self) -> tuple[float, float]:
        """Interrupt it: how long it took to end, in s, and its peak of memory in MB."""
        begin = time.perf_counter()
        self.process.send_signal(signal.SIGINT)
        asked = begin
        while True:
            pid, status, usage = os.wait4(self.process.pid, os.WNOHANG)
            if pid:
                break
            if time.perf_counter() > asked + PATIENCE_S:  # bpftrace misses a signal that comes at the wrong moment
                asked = time.perf_counter()
                self.process.send_signal(signal.SIGINT)
            time.sleep(0.0005)
        self.process.returncode = os.waitstatus_to_exitcode(status)
        return time.perf_counter() - begin, usage.ru_maxrss / 1024


class HandMade:
    """The least there can be: a program that returns at once, on a raw tracepoint."""

    def __init__(self) -> None:
        returns_zero = bytes.fromhex("b700000000000000") + kernel.EXIT
        self._program = kernel.load(kernel.RAW_TRACEPOINT, returns_zero, name="bench_empty")
        self._link = kernel.attach_raw_tracepoint(self._program, "sys_enter")

    def stop(self) -> None:
        """Detach it."""
        os.close(self._link)
        os.close(self._program)


def call_ns(load: str, calls: int = CALLS) -> float:
    """What a call takes now."""
    return float(subprocess.run([load, str(calls)], stdout=subprocess.PIPE, check=True).stdout)


# -- tables -----------------------------------------------------------------------------------


def line(name: str, ktap: str, other: str, ratio: Optional[float], goal: str) -> None:
    """One row of a table."""
    print(f"  {name:<34}{ktap:>12}{other:>12}{f'{ratio:.2f}' if ratio is not None else '':>8}  {goal}", flush=True)


def verdict(ratio: float, goal: float, least: bool = False) -> str:
    """The goal, and whether it is met."""
    well = ratio >= goal if least else ratio <= goal
    return f"at {'least' if least else 'most'} {goal:g}: {'yes' if well else 'no'}"


def event_table(load: str, rounds: int, quick: bool) -> None:
    """The added cost of an event."""
    print("added cost of an event, ns")
    line("", "ktap", "bpftrace", None, "")
    for row in EVENT_ROWS:
        if row.bpftrace is not None and BPFTRACE is None:
            continue
        if row.slow and quick:
            print(f"  {row.name}: left out, bpftrace takes half a minute to stop")
            continue
        script = row.bpftrace
        other: Callable[[], object] = HandMade if script is None else lambda s=script: Tracer(bpftrace_command(s))  # type: ignore[misc]
        ours, theirs = event_costs(load, row, other, 1 if row.slow else rounds)
        name = f"{row.name} (hand-made)" if script is None else row.name
        line(name, f"{ours:.1f}", f"{theirs:.1f}", ours / theirs, verdict(ours / theirs, row.goal))


def event_costs(load: str, row: Row, other: Callable[[], object], rounds: int) -> tuple[float, float]:
    """ns that ktap and the other add to a call."""
    ours, theirs = [], []
    repeats = 1 if rounds > 1 else ROUNDS
    for _ in range(rounds):
        for found, start in ((ours, lambda: Tracer(ktap_command(row.ktap))), (theirs, other)):
            plain = [call_ns(load) for _ in range(repeats)]
            tracer = start()
            traced = [call_ns(load) for _ in range(repeats)]
            tracer.stop()  # type: ignore[attr-defined]  # all of them have it
            found.append(median(traced) - median(plain))
    return median(ours), median(theirs)


def start_table(rounds: int) -> None:
    """From the start to attached, and memory."""
    print("from the start to attached, ms; peak of memory, MB")
    line("", "ktap", "bpftrace", None, "")
    times: dict[str, list[float]] = {}
    memory: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as kept:
        Tracer(ktap_command(COUNT.ktap), cache=kept).stop()
        for _ in range(rounds):
            with tempfile.TemporaryDirectory() as empty:
                for name, command, cache in (
                    ("cached", ktap_command(COUNT.ktap), kept),
                    ("first", ktap_command(COUNT.ktap), empty),
                    ("bpftrace", bpftrace_command(COUNT.bpftrace or ""), empty),
                ):
                    if name == "bpftrace" and BPFTRACE is None:
                        continue
                    tracer = Tracer(command, cache=cache)
                    times.setdefault(name, []).append(tracer.attached_ms)
                    memory.setdefault(name, []).append(tracer.stop()[1])
    for what, found, goals in (("start", times, (0.6, 4.0)), ("memory", memory, (0.5, 1.0))):
        middle = {name: median(values) for name, values in found.items()}
        theirs = middle.get("bpftrace")
        for name, goal in zip(("cached", "first"), goals):
            ratio = middle[name] / theirs if theirs else None
            other = f"{theirs:.1f}" if theirs else ""
            line(f"{what}, {name}", f"{middle[name]:.1f}", other, ratio, verdict(ratio, goal) if ratio else "")


def stop_table(quick: bool) -> None:
    """Start and stop of all system calls, and of all events."""
    print("from the start to attached and from the interrupt to the end, s")
    line("", "ktap", "bpftrace", None, "")
    tracer = Tracer(ktap_command(ALL_SYSCALLS.ktap))
    ours = tracer.attached_ms / 1e3 + tracer.stop()[0]
    theirs = None
    if BPFTRACE is not None and not quick:
        tracer = Tracer(bpftrace_command(ALL_SYSCALLS.bpftrace or ""))
        theirs = tracer.attached_ms / 1e3 + tracer.stop()[0]
    other, ratio = (f"{theirs:.2f}", ours / theirs) if theirs else ("", None)
    line("syscalls:sys_enter_*", f"{ours:.2f}", other, ratio, f"at most 0.3 s: {'yes' if ours <= 0.3 else 'no'}")
    tracer = Tracer(ktap_command("s = {} trace *:* { s[probename] += 1 }"))
    taken_s, stopped_s = tracer.attached_ms / 1e3, tracer.stop()[0]
    line("*:*", f"{taken_s:.2f}+{stopped_s:.2f}", "", None, f"at most 2 s: {'yes' if taken_s <= 2 else 'no'}")


class Stream(NamedTuple):
    """Lines that came out, how many were lost by the tracer's own account, and the time from the load's start."""

    lines: int
    lost: int
    seconds: float


def stream_table(load: str, rounds: int) -> None:
    """A line for every call."""
    print(f"printf at every one of {STREAMED_CALLS:,} calls")
    line("", "ktap", "bpftrace", None, "")
    ours, theirs = [], []
    for _ in range(min(rounds, QUICK_ROUNDS)):
        ours.append(stream(load, ktap_command(STREAM.ktap), r"lost (\d+) event"))
        if BPFTRACE is not None:
            theirs.append(stream(load, bpftrace_command(STREAM.bpftrace or ""), r"Lost (\d+) events"))
    mine = median(found.lines / found.seconds for found in ours)
    other = median(found.lines / found.seconds for found in theirs) if theirs else None
    ratio = mine / other if other else None
    goal = verdict(ratio, STREAM.goal, least=True) if ratio else ""
    line("lines a second", f"{mine:,.0f}", f"{other:,.0f}" if other else "", ratio, goal)
    line("lines", f"{ours[0].lines:,}", f"{theirs[0].lines:,}" if theirs else "", None, "")
    line("lost, as told", f"{ours[0].lost:,}", f"{theirs[0].lost:,}" if theirs else "", None, "")
    exact = all(found.lines + found.lost == STREAMED_CALLS + 1 for found in ours)
    said = f"{theirs[0].lines + theirs[0].lost - STREAMED_CALLS - 1:+,}" if theirs else ""
    line("lines and lost, less the events", "0" if exact else "not 0", said, None, f"0: {'yes' if exact else 'no'}")


def stream(load: str, command: list[str], pattern: str) -> Stream:
    """One load, every call of which is printed."""
    with tempfile.TemporaryDirectory() as directory:
        output = Path(directory) / "lines"
        tracer = Tracer(command, output)
        begin = time.perf_counter()
        call_ns(load, STREAMED_CALLS)
        tracer.stop()
        seconds = time.perf_counter() - begin
        text = output.read_bytes()
        lines = text.count(LOAD_NAME.encode() + b" ")
        lost = sum(
            int(count) for count in re.findall(pattern, tracer.errors() + text[-100_000:].decode(errors="replace"))
        )
        return Stream(lines, lost, seconds)


# -- all --------------------------------------------------------------------------------------


def made_load(directory: str) -> Optional[str]:
    """The load, compiled; None where there is no C compiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        print("no cc: rows that need a load are left out (apt install gcc)")
        return None
    load = f"{directory}/load"
    source = Path(directory) / "load.c"
    source.write_text(LOAD_CODE)
    subprocess.run([compiler, "-O2", "-o", load, str(source)], check=True)
    return load


def main() -> None:
    """Measure what is asked for."""
    words = [word for word in sys.argv[1:] if word != "--quick"]
    quick = "--quick" in sys.argv[1:]
    rounds = QUICK_ROUNDS if quick else ROUNDS
    if os.geteuid() != 0:
        print("takes root")
        return
    if BPFTRACE is None:
        print("no bpftrace: ktap alone is measured (apt install bpftrace)")
    for package in ("ktap", "compiler", "vm"):
        compileall.compile_dir(ROOT / package, quiet=1)
    with tempfile.TemporaryDirectory() as directory:
        load = made_load(directory)
        if load is not None and ("event" in words or not words):
            event_table(load, rounds, quick)
        if "start" in words or not words:
            start_table(rounds)
        if "stop" in words or not words:
            stop_table(quick)
        if load is not None and ("stream" in words or not words):
            stream_table(load, rounds)


if __name__ == "__main__":
    main()
