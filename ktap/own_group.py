"""Definitions of events in the kernel (uprobe_events, kprobe_events, dynamic_events of tracefs), in a group of ktap's own.

Unlike file descriptors they outlive the process that made them. So a small process watches over them: it reads
a socket that ends when ktap ends, however it ends, and then removes the group. It also keeps the perf events of
places in code: a process that is killed cannot let go of them well, for the kernel gives up waiting for the memory
of others (`failed to unregister, leaking uprobe`, says Linux 6.18) and leaves the breakpoints there.

What a run could leave behind all the same (that process killed, too) is removed by the next run that defines
something: the group's name says whose it is.

Source: Documentation/trace/uprobetracer.rst, kprobetrace.rst, eprobetrace.rst.
"""

from __future__ import annotations

import errno
import os
import re
import signal
import socket
import time
from contextlib import suppress
from typing import Dict, List, NoReturn, Optional, Sequence, Tuple

FILES = ("uprobe_events", "kprobe_events", "dynamic_events")
GROUP = re.compile(r"\bktap_(\d+)_(\d+)\b")
DEFINITION = re.compile(r"^\w+:([\w]+)/([\w]+)", re.M)
REMOVING_S = 20.0
"""So long it is tried to remove what is still in use."""
RETRY_S = 0.02
HELD, LET_GO, DONE = b"h", b"l", b"d"
"""Messages: files to keep, files to close, the end of the work."""
MOST_FILES = 200
"""In one message (SCM_MAX_FD is 253)."""
AT_ONCE = 20
"""So many lines are written to the kernel in one go; it takes a page."""


class OwnGroup:
    """The group of this process, below a root of tracefs. Nothing is made before the first definition."""

    def __init__(self, root: str) -> None:
        self.name = group_of(os.getpid())
        self._root = root
        self._guard: Optional[Tuple[int, socket.socket]] = None
        """The process that watches, and the socket to it."""
        self._count = 0

    def define(self, file: str, head: str, places: Sequence[str]) -> str:
        """Define an event; its name. `head` is `p`, `r` or `e`; a place has its arguments behind it, and all are one event.

        Raises OSError that says what the kernel did not take.
        """
        self.guard()
        name = f"e{self._count}"
        self._count += 1
        path = os.path.join(self._root, file)
        lines = [f"{head}:{self.name}/{name} {place}" for place in places]
        done = 0
        while done < len(lines):
            some = lines[done : done + AT_ONCE]
            try:
                write(path, "\n".join(some))
            except OSError as error:
                raise OSError(error.errno, f"{error.strerror}{self._why()}", some[0].split(None, 1)[1]) from error
            done += len(some)
        return name

    def guard(self) -> None:
        """Have somebody watch over the group, and remove what others have left."""
        if self._guard is None:
            sweep(self._root)
            self._guard = watched(self._root, self.name)

    def _why(self) -> str:
        """What the kernel says was wrong with the last definition."""
        with suppress(OSError):
            with open(os.path.join(self._root, "error_log"), errors="replace") as file:
                last = file.read().rpartition("error: ")[2].partition("\n")[0].strip()
            return f" ({last})" if last else ""
        return ""

    def directory(self, name: str) -> str:
        """The directory of an event."""
        return os.path.join(self._root, "events", self.name, name)

    def hold(self, fds: Sequence[int]) -> None:
        """Have the process that watches keep files open, too, until this one has closed them."""
        self.guard()
        assert self._guard is not None
        for first in range(0, len(fds), MOST_FILES):
            socket.send_fds(self._guard[1], [HELD], list(fds[first : first + MOST_FILES]))
            self._guard[1].recv(1)

    def close(self) -> None:
        """Remove everything. Safe to call twice."""
        if self._guard is not None:
            pid, link = self._guard
            self._guard = None
            with suppress(OSError):  # it may have been killed
                link.send(LET_GO)
                link.recv(1)
            remove(self._root, self.name)
            with suppress(OSError):
                link.send(DONE)
            link.close()
            os.waitpid(pid, 0)


