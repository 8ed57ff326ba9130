"""Tasks as the kernel tells of them beside the events: names, processes, parents, and which are followed.

A snapshot of /proc says what is there when tracing begins; then PERF_RECORD_COMM, FORK and EXIT, applied in
order of time between the events, keep it true: an event is given the name that its task had when it fired.
What these do not tell (that the parent is another one since the first has ended) is not known: None.

Source: linux/perf_event.h; kernel/events/core.c for what FORK and EXIT say of parents; fs/proc/array.c.
"""

from __future__ import annotations

import os
import re
from struct import Struct
from typing import Dict, Iterable, Optional, Set, Tuple

from vm.named_tuple import NamedTuple

COMM, EXIT, FORK = 3, 4, 7
"""Kinds of records (PERF_RECORD_*)."""
TASK = Struct("=IIIIQ").unpack_from
"""Of FORK and EXIT, behind the header: process, parent, thread, parent's thread, time."""
NAMED = Struct("=II").unpack_from
TAIL = Struct("=IIQIIQ")
"""Behind every such record, of ktap.perf_event.ALWAYS: process, thread, time, processor, nothing, number."""
NAME_BYTES = 16
GONE = 0xFFFFFFFF
"""The number of a task that is no longer one."""
WORKER = re.compile(rb"(kworker/u?\d+:\d+H?)[+-].*", re.S)
"""What /proc adds to the names of workers: what they work on."""
MOST_TASKS = 1 << 16
"""So many that have ended are remembered."""


class Change(NamedTuple):
    """One record."""

    time_ns: int
    kind: int
    pid: int
    tid: int
    maker: int
    """The process that forked."""
    making: int
    """Its thread that did."""
    name: bytes


def read_change(kind: int, data: memoryview, at: int) -> Optional[Change]:
    """A record of a ring; None for what says nothing of tasks."""
    size = int.from_bytes(data[at + 6 : at + 8], "little")
    if kind in (FORK, EXIT):
        pid, maker, tid, making, time_ns = TASK(data, at + 8)
        return Change(time_ns, kind, pid, tid, maker, making, b"")
    if kind != COMM:
        return None
    pid, tid = NAMED(data, at + 8)
    end = at + size - TAIL.size
    _, _, time_ns, _, _, _ = TAIL.unpack_from(data, end)
    name = bytes(data[at + 16 : end]).partition(b"\0")[0]
    return Change(time_ns, kind, pid, tid, 0, 0, name)


class NewTask(NamedTuple):
    """Where the record of `task:task_newtask` has the process and the flags."""

    pid: int
    flags: int
    size: int


class Tasks:
    """What is known at the time of the event that comes next."""

    def __init__(self, followed: Iterable[int]) -> None:
        """`followed`: processes that are traced with all they start; none for everything."""
        self.followed: Optional[Set[int]] = set(followed) or None
        self._names: Dict[int, bytes] = {}
        self._processes: Dict[int, int] = {}
        self._parents: Dict[int, Optional[int]] = {}
        self._children: Dict[int, Set[int]] = {}
        self._threads: Dict[int, int] = {}
        """Threads of a process that have not ended."""
        self._gone: Dict[int, None] = {}
        """Tasks that have ended, the first one first: events may still come from them."""
        self._since_ns = 0

    # -- asked by events --------------------------------------------------------------------------

    def name(self, tid: int, cpu: int) -> Optional[bytes]:
        """The name of a task."""
        return self._names.get(tid) if tid else b"swapper/%d" % cpu

    def process(self, tid: int) -> Optional[int]:
        """The process of a thread."""
        return self._processes.get(tid) if tid else 0

    def parent(self, pid: int) -> Optional[int]:
        """The parent of a process."""
        return self._parents.get(pid) if pid else 0

    def follows(self, pid: int) -> bool:
        """Whether a process is traced."""
        return self.followed is None or pid in self.followed

    # -- kept -------------------------------------------------------------------------------------

    def snapshot(self, now_ns: int) -> None:
        """Read /proc. Changes up to now are in it."""
        for process in os.listdir("/proc"):
            if process.isdigit():
                self._read_process(int(process))
        self._since_ns = now_ns

    def _read_process(self, pid: int) -> None:
        try:
            tids = [int(name) for name in os.listdir(f"/proc/{pid}/task")]
        except OSError:
            return  # it has ended
        for tid in tids:
            found = read_stat(f"/proc/{pid}/task/{tid}/stat")
            if found is not None:
                self._names[tid], parent = found
                self._begin(pid, tid, parent)

    def _begin(self, pid: int, tid: int, parent: Optional[int]) -> None:
        self._processes[tid] = pid
        self._gone.pop(tid, None)
        if pid == tid or pid not in self._parents:
            self._parents[pid] = parent
            if parent is not None:
                self._children.setdefault(parent, set()).add(pid)
        self._threads[pid] = self._threads.get(pid, 0) + 1

    def forget(self) -> None:
        """Some changes were lost: names and parents are not known until they change again."""
        self._names.clear()
        self._processes.clear()
        self._parents.clear()
        self._children.clear()
        self._threads.clear()

    def apply(self, change: Change) -> None:
        """Take in a change, in order of time."""
        before = change.time_ns <= self._since_ns
        if change.kind == COMM:
            if not before or change.tid not in self._names:
                self._names[change.tid] = change.name
        elif change.kind == EXIT:
            if not before or change.tid in self._processes:
                self._ended(change)
        elif not before or change.tid not in self._processes:
            self._forked(change)

    def _forked(self, change: Change) -> None:
        pid, tid, maker = change.pid, change.tid, change.maker
        name = self._names.get(change.making)
        if name is None:
            self._names.pop(tid, None)
        else:
            self._names[tid] = name
        if pid != tid:
            self._begin(pid, tid, self._parents.get(pid))
            return
        self._threads.pop(pid, None)
        self._begin(pid, tid, maker)
        if self.followed is not None:
            if maker in self.followed:
                self.followed.add(pid)
            else:
                self.followed.discard(pid)  # its number was another's before

    def made_beside(self, pid: int, maker: int) -> None:
        """A process that was made with CLONE_PARENT has its maker's parent."""
        self._begin(pid, pid, self._parents.get(maker))
        self._threads[pid] = 1

    def _ended(self, change: Change) -> None:
        pid, tid = change.pid, change.tid
        left = self._threads.get(pid, 1) - 1
        self._threads[pid] = left
        self._gone[tid] = None
        if left <= 0:
            for child in self._children.pop(pid, ()):
                if self._parents.get(child) == pid:
                    self._parents[child] = None
        while len(self._gone) > MOST_TASKS:
            self._remove(next(iter(self._gone)))

    def _remove(self, tid: int) -> None:
        del self._gone[tid]
        self._names.pop(tid, None)
        pid = self._processes.pop(tid, tid)
        if pid == tid:
            self._threads.pop(pid, None)
            parent = self._parents.pop(pid, None)
            if parent is not None:
                self._children.get(parent, set()).discard(pid)


def read_stat(path: str) -> Optional[Tuple[bytes, int]]:
    """The name of a task and the process that is its parent, as a `stat` file of /proc has them; None where it is gone."""
    try:
        with open(path, "rb") as file:
            data = file.read()
    except OSError:
        return None
    end = data.rfind(b")")
    name = data[data.index(b"(") + 1 : end]
    worker = WORKER.fullmatch(name)
    return (worker[1] if worker else name)[: NAME_BYTES - 1], int(data[end + 2 :].split()[1])
