"""Functions of programs and libraries: every call is seen, with its arguments and its result, in both tiers."""

from __future__ import annotations

import os
import shutil
import signal
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from c_program import MANY, WORK, compiled
from conftest import Ktap
from probed import message, run
from processor import HERE, words
from tracing import EVENTS, TRANSPORTS, open_files, trace

from ktap import kernel, uprobes
from ktap.attach import Attachment
from ktap.elf import open_binary
from ktap.user_functions import open_target
from ktap.waiting import can_wait
from vm.diagnostic import Refusal

pytestmark = pytest.mark.live

TIERS = ("vm", "kernel", EVENTS)
CALLS = 50


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("buffer", TRANSPORTS)
def test_calls_returns_arguments_and_results(work: Path, tier: str, buffer: str) -> None:
    script = f"""
    var calls = 0  var returns = 0  var sum = 0  var stacked = 0
    trace probe:{work}:work {{ calls += 1  stacked += arg7 }}
    trace probe:{work}:work%return {{ returns += 1  sum += retval }}
    trace_end {{ print(calls, stacked, returns, sum) }}
    """
    traced = run(script, work, CALLS, tier=tier, buffer=buffer)
    stacked = sum(70 + n for n in range(CALLS))
    assert traced.lines == [f"{CALLS}\t{stacked}\t{CALLS}\t{sum(n + 70 + n + 80 for n in range(CALLS))}"]


@pytest.mark.parametrize("tier", TIERS)
def test_a_function_that_calls_itself(work: Path, tier: str) -> None:
    script = f"""
    var calls = 0  var returns = 0
    trace probe:{work}:fib {{ calls += 1  given[arg1] += 1 }}
    trace probe:{work}:fib%return {{ returns += 1  got[retval] += 1 }}
    trace_end {{ print(calls, returns, given[1], got[55]) }}
    """
    assert run(script, work, 10, "fib", tier=tier).lines == ["177\t177\t55\t1"]


def test_all_that_is_known_of_a_call(work: Path) -> None:
    script = f"""
    trace probe:{work}:work {{
        print(probename, arg0 == args.__probe_ip, arg1, user_string(arg2), arg4, arg5, arg6, arg7, arg8, retval)
    }}
    trace probe:{work}:work%return {{ print(probename, retval, arg0 != 0, arg1, execname) }}
    """
    traced = run(script, work, 2)
    entry = "work\ttrue\t{0}\tpath-{0}\t4\t5\t6\t7{0}\t80\tnil"
    assert traced.lines == [
        entry.format(0),
        "work\t150\ttrue\tnil\twork",
        entry.format(1),
        "work\t152\ttrue\tnil\twork",
    ]


@pytest.mark.parametrize("tier", TIERS)
def test_fetch_arguments_and_filters(work: Path, tier: str) -> None:
    fetch = "n=%di:s32 name=+0(%si):string short=+4(+8(%dx)):u16 first=+0(+8(%dx)):s32 bits=+24(+8(%dx)):b8@8/32"
    script = f"""
    trace probe:{work}:work {words(fetch)} /n >= 3 && name != "path-4"/ {{
        print(arg1, args.name, args.short, args.first, args.bits)
    }}
    trace probe:{work}:work%return /retval == 150/ {{ print("first") }}
    """
    assert run(script, work, 6, tier=tier).lines == ["first", "3\tpath-3\t77\t-5\t18", "5\tpath-5\t77\t-5\t18"]


@pytest.mark.parametrize("tier", TIERS)
def test_a_thousand_functions_by_one_glob(many: Path, tier: str) -> None:
    script = f"""
    var calls = 0
    trace probe:{many}:each_* {{ calls += 1  by[probename] += arg1 }}
    trace probe:{many}:each_*%return {{ result += retval }}
    trace_end {{ print(calls, len(by), by["each_0"], by["each_999"], result) }}
    """
    script = "var result = 0\n" + script
    before = open_files()
    traced = run(script, many, 10, tier=tier)
    assert traced.lines == [f"{10 * MANY}\t{MANY}\t45\t45\t{10 * sum(range(MANY)) + 45 * MANY}"]
    assert open_files() == before


@pytest.mark.parametrize("tier", TIERS)
def test_children_and_what_they_execute_are_followed(work: Path, tier: str) -> None:
    script = f"""
    var calls = 0
    trace probe:{work}:leaf {{ calls += 1  by[pid] += 1 }}
    trace_end {{ print(calls, len(by)) }}
    """
    assert run(script, work, CALLS, "fork", tier=tier).lines == [f"{5 * CALLS}\t5"]
    assert run(script, work, CALLS, "exec", tier=tier).lines == [f"{CALLS}\t1"]
    shell = f"for i in 1 2 3; do {work} {CALLS}; done"
    assert run(script, "sh", "-c", shell, tier=tier).lines == [f"{3 * CALLS}\t3"]


