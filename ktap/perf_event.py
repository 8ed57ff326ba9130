"""perf_event_open(2) as events to sample, without BPF: attributes, filters, samples, and what was lost.

    fd = open_event(Attribute(TRACEPOINT, identity, 1, TIME | RAW), cpu, pid, "sched:sched_switch")
    read = reader(TIME | RAW, 0)
    sample = read(data, offset_of_the_record)

Every event is stamped with CLOCK_MONOTONIC and carries its number, so that several share a ring. Source:
linux/perf_event.h (struct perf_event_attr, PERF_RECORD_SAMPLE, PERF_FORMAT_LOST), perf_event_open(2).
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
from contextlib import suppress
from struct import Struct
from typing import Callable, Optional, Tuple

from ktap import kernel
from vm.named_tuple import NamedTuple

SOFTWARE, TRACEPOINT = 1, 2
TASK_CLOCK = 1
DUMMY = 9
"""The software event that never happens: it carries what the kernel says of tasks."""

IP, TID, TIME, ADDRESS, CPU, PERIOD, CALLCHAIN, RAW = 1, 2, 4, 8, 1 << 7, 1 << 8, 1 << 5, 1 << 10
USER_REGISTERS, USER_STACK_BYTES, IDENTIFIER, REGISTERS, CGROUP = 1 << 12, 1 << 13, 1 << 16, 1 << 18, 1 << 21
"""What samples have (PERF_SAMPLE_*)."""
ALWAYS = IDENTIFIER | TID | TIME | CPU

DISABLED, COMM_RECORDS, TASK_RECORDS = 1 << 0, 1 << 9, 1 << 13
WATERMARK, SAMPLE_ID_ALL, USE_CLOCK = 1 << 14, 1 << 18, 1 << 25
CLOCK_MONOTONIC = 1
FORMAT_LOST = 1 << 4
"""read(2) tells how many samples of this very event found no room (Linux 6.0)."""

SET_OUTPUT, SET_FILTER, GET_ID, QUERY_PROGRAMS = 0x2405, 0x40082406, 0x80082407, 0xC008240A
KERNEL_MARK, USER_MARK, LEAST_MARK = -128, -512, -4095
"""In call chains: whose addresses follow (PERF_CONTEXT_*); such marks are small negative numbers."""

_libc = ctypes.CDLL(None, use_errno=True)

WORD = Struct("=Q")
WORD_AT = WORD.unpack_from
SIZE_AT = Struct("=I").unpack_from


class Attribute(NamedTuple):
    """The parts of a perf_event_attr that are used."""

    type: int
    config: int
    period: int = 0
    sample: int = 0
    """What its samples have, beside ALWAYS."""
    flags: int = 0
    breakpoint: int = 0
    config1: int = 0
    config2: int = 0
    registers: int = 0
    """Which registers, as bits (asm/perf_regs.h)."""
    stack_bytes: int = 0
    """Of the top of the process's stack."""
    frames: int = 0
    """The most addresses of a call chain, 0 for as many as the kernel allows."""


def open_event(attribute: Attribute, cpu: int, pid: int, what: str, leader: int = -1) -> int:
    """An event that is not enabled yet, or one that is when its group's leader is. Raises OSError with `what` as its
    file name."""
    registers = attribute.registers
    flags = attribute.flags | SAMPLE_ID_ALL | USE_CLOCK | WATERMARK | (DISABLED if leader < 0 else 0)
    for read_format in (FORMAT_LOST, 0):
        packed = struct.pack(
            "=IIQQQQQIIQQQQIiQIHHII",
            attribute.type,
            kernel.ATTRIBUTE_BYTES,
            attribute.config,
            attribute.period,
            attribute.sample | ALWAYS,
            read_format,
            flags,
            1 << 30,
            attribute.breakpoint,
            attribute.config1,
            attribute.config2,
            0,
            registers if attribute.sample & USER_REGISTERS else 0,
            attribute.stack_bytes,
            CLOCK_MONOTONIC,
            registers if attribute.sample & REGISTERS else 0,
            0,
            attribute.frames,
            0,
            0,
            0,
        )
        try:
            return kernel.open_attribute(packed, cpu, pid, what, leader)
        except OSError as error:
            if error.errno != errno.EINVAL or not read_format:
                raise
    raise AssertionError("the second try ends it")


def number_of(event: int) -> int:
    """The number that samples of an event have."""
    room = bytearray(8)
    fcntl.ioctl(event, GET_ID, room)
    found: int = WORD.unpack(room)[0]
    return found


def share_ring(event: int, owner: int) -> None:
    """Let an event write to the ring of another on the same processor. Raises OSError."""
    fcntl.ioctl(event, SET_OUTPUT, owner)


def set_filter(event: int, text: str) -> None:
    """Give an event a filter, in the kernel's words. Raises OSError."""
    buffer = ctypes.create_string_buffer(text.encode("utf-8", "surrogateescape"))
    if _libc.ioctl(event, ctypes.c_ulong(SET_FILTER), buffer):
        number = ctypes.get_errno()
        raise OSError(number, f"{os.strerror(number)}, for the filter {text}", "perf event")