def write(path: str, text: str) -> None:
    """Append a line to a file of tracefs. Raises OSError."""
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
    try:
        os.write(file, text.encode("utf-8", "surrogateescape") + b"\n")
    finally:
        os.close(file)


def group_of(pid: int) -> str:
    """The name of a process's group: no other process ever has the same number and start."""
    return f"ktap_{pid}_{started(pid)}"


def started(pid: int) -> int:
    """When a process started, in ticks since boot. Raises OSError where there is none."""
    with open(f"/proc/{pid}/stat", "rb") as file:
        data = file.read()
    return int(data[data.rfind(b")") + 2 :].split()[19])


def definitions(root: str) -> Dict[str, List[Tuple[str, str]]]:
    """The events of all groups of ktap's: by group, each with the file it is defined in."""
    found: Dict[str, List[Tuple[str, str]]] = {}
    for file in FILES:
        try:
            with open(os.path.join(root, file), errors="replace") as opened:
                text = opened.read()
        except OSError:
            continue
        for group, name in DEFINITION.findall(text):
            if GROUP.fullmatch(group) and all(name != other for other, _ in found.get(group, ())):
                found.setdefault(group, []).append((name, file))
    return found


def remove(root: str, group: str) -> None:
    """Remove a group's instance and events; what is in use is tried again for a while."""
    end = time.monotonic() + REMOVING_S
    instance = os.path.join(root, "instances", group)
    while True:
        with suppress(FileNotFoundError):
            try:
                os.rmdir(instance)
            except OSError as error:
                if error.errno != errno.EBUSY:
                    raise
        left = definitions(root).get(group, [])
        for name, file in left:
            with suppress(OSError):
                write(os.path.join(root, file), f"-:{group}/{name}")
        if (not left and not os.path.exists(instance)) or time.monotonic() > end:
            return
        if definitions(root).get(group) or os.path.exists(instance):
            time.sleep(RETRY_S)


def sweep(root: str) -> None:
    """Remove the groups of processes that are no more."""
    groups = set(definitions(root))
    with suppress(OSError):
        groups |= {name for name in os.listdir(os.path.join(root, "instances")) if GROUP.fullmatch(name)}
    for group in groups:
        match = GROUP.fullmatch(group)
        assert match is not None
        try:
            alive = started(int(match[1])) == int(match[2])
        except OSError:
            alive = False
        if not alive:
            with suppress(OSError):
                remove(root, group)


def watched(root: str, group: str) -> Tuple[int, socket.socket]:
    """Start the process that removes a group when this one has ended; its number, and the socket to it."""
    theirs, link = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid == 0:
        _watch(theirs, root, group)
    theirs.close()
    return pid, link


def _watch(link: socket.socket, root: str, group: str) -> NoReturn:
    """Wait until the socket ends; then let go of what is held and remove the group, unless nothing is left to do."""
    try:
        os.setsid()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM, signal.SIGPIPE):
            signal.signal(number, signal.SIG_IGN)
        null = os.open(os.devnull, os.O_RDWR)
        for standard in (0, 1, 2):
            os.dup2(null, standard)
        kept = os.dup2(link.fileno(), 3)
        os.closerange(kept + 1, os.sysconf("SC_OPEN_MAX"))
        held: List[int] = []
        with socket.socket(fileno=kept) as ours:
            word = _answered(ours, held)
            while word in (HELD, LET_GO):
                word = _answered(ours, held)
        if word != DONE:
            _close_all(held)
            remove(root, group)
    finally:
        os._exit(0)


def _answered(link: socket.socket, held: List[int]) -> bytes:
    """Do what one message asks; the message, empty at the end."""
    word, fds, _, _ = socket.recv_fds(link, 1, MOST_FILES)
    held += fds
    if word == LET_GO:
        _close_all(held)
    if word in (HELD, LET_GO):
        with suppress(OSError):
            link.send(word)
    return word


def _close_all(held: List[int]) -> None:
    for file in held:
        os.close(file)
    held.clear()
