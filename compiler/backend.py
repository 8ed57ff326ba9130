"""The BPF back end in a process of its own, which ends when no more programs are to be made.

LLVM takes 70 MB and ends its process on what it cannot select: neither must happen to a process that
traces. It also takes a while to load, which `start` lets it do while the script is still compiled.

A request is its length (I) and the cpu, a newline and the IR; an answer is its length (I), a byte that tells
whether it went well, and the code (`pack`) or what is wrong.
"""

from __future__ import annotations

import os
import signal
import struct
import sys
from typing import List, NoReturn, Optional, Tuple

from compiler.bpf import BackendError, Code, Reference, compile_program, prepare
from vm.named_tuple import NamedTuple

LENGTH = struct.Struct("<I")
WELL, WRONG = b"\1", b"\0"


class Child(NamedTuple):
    """The process, and this end of the pipes to it and from it."""

    pid: int
    requests: int
    answers: int


_child: List[Child] = []
"""The one there is, if any."""


def start() -> None:
    """Let LLVM load, if it does not already."""
    if _child:
        return
    theirs, requests = os.pipe()
    answers, ours = os.pipe()
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        os.close(requests)
        os.close(answers)
        _serve(theirs, ours)
    os.close(theirs)
    os.close(ours)
    _child.append(Child(pid, requests, answers))


def compiled(ir: str, cpu: str) -> Code:
    """The instructions of an IR module (see compiler.bpf.compile_program). Raises BackendError."""
    start()
    child = _child[0]
    answer: Optional[bytes] = None
    try:
        _write(child.requests, f"{cpu}\n{ir}".encode())
        answer = _read(child.answers)
    except BrokenPipeError:
        answer = None
    if answer is None:
        finish()
        raise BackendError("the BPF back end has no way to select this")
    if answer[:1] != WELL:
        raise BackendError(answer[1:].decode())
    return unpack(answer[1:])


def finish() -> None:
    """End the process. Safe to call twice."""
    while _child:
        child = _child.pop()
        os.close(child.requests)
        os.close(child.answers)
        os.kill(child.pid, signal.SIGKILL)  # it may still be loading
        os.waitpid(child.pid, 0)


def _serve(requests: int, answers: int) -> NoReturn:
    """Answer requests until there are no more."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # they are meant for the one who traces
        signal.signal(number, signal.SIG_IGN)
    try:
        prepare()
        while True:
            request = _read(requests)
            if request is None:
                break
            cpu, _, ir = request.decode().partition("\n")
            try:
                _write(answers, WELL + pack(compile_program(ir, cpu)))
            except BackendError as error:
                _write(answers, WRONG + str(error).encode())
    finally:
        os._exit(0)


def _write(pipe: int, data: bytes) -> None:
    rest = memoryview(LENGTH.pack(len(data)) + data)
    while rest:
        rest = rest[os.write(pipe, rest) :]


def _read(pipe: int) -> Optional[bytes]:
    """What was written at the other end, None where that has gone."""
    head = _take(pipe, LENGTH.size)
    return None if head is None else _take(pipe, LENGTH.unpack(head)[0])


def _take(pipe: int, size_bytes: int) -> Optional[bytes]:
    parts: List[bytes] = []
    while size_bytes:
        part = os.read(pipe, size_bytes)
        if not part:
            return None
        parts.append(part)
        size_bytes -= len(part)
    return b"".join(parts)


# -- code as bytes ------------------------------------------------------------------------------


def pack(code: Code) -> bytes:
    """Code as bytes: the number of references (I), each with its offset (I) and name (a NUL behind), the instructions."""
    references = b"".join(LENGTH.pack(r.offset) + r.name.encode() + b"\0" for r in code.references)
    return LENGTH.pack(len(code.references)) + references + code.instructions


def unpack(data: bytes) -> Code:
    """Code from its bytes. Raises ValueError and struct.error for what is none."""
    (count,) = LENGTH.unpack_from(data)
    start = LENGTH.size
    found: List[Reference] = []
    for _ in range(count):
        end = data.index(b"\0", start + LENGTH.size)
        name = data[start + LENGTH.size : end].decode()
        found.append(Reference(LENGTH.unpack_from(data, start)[0], name))
        start = end + 1
    references: Tuple[Reference, ...] = tuple(found)
    return Code(data[start:], references)
