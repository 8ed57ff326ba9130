"""argstr equals what the tracefs `trace` file shows, event by event, while a busy program runs."""

from __future__ import annotations

import difflib
import os
import re
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
from ring_pages import cpu_records
from tracing import TRANSPORTS, python, trace

from ktap import kernel, syscalls
from ktap.child import Child
from ktap.event_format import EventFormat
from ktap.print_format import event_text
from ktap.symbols import LiveNames
from ktap.tracefs import find

pytestmark = pytest.mark.live

PROGRAM = str(Path(__file__).parent.parent / "busy_program.py")
HEADER = re.compile(rb"^ *(?P<task>.{16,}?)-(?P<tid>\d+) +\[(?P<cpu>\d+)\] \S+ +(?P<time>\d+\.\d+): ", re.M)
"""The columns before the text of an event: TASK-PID CPU# flags TIMESTAMP."""
BUFFER_KB = 16384
GROUPS = (
    ("syscalls",),
    ("sched", "signal", "task", "timer", "irq", "workqueue", "rcu", "alarmtimer", "tlb", "ipi", "power", "cpuhp"),
    ("net", "sock", "tcp", "udp", "skb", "napi", "qdisc", "neigh", "fib", "fib6", "icmp", "netlink", "page_pool"),
    ("ext4", "jbd2", "block", "writeback", "filemap", "filelock", "iomap", "readahead", "wbt", "percpu", "xfs"),
    ("exceptions", "mmap", "mmap_lock", "vmscan", "migrate", "compaction", "cgroup", "pagemap", "huge_memory"),
    ("kmem", "maple_tree", "context_tracking", "raw_syscalls", "capability", "irq_vectors", "x86_fpu"),
)


class Instance:
    """A private tracefs instance."""

    def __init__(self, root: str) -> None:
        self.root = root

    def write(self, path: str, text: str) -> None:
        (Path(self.root) / path).write_text(text)

    def read(self, cpu: int) -> bytes:
        return (Path(self.root) / f"per_cpu/cpu{cpu}/trace").read_bytes()


@contextmanager
def instance() -> Iterator[Instance]:
    path = Path(find().root) / "instances" / f"ktap_test_{os.getpid()}"
    path.mkdir()
    try:
        made = Instance(str(path))
        made.write("buffer_size_kb", str(BUFFER_KB))
        made.write("options/overwrite", "0")
        yield made
    finally:
        made.write("events/enable", "0")
        path.rmdir()


class Shown(NamedTuple):
    """An event of a `trace` file."""

    time: float
    tid: int
    text: bytes


def texts(shown: bytes) -> list[Shown]:
    """Every event of a `trace` file; a text may have several lines."""
    heads = list(HEADER.finditer(shown))
    ends = [head.start() for head in heads[1:]] + [len(shown)]
    return [Shown(float(head["time"]), int(head["tid"]), shown[head.end() : end - 1]) for head, end in zip(heads, ends)]


def formats() -> dict[int, EventFormat]:
    mounted = find()
    found = (mounted.format(name) for name in mounted.names())
    return {event.id: event for event in found if event.field("__probe_ip") is None}


@pytest.mark.parametrize("groups", GROUPS, ids=lambda groups: groups[0])
def test_texts_of_raw_records(groups: tuple[str, ...], tmp_path: Path) -> None:
    """The same records, decoded from the instance's own buffers and as its `trace` files show them."""
    known, there = formats(), {name.group for name in find().names()}
    with instance() as made:
        for group in there.intersection(groups):
            made.write(f"events/{group}/enable", "1")
        subprocess.run([sys.executable, PROGRAM, str(tmp_path)], check=True)
        made.write("tracing_on", "0")
        shown = {cpu: texts(made.read(cpu)) for cpu in kernel.online_cpus()}
        raw = {cpu: cpu_records(made.root, cpu) for cpu in kernel.online_cpus()}
    names, release = LiveNames(lambda: find().root), os.uname().release
    made_texts = {number: event_text(event, names, release) for number, event in known.items() if event.group in groups}
    compared: Counter[str] = Counter()
    for cpu in shown:
        assert len(shown[cpu]) == len(raw[cpu])
        for expected, record in zip(shown[cpu], raw[cpu]):
            number = int.from_bytes(record[:2], sys.byteorder)
            text = made_texts[number]
            if known[number].is_syscall:
                called = int.from_bytes(record[8:12], sys.byteorder)
                assert syscalls.event_number(os.uname().machine, known[number].name) == called
            if text.fallback is None:
                assert text.show(record) == expected.text
                compared[known[number].name] += 1
    assert compared


FALLBACKS = {
    "jiffies_to_msecs()",
    "mc_event_error_type()",
    "`jiffies`",
    "`char` where `}` is due",  # statement expressions with tables of names (kvmmmu)
}


