"""Memory, stacks and the running task as they were when the event fired."""

from __future__ import annotations

import os
import subprocess

import pytest
from tracing import SPIN, TRANSPORTS, python, trace

from ktap import kernel
from ktap.late import Late, Places
from vm.diagnostic import Refusal

pytestmark = pytest.mark.live

WRITES = """
import ctypes, os
libc = ctypes.CDLL(None)
text = ctypes.create_string_buffer(b"first\\0second\\0" + b"x" * 5000)
at = ctypes.addressof(text)
pair = (ctypes.c_uint64 * 2)(at, at + 6)
fd = os.open("/dev/null", os.O_WRONLY)
libc.write(fd, text, 13)
libc.write(fd, pair, 16)
libc.write(fd, ctypes.c_void_p(at + 6), 5000)
text[0] = b"F"
ctypes.memset(at, 0, 5000)
libc.write(fd, ctypes.c_void_p(8), 99)
"""
READS = {
    13: ("user_string(arg2)", "first"),
    16: ("user_string(user_u64(arg2 + 8))", "second"),
    5000: ("len(user_string(args.buf))", "6"),
    99: ("user_string(arg2)", "nil"),
}
MORE = {
    13: ("user_string(arg2 + 2, 2)", "rs"),
    16: ("user_string(user_u64(args.buf))", "first"),
    5000: ("len(user_buf(arg2, arg3))", "4096"),
    99: ("user_u8(arg2)", "nil"),
}
NUMBERS = {
    13: ("user_buf(arg2, 5)", "first"),
    16: ("user_u64(arg2) == (user_u32(arg2) | user_u32(arg2 + 4) << 32)", "true"),
    5000: ("user_u8(arg2)", str(ord("s"))),
    99: ("user_buf(arg2, arg3)", "nil"),
}


@pytest.mark.parametrize("buffer", TRANSPORTS)
@pytest.mark.parametrize("wanted", [READS, MORE, NUMBERS])
def test_user_memory(wanted: dict[int, tuple[str, str]], buffer: str) -> None:
    probe = "trace syscalls:sys_enter_write /count == %d/ { print(arg3, %s) }\n"
    script = "".join(probe % (size, expression) for size, (expression, _) in wanted.items())
    lines = trace(script, python(WRITES), buffer=buffer).lines
    assert lines == [f"{size}\t{value}" for size, (_, value) in wanted.items()]


def test_a_long_string_is_whole_up_to_the_limit() -> None:
    name = "/" + "/".join(["d" * 200] * 19)
    code = f"import os\ntry: os.open({name!r}, 0)\nexcept OSError: pass"
    script = 'trace syscalls:sys_enter_openat /filename ~ "/ddd*"/ { print(user_string(arg2)) }'
    assert trace(script, python(code)).lines == [name]


NOT_IN_RAM = """
import ctypes, mmap, os, tempfile
libc = ctypes.CDLL(None)
with tempfile.TemporaryFile() as file:
    file.write(b"/no/such/file\\0")
    file.truncate(4096)
    file.flush()
    pages = mmap.mmap(file.fileno(), 4096, mmap.MAP_PRIVATE)
    for _ in range(3):
        pages.madvise(mmap.MADV_DONTNEED)
        libc.open(ctypes.c_void_p(ctypes.addressof(ctypes.c_char.from_buffer(pages))), 0)
"""


@pytest.mark.parametrize("buffer", TRANSPORTS)
def test_what_is_not_in_ram_is_read_when_the_call_returns(buffer: str) -> None:
    script = """
    var last = 0
    trace syscalls:sys_enter_openat { print("open", user_string(arg2), nsecs >= last)  last = nsecs }
    trace syscalls:sys_exit_openat /ret == -2/ { print("failed", arg1, nsecs >= last)  last = nsecs }
    """
    lines = trace(script, python(NOT_IN_RAM), buffer=buffer).lines
    wanted = ["open\t/no/such/file\ttrue", "failed\t-2\ttrue"]
    places = [index for index, line in enumerate(lines) if line == wanted[0]]
    assert len(places) == 3
    assert [lines[index + 1] for index in places] == [wanted[1]] * 3
    assert not [line for line in lines if "false" in line]


