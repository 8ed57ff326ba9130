"""Functions of the kernel: run on other kernels by test_kernels, because not every machine's own has kprobes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from processor import ADDRESSES, HERE, has_typed, words
from tracing import Traced, python, trace

from ktap import kernel, links
from ktap.functions import kernel_functions
from ktap.live import LiveSource
from tests.kills.commands import Command
from tests.kills.rounds import ATTACH, Rounds
from vm.diagnostic import Refusal
from vm.limits import Limits

pytestmark = [
    pytest.mark.live,
    pytest.mark.skipif(links.probe_type() is None, reason="this kernel cannot probe its functions"),
]

TIERS = ("vm", "kernel")
CALLS = 200
NULLS = f"""
import os
fd = os.open("/dev/null", os.O_RDWR)
for _ in range({CALLS}):
    os.write(fd, b"x"); os.read(fd, 1); os.lseek(fd, 1, 0)
"""
FUNCTION = "write_null"
"""What writing to /dev/null calls through a pointer, so that no compiler can inline it."""

SECOND = HERE.within
"""Where another instruction of the function is."""
OPEN_FLAGS = os.O_CLOEXEC | HERE.large_file
"""What Python's os.open adds, and what the kernel does (O_LARGEFILE)."""


def backends(traced: Traced) -> set[str]:
    assert isinstance(traced.source, LiveSource)
    return set(traced.source.backends.values())


@pytest.mark.parametrize("tier", TIERS)
def test_every_way_to_reach_a_function_counts_every_call(tier: str) -> None:
    ways = {
        "typed": FUNCTION,
        "registers": f"{FUNCTION} s=%sp",
        "glob": "read_nul*",
        "typed_return": f"{FUNCTION}%return",
        "registers_return": f"{FUNCTION}%return s=%sp",
        "glob_return": "read_nul*%return",
    }
    counters = "\n".join(f"var {name} = 0" for name in ways)
    probes = "\n".join(f"trace probe:{text} {{ {name} += 1 }}" for name, text in ways.items())
    script = f"{counters}\n{probes}\ntrace_end {{ print({', '.join(ways)}) }}"
    traced = trace(script, python(NULLS), tier=tier)
    assert not traced.losses
    assert traced.lines == ["\t".join([str(CALLS)] * len(ways))]
    many = {"kprobe multi"} if links.has_multi() else set()
    assert backends(traced) == ({"fentry", "fexit", "kprobe"} if has_typed() else {"kprobe"}) | many


