"""Following processes: a set of them in the kernel, kept there by programs at fork and exit.

A child is in the set before it runs for the first time: the program at `sched_process_fork` runs in
its parent before the child is woken. It leaves at `sched_process_free`, behind its last event. Threads
are put in the set too, under their own numbers, which are no process's while they live.
"""

from __future__ import annotations

import os
import struct
from typing import Callable, List, Sequence

from compiler.bpf import MapFd, link
from compiler.ir import Writer
from ktap import kernel
from ktap.capture import PASSED_ON
from ktap.code_cache import compiled
from ktap.event_format import EventFormat

MOST_TASKS = 65_536
FOLLOWED = "followed"
FORK, FREE = "sched_process_fork", "sched_process_free"


class Follower:
    """A set of processes and their descendants: the map `map_fd`, from process to one byte."""

    def __init__(self, pids: Sequence[int], format_of: Callable[[str], EventFormat]) -> None:
        """`format_of` gives the format of `sched:NAME`. Raises OSError, and Refusal where there is no such event."""
        self.map_fd = kernel.create_map(kernel.HASH, "ktap_followed", 4, 1, MOST_TASKS)
        self._fds: List[int] = []
        try:
            for name, make, field in ((FORK, fork_ir, "child_pid"), (FREE, free_ir, "pid")):
                event = format_of(name)
                offset = next(f.offset for f in event.fields if f.name == field)
                code = compiled(make(offset), kernel.instruction_set())
                instructions = link(code, {FOLLOWED: MapFd(self.map_fd)})
                self._fds.append(kernel.load(kernel.TRACEPOINT, instructions, name=f"ktap_{name}"))
                counter = kernel.Counter(kernel.TYPE_TRACEPOINT, event.id, 1, flags=kernel.FLAG_DISABLED)
                self._fds.append(kernel.open_perf_event(counter, kernel.online_cpus()[0], what=f"sched:{name}"))
                kernel.set_program(self._fds[-1], self._fds[-2])  # which runs although the event counts nothing
            for pid in pids:
                kernel.update(self.map_fd, struct.pack("=I", pid), b"\1")
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Stop following. Safe to call twice."""
        for fd in (*reversed(self._fds), self.map_fd):
            if fd >= 0:
                os.close(fd)
        self._fds, self.map_fd = [], -1


def fork_ir(child_offset: int) -> str:
    """A program that puts the child in the set when its parent is there."""
    w = Writer()
    w.result = PASSED_ON
    parent = w.local(4)
    pair = w.call("get_current_pid_tgid")
    w.store(4, w.narrowed(w.value(f"lshr i64 {pair}, 32"), 4), parent)
    w.lookup(FOLLOWED, parent)
    child, value = w.local(4), w.local(1)
    w.store(4, w.load(4, "%ctx", child_offset), child)
    w.store(1, 1, value)
    w.call("map_update", w.reference(FOLLOWED), child, value, 0)
    w.goto("out")
    return w.text()


def free_ir(pid_offset: int) -> str:
    """A program that takes a task that is gone out of the set."""
    w = Writer()
    w.result = PASSED_ON
    task = w.local(4)
    w.store(4, w.load(4, "%ctx", pid_offset), task)
    w.call("map_delete", w.reference(FOLLOWED), task)
    w.goto("out")
    return w.text()
