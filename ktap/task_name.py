"""Where the running task has its name.

`get_current_comm` takes programs about 40 ns, two loads a few. The place differs from kernel to kernel and is
in its BTF, which takes 50 ms to read; so a program is asked to copy its task, this thread, and a name that it
has for that moment is looked for in it.
"""

from __future__ import annotations

import ctypes
import os
import struct
from functools import cache
from typing import Optional

from ktap import kernel

NAME_BYTES = 16
"""TASK_COMM_LEN of linux/sched.h. What lies behind the name's NUL is zero (fs/exec.c, __set_task_comm)."""
PR_SET_NAME, PR_GET_NAME = 15, 16
"""Of linux/prctl.h."""
SEARCHED_BYTES = 8192
"""How much of a task_struct is searched."""
MAP_LOOKUP, GET_CURRENT_TASK, PROBE_READ_KERNEL = 1, 35, 113


@cache
def offset() -> Optional[int]:
    """The offset of the name in a task_struct; None where programs cannot read it in place, or it is not found."""
    if not kernel.reads_in_place():
        return None
    name = os.urandom(NAME_BYTES // 2 - 1).hex().encode()
    usual = ctypes.create_string_buffer(NAME_BYTES)
    libc = ctypes.CDLL(None)
    libc.prctl(PR_GET_NAME, usual, 0, 0, 0)
    libc.prctl(PR_SET_NAME, name, 0, 0, 0)
    try:
        place = own_task().find(name.ljust(NAME_BYTES, b"\0"))
    finally:
        libc.prctl(PR_SET_NAME, usual, 0, 0, 0)
    return place if place >= 0 and place % 8 == 0 else None


def own_task() -> bytes:
    """The beginning of this thread's task_struct; empty where a program cannot copy it."""
    try:
        room = kernel.create_map(kernel.ARRAY, "ktap_task", 4, SEARCHED_BYTES, 1)
    except OSError:
        return b""
    try:
        program = kernel.load(kernel.RAW_TRACEPOINT, copying(room), name="ktap_task")
        try:
            kernel.test_run(program, bytes(16))
        finally:
            os.close(program)
        return kernel.lookup(room, bytes(4), SEARCHED_BYTES) or b""
    except OSError:
        return b""
    finally:
        os.close(room)


def copying(room: int) -> bytes:
    """A program that copies the running task into the only value of an array."""
    code = (
        (0x62, 10, -4, 0),  # *(u32 *)(r10 - 4) = 0
        (0xBF, 2 | 10 << 4, 0, 0),  # r2 = r10
        (0x07, 2, 0, -4),  # r2 += -4
        (0x18, 1 | 1 << 4, 0, room),  # r1 = the array
        (0, 0, 0, 0),
        (0x85, 0, 0, MAP_LOOKUP),
        (0x15, 0, 6, 0),  # if r0 == 0 goto the end
        (0xBF, 6, 0, 0),  # r6 = r0
        (0x85, 0, 0, GET_CURRENT_TASK),
        (0xBF, 3, 0, 0),  # r3 = r0
        (0xBF, 1 | 6 << 4, 0, 0),  # r1 = r6
        (0xB7, 2, 0, SEARCHED_BYTES),  # r2 = the size
        (0x85, 0, 0, PROBE_READ_KERNEL),
        (0xB7, 0, 0, 0),  # r0 = 0
    )
    return b"".join(struct.pack("<BBhi", *step) for step in code) + kernel.EXIT