@pytest.mark.parametrize("backend", ["bpf", "perf"])
def test_backends_count_alike(backend: str) -> None:
    events = (FUNCTION, f"{FUNCTION}%return", f"{FUNCTION}{SECOND}", "read_nul*")
    counts = [f"n{number}" for number in range(len(events))]
    script = "".join(f"var {n} = 0 trace probe:{event} {{ {n} += 1 }}\n" for n, event in zip(counts, events))
    script += f"""
    trace probe:do_sys_openat2 {words("f=+0(%si):ustring")} {{ if (args.f == "/dev/null") {{ print(args.f) }} }}
    trace_end {{ print({", ".join(counts)}) }}
    """
    command = [sys.executable, "-m", "ktap", "-q", "--backend", backend, "-e", script, "--", *python(NULLS)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.stdout.splitlines() == ["/dev/null", "\t".join([str(CALLS)] * len(events))], done.stderr


def test_a_place_within_a_function() -> None:
    script = (
        f"var n = 0\ntrace probe:{FUNCTION}{SECOND} {{ n += 1  where = probename }}\ntrace_end {{ print(n, where) }}"
    )
    assert trace(script, python(NULLS)).lines == [f"{CALLS}\t{FUNCTION}{SECOND}"]


def test_the_middle_of_an_instruction() -> None:
    with pytest.raises(Refusal, match="no instruction starts there"):
        trace(f"trace probe:{FUNCTION}+0x1 {{ }}", duration_s=0.1)


OPEN = """
import os
for name in ("/etc/hostname", "/etc/passwd", "/nothing/there"):
    try:
        os.close(os.open(name, os.O_RDONLY | os.O_DIRECTORY if "nothing" in name else os.O_RDONLY))
    except OSError:
        pass
"""


@pytest.mark.parametrize(("tier", "last"), [("vm", "args.first[2]"), ("kernel", "args.letter")])
def test_fetch_arguments(tier: str, last: str) -> None:
    """Arrays are tables, which only the VM has."""
    fetched = "dfd=%di:s32 filename=+0(%si):ustring low=%di:b4@0/32 flags=+0(%dx):x64 first=+u0(%si):u16[2] letter=+2(%si):u16"
    script = f"""
    trace probe:do_sys_openat2 {words(fetched)} /filename ~ "/etc/*"/ {{
        print(args.dfd, args.filename, args.low, args.flags, {last})
    }}
    """
    lines = trace(script, python(OPEN), tier=tier).lines
    second = int.from_bytes(b"tc", sys.byteorder)
    for name in ("/etc/hostname", "/etc/passwd"):
        assert f"-100\t{name}\t{-100 & 15}\t{OPEN_FLAGS}\t{second}" in lines


@pytest.mark.parametrize("tier", TIERS)
def test_the_paths_a_program_opens(tier: str) -> None:
    script = words("trace probe:do_sys_openat2 dfd=%di filename=+0(%si):ustring { print(execname, args.filename) }")
    lines = trace(script, ["/bin/cat", "/etc/hostname", "/etc/passwd", "/nothing/there"], tier=tier).lines
    opened = [line for line in lines if line.partition("\t")[2] in ("/etc/hostname", "/etc/passwd", "/nothing/there")]
    assert opened == ["cat\t/etc/hostname", "cat\t/etc/passwd", "cat\t/nothing/there"]


@pytest.mark.parametrize("tier", TIERS)
def test_parameters_by_name_and_members_behind_them(tier: str, tmp_path: Path) -> None:
    path = tmp_path / "a file"
    path.write_text("x" * 100)
    code = f"import os\nfd = os.open({str(path)!r}, os.O_RDONLY)\nos.read(fd, 77)\nos.read(fd, 77)"
    script = """
    trace probe:vfs_read /count == 77/ { print(args.count, args.file.f_inode.i_ino) }
    trace probe:vfs_read%return { if (retval == 23) { print("rest", retval) } }
    trace probe:do_sys_openat2%return { if (retval == -2) { print("none", retval) } }
    """
    traced = trace(script, python(code + OPEN), tier=tier)
    number = path.stat().st_ino
    assert traced.lines.count(f"77\t{number}") == 2
    assert traced.lines.count("rest\t23") == 1
    assert "none\t-2" in traced.lines


@pytest.mark.parametrize("tier", TIERS)
def test_the_running_task_and_its_members(tier: str) -> None:
    script = f"trace probe:{FUNCTION} {{ print(execname == curtask.comm, curtask.tgid - pid, curtask.real_parent.tgid - ppid) }}"
    assert set(trace(script, python(NULLS), tier=tier).lines) == {"true\t0\t0"}


def test_text_and_memory_of_a_call(tmp_path: Path) -> None:
    path = tmp_path / "a_file"
    path.write_text("x")
    script = """
    trace probe:vfs_read /count == 77/ { print(argstr)  print(kernel_string(args.file.f_path.dentry.d_name.name)) }
    """
    traced = trace(script, python(f"import os\nos.read(os.open({str(path)!r}, 0), 77)"))
    assert not traced.faults
    lines = traced.lines
    assert lines[0].startswith("vfs_read: (vfs_read+0x0/0x") and " count=77 " in lines[0]
    assert lines[1] == "a_file"


STACKS = {
    FUNCTION: FUNCTION,
    f"{FUNCTION} s=%sp": FUNCTION,
    "write_nul*": FUNCTION,
    f"{FUNCTION}{SECOND}": FUNCTION,
    f"{FUNCTION}%return": "vfs_write",
}
"""What is on top of the stack at an event. A return by trampoline is within the function still."""


@pytest.mark.parametrize("tier", TIERS)
def test_stacks_begin_with_the_function(tier: str) -> None:
    script = "\n".join(f"trace probe:{event} {{ print({n}, stack(8)) }}" for n, event in enumerate(STACKS))
    traced = trace(script, python("import os\nos.write(os.open('/dev/null', os.O_WRONLY), b'x')"), tier=tier)
    frames: dict[int, list[str]] = {}
    current: list[str] = []
    for line in traced.lines:
        number, tab, first = line.partition("\t")
        if tab and number.isdigit():
            current = frames[int(number)] = []
            line = first
        current.append(line.strip().partition("+")[0])
    for names, (event, top) in zip((frames[n] for n in sorted(frames)), STACKS.items()):
        names = [name for name in names if name]
        assert names[0] == top or (event.endswith("%return") and names[0] == FUNCTION), (event, names)
        assert HERE.system_call in names
    assert len(frames) == len(STACKS)


MANY = "vfs_*" if links.has_multi() else "vfs_[rw]*"
"""Where each function costs a perf event it is long until the kernel has let go of it."""


@pytest.mark.parametrize("tier", TIERS)
def test_globs_say_which_function_it_was(tier: str) -> None:
    script = f"""
    trace probe:{MANY} {{ n[probename] += 1 }}
    trace probe:{MANY.replace("vfs_", "tcp_v4_").replace("[rw]", "[cd]")} {{ n[probename] += 1 }}
    trace_end {{ for (k, v in sort_pairs(n)) {{ print(k, v) }} }}
    """
    code = """
import os, socket
fds = os.pipe()
for _ in range(50):
    os.write(fds[1], b"x"); os.read(fds[0], 1)
a = socket.socket()
try: a.connect(("127.0.0.1", 1))
except OSError: pass
"""
    found = dict(line.split("\t") for line in trace(script, python(code), tier=tier).lines)
    assert int(found["vfs_write"]) >= 50 and int(found["vfs_read"]) >= 50
    assert int(found["tcp_v4_connect"]) == 1


def test_the_text_of_a_return_says_where_it_returns_to() -> None:
    script = f"trace probe:{FUNCTION}%return, probe:read_nul*%return {{ print(argstr) }}"
    lines = set(trace(script, python(NULLS)).lines)
    for function, caller in ((FUNCTION, "vfs_write"), ("read_null", "vfs_read")):
        assert [line for line in lines if re.fullmatch(rf"{function}: \({caller}\+0x\w+/0x\w+ <- {function}\)", line)]


def test_what_explain_says() -> None:
    script = (
        f"var n = 0 trace probe:{FUNCTION} {{ n += 1 }} trace probe:{FUNCTION}%return {{ n += 1 }}"
        f" trace probe:read_nul* {{ n += 1 }} trace probe:{FUNCTION}{SECOND} {{ n += 1 }}"
    )
    told = subprocess.run(
        [sys.executable, "-m", "ktap", "explain", "-e", script], capture_output=True, text=True
    ).stdout
    assert f"  probe:{FUNCTION}: {'fentry' if has_typed() else 'kprobe'}, " in told
    assert f"  probe:{FUNCTION}%return: {'fexit' if has_typed() else 'kprobe'}, " in told
    assert f"  probe:{FUNCTION}{SECOND}: kprobe, " in told
    assert f"  probe:read_null: {'kprobe multi' if links.has_multi() else 'kprobe'}, " in told


def test_functions_are_listed_with_their_parameters() -> None:
    command = [sys.executable, "-m", "ktap", "list"]
    told = subprocess.run([*command, "-v", "probe:vfs_read"], capture_output=True, text=True).stdout
    assert told.splitlines()[:3] == [
        "probe:vfs_read",
        "    arg1  args.file  struct file *",
        "    arg2  args.buf  char *",
    ]
    assert "    retval  ssize_t  (with %return)\n" in told
    wrong = subprocess.run([*command, "probe:vfs_raed"], capture_output=True, text=True)
    assert wrong.returncode == 1 and "did you mean `probe:vfs_read`?" in wrong.stderr


SHARED = ("name_show", "state_show", "init_once", "parse_options")
"""Names that several files of the kernel give functions of their own."""


@pytest.mark.parametrize("event", ["{}", "{}%return", "{}*"])
def test_all_functions_of_one_name_are_probed(event: str) -> None:
    functions = kernel_functions()
    name = max(SHARED, key=lambda one: len(functions.addresses([one]).get(one, [])))
    count = len(functions.addresses([name])[name])
    assert count > 1
    traced = trace(f"trace probe:{event.format(name)} {{ }}", python("pass"))
    assert isinstance(traced.source, LiveSource)
    labels = [label for label in traced.source.backends if label.startswith(f"probe:{name} (") or "%return (" in label]
    if event.endswith("*"):  # where the function tracer tells names only, a glob leaves them out
        assert len(labels) > 1 or not ADDRESSES.exists()
    else:
        assert len(labels) == count
    with pytest.raises(Refusal, match=f"functions are called `{name}`"):
        trace(f"trace probe:{name}+0x10 {{ }}", duration_s=0.1)


SLEEPERS = 30
SLEEPS = f"""
import threading, time
threads = [threading.Thread(target=time.sleep, args=(1.0,)) for _ in range({SLEEPERS})]
for thread in threads: thread.start()
for thread in threads: thread.join()
"""
"""More calls at once than the kernel keeps for the returns of one function."""


@pytest.mark.parametrize("event", ["hrtimer_nanosleep%return s=%sp", "hrtimer_nanosl*%return"])
def test_returns_that_the_kernel_did_not_see_are_counted(event: str) -> None:
    traced = trace(f"var n = 0\ntrace probe:{event} {{ n += 1 }}\ntrace_end {{ print(n) }}", python(SLEEPS))
    (seen,) = map(int, traced.lines)
    assert seen < SLEEPERS
    if any("does not count the calls that its kprobes miss" in notice for notice in traced.notices):
        return
    assert seen + traced.lost() >= SLEEPERS  # ktap sleeps too, and is missed like all others
    (loss,) = traced.losses
    assert "more calls were running than the kernel keeps" in loss.what and "hrtimer_nanosleep%return" in loss.where


@pytest.mark.parametrize("tier", TIERS)
def test_a_function_that_the_program_calls_itself(tier: str) -> None:
    """Reading what lies behind a pointer calls it, within the program that it called."""
    script = """
    var n = 0
    trace probe:copy_from_kernel_nofault { n += 1  var first = kernel_u8(args.src) }
    trace probe:vfs_write { if (args.file.f_inode.i_ino == 0) { n += 1 } }
    trace_end { print(n) }
    """
    traced = trace(script, python(NULLS), tier=tier)
    assert int(traced.lines[0]) > 0
    if any("does not count the calls that its kprobes miss" in notice for notice in traced.notices):
        return
    assert [loss.what for loss in traced.losses if "copy_from_kernel_nofault" in loss.where] == [
        "fired while the same program ran"
    ]


def test_the_function_tracers_spelling() -> None:
    script = "trace ftrace:function /ip==vfs_wr*/ { print(probename, argstr)  exit() }"
    (line,) = trace(script, python("import os\nos.write(os.pipe()[1], b'x')")).lines
    assert line.startswith("function\tfunction: (vfs_write+0x0/0x") and "parent_ip=ksys_write+0x" in line


@pytest.mark.parametrize(
    ("event", "message"),
    [
        ("probe:vfs_raed", "the kernel has no function `vfs_raed`"),
        ("probe:trace_call_bpf", "must not be probed"),
        (f"probe:{HERE.forbidden}", "must not be probed: the kernel refuses probes there"),
        (f"probe:{HERE.lock}", "the machine could hang; --unsafe"),
        ("probe:vfs_read x=%zz", "no register `%zz`"),
        ("probe:*", "--max-probes"),
    ],
)
def test_what_cannot_be_probed(event: str, message: str) -> None:
    with pytest.raises(Refusal) as caught:
        trace(f"trace {event} {{ }}", duration_s=0.1)
    (diagnostic,) = caught.value.diagnostics
    assert message in f"{diagnostic.message}; {diagnostic.hint}"


@pytest.mark.skipif(not links.has_multi(), reason="without links of many functions each costs a perf event")
def test_five_thousand_functions() -> None:
    before = kernel.object_ids(kernel.LINK_NEXT_ID), kernel.object_ids(kernel.PROGRAM_NEXT_ID)
    started = time.monotonic()
    script = "var n = 0\ntrace probe:[n-s]*_* { n += 1 }\ntrace_end { print(n > 100) }"
    traced = trace(script, python(NULLS), tier="kernel", limits=Limits()._replace(probes=30_000))
    assert traced.lines == ["true"]
    assert isinstance(traced.source, LiveSource) and len(traced.source.backends) > 5_000
    for loss in traced.losses:
        assert re.search(r" and \d+ more$", loss.where)
    print(f"{len(traced.source.backends)} functions, {time.monotonic() - started:.1f} s in all")
    assert (kernel.object_ids(kernel.LINK_NEXT_ID), kernel.object_ids(kernel.PROGRAM_NEXT_ID)) == before


@pytest.mark.skipif(not links.has_multi(), reason="an emulated machine takes its time, and each function its own")
def test_nothing_is_left_when_it_is_killed(tmp_path: Path) -> None:
    """One kill while it attaches: tests.kills.longer can make more of them here, too."""
    events = f"probe:vfs_*, probe:{FUNCTION}, probe:vfs_read%return, {words('probe:do_sys_openat2 filename=+0(%si):ustring')}"
    text = ("--backend", "bpf", "-e", f"trace {events} {{ n[probename] += 1 }}")
    with Rounds(tmp_path, 1) as rounds:
        before = rounds.before()
        run = rounds.run(Command(text, "bpf", "auto", ("kernel functions",), "everyone"))
        run.wait_until(ATTACH)
        assert not run.has_ended()
        run.process.kill()
        run.process.wait()
        assert rounds.left(before)[0] == frozenset()


EMPTY = """
import ctypes
libc = ctypes.CDLL(None)
for n in range(3):
    libc.chdir(b""); libc.chdir(b"/no/x")
"""


@pytest.mark.parametrize("tier", ["vm", "kernel"])
def test_an_empty_string_of_a_process_is_no_fault(tier: str) -> None:
    """Before Linux 6.14 the kernel says of it that it has no bytes, not even a NUL."""
    script = """
    trace syscalls:sys_enter_chdir { n[user_string(args.filename)] += 1 }
    trace probe:libc:chdir name=+0($arg1):string /name == ""/ { m[args.name] += 1 }
    trace_end { print(n[""], n["/no/x"], m[""]) }
    """
    assert trace(script, python(EMPTY), tier=tier).lines == ["3\t3\t3"]