def test_only_one_process_where_one_is_asked_for(work: Path) -> None:
    other = subprocess.Popen([str(work), "1", "wait"])
    script = f"trace probe:{work}:leaf {{ by[pid] += 1 }} trace_end {{ print(len(by)) }}"
    try:
        assert run(script, work, CALLS).lines == ["1"]
        assert int(trace(script, [str(work), "5"], everyone=True).lines[0]) == 2
        assert trace(script, pid=other.pid, duration_s=0.3).lines == ["1"]
    finally:
        other.kill()
        other.wait()


def test_a_process_that_starts_while_everyone_is_traced(work: Path) -> None:
    script = f"""
    var calls = 0
    trace probe:{work}:leaf {{ calls += 1 }}
    trace_end {{ print(calls) }}
    """
    traced = trace(script, ["sh", "-c", f"{work} 7 & wait"], everyone=True)
    assert traced.lines == ["7"]


def test_a_process_killed_while_it_is_probed(work: Path) -> None:
    script = f"""
    var calls = 0
    trace probe:{work}:leaf {{ calls += 1 }}
    trace probe:{work}:branch_of%return {{ n += 1 }}
    trace_end {{ print(calls > 10) }}
    """
    command = f"{work} 1 wait & sleep 0.3; kill -9 $!; wait; true"
    before = open_files()
    assert run(script, "sh", "-c", command).lines == ["true"]
    assert open_files() == before


def test_a_file_replaced_while_it_is_probed(tmp_path: Path) -> None:
    """What runs goes on as it was; the file that took its name is another one and is not probed."""
    program = compiled(tmp_path / "program", WORK)
    other = compiled(tmp_path / "other", WORK)
    script = f"""
    var calls = 0
    trace probe:{program}:leaf {{ calls += 1 }}
    trace_end {{ print(calls) }}
    """
    traced = run(script, "sh", "-c", f"{program} 5; mv {other} {program}; {program} 5")
    assert traced.lines == ["5"]


def first_byte(pid: int, function: str) -> int:
    """Of a function's code as it is in a process's memory now: a probe is a breakpoint there."""
    line = ""
    until = time.monotonic() + 20
    while not line and time.monotonic() < until:  # it may have been started only now
        maps = Path(f"/proc/{pid}/maps").read_text().splitlines()
        line = next((line for line in maps if line.split()[1][2] == "x" and line.endswith("work")), "")
    offset = next(f.offset for f in open_binary(line.split()[-1]).functions if f.name == function)
    with open(f"/proc/{pid}/mem", "rb") as memory:
        memory.seek(int(line.split("-")[0], 16) + offset - int(line.split()[2], 16))
        return memory.read(1)[0]


