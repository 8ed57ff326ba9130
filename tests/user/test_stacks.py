"""Stacks of programs: their functions by name, in both tiers, also when the program is gone by the time they print."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Optional

import pytest
from c_program import compiled
from tracing import EVENTS, Traced, trace

from ktap.address_spaces import AddressSpaces
from ktap.jit_map import JitMap
from ktap.live_host import LiveHost
from ktap.side_band import Ended, Forked, Mapped, Started
from ktap.user_symbols import UserSymbols
from vm.limits import Limits

pytestmark = pytest.mark.live

TIERS = ("vm", "kernel", EVENTS)
BUSY = r"""
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>
#define KEPT __attribute__((noinline))
static long seconds(void) { struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return t.tv_sec * 1000 + t.tv_nsec / 1000000; }
KEPT unsigned long hot(unsigned long n) { for (int i = 0; i < 100000; i++) n = n * 31 + i; asm volatile(""); return n; }
KEPT unsigned long warm(unsigned long n) { n = hot(n); asm volatile(""); return n + 1; }
KEPT __attribute__((noreturn)) void end(void) { asm volatile(""); _exit(0); }
KEPT __attribute__((noreturn)) void last(void) { end(); }
int main(int argc, char **argv)
{
    long stop = seconds() + (argc > 1 ? atoi(argv[1]) : 0);
    unsigned long n = 1;
    do n = warm(n); while (seconds() < stop);
    if (n == 7) puts("");
    last();
}
"""


@pytest.fixture(scope="module")
def busy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A program that spends its time in `hot`, which `warm` calls, and ends in a call that is a function's last word."""
    return compiled(tmp_path_factory.mktemp("busy") / "busy", BUSY, "-O0")


def run(script: str, *command: object, tier: str = "vm", **options: object) -> Traced:
    traced = trace(script, [str(word) for word in command], tier=tier, **options)  # type: ignore[arg-type]
    assert not traced.faults
    return traced


@pytest.mark.parametrize("tier", TIERS)
def test_the_busy_function_of_a_program_is_on_top(busy: Path, tier: str) -> None:
    script = """
    profile-997hz { s[ustack(3)] += 1 }
    trace_end {
        for (k, n in sort_pairs(s, function (a, b) { return a > b })) { print(n, stringof(k)) return nil }
    }
    """
    lines = run(script, busy, 400, tier=tier).lines
    assert re.match(r"\d+\thot\+0x\w+ \[busy\]$", lines[0])
    assert re.match(r"warm\+0x\w+ \[busy\]$", lines[1])
    assert re.match(r"main\+0x\w+ \[busy\]$", lines[2])


@pytest.mark.parametrize("tier", TIERS)
def test_folded_stacks_for_flame_graphs(busy: Path, tier: str) -> None:
    script = "profile-997hz { s[execname, ustack(), stack()] += 1 } trace_end { print_folded(s) }"
    counts = {}
    for line in run(script, busy, 400, tier=tier).lines:
        stack, _, count = line.rpartition(" ")
        counts[stack] = int(count)
    hot = sum(count for stack, count in counts.items() if re.match(r"busy;.*main;warm;hot(;|$)", stack))
    assert hot > 0.5 * sum(counts.values())


@pytest.mark.parametrize("tier", TIERS)
def test_programs_that_are_gone_have_names_still(tier: str) -> None:
    script = """
    trace syscalls:sys_enter_write, syscalls:sys_enter_exit_group { s[execname, probename, ustack(1)] += 1 }
    trace_end { for (name, event, stack, n in pairs(s)) { print(name, event, stack) } }
    """
    found = run(script, "sh", "-c", "for i in 1 2 3; do date; done > /dev/null", tier=tier).output
    assert re.search(r"date\tsys_enter_write\t\w*write\w*\+0x\w+ \[libc", found)
    assert re.search(r"date\tsys_enter_exit_group\t_exit\+0x\w+ \[libc", found)
    assert re.search(r"sh\tsys_enter_exit_group\t_exit\+0x\w+ \[libc", found)