def has_programs(event: int) -> bool:
    """Whether BPF programs are attached to the tracepoint of an event, as far as can be told."""
    room = bytearray(8)
    with suppress(OSError):
        fcntl.ioctl(event, QUERY_PROGRAMS, room)
    return bool(SIZE_AT(room, 4)[0])


def disable(event: int) -> None:
    """Let an event take no more samples. Raises OSError."""
    fcntl.ioctl(event, kernel.IOC_DISABLE, 0)


def count_of(event: int) -> int:
    """How often an event has happened while it was enabled."""
    count: int = WORD_AT(os.read(event, 64), 0)[0]
    return count


def lost_samples(event: int) -> Optional[int]:
    """How many samples of an event found no room; None where the kernel does not count them by event."""
    data = os.read(event, 64)
    return WORD_AT(data, 8)[0] if len(data) >= 16 else None


# -- samples --------------------------------------------------------------------------------------


class Sample(NamedTuple):
    """One sample. Numbers of tasks are as the kernel has them: all ones for a task that is gone."""

    time_ns: int
    event: int
    """The number of its event."""
    pid: int
    tid: int
    cpu: int
    ip: int
    address: int
    period: int
    chain: bytes
    """Of 64-bit words: addresses, and marks."""
    raw: bytes
    """The record of a tracepoint, and bytes that fill its size up to a multiple of 8."""
    abi: int
    """Of the process: 0 none, 1 of 32 bits, 2 of 64."""
    registers: bytes
    """64-bit words, those of the attribute's bits from the lowest on."""
    cgroup: Optional[int]
    stack: bytes = b""
    """The top of the process's stack."""


Read = Callable[[memoryview, int], Sample]


def reader(kind: int, registers: int) -> Read:
    """Reads samples of one kind: the bits of Attribute.sample, and the number of registers."""
    head = Struct("=Q" + ("Q" if kind & IP else "") + "IIQ" + ("Q" if kind & ADDRESS else "") + "I4x")
    unpack, head_bytes = head.unpack_from, 8 + head.size
    has_ip, has_address, has_period = kind & IP, kind & ADDRESS, kind & PERIOD
    has_chain, has_raw, has_cgroup = kind & CALLCHAIN, kind & RAW, kind & CGROUP
    has_stack = kind & USER_STACK_BYTES
    has_registers = kind & (USER_REGISTERS | REGISTERS)

    def simple(data: memoryview, at: int) -> Sample:
        event, pid, tid, time_ns, cpu = unpack(data, at + 8)
        at += head_bytes
        (size,) = SIZE_AT(data, at)
        raw = bytes(data[at + 4 : at + 4 + size])
        abi = WORD_AT(data, at + 4 + size)[0] if has_registers else 0
        return Sample(time_ns, event, pid, tid, cpu, 0, 0, 0, b"", raw, abi, b"", None)

    def read(data: memoryview, at: int) -> Sample:
        values = list(unpack(data, at + 8))
        at += head_bytes
        event = values.pop(0)
        ip = values.pop(0) if has_ip else 0
        pid, tid, time_ns = values[:3]
        address = values[3] if has_address else 0
        period, chain, raw, abi, words, cgroup, stack = 0, b"", b"", 0, b"", None, b""
        if has_period:
            (period,) = WORD_AT(data, at)
            at += 8
        if has_chain:
            size = 8 * WORD_AT(data, at)[0]
            chain = bytes(data[at + 8 : at + 8 + size])
            at += 8 + size
        if has_raw:
            (size,) = SIZE_AT(data, at)
            raw = bytes(data[at + 4 : at + 4 + size])
            at += 4 + size
        if has_stack:
            (size,) = WORD_AT(data, at)
            at += 8
            if size:
                (real,) = WORD_AT(data, at + size)
                stack = bytes(data[at : at + min(size, real)])
                at += size + 8
        if has_registers:
            (abi,) = WORD_AT(data, at)
            at += 8
            if abi:
                words = bytes(data[at : at + 8 * registers])
                at += 8 * registers
        if has_cgroup:
            (cgroup,) = WORD_AT(data, at)
        return Sample(time_ns, event, pid, tid, values[-1], ip, address, period, chain, raw, abi, words, cgroup, stack)

    return simple if kind & ~ALWAYS in (RAW, RAW | USER_REGISTERS) and registers <= 1 else read


def frames_of(chain: bytes) -> Tuple[Tuple[int, ...], Tuple[int, ...]]:
    """The addresses of the kernel and of the process in a call chain, signed, innermost first."""
    kernels: list[int] = []
    users: list[int] = []
    current = kernels
    for word in struct.unpack(f"={len(chain) // 8}q", chain):
        if LEAST_MARK <= word < 0:
            current = kernels if word == KERNEL_MARK else users if word == USER_MARK else []
        else:
            current.append(word)
    return tuple(kernels), tuple(users)