@pytest.mark.parametrize("multi", [True, False])
@pytest.mark.parametrize("tier", TIERS)
def test_what_is_probed_is_as_it_was_afterwards(
    work: Path, tier: str, multi: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not multi:
        monkeypatch.setattr("ktap.uprobes.has_multi", lambda: False)
    probed = subprocess.Popen([str(work), "1", "wait"])
    try:
        before = {name: first_byte(probed.pid, name) for name in ("leaf", "branch_of")}
        files = open_files()
        script = f"""
        var calls = 0
        trace probe:{work}:leaf, probe:{work}:branch_of%return {{ calls += 1 }}
        tick-200ms {{ if (calls > 20) {{ print("seen") exit() }} }}
        """
        during: list[int] = []

        def look() -> None:
            until = time.monotonic() + 20
            while not during and time.monotonic() < until:
                if first_byte(probed.pid, "leaf") == HERE.breakpoint:
                    during.append(HERE.breakpoint)

        watch = threading.Timer(0.0, look)
        watch.start()
        assert trace(script, pid=probed.pid, duration_s=20, tier=tier).lines == ["seen"]
        watch.join()
        assert during
        assert {name: first_byte(probed.pid, name) for name in before} == before
        assert open_files() == files
        assert probed.poll() is None
    finally:
        probed.kill()
        probed.wait()


@pytest.mark.parametrize("tier", TIERS)
def test_a_process_and_its_children(work: Path, tier: str) -> None:
    """-p follows what a process starts from then on, and no other."""
    shell = subprocess.Popen(
        ["sh", "-c", f"read go; {work} 20 fork; ({work} 3); {work} 4 exec"], stdin=subprocess.PIPE, text=True
    )
    other = subprocess.Popen([str(work), "1", "wait"])
    script = f"""
    trace probe:{work}:leaf {{ calls[pid] += 1 }}
    trace sched:sched_process_exit {{ if (pid == {shell.pid} && tid == pid) {{ exit() }} }}
    trace_end {{ for (p, n in pairs(calls)) {{ print(n) }} }}
    """
    assert shell.stdin is not None

    def when_probed() -> None:
        """The probe is in the other process, too; it is only not told."""
        until = time.monotonic() + 60
        while first_byte(other.pid, "leaf") != HERE.breakpoint and time.monotonic() < until:
            time.sleep(0.05)
        time.sleep(0.5)
        print("go", file=shell.stdin, flush=True)

    begin = threading.Thread(target=when_probed)
    try:
        begin.start()
        traced = trace(script, pid=shell.pid, duration_s=60, tier="vm" if tier == "vm" else "auto")
        assert sorted(traced.lines, key=int) == ["3", "4", *["20"] * 5]
        assert not traced.losses
    finally:
        begin.join()
        for process in (shell, other):
            process.kill()
            process.wait()
        shell.stdin.close()


def test_a_library_replaced_while_it_is_probed(tmp_path: Path) -> None:
    """Whoever has loaded it goes on with the old file, which stays probed; the new one is another file."""
    text = "int fresh(int n) { return n + %d; }"
    library = compiled(tmp_path / "libfresh.so", text % 1, "-shared", "-fPIC")
    other = compiled(tmp_path / "other.so", text % 1000, "-shared", "-fPIC")
    code = f"""
import ctypes, os, subprocess, sys
f = ctypes.CDLL({str(library)!r}).fresh
f(1)
os.rename({str(other)!r}, {str(library)!r})
f(2)
subprocess.run([sys.executable, "-c", "import ctypes; print(ctypes.CDLL({str(library)!r}).fresh(3))"])
f(4)
"""
    script = f"""
    trace probe:{library}:fresh {{ print("called", arg1) }}
    trace probe:{library}:fresh%return {{ print("gave", retval) }}
    """
    wanted = ["called\t1", "gave\t2", "called\t2", "gave\t3", "called\t4", "gave\t5"]
    assert run(script, sys.executable, "-c", code).lines == wanted


def test_a_library_loaded_later(tmp_path: Path) -> None:
    library = compiled(tmp_path / "libfresh.so", "int fresh(int n) { return n + 1; }", "-shared", "-fPIC")
    code = f"import ctypes; f = ctypes.CDLL({str(library)!r}).fresh; print(sum(f(n) for n in range(100)))"
    script = f"""
    var sum = 0
    trace probe:{library}:fresh%return {{ sum += retval }}
    trace_end {{ print(sum) }}
    """
    assert run(script, sys.executable, "-c", code).lines == [str(sum(n + 1 for n in range(100)))]


def test_libraries_and_programs_by_name() -> None:
    script = 'trace probe:libc:getpid%return { } trace probe:bash:rl_* { } trace_end { print("on") }'
    if shutil.which("bash") is None:
        pytest.skip("no bash")
    assert trace(script, ["true"]).lines == ["on"]


COLD = r"""
#define KEPT __attribute__((noinline))
struct named { const char *name; };
const char gap[1 << 18] = { 1 };
const char across[3 * 4096] __attribute__((aligned(4096))) = { [4090] = 'a', 'c', 'r', 'o', 's', 's', 'i', 'n', 'g' };
const char cold[4096] __attribute__((aligned(4096))) = "cold string";
const struct named held[512] __attribute__((aligned(4096))) = { { cold } };
KEPT void take(const char *s, const char *t, const struct named *n) { asm volatile("" ::: "memory"); }
int main(int argc, char **argv) { take(cold, across + 4090, held); return gap[argc] == 7; }
"""


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("shown", ["call", "fetched"])
def test_memory_that_the_program_has_not_looked_at(tmp_path: Path, tier: str, shown: str) -> None:
    """It is brought into RAM for the handler: a string, one that goes on in the next page, one behind a pointer."""
    program = compiled(tmp_path / "program", COLD)
    if not uprobes.has_multi() or not can_wait(uprobes.attach_type()):
        pytest.skip("the kernel has no programs that wait for memory (Linux 6.6)")
    with open(program, "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    script = {
        "call": f"""trace probe:{program}:take {{
            print(user_string(arg1), user_string(arg2), user_string(user_u64(arg3)), stringof(ustack(1)))
        }}""",
        "fetched": f"""trace probe:{program}:take {words("s=+0(%di):string t=+0(%si):string n=+0(+0(%dx)):string")} {{
            print(args.s, args.t, args.n, stringof(ustack(1)))
        }}""",
    }[shown]
    if tier == "kernel":
        script = script.replace(", stringof(ustack(1))", "")
    (line,) = run(script, program, tier=tier, buffer="ring").lines
    assert line.split("\t")[:3] == ["cold string", "acrossing", "cold string"]
    assert tier == "kernel" or line.split("\t")[3] == "take+0x0 [program]"


def test_one_version_of_a_function() -> None:
    libc = open_target("libc")
    versions = sorted({f.version for f in libc.functions if f.name == "pthread_create" and f.version})
    if not versions:
        pytest.skip("this libc has no versions of pthread_create")
    code = "import threading; t = threading.Thread(target=int); t.start(); t.join()"
    script = f"var n = 0 trace probe:libc:pthread_create@{versions[0]} {{ n += 1 }} trace_end {{ print(n) }}"
    assert run(script, sys.executable, "-S", "-c", code).lines == ["1"]
    assert "has no function `pthread_create@GLIBC_0`" in message("trace probe:libc:pthread_create@GLIBC_0 { }")


def test_a_line_that_bash_reads() -> None:
    """At a terminal, as a user would."""
    if shutil.which("bash") is None or shutil.which("script") is None:
        pytest.skip("no bash, or no script(1) to give it a terminal")
    typed = "(sleep 0.5; echo 'echo first'; sleep 0.2; echo exit; sleep 0.2) | script -qec 'bash --norc -i' /dev/null"
    traced = trace("trace probe:bash:readline%return { print(user_string(retval)) }", ["sh", "-c", typed])
    assert traced.lines[:2] == ["echo first", "exit"]


def test_a_call_of_libc_with_its_string() -> None:
    script = """
    trace probe:libc:getenv { if (user_string(arg1) == "KTAP_TESTED") { print("asked") } }
    trace probe:libc:getenv%return { if (retval != 0 && user_string(retval) == "as it is") { print("told") } }
    """
    code = "import ctypes; c = ctypes.CDLL(None); c.setenv(b'KTAP_TESTED', b'as it is', 1); c.getenv(b'KTAP_TESTED')"
    assert run(script, sys.executable, "-c", code).lines == ["asked", "told"]


def test_a_hundred_functions_of_libc() -> None:
    script = 'trace probe:libc:str* { n[probename] += 1 } trace_end { print(len(n) > 3, n["strdup"] > 0) }'
    assert trace(script, ["bash", "-c", "true"]).lines == ["true\ttrue"]


def test_stacks_name_the_functions(work: Path, ktap: Ktap) -> None:
    script = f"var n = 0 trace probe:{work}:leaf {{ n += 1  if (n == 3) {{ print(ustack(2)) exit() }} }}"
    done = ktap("-q", "-e", script, "--", str(work), "1", "wait")
    assert [line.partition("+")[0] for line in done.stdout.split("\n")[:2]] == ["leaf", "branch_of"]


# -- what is refused ------------------------------------------------------------------------------


def test_places_that_are_no_functions_start(work: Path) -> None:
    for place in ("leaf+1", "0x10"):
        assert "--unsafe" in message(f"trace probe:{work}:{place} {{ }}")
    assert "outside of its segments" in message(f"trace probe:{work}:0x7fffffff {{ }}")


def test_a_place_by_its_offset(work: Path) -> None:
    offset = next(function.offset for function in open_binary(str(work)).functions if function.name == "leaf")
    script = f"var n = 0 trace probe:{work}:{offset:#x} {{ n += 1 }} trace_end {{ print(n) }}"
    assert run(script, work, 5).lines == ["5"]


def test_what_is_not_there(work: Path, tmp_path: Path) -> None:
    assert "did you mean `leaf`?" in message(f"trace probe:{work}:leav {{ }}")
    assert f"ktap -lf {work}" in message(f"trace probe:{work}:zz* {{ }}")
    assert "no library or program `nosuchlibrary`" in message("trace probe:nosuchlibrary:f { }")
    assert "no program or library at `/nosuch`" in message("trace probe:/nosuch:f { }")
    (tmp_path / "text").write_text("no ELF file")
    assert "no program or library at" in message(f"trace probe:{tmp_path}/text:f {{ }}")


def test_what_is_wrong_with_fetch_arguments_is_shown_in_its_place(work: Path) -> None:
    script = words(f"trace probe:{work}:leaf n=%di m=%dii {{ }}")
    with pytest.raises(Refusal) as caught:
        trace(script, duration_s=0.1)
    diagnostic = caught.value.diagnostics[0]
    assert "no register `%dii`" in diagnostic.message
    assert diagnostic.span is not None
    assert script[diagnostic.span.column - 1 :].startswith("%dii")


def test_a_glob_that_matches_too_much(many: Path) -> None:
    from ktap.user_events import Settings, find_events
    from ktap.user_functions import NoEvent

    with pytest.raises(NoEvent, match="matches 1000 functions, more than 999") as caught:
        find_events(f"probe:{many}:each_*", Settings(os.uname().machine, False, 999), ())
    assert "--max-probes 1000" in str(caught.value.hint)


def test_ktap_killed_leaves_the_program_as_it_was(work: Path, environment: dict[str, str]) -> None:
    probed = subprocess.Popen([str(work), "1", "wait"])
    script = f"var n = 0 trace probe:{work}:leaf {{ n += 1 }} trace probe:{work}:branch_of%return {{ n += 1 }}"
    code = first_byte(probed.pid, "leaf")
    ktap = subprocess.Popen(
        [sys.executable, "-m", "ktap", "-e", script], env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL
    )
    try:
        assert ktap.stderr is not None
        assert b"Tracing" in ktap.stderr.readline()
        ktap.send_signal(signal.SIGKILL)
        ktap.wait(timeout=20)
        time.sleep(0.2)
        assert probed.poll() is None
        until = time.monotonic() + 20
        while first_byte(probed.pid, "leaf") != code and time.monotonic() < until:
            time.sleep(0.05)
        assert first_byte(probed.pid, "leaf") == code
    finally:
        ktap.kill()
        probed.kill()
        probed.wait()


@pytest.mark.parametrize("tier", TIERS)
def test_the_same_without_links_of_many(work: Path, tier: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on kernels before 6.6: a perf event a place."""
    monkeypatch.setattr("ktap.uprobes.has_multi", lambda: False)
    script = f"""
    var calls = 0  var sum = 0
    trace probe:{work}:work, probe:{work}:leaf, probe:{work}:b* {{ calls += 1  by[probename] += arg1 }}
    trace probe:{work}:work%return {{ sum += retval }}
    trace_end {{ print(calls, by["work"], by["leaf"], by["branch_of"], sum) }}
    """
    before = open_files()
    total = sum(range(CALLS))
    traced = run(script, work, CALLS, tier=tier)
    assert traced.lines == [f"{3 * CALLS}\t{total}\t{total}\t{total}\t{2 * total + 150 * CALLS}"]
    assert open_files() == before


@pytest.mark.parametrize("tier", TIERS[:2])
def test_a_processor_that_another_run_has_claimed(work: Path, tier: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where a thread was preempted while the same program ran for it: what is missed is counted."""
    attach = Attachment.attach

    def claimed(attachment: Attachment, numbered: object) -> object:
        skipped = attach(attachment, numbered)  # type: ignore[arg-type]
        for _, claims in attachment.claims:
            for cpu in kernel.online_cpus():
                kernel.update(claims, struct.pack("=I", cpu), struct.pack("=QQ", 1, 0))
        return skipped

    script = f"trace probe:{work}:leaf {{ by[arg1] += 1 }} trace_end {{ print(len(by)) }}"
    assert run(script, work, 7, tier=tier).lines == ["7"]
    monkeypatch.setattr(Attachment, "attach", claimed)
    traced = trace(script, [str(work), "7"], tier=tier)
    assert traced.lines == ["0"]
    (loss,) = traced.losses
    assert (loss.what, loss.events) == ("fired while the same program ran", 7)
    assert "leaf" in loss.where


def test_counts_that_a_tick_takes_while_the_function_is_called(work: Path) -> None:
    """Programs that wait for memory are waited for when a tick takes what they have counted."""
    script = f"""
    trace probe:{work}:work {{ s[user_string(arg2)] += 1 }}
    var seen = 0  var last = 0
    tick-1ms {{ for (k, n in pairs(s)) {{ seen += n }} delete(s) }}
    trace_end {{ for (k, n in pairs(s)) {{ seen += n }} print(seen) }}
    """
    calls = 3000
    shell = f"{work} {calls} & {work} {calls} & {work} {calls}; wait"
    traced = run(script, "sh", "-c", shell, tier="kernel")
    assert traced.lines == [str(3 * calls)]
