"""Following processes: a set of them in the kernel, kept there by programs at fork and exit.

A child is in the set before it runs for the first time, because the program at `sched_process_fork`
runs in its parent before it is woken; so nothing of it is missed.
"""

from __future__ import annotations

import os
import struct
from typing import List, Sequence

from compiler.bpf import MapFd, compile_program, link
from ktap import kernel, libbcc
from ktap.ir import Writer

MOST_PROCESSES = 65_536


class Follower:
    """A set of processes and their descendants. Raises OSError."""

    def __init__(self, pids: Sequence[int]) -> None:
        library = libbcc.library()
        self.map_fd = library.create_map(kernel.HASH, "ktap_followed", 4, 1, MOST_PROCESSES)
        self._fds: List[int] = []
        for pid in pids:
            self.add(pid)
        raise NotImplementedError

    def add(self, pid: int) -> None:
        kernel.update(self.map_fd, struct.pack("=I", pid), b"\1")

    def close(self) -> None:
        for fd in (*self._fds, self.map_fd):
            os.close(fd)