@pytest.mark.parametrize("tier", TIERS)
def test_where_a_program_starts(tier: str) -> None:
    """The first instruction of a program is the loader's; the program before it had other mappings."""
    script = "trace sched:sched_process_exec { print(ustack()) }"
    lines = [line for line in run(script, "sh", "-c", "ls / > /dev/null; true", tier=tier).lines if line]
    assert len(lines) == 2
    assert all(re.match(r"(\w+\+0x\w+ )?\[ld-\S+(\+0x\w+)?\]$", line) for line in lines)


@pytest.mark.parametrize("tier", TIERS)
def test_a_call_that_never_returns_is_of_its_caller(busy: Path, tier: str) -> None:
    """The return address behind it may be in the next function."""
    script = "trace syscalls:sys_enter_exit_group { print(ustack(4)) }"
    names = [line.partition("+")[0] for line in run(script, busy, 0, tier=tier).lines if line]
    assert names[:3] == ["_exit", "last", "main"]  # `end` has made no frame of its own for _exit


@pytest.mark.parametrize("tier", TIERS)
def test_a_function_that_has_just_begun_has_its_caller(busy: Path, tier: str) -> None:
    script = f"""
    trace probe:{busy}:hot {{ print(ustack(3)) }}
    trace probe:{busy}:hot {{ print(ustack(1, 1)) exit() }}
    """
    names = [line.partition("+")[0] for line in run(script, busy, 0, tier=tier).lines if line]
    assert names == ["hot", "warm", "main", "warm"]


@pytest.mark.parametrize("tier", TIERS)
def test_stacks_of_the_kernel_begin_where_the_event_fired(tier: str) -> None:
    script = """
    trace syscalls:sys_enter_getppid { print(stack(1)) print(stack(2)) print(stack(1, 1)) exit() }
    trace sched:sched_process_exit { s[stack(2)] += 1 }
    trace_end { for (k, n in pairs(s)) { print(k) } }
    """
    code = "import os, subprocess; subprocess.run(['true']); os.getppid()"
    lines = [line for line in run(script, sys.executable, "-S", "-c", code, tier=tier).lines if line]
    assert lines[0] == lines[1]
    assert lines[2] == lines[3]
    assert lines[4].startswith("do_exit+")
    assert not [line for line in lines if line.startswith(("bpf_", "__bpf_", "__traceiter"))]


@pytest.mark.parametrize("tier", TIERS)
def test_threads_of_the_kernel_have_no_user_stack(tier: str) -> None:
    script = """
    trace sched:sched_switch { if (pid == 2 || execname == "ksoftirqd/0" || execname == "rcu_preempt" || execname == "rcu_sched") { print(ustack()) exit() } }
    """
    lines = trace(script, tier=tier, duration_s=5).lines
    assert lines[:1] == ["[no user stack]"]


@pytest.mark.parametrize("tier", TIERS)
def test_stacks_that_find_no_room_are_counted(tier: str) -> None:
    script = """
    var events = 0
    trace syscalls:sys_enter_* { s[ustack(), probename] += 1  events += 1 }
    trace_end {
        var kept = 0
        for (stack, name, n in pairs(s)) { kept += n }
        print(len(s), kept, events)
    }
    """
    traced = run(script, "ls", "/", tier=tier, limits=Limits(table_entries=5))
    entries, kept, events = map(int, traced.lines[-1].split())
    assert entries == 5
    assert kept + traced.lost() == events
    assert events > kept


def test_functions_of_other_languages(tmp_path: Path) -> None:
    text = """
    namespace shop { template <class T> struct Till { __attribute__((noinline)) T add(T n); T sum; }; }
    template <class T> T shop::Till<T>::add(T n) { asm volatile("" ::: "memory"); return sum += n; }
    int main() { shop::Till<long> till = {}; return till.add(3) == 4; }
    """
    program = compiled(tmp_path / "till", text, language="c++")
    lines = run(f"trace probe:{program}:*Till* {{ print(ustack(2)) }}", program).lines
    assert lines[0] == "shop::Till<long>::add(long)+0x0 [till]"
    assert re.match(r"main\+0x\w+ \[till\]", lines[1])


