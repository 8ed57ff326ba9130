"""Memory of processes that is brought into RAM before a program reads it.

A program that is run by a probe in a process may wait, where it is loaded as one that sleeps (Linux 6.6, with
links of many places). So what a handler reads is touched first: a string that the process has not looked at
itself yet is still in its file. All waiting is done before the record is made, since what programs keep by
processor could be another's afterwards. Source: linux/bpf.h (BPF_F_SLEEPABLE, bpf_copy_from_user).
"""

from __future__ import annotations

import errno
import os
import struct
from functools import cache
from typing import TYPE_CHECKING, Iterator

from ktap import demand, kernel
from ktap.claiming import claim
from ktap.fetched import Recipe, fill_record

if TYPE_CHECKING:
    from ktap.capture import Case, Frame

SLEEPABLE = 1 << 4
PAGE_BYTES = 4096
"""The smallest there are: more pages than need be are touched where they are larger."""
TOUCHED_BYTES = 64
"""So much of a string is looked at for its end, before the page behind the first is touched."""


@cache
def can_wait(attach_type: int) -> bool:
    """Whether the kernel takes programs for probes in processes that wait for memory.

    Linux 6.1 takes this one, of a perf event, but none that has ktap's maps: links of many places are asked for.
    """
    if not attach_type:
        return False
    to_stack = struct.pack("<BBhi", 0xBF, 1 | 10 << 4, 0, 0) + struct.pack("<BBhi", 0x07, 1, 0, -8)
    size = struct.pack("<BBhi", 0xB7, 2, 0, 1)
    address = struct.pack("<BBhi", 0xB7, 3, 0, 0)
    call = struct.pack("<BBhi", 0x85, 0, 0, 148)
    program = to_stack + size + address + call + kernel.RETURN_ZERO
    try:
        os.close(kernel.load(kernel.KPROBE, program, flags=SLEEPABLE, attach_type=attach_type))
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
            raise
        return False
    return True


def fetched_reads(recipe: Recipe) -> Iterator[demand.Read]:
    """The strings and arrays of a process that a record is made of."""
    for part in recipe.parts:
        if isinstance(part.what, demand.Read) and part.what.space == demand.USER:
            if part.shape.letter == "S":
                yield part.what
            elif part.shape.length:
                yield part.what._replace(most_bytes=part.shape.size_bytes * part.shape.length)


def make_record(frame: Frame, needed: bool) -> None:
    """Make the record of a probe in a process, if it is needed. Waiting comes first, then the processor is claimed."""
    w, case, recipe = frame.w, frame.case, frame.case.recipe
    if case.waits:
        touch_fetched(frame)
    if recipe is None or not needed:
        claim(w, frame.task.cpu)
    elif recipe.on_stack:
        frame.base = fill_record(frame, recipe)
        if case.waits:
            touch_read(frame)
        claim(w, frame.task.cpu)
    else:
        claim(w, frame.task.cpu)
        frame.base = fill_record(frame, recipe)


def touch_fetched(frame: Frame) -> None:
    """Touch what the record is made of; the frame's base has the registers."""
    if frame.case.recipe is not None:
        for read in fetched_reads(frame.case.recipe):
            touch(frame, read)


def touch_read(frame: Frame) -> None:
    """Touch what handlers read at addresses that the record has, which is on the stack."""
    for read in frame.case.touches:
        touch(frame, read)


def touch(frame: Frame, read: demand.Read) -> None:
    """Have memory brought into RAM: what the address is read from, its page, and the next one where the memory goes on."""
    w = frame.w
    for inner in inner_reads(read.address):
        touch(frame, inner)
    done = w.fresh("there")
    address = frame.expression(read.address)
    size = min(TOUCHED_BYTES, read.most_bytes)
    room = w.local(TOUCHED_BYTES, "touched")
    helper = "probe_read_user_str" if read.kind == demand.STRING else "probe_read_user"
    w.only_if(w.value(f"icmp slt i64 {w.call(helper, room, size, address)}, 0"), done)
    w.call("copy_from_user", room, 1, address)
    w.only_if(w.value(f"icmp slt i64 {w.call(helper, room, size, address)}, 0"), done)
    next_page = w.value(f"and i64 {w.value(f'add i64 {address}, {PAGE_BYTES}')}, {-PAGE_BYTES}")
    w.call("copy_from_user", room, 1, next_page)
    w.goto(done)
    w.label(done)


def inner_reads(expression: demand.Expression) -> Iterator[demand.Read]:
    """The reads of the process that an address is computed from."""
    if isinstance(expression, demand.Read):
        if expression.space == demand.USER:
            yield expression._replace(most_bytes=min(8, expression.most_bytes))
    elif isinstance(expression, demand.Binary):
        yield from inner_reads(expression.left)
        yield from inner_reads(expression.right)


def waits(case: Case) -> bool:
    """Whether a case reads memory that may have to be waited for."""
    return bool(case.touches) or (case.recipe is not None and any(fetched_reads(case.recipe)))