def test_texts_of_all_formats_compile() -> None:
    """What is shown as name=value pairs is counted: few events, for known reasons."""
    names, release = LiveNames(lambda: find().root), os.uname().release
    reasons = Counter(event_text(event, names, release).fallback for event in formats().values())
    compiled = reasons.pop(None)
    assert set(reasons) <= FALLBACKS
    assert sum(reasons.values()) <= 30 < compiled


EVENTS = """
syscalls:*
sched:sched_process_exec sched:sched_process_fork sched:sched_process_exit sched:sched_process_wait sched:sched_waking
sched:sched_process_free sched:sched_wakeup_new
signal:* task:* timer:timer_start timer:timer_cancel timer:hrtimer_start timer:itimer_state
sock:* tcp:* net:netif_rx net:net_dev_queue net:net_dev_xmit net:net_dev_start_xmit skb:consume_skb
skb:kfree_skb skb:skb_copy_datagram_iovec udp:*
kmem:mm_page_alloc kmem:rss_stat filemap:mm_filemap_add_to_page_cache exceptions:page_fault_user
ext4:ext4_da_write_begin ext4:ext4_sync_file_enter ext4:ext4_request_inode ext4:ext4_unlink_enter
writeback:writeback_dirty_folio writeback:writeback_mark_inode_dirty filelock:posix_lock_inode filelock:flock_lock_inode
workqueue:workqueue_queue_work percpu:percpu_alloc_percpu mmap:vm_unmapped_area
"""


def test_argstr_beside_an_instance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each thread of the program gives the same texts to ktap and to the instance, in the same order.

    The order is that of one event: an interrupt between the two captures of an event fires others, and
    what fires while a capture program runs is not seen by ktap, which counts it.
    """
    mounted, started = find(), Child.start
    names = [name for event in EVENTS.split() for name in mounted.match(event)]
    with instance() as made:

        def start(child: Child) -> None:
            made.write("set_event_pid", str(child.pid))
            made.write("tracing_on", "1")
            started(child)

        made.write("tracing_on", "0")
        made.write("trace_clock", "mono")
        made.write("options/event-fork", "1")
        for name in names:
            made.write(f"events/{name.group}/{name.name}/enable", "1")
        monkeypatch.setattr(Child, "start", start)
        script = f"trace {', '.join(map(str, names))} {{ print(tid, probename, argstr) }}"
        traced = trace(script, [sys.executable, PROGRAM, str(tmp_path)])
        made.write("tracing_on", "0")
        events = [event for cpu in kernel.online_cpus() for event in texts(made.read(cpu))]
    shown = sorted(events, key=lambda event: event.time)
    lost = {loss.where.rpartition(":")[2] for loss in traced.losses}
    mine: dict[tuple[int, str], list[bytes]] = defaultdict(list)
    for line in traced.lines:
        tid, name, text = line.split("\t", 2)
        assert name_of(text.encode()) == name
        mine[int(tid), name].append(text.encode())
    theirs: dict[tuple[int, str], list[bytes]] = defaultdict(list)
    for event in shown:
        theirs[event.tid, name_of(event.text)].append(event.text)
    same = set()
    for (tid, name), own in mine.items():
        if name not in lost:
            if own != theirs[tid, name]:
                pytest.fail("\n".join(difflib.unified_diff(lines(own), lines(theirs[tid, name]), "ktap", "trace")))
            same.add(name)
    assert len(same) >= 100
    assert len([name for name in same if not name.startswith("sys_")]) >= 40


def name_of(text: bytes) -> str:
    """The event a text is of: `sys_read(…)`, `sys_read -> 0x0`, or its name before a colon."""
    call = re.match(rb"sys_(\w+)(\(| -> )", text)
    if call is None:
        return text.partition(b":")[0].decode()
    return f"sys_{'enter' if call[2] == b'(' else 'exit'}_{call[1].decode()}"


def lines(found: list[bytes]) -> list[str]:
    return [text.decode("utf-8", "replace") for text in found]


@pytest.mark.parametrize("buffer", TRANSPORTS)
def test_handlers_in_the_kernel_print_what_those_outside_print(buffer: str) -> None:
    """Of system calls, whose records are of one size, and of events with strings, behind one string and two others."""
    script = """
        trace syscalls:sys_enter_lseek, syscalls:sys_exit_lseek { print(argstr) }
        trace syscalls:sys_enter_lseek { printf("%s %s %s %s\\n", probename, execname .. args.fd, argstr, argstr) }
        trace sched:sched_process_exec { print(args.filename, argstr, execname) }
    """
    code = "import os\nfor place in range(3): os.lseek(0, place, 0)\nos.execv('/bin/true', ['true'])"
    outputs = []
    for tier in ("vm", "kernel" if buffer == "ring" else "auto"):  # a perf buffer's records may take too much stack
        traced = trace(script, python(code), tier=tier, buffer=buffer)
        assert not traced.losses and not traced.faults
        outputs.append([re.sub(r"pid=\d+", "pid=N", line) for line in traced.lines if "0x7f" not in line])
    assert len(outputs[0]) > 9
    assert outputs[0] == outputs[1]