# -- code that no file has, files that are others -------------------------------------------------

JIT = r"""
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
int main(int argc, char **argv)
{
    static const unsigned code[] = {
#ifdef __x86_64__
        0xe5894855, 0xc35dd7ff /* push rbp; mov rbp, rsp; call rdi; pop rbp; ret */
#else
        0xa9bf7bfd, 0x910003fd, 0xd63f0000, /* stp x29, x30, [sp, -16]!; mov x29, sp; blr x0 */
        0xa8c17bfd, 0xd65f03c0 /* ldp x29, x30, [sp], 16; ret */
#endif
    };
    unsigned char *page = mmap(0, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    char path[64];
    sprintf(path, "/tmp/perf-%d.map", getpid());
    FILE *map = fopen(path, "w");
    fprintf(map, "%lx %x other\n%lx %x made;up \x1b[2J\n", (long)page + 64, 8, (long)page, (int)sizeof code);
    fclose(map);
    memcpy(page, code, sizeof code);
    __builtin___clear_cache(page, page + sizeof code);
    void called(void);
    ((void (*)(void (*)(void)))page)(called);
    if (argc > 1) { for (;;) { ((void (*)(void (*)(void)))page)(called); usleep(10000); } }
    return 0;
}
__attribute__((noinline)) void called(void) { asm volatile("" ::: "memory"); getppid(); asm volatile(""); }
"""
BEHIND_THE_CALL = {"x86_64": 6, "aarch64": 12}
"""Where the function made returns to, by machine."""
made = pytest.mark.skipif(os.uname().machine not in BEHIND_THE_CALL, reason="its code is that of x86-64 or arm64")


@made
@pytest.mark.parametrize("tier", TIERS)
def test_functions_made_while_the_program_runs(tmp_path: Path, tier: str) -> None:
    program = compiled(tmp_path / "jit", JIT)
    script = f"""
    trace probe:{program}:called {{ s[ustack(3)] += 1  print(pid) }}
    trace_end {{ for (k, n in pairs(s)) {{ print(k) }} print_folded(s) }}
    """
    lines = run(script, program, tier=tier).lines
    Path(f"/tmp/perf-{lines[0]}.map").unlink()
    assert lines[2] == f"made;up ?[2J+{BEHIND_THE_CALL[os.uname().machine]:#x} [jit]"
    assert lines[-1] == "main;made:up ?[2J;called 1"


@made
@pytest.mark.skipif(shutil.which("unshare") is None, reason="no unshare(1)")
def test_functions_made_in_a_container(tmp_path: Path) -> None:
    """It has a /tmp of its own, and numbers of processes of its own."""
    compiled(tmp_path / "jit", JIT)
    script = (
        "var n = 0 trace syscalls:sys_enter_getppid { s[ustack()] += 1 n += 1 if (n == 20) { print_folded(s) exit() } }"
    )
    inside = f"mount --bind {tmp_path} /tmp && exec /tmp/jit stay"
    begun = subprocess.run(["unshare", "--mount", "--pid", "--fork", "true"], capture_output=True, check=False)
    if begun.returncode:
        pytest.skip(f"no namespaces: {begun.stderr.decode().strip()}")
    lines = run(script, "unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", inside).lines
    assert any(line.rpartition(" ")[0].endswith(";main;made:up ?[2J;getppid") for line in lines)