def test_an_entry_waits_for_its_return_but_not_for_long() -> None:
    late = Late({0: Places(3, (4,), 3, (4,))}, base=1, bits=0)
    assert late.complete([(10, 0, 0, 7, None), (11, 2, 0)], 20) == ([], 9)
    assert late.complete([(21, 1, 0, 7, b"x"), (22, 2, 0)], 30) == ([(10, 0, 0, 7, b"x"), (11, 2, 0), (22, 2, 0)], 30)
    assert late.complete([(31, 0, 0, 7, None), (32, 0, 0, 8, None), (33, 2, 0)], 40) == ([], 30)
    assert late.complete([(41, 1, 0, 8, b"y")], 50) == ([], 30)
    ready, horizon = late.complete([(51, 2, 0)], 31 + 20_000_000)
    assert ready == [(31, 0, 0, 7, None), (32, 0, 0, 8, b"y"), (33, 2, 0), (51, 2, 0)]
    assert horizon == 31 + 20_000_000
    assert late.complete([(60, 1, 0, 7, b"too late")], 30_000_000) == ([], 30_000_000)


def test_the_running_task() -> None:
    script = "trace syscalls:sys_enter_getppid { print(pid, tid, uid, gid, execname, cpu) }"
    code = """
import os
with open("/proc/self/comm", "w") as file: file.write("a name")
os.setgid(12); os.setuid(34)
os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[-1]})
os.getppid()
"""
    (line,) = trace(script, python(code)).lines
    pid, tid, *rest = line.split("\t")
    assert pid == tid
    assert rest == ["34", "12", "a name", str(sorted(os.sched_getaffinity(0))[-1])]


def test_the_control_group() -> None:
    script = "trace syscalls:sys_enter_getppid { print(cgroup) }"
    lines = trace(script, python("import os; os.getppid()")).lines
    with open("/proc/self/cgroup") as file:
        path = next(line.split(":", 2)[2].strip() for line in file if line.startswith("0::"))
    mounts = subprocess.run(["findmnt", "-nro", "TARGET", "-t", "cgroup2"], capture_output=True, text=True)
    root = mounts.stdout.split("\n")[0]
    if root:
        assert lines == [str(os.stat(root + path).st_ino)]
    else:
        assert int(lines[0]) >= 0


@pytest.mark.parametrize("buffer", TRANSPORTS)
def test_stacks(buffer: str) -> None:
    """The kernel's begins where the event is, the process's at the system call."""
    script = """
    trace sched:sched_switch { if (prev == nil) { prev = stack(2) print(prev) print(stack(1, 1)) } }
    trace syscalls:sys_enter_getppid { if (user == nil) { user = ustack(1) k = stack()  print(len(tostring(user)) > 3, k) } }
    """
    code = "import os, time\nos.getppid(); time.sleep(0.01); os.getppid()"
    lines = trace(script, python(code), buffer=buffer).lines
    switch = [line.split("+")[0] for line in lines if line]
    assert switch.count("__schedule") + switch.count("__traceiter_sched_switch") >= 1
    assert any("true" in line and "bpf" not in line for line in lines)


def test_profile_samples_every_processor() -> None:
    script = "profile-200hz { n[cpu] += 1 } trace_end { for (k, v in sort_pairs(n)) { print(k, v) } }"
    lines = trace(script, python(SPIN), everyone=True, duration_s=1.0).lines
    counts = dict(tuple(map(int, line.split("\t"))) for line in lines)
    assert list(counts) == list(kernel.online_cpus())
    assert all(150 <= count <= 300 for count in counts.values()), counts


def test_a_profile_sees_the_task_that_was_interrupted() -> None:
    code = 'import time\nwith open("/proc/self/comm", "w") as f: f.write("spinner")\nend = time.time() + 0.5\nwhile time.time() < end: pass'
    script = "profile-1000hz { n[execname] += 1 } trace_end { print(n.spinner > 100) }"
    assert trace(script, python(code)).lines == ["true"]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("var p = last  last = arg2  print(user_string(p))", "user_string: the address comes from `arg2` of an event"),
        ("t[tid] = arg2  print(user_string(t[tid]))", "user_string: it cannot be told"),
        ("var i = 0  while (i < 3) { print(user_u8(arg2 + i))  i += 1 }", "user_u8: it cannot be told"),
        (
            "saved = arg2  print(user_string(saved))",
            "user_string: the address comes from `arg2` of an event that is over",
        ),
    ],
)
def test_reads_that_cannot_be_made_when_the_event_fires(body: str, message: str) -> None:
    script = f"var last = 0\nvar saved = 0\n\ntrace syscalls:sys_enter_openat {{ {body} }}"
    with pytest.raises(Refusal) as caught:
        trace(script, python("pass"))
    (diagnostic,) = caught.value.diagnostics
    assert message in diagnostic.message
    assert diagnostic.span is not None and diagnostic.span.line == 4
    assert diagnostic.hint is not None and "user_string(arg1)" in diagnostic.hint


