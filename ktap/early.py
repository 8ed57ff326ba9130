"""What a script attaches, put in place before the rest of ktap is loaded.

Python takes longer to load ktap than the kernel takes to trace. So a run keeps the list of the kernel's objects
that it has made (ktap.objects): maps and what is in them, programs, what they hang on. The next run of the same
command line makes them first of all, and events count from then on. Then everything goes its usual way, from the
main chunk to the programs; but where an object would be made, the one that is there is taken, if it is the same
to the last byte. Where it is not, all of them are let go and nothing of them has been seen: so this list is never
believed, it only makes what is needed anyway be there sooner. Only what handlers do in the kernel alone is made so:
a buffer of events would fill while nobody reads it.

The entries lie among those of ktap.cache_files. Layout, little-endian: magic, CRC-32 of the rest, then parts, each
with its length (I) before it: the command line, the kernel, the script's file and its text (both empty for -e),
and then a part for each step (see `step`).

As for ktap.bpf, what is imported here loads quickly.
"""

from __future__ import annotations

import os
import stat
import struct
import time
from binascii import crc32

from ktap.cache_files import EARLY_SUFFIX, fetch, store

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import List, Optional, Sequence, Tuple

MAGIC = b"ktapear1"
MAP, OUTER_MAP, UPDATE, PROGRAM, RAW_TRACEPOINT, PERF_EVENT, FILES = range(7)
"""Kinds of steps; those up to FILES but UPDATE make an object, which later steps refer to by its number."""
A_MAP, OWN_PROCESS = range(2)
"""What is filled in at a place of a program: the map whose number stands there; this process, added to what stands there."""
FORMATS = ("<BIIIII", "<BI", "<BI", "<BII", "<BI", "<BIiB", "<BI")
"""The numbers that each kind of step begins with, the kind first. Parts of bytes follow, each with its length."""
PLACE = struct.Struct("<IB")
INITIAL_PID_NAMESPACE = "pid:[4026531836]"


class Early:
    """What was made early: the steps and what each gave, in order, and when all of it was live."""

    def __init__(self) -> None:
        self.made: List[Tuple[bytes, int]] = []
        self.live_ns = 0


_line: List[str] = []
"""The command line of this run, where it is one that may be prepared."""
_early: List[Early] = []
"""What was made early and not been asked for, if anything."""
_live_ns: List[int] = []
"""When what this run has taken was live."""


def begin(words: Sequence[str]) -> None:
    """Make what the last run of this command line made. Nothing that goes wrong here is an error."""
    _line[:] = words
    _live_ns.clear()
    try:
        steps = _read(fetch(_entry(words)), words)
        if steps and os.readlink("/proc/self/ns/pid") == INITIAL_PID_NAMESPACE:
            _early.append(_make(steps))
    except (OSError, ValueError, LookupError, struct.error):
        return


def take() -> Optional[Early]:
    """What was made early; the taker closes it."""
    return _early.pop() if _early else None


def taken(early: Early) -> None:
    """It was what this run makes, to the last byte: events count from when it was live."""
    _live_ns[:] = [early.live_ns]


def live_ns() -> Optional[int]:
    """When events began to count, in ns of CLOCK_MONOTONIC; None where that is when they are attached."""
    return _live_ns[0] if _live_ns else None


def drop() -> None:
    """Let go of what was made early and nobody has asked for."""
    early = take()
    if early is not None:
        close(early.made)


def close(made: Sequence[Tuple[bytes, int]]) -> None:
    """Let go of objects."""
    for _, fd in reversed(made):
        if fd >= 0:
            os.close(fd)


def keep(script: str, text: bytes, steps: Sequence[bytes]) -> None:
    """Keep the steps of this run; `script` is the file the script's text comes from, empty where it is in the command line."""
    if not _line:
        return
    try:
        parts = [_join(_line), _kernel(), _encoded(script), text if script else b"", *steps]
        body = b"".join(map(_part, parts))
        store(_entry(_line), MAGIC + struct.pack("<I", crc32(body)) + body)
    except OSError:  # the next run then makes everything in its place
        return


# -- entries ----------------------------------------------------------------------------------


def _entry(words: Sequence[str]) -> str:
    line = _join(words)
    return f"{crc32(line):08x}{len(line):08x}{EARLY_SUFFIX}"


def _join(words: Sequence[str]) -> bytes:
    return b"\0".join(map(_encoded, words))


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _kernel() -> bytes:
    machine = os.uname()
    return f"{machine.release} {machine.version} {machine.machine}".encode()