@pytest.mark.skipif(shutil.which("node") is None, reason="no node, which tells the names of functions it makes")
@pytest.mark.parametrize("tier", TIERS)
def test_functions_of_a_program_that_node_runs(tmp_path: Path, tier: str) -> None:
    """Two kinds of functions are on one stack: those of a file, in C++, and those of the script."""
    program = tmp_path / "program.js"
    program.write_text(
        "function hot(stop) { let n = 0;"
        " while (Date.now() < stop) { for (let i = 0; i < 1e6; i++) n = (n * 31 + i) | 0; } return n; }\n"
        "console.log(process.pid); hot(Date.now() + 700);\n"
    )
    script = """
    profile-997hz { s[ustack()] += 1 }
    trace syscalls:sys_enter_exit_group { if (execname == "node") { print(pid) } }
    trace_end { print_folded(s) }
    """
    ended, *lines = run(script, "sh", "-c", f"cd {tmp_path} && exec node --perf-basic-prof {program}", tier=tier).lines
    Path(f"/tmp/perf-{ended}.map").unlink()
    busiest = max(lines, key=lambda line: int(line.rpartition(" ")[2]))
    assert re.search(rf";v8::Function::Call\(.*;JS:\*hot {program}\S* \d+$", busiest)


@pytest.mark.parametrize("tier", TIERS)
def test_a_file_that_was_replaced_gives_no_names(tmp_path: Path, tier: str) -> None:
    """What has its path now is another file; its build id tells that it is."""
    program = compiled(tmp_path / "program", BUSY, "-Wl,--build-id=sha1")
    other = compiled(tmp_path / "other", BUSY.replace("hot", "cold"), "-Wl,--build-id=sha1")
    script = f"""
    trace probe:{program}:hot {{ s[ustack(1)] += 1 }}
    trace_end {{ for (k, n in pairs(s)) {{ print(k) }} }}
    """
    command = f"{program} 0; mv {other} {program}"
    lines = run(script, "sh", "-c", command, tier=tier).lines
    assert re.match(r"\[program\+0x\w+ build-id [0-9a-f]{40}\]$", lines[0])


def test_a_file_that_was_replaced_while_it_runs(tmp_path: Path) -> None:
    program = compiled(tmp_path / "program", BUSY, "-Wl,--build-id=sha1")
    other = compiled(tmp_path / "other", BUSY.replace("hot", "cold"), "-Wl,--build-id=sha1")
    running = subprocess.Popen([str(program), "60000"])
    try:
        other.rename(program)
        script = "profile-997hz { print(ustack(1)) exit() }"
        assert trace(script, pid=running.pid, duration_s=10).lines[0].startswith("hot+0x")
    finally:
        running.kill()
        running.wait()


def test_a_stripped_file_gives_the_place_in_it(tmp_path: Path) -> None:
    program = compiled(tmp_path / "bare", BUSY, "-s")
    script = "profile-997hz { s[ustack(1)] += 1 } trace_end { print_folded(s) }"
    lines = run(script, program, 300).lines
    assert max(lines, key=lambda line: int(line.split()[-1])).startswith("[bare] ")


def test_mappings_that_come_later_count() -> None:
    """A library that is loaded after tracing began, at addresses that /proc has not been read for."""
    code = "import ctypes, os; ctypes.CDLL('libz.so.1').zlibVersion(); os.getppid()"
    script = "trace probe:libz.so.1:zlibVersion { print(ustack(1)) }"
    assert re.match(r"zlibVersion\+0x0 \[libz\.so\.1", run(script, sys.executable, "-c", code).lines[0])


def test_what_the_kernel_could_not_tell_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ktap.side_band.RING_BYTES", os.sysconf("SC_PAGESIZE"))
    spaces = AddressSpaces()
    spaces.watch()
    for _ in range(40):
        subprocess.run(["true"], check=True)
    lost = spaces.lost
    assert lost > 0
    spaces.stop()
    assert spaces.lost >= lost


