"""A process beside ktap that opens probes on code and lets go of them.

Whoever opens or closes a probe on a file has the kernel write to the memory of every process that has mapped it. For a
process that is being killed the kernel does not (mm/gup.c: a fatal signal ends it), so what was to be removed stays:
`failed to unregister, leaking uprobe`, says kernel/events/uprobes.c, and the programs that were probed go on trapping
for nobody. So this is done by a process that nobody kills: it has a name of its own, which no `pkill -9 ktap` finds. It
reads a socket that ends when ktap ends, however it ends; then it closes what it keeps, and does what else there is to do.

    keeper = Keeper({"open": open_it}, at_end)
    fd = keeper.call("open", (path, offset))    # open_it(path, offset): ktap's own descriptor of what the keeper keeps
    keeper.let_go()                             # it keeps nothing any more
    keeper.close()

A message is its kind and length (FRAME), with file descriptors beside, and then its values as `marshal` writes them.
"""

from __future__ import annotations

import marshal
import os
import resource
import signal
import socket
import struct
from contextlib import suppress
from typing import Callable, List, Mapping, NoReturn, Sequence, Tuple, Union

FRAME = struct.Struct("=cI")
CALL, LET_GO, DONE, WELL, WRONG = b"c", b"l", b"d", b"w", b"e"
"""Kinds of messages: a function to be called, files to be closed, the end of the work; and answers."""
MOST_FILES = 8
"""Beside one message."""
NAME = "probe-keeper"
"""What others see it as, in its command line, too."""
ARG_START, ARG_END = 45, 46
"""Where its command line is: fields of /proc/PID/stat behind the name (Documentation/filesystems/proc.rst)."""
GONE = "the process that keeps ktap's probes has been ended"

Value = Union[int, str, bytes, Tuple[int, ...]]
Call = Callable[..., int]
"""Opens something, given the descriptors beside the message and then its values. Raises OSError."""


class Keeper:
    """See above. `calls` are the functions that it may be asked to call, `at_end` is what it does when ktap has ended.

    `number` tells its own number, as those know it who are to leave out what it does.
    """

    def __init__(
        self,
        calls: Mapping[str, Call],
        at_end: Callable[[], None] = lambda: None,
        number: Callable[[], int] = os.getpid,
    ) -> None:
        theirs, self._link = socket.socketpair()
        self._pid = os.fork()
        if self._pid == 0:
            _keep(theirs, calls, at_end, number)
        theirs.close()
        self.number: int = marshal.loads(_received(self._link)[1] or marshal.dumps(self._pid))

    def call(self, name: str, values: Tuple[Value, ...], fds: Sequence[int] = ()) -> int:
        """Have it call a function and keep what that opens; a descriptor of the same here. Raises OSError."""
        data = marshal.dumps((name, values))
        try:
            _send(self._link, CALL, data, fds)
            kind, answer, files = _received(self._link)
        except BrokenPipeError:
            kind, answer, files = b"", b"", []
        if kind == WELL:
            os.set_inheritable(files[0], False)
            return files[0]
        raise OSError(*(marshal.loads(answer) if kind == WRONG else (None, GONE)))

    def let_go(self) -> None:
        """Return when it has closed what it keeps. What this process has of it is to be closed before."""
        with suppress(OSError):  # it may have been killed
            _send(self._link, LET_GO)
            _received(self._link)

    def close(self) -> None:
        """End it. It keeps nothing any more, or closes it now."""
        with suppress(OSError):
            _send(self._link, DONE)
        self._link.close()
        os.waitpid(self._pid, 0)


def _keep(
    link: socket.socket, calls: Mapping[str, Call], at_end: Callable[[], None], number: Callable[[], int]
) -> NoReturn:
    """In the forked process: serve until the socket ends or the work is done."""
    try:
        os.setsid()
        for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM, signal.SIGPIPE):
            signal.signal(ignored, signal.SIG_IGN)
        _take_name()
        null = os.open(os.devnull, os.O_RDWR)
        for standard in (0, 1, 2):
            os.dup2(null, standard)
        kept = os.dup2(link.fileno(), 3)
        os.closerange(kept + 1, os.sysconf("SC_OPEN_MAX"))
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        held: List[int] = []
        with socket.socket(fileno=kept) as ours:
            with suppress(OSError):  # where ktap has gone already, the next message is the end
                _send(ours, WELL, marshal.dumps(number()))
            kind = _served(ours, calls, held)
            while kind in (CALL, LET_GO):
                kind = _served(ours, calls, held)
        _close_all(held)
        if kind != DONE:
            at_end()
    finally:
        os._exit(0)


def _take_name() -> None:
    """Be called NAME."""
    with open("/proc/self/comm", "w") as comm:
        comm.write(NAME)
    with open("/proc/self/stat") as stat:
        fields = stat.read().rpartition(")")[2].split()
    start, end = int(fields[ARG_START]), int(fields[ARG_END])
    with suppress(OSError), open("/proc/self/mem", "r+b", buffering=0) as memory:  # containers may forbid it
        memory.seek(start)
        memory.write(NAME.encode().ljust(end - start, b"\0")[: end - start])


def _served(link: socket.socket, calls: Mapping[str, Call], held: List[int]) -> bytes:
    """Do what one message asks; its kind, empty at the end."""
    kind, data, files = _received(link)
    with suppress(BrokenPipeError, ConnectionResetError):  # the next message is then the end
        if kind == LET_GO:
            _close_all(held)
            _send(link, WELL)
        elif kind == CALL:
            name, values = marshal.loads(data)
            try:
                held.append(calls[name](*files, *values))
            except OSError as error:
                _send(link, WRONG, marshal.dumps((error.errno, error.strerror, error.filename)))
            else:
                _send(link, WELL, b"", held[-1:])
    _close_all(files)
    return kind


def _close_all(files: List[int]) -> None:
    for file in files:
        os.close(file)
    files.clear()


def _send(link: socket.socket, kind: bytes, data: bytes = b"", fds: Sequence[int] = ()) -> None:
    socket.send_fds(link, [FRAME.pack(kind, len(data))], list(fds))
    link.sendall(data)


def _received(link: socket.socket) -> Tuple[bytes, bytes, List[int]]:
    """The kind of the next message, what it says and the files beside it; nothing where the other end has gone."""
    try:
        head, files, _, _ = socket.recv_fds(link, FRAME.size, MOST_FILES)
        head += _bytes(link, FRAME.size - len(head)) if head else b""
        if len(head) < FRAME.size:
            return b"", b"", files
        kind, length = FRAME.unpack(head)
        return kind, _bytes(link, length), files
    except ConnectionResetError:
        return b"", b"", []


def _bytes(link: socket.socket, count: int) -> bytes:
    """So many bytes, or fewer where the other end has gone."""
    parts: List[bytes] = []
    while count:
        part = link.recv(count)
        if not part:
            break
        parts.append(part)
        count -= len(part)
    return b"".join(parts)