def test_reads_through_functions_of_the_script() -> None:
    script = """
    function text(p, n) { return user_string(p, n) }
    function show(p) { print(text(p, 3)) }
    trace syscalls:sys_enter_openat /filename == "/abcdef"/ { var p = arg2  show(p) }
    """
    code = "import os\ntry: os.open('/abcdef', 0)\nexcept OSError: pass"
    assert trace(script, python(code)).lines == ["/ab"]


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
def test_system_calls_of_32_bit_programs_are_left_out() -> None:
    """Number 64 is getppid there and semget here; tracefs leaves them out too."""
    script = "trace syscalls:* { n[probename] += 1 } trace_end { print(n.sys_enter_semget, n.sys_exit_semget, n.sys_enter_getppid) }"
    traced = trace(script, python(INT80))
    assert traced.lines == ["nil\tnil\t1"]


RENAMED = """
import os, time
with open("/proc/self/comm", "w") as file: file.write("a name")
for _ in range(20): time.sleep(0.001)
"""


@pytest.mark.parametrize("buffer", TRANSPORTS)
def test_raw_tracepoints_and_members_of_structures(buffer: str) -> None:
    script = """
    trace raw:sched_switch /preempt == 0/ {
        if (args.prev.comm == "a name") { n[args.prev.pid == tid, arg0, arg1 == args.prev, arg7 == nil] += 1 }
    }
    trace_end { for (a, b, c, d, v in pairs(n)) { print(a, b, c, d, v >= 20) } }
    """
    lines = trace(script, python(RENAMED), buffer=buffer).lines
    assert "true\t0\ttrue\ttrue\ttrue" in lines


def test_the_running_task_by_its_type() -> None:
    script = """
    trace syscalls:sys_enter_getppid {
        var t = curtask
        print(curtask.tgid == pid, t.pid == tid, curtask.comm == execname, ppid == curtask.real_parent.tgid, t.real_parent.tgid)
        print(ppid, in_iowait(), curr_taskinfo("tgid") == pid, curtask.cred.uid.val)
    }
    """
    first, second = trace(script, python("import os; os.getppid()")).lines
    assert first == f"true\ttrue\ttrue\ttrue\t{os.getpid()}"
    assert second == f"{os.getpid()}\tfalse\ttrue\t0"


@pytest.mark.parametrize(
    ("event", "expression", "message", "hint"),
    [
        ("raw:sched_switch", "args.prev.pdi", "`struct task_struct` has no member `pdi`", "did you mean `pid`?"),
        ("raw:sched_switch", "args.prv", "`raw:sched_switch` has no field `prv`", "did you mean `args.prev`?"),
        ("sched:sched_switch", "args.prev_pdi", "`sched:sched_switch` has no field", "did you mean `args.prev_pid`?"),
        ("sched:sched_switch", "curtask.se", "is no value", None),
        ("sched:sched_switch", "curtask.nothing.pid", "`struct task_struct` has no member `nothing`", None),
        ("sched:sched_switch", 'curr_taskinfo("proi")', "has no member `proi`", "did you mean `prio`?"),
        (
            "sched:sched_switch",
            'curr_taskinfo("nothing")',
            "`struct task_struct` has no member `nothing`",
            "it has pid, tgid, comm, prio and many more",
        ),
        (
            "sched:sched_switch",
            "curr_taskinfo(tostring(cpu))",
            "curr_taskinfo: it cannot be told when the event fires which member it reads",
            'write the name as it stands, as in curr_taskinfo("prio")',
        ),
    ],
)
def test_members_that_are_not_there(event: str, expression: str, message: str, hint: str) -> None:
    with pytest.raises(Refusal) as caught:
        trace(f"trace {event} {{ print({expression}) }}", duration_s=0.1)
    (diagnostic,) = caught.value.diagnostics
    assert message in diagnostic.message
    assert hint is None or diagnostic.hint == hint
    assert diagnostic.span is not None and diagnostic.span.column == len(f"trace {event} {{ print(") + 1


def test_all_that_is_wrong_is_told_at_once() -> None:
    script = (
        "trace sched:sched_swich { }\ntrace nothing:* { }\ntrace sched:sched_switch /prev_pdi == 1/ { print(args.x) }"
    )
    with pytest.raises(Refusal) as caught:
        trace(script, duration_s=0.1)
    assert [d.span.line for d in caught.value.diagnostics if d.span] == [1, 2, 3]


PAIR = """
import ctypes, os
libc = ctypes.CDLL(None)
name = ctypes.create_string_buffer(b"hello")
pair = (ctypes.c_uint64 * 2)(77, ctypes.addressof(name))
libc.write(os.open("/dev/null", os.O_WRONLY), pair, 16)
"""