def test_without_the_kernel_telling_running_programs_have_names(busy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise PermissionError(1, "not allowed")

    monkeypatch.setattr("ktap.address_spaces.SideBand", refuse)
    running = subprocess.Popen([str(busy), "60000"])
    try:
        script = "profile-997hz { print(ustack(1)) exit() }"
        assert trace(script, pid=running.pid, duration_s=10).lines[0].startswith("hot+0x")
    finally:
        running.kill()
        running.wait()


def test_addresses_of_the_vdso() -> None:
    text = Path("/proc/self/maps").read_text()
    start = int(next(line for line in text.splitlines() if line.endswith("[vdso]")).split("-")[0], 16)
    host = LiveHost()
    names = {host.user_symbol(os.getpid(), start + place) for place in range(0, 0x1000, 16)}
    assert any("clock_gettime+0x" in name for name in names)
    assert all(name.endswith("[vdso]") or name.startswith("[vdso+0x") for name in names)


def test_memory_that_has_a_name_but_no_file() -> None:
    spaces = AddressSpaces()
    spaces.take(
        [
            Mapped(1, 7, 0x1000, 0x2000, 0, "[uprobes]", "", 0),
            Mapped(2, 7, 0x3000, 0x4000, 0, "//anon", "", 0),
            Mapped(3, 7, 0x5000, 0x6000, 0x700, "/nowhere/\x1b[2J.so", "ab" * 20, 0),
        ]
    )
    symbols = UserSymbols(spaces)
    assert symbols.name(7, 0x1083) == "[uprobes+0x83]"
    assert symbols.name(7, 0x3001) == "0x3001 [anon]"
    assert symbols.name(7, 0x5001) == f"[?[2J.so+0x701 build-id {'ab' * 20}]"
    assert symbols.name(7, 0x9000) == "0x9000"


def test_what_a_process_has_mapped_over_its_life() -> None:
    """Forks have what their parents had; a program that is started has nothing of the one before, which is still known."""
    spaces = AddressSpaces()

    def mapped(time_ns: int, pid: int, start: int, path: str) -> Mapped:
        return Mapped(time_ns, pid, start, start + 0x1000, 0, path, "", 0)

    def path(pid: int, address: int) -> Optional[str]:
        found = spaces.at(pid, address)
        return None if found is None else found.path

    huge = 1 << 40  # numbers that no process has
    spaces.take([mapped(1, huge, 0x1000, "/a"), Forked(2, huge + 1, huge), mapped(3, huge, 0x2000, "/b")])
    assert (path(huge, 0x1000), path(huge, 0x2000)) == ("/a", "/b")
    assert (path(huge + 1, 0x1000), path(huge + 1, 0x2000)) == ("/a", None)
    spaces.take([Started(4, huge + 1), mapped(5, huge + 1, 0x1800, "/c"), mapped(6, huge, 0x1000, "/d")])
    assert (path(huge + 1, 0x1900), path(huge + 1, 0x1100)) == ("/c", "/a")
    assert path(huge, 0x1100) == "/d"
    spaces.take([Ended(7, huge), Ended(8, huge + 1)])
    assert (path(huge, 0x1100), path(huge + 1, 0x1900)) == ("/d", "/c")


def test_processes_that_ended_long_ago_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ktap.address_spaces.MOST_ENDED", 3)
    spaces = AddressSpaces()
    huge = 1 << 40
    for pid in range(huge, huge + 6):
        spaces.take([Mapped(1, pid, 0x1000, 0x2000, 0, "/a", "", 0), Ended(2, pid)])
    assert [spaces.at(pid, 0x1000) is not None for pid in range(huge, huge + 6)] == [False] * 3 + [True] * 3


def test_a_jit_map_that_is_not_the_process_s_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "perf-1.map"
    monkeypatch.setattr("ktap.jit_map._paths", lambda pid: [str(path)])
    monkeypatch.setattr("ktap.jit_map.LOOK_AGAIN_S", 0)
    path.write_text("1000 10 first\nnonsense\n1020 8 second one\n1000 10 fir")
    jit = JitMap(os.getpid())
    assert (jit.at(0x1008), jit.at(0x1021), jit.at(0x1010)) == (("first", 8), ("second one", 1), None)
    with path.open("a") as file:
        file.write("st again\n")
    assert jit.at(0x1030) is None  # looks again
    assert jit.at(0x1008) == ("first again", 8)
    os.chown(path, 12345, -1)
    assert JitMap(os.getpid()).at(0x1008) is None
    path.unlink()
    os.mkfifo(path)
    assert JitMap(os.getpid()).at(0x1008) is None