def _part(data: bytes) -> bytes:
    return struct.pack("<I", len(data)) + data


def _read(data: bytes, words: Sequence[str]) -> Sequence[bytes]:
    """The steps in an entry; none where it is of something else. Raises ValueError and struct.error for damage."""
    (checksum,) = struct.unpack_from("<I", data, len(MAGIC))
    body = data[len(MAGIC) + 4 :]
    if data[: len(MAGIC)] != MAGIC or crc32(body) != checksum:
        raise ValueError("damaged")
    line, kernel, script, text, *steps = _parts(body, 0)
    if line != _join(words) or kernel != _kernel():
        return ()
    return steps if not script or _holds(script, text) else ()


def _holds(path: bytes, text: bytes) -> bool:
    """Whether a file holds a text. What can be read once only (a pipe, a terminal) is left alone."""
    status = os.stat(path)
    if not stat.S_ISREG(status.st_mode) or status.st_size != len(text):
        return False
    with open(path, "rb") as file:
        return file.read() == text


def _parts(data: bytes, start: int) -> List[bytes]:
    """Parts that follow each other. Raises ValueError and struct.error."""
    found: List[bytes] = []
    while start < len(data):
        (length,) = struct.unpack_from("<I", data, start)
        start += 4
        if length > len(data) - start:
            raise ValueError("damaged")
        found.append(data[start : start + length])
        start += length
    return found


# -- steps ------------------------------------------------------------------------------------


def step(kind: int, numbers: Sequence[int], *parts: bytes) -> bytes:
    """A step. By kind, its numbers and parts are

    ==============  =================================  ====================================
    MAP             kind, bytes of a key and a value,  name
                    entries, flags
    OUTER_MAP       the map in it                      name
    UPDATE          the map                            key, value
    PROGRAM         kind, how it is attached           name, instructions, places to fill in
    RAW_TRACEPOINT  the program                        name
    PERF_EVENT      the program, the processor,        perf_event_attr
    FILES           how many open files are needed
    ==============  =================================  ====================================
    """
    return struct.pack(FORMATS[kind], kind, *numbers) + b"".join(map(_part, parts))


def _make(steps: Sequence[bytes]) -> Early:
    """Do all steps, or none. Raises OSError, and ValueError, LookupError and struct.error for what is no step."""
    early = Early()
    objects: List[int] = []
    try:
        for data in steps:
            fd = _done(data, objects)
            if fd >= 0:
                objects.append(fd)
            early.made.append((data, fd))
    except BaseException:
        close(early.made)
        raise
    early.live_ns = time.monotonic_ns()
    return early


def _done(data: bytes, objects: Sequence[int]) -> int:
    """Do a step; the file descriptor of what it made, -1 for those that make nothing."""
    from ktap import bpf

    kind = data[0]
    numbers = struct.unpack_from(FORMATS[kind], data)[1:]
    parts = _parts(data, struct.calcsize(FORMATS[kind]))
    if kind == FILES:
        from ktap.open_files import allow_files

        allow_files(numbers[0])
        return -1
    if kind == MAP:
        return bpf.create_map(numbers[0], parts[0].decode(), *numbers[1:])
    if kind == PROGRAM:
        return bpf.load(
            numbers[0], _filled(parts[1], parts[2], objects), name=parts[0].decode(), attach_type=numbers[1]
        )
    one = objects[numbers[0]]
    if kind == OUTER_MAP:
        return bpf.create_map_of_maps(parts[0].decode(), one)
    if kind == RAW_TRACEPOINT:
        return bpf.attach_raw_tracepoint(one, parts[0].decode())
    if kind == PERF_EVENT:
        return bpf.run_at_perf_event(parts[0], numbers[1], one, numbers[2] != 0, "perf event")
    bpf.update(one, parts[0], parts[1])
    return -1


def _filled(instructions: bytes, places: bytes, objects: Sequence[int]) -> bytes:
    """The instructions with what is known only now filled in."""
    out = bytearray(instructions)
    for offset, kind in PLACE.iter_unpack(places):
        low, high = struct.unpack_from("<I4xI", out, offset + 4)
        number = low + (high << 32)
        number = objects[number] if kind == A_MAP else (number + os.getpid()) & 0xFFFFFFFFFFFFFFFF
        struct.pack_into("<I", out, offset + 4, number & 0xFFFFFFFF)
        struct.pack_into("<I", out, offset + 12, number >> 32)
    return bytes(out)