@pytest.mark.parametrize("buffer", TRANSPORTS)
def test_typed_pointers_of_the_process(buffer: str) -> None:
    script = """
    ffi.cdef("struct pair { unsigned long number; char *name; };")
    trace syscalls:sys_enter_write /count == 16/ {
        var p = ffi.cast("struct pair *", arg2)
        print(p.number, p[0].number, user_string(p.name), ffi.cast("unsigned int *", arg2)[1])
    }
    """
    assert trace(script, python(PAIR), buffer=buffer).lines == ["77\t77\thello\t0"]


def test_typed_pointers_of_the_kernel() -> None:
    script = """
    function parent(t) { return ffi.cast("struct task_struct *", t).real_parent }
    trace raw:sched_switch {
        if (args.prev.comm == "a name") { n[parent(args.prev).tgid, ffi.cast("struct task_struct *", arg1).comm] += 1 }
    }
    trace_end { for (p, c, v in pairs(n)) { print(p, c, v >= 20) } }
    """
    assert trace(script, python(RENAMED)).lines == [f"{os.getpid()}\ta name\ttrue"]


CONNECTS = """
import socket
with socket.create_server(("127.0.0.1", 0)) as server:
    client = socket.create_connection(server.getsockname())
    server.accept()[0].close()
    client.close()
"""


@pytest.mark.parametrize("event", ["sock:inet_sock_set_state", "raw:inet_sock_set_state"])
def test_addresses_of_sockets(event: str) -> None:
    argument = "args.skaddr" if event.startswith("sock") else "args.sk"
    script = f"""
    trace {event} {{
        n[net.format_ip_addr(net.ip_sock_saddr({argument})), net.format_ip_addr(net.ip_sock_daddr({argument}))] += 1
    }}
    trace_end {{ print(n["127.0.0.1", "127.0.0.1"] > 1) }}
    """
    assert trace(script, python(CONNECTS)).lines == ["true"]


@pytest.mark.parametrize("buffer", TRANSPORTS)
def test_filters_on_what_is_not_in_ram_are_decided_when_the_call_returns(buffer: str) -> None:
    script = """
    trace syscalls:sys_enter_openat /filename == "/no/such/file"/ { n["is"] += 1 }
    trace syscalls:sys_enter_openat /filename ~ "/no*" && cpu < 4096/ { n["like " .. user_string(arg2)] += 1 }
    trace syscalls:sys_enter_openat /filename == "/no/such/fil"/ { n["never"] += 1 }
    trace syscalls:sys_exit_openat /ret == -2/ { n["failed"] += 1 }
    trace_end { for (k, v in sort_pairs(n)) { print(k, v) } }
    """
    lines = trace(script, python(NOT_IN_RAM), buffer=buffer).lines
    assert lines[1:] == ["is\t3", "like /no/such/file\t3"]


def test_a_tentative_record_is_dropped_when_its_filter_does_not_hold() -> None:
    late = Late({0: Places(3, (), 3, (), 4, False)}, base=1, bits=3)
    entry, given_up = (10, 4, 0, 7), (11, 4, 0, 8)
    assert late.complete([entry, (12, 5 << 3, 0)], 20) == ([], 9)
    assert late.complete([(21, 1 << 3 | 2, 0, 7)], 30) == ([(10, 2, 0, 7), (12, 5 << 3, 0)], 30)
    assert late.complete([(31, 4, 0, 7), (32, 1 << 3, 0, 7)], 40) == ([], 40)
    assert late.complete([(*given_up,)], 50) == ([], 10)
    assert late.complete([], 20_000_100) == ([], 20_000_100)


def test_events_in_interrupts() -> None:
    script = """
    trace syscalls:sys_enter_getppid { n["call", tostring(in_interrupt())] += 1 }
    trace irq:irq_handler_entry, timer:hrtimer_expire_entry { n["interrupt", tostring(in_interrupt())] += 1 }
    trace_end { for (a, b, v in sort_pairs(n)) { print(a, b) } }
    """
    traced = trace(script, python("import os, time; os.getppid(); time.sleep(0.3)"), everyone=True)
    if any("in_interrupt is nil" in notice for notice in traced.notices):
        pytest.skip("this kernel does not tell where its preemption count is")
    assert "call\tfalse" in traced.lines
    assert "interrupt\tfalse" not in traced.lines


@pytest.mark.parametrize("tier", ["vm", "auto"])
def test_in_interrupt_where_the_kernel_does_not_tell(tier: str) -> None:
    script = "trace syscalls:sys_enter_getppid { print(in_interrupt()) }"
    traced = trace(script, python("import os; os.getppid()"), tier=tier)
    told = not any("in_interrupt is nil" in notice for notice in traced.notices)
    assert traced.lines == ["false" if told else "nil"]
