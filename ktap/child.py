"""The command behind `--`: started before the probes are set, held until they are live."""

from __future__ import annotations

import os
import signal
import time
from typing import Callable, NoReturn, Optional, Sequence

from ktap.options import refuse

PR_SET_PDEATHSIG = 1
"""prctl(2): the signal a process gets when its parent ends, however it ends."""
PATIENCE_S = 1.0
"""How long a command that was asked to end may take before it is killed."""


class Child:
    """A forked process that waits for `start` and then becomes the command."""

    def __init__(self, command: Sequence[str]) -> None:
        """Fork. Raises Refusal (status 2) when there is no such program."""
        self.command = tuple(command)
        self.status: Optional[int] = None
        """How it ended, as waitpid(2) tells."""
        self._waits = False
        program = find_program(command[0])
        prctl = _prctl()
        self._failure, failure = os.pipe()
        go, self._go = os.pipe()
        parent = os.getpid()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._go)  # so that the end of ktap is an end of file
            prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
            _become(program, self.command, parent, go, failure)
        os.close(go)
        os.close(failure)

    def held(self) -> int:
        """Its process id, once it waits for `start`: nothing that it did before can be taken for the command's."""
        if not self._waits:
            self._waits = True
            os.read(self._failure, 1)
        return self.pid

    def start(self) -> None:
        """Let it run. Raises Refusal (status 2) when the kernel does not take the program."""
        self.held()
        os.write(self._go, b"g")
        os.close(self._go)
        number = os.read(self._failure, 8)
        os.close(self._failure)
        if number:
            raise refuse(f"cannot run {self.command[0]}: {os.strerror(int(number))}")

    def ended(self) -> bool:
        """Whether it has ended."""
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.status = status
        return self.status is not None

    def stop(self) -> None:
        """End it, if it has not ended: by asking, then by force."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            if self.ended():
                return
            os.kill(self.pid, number)
            deadline = time.monotonic() + PATIENCE_S
            while not self.ended() and time.monotonic() < deadline:
                time.sleep(0.005)


def find_program(name: str) -> str:
    """The path of a program, looked up as a shell would. Raises Refusal (status 2)."""
    places = [""] if "/" in name else [f"{place}/" for place in os.get_exec_path()]
    for place in places:
        path = place + name
        if os.path.isfile(path) and os.access(path, os.X_OK):
            return path
    hint = "it is no program that may be run" if os.path.exists(name) and "/" in name else "no such program"
    raise refuse(f"cannot run {name}", hint)


def _prctl() -> Callable[[int, int], int]:
    """prctl(2), looked up before the fork."""
    import ctypes

    prctl: Callable[[int, int], int] = ctypes.CDLL(None).prctl
    return prctl


def _become(program: str, command: tuple[str, ...], parent: int, go: int, failure: int) -> NoReturn:
    """In the forked process: wait for the word, then become the command."""
    try:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE, signal.SIGXFSZ):
            signal.signal(number, signal.SIG_DFL)
        if os.getppid() != parent:
            os._exit(0)
        os.write(failure, b".")
        if not os.read(go, 1):
            os._exit(0)
        os.execv(program, command)
    except OSError as error:
        os.write(failure, str(error.errno).encode())
    finally:
        os._exit(127)
