"""The kernel's tracing interfaces as typed functions: those of ktap.bpf, and what is made of them.

What the kernel has is asked for by trying it. Sources: linux/bpf.h, linux/perf_event.h.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import struct
from functools import cache
from typing import Iterator, Optional

from ktap.bpf import ARRAY as ARRAY
from ktap.bpf import ARRAY_OF_MAPS as ARRAY_OF_MAPS
from ktap.bpf import ATTRIBUTE_BYTES as ATTRIBUTE_BYTES
from ktap.bpf import BATCH_ENTRIES as BATCH_ENTRIES
from ktap.bpf import BPF_OUTPUT as BPF_OUTPUT
from ktap.bpf import CPU_CLOCK as CPU_CLOCK
from ktap.bpf import ENOTSUPP as ENOTSUPP
from ktap.bpf import FLAG_DISABLED as FLAG_DISABLED
from ktap.bpf import FLAG_EXCLUDE_KERNEL as FLAG_EXCLUDE_KERNEL
from ktap.bpf import FLAG_FREQUENCY as FLAG_FREQUENCY
from ktap.bpf import FLAG_WATERMARK as FLAG_WATERMARK
from ktap.bpf import HASH as HASH
from ktap.bpf import INFO_BY_FD as INFO_BY_FD
from ktap.bpf import IOC_DISABLE as IOC_DISABLE
from ktap.bpf import IOC_ENABLE as IOC_ENABLE
from ktap.bpf import IOC_SET_BPF as IOC_SET_BPF
from ktap.bpf import KPROBE as KPROBE
from ktap.bpf import LINK_CREATE as LINK_CREATE
from ktap.bpf import LINK_NEXT_ID as LINK_NEXT_ID
from ktap.bpf import LRU_HASH as LRU_HASH
from ktap.bpf import MAP_DELETE as MAP_DELETE
from ktap.bpf import MAP_FREEZE as MAP_FREEZE
from ktap.bpf import MAP_LOOKUP as MAP_LOOKUP
from ktap.bpf import MAP_LOOKUP_BATCH as MAP_LOOKUP_BATCH
from ktap.bpf import MAP_NEXT_ID as MAP_NEXT_ID
from ktap.bpf import MAP_NEXT_KEY as MAP_NEXT_KEY
from ktap.bpf import MAP_TAKE_BATCH as MAP_TAKE_BATCH
from ktap.bpf import NAME_BYTES as NAME_BYTES
from ktap.bpf import NO_PREALLOCATION as NO_PREALLOCATION
from ktap.bpf import PERCPU_ARRAY as PERCPU_ARRAY
from ktap.bpf import PERCPU_HASH as PERCPU_HASH
from ktap.bpf import PERF_EVENT as PERF_EVENT
from ktap.bpf import PERF_EVENT_ARRAY as PERF_EVENT_ARRAY
from ktap.bpf import PROGRAM_NEXT_ID as PROGRAM_NEXT_ID
from ktap.bpf import RAW_TRACEPOINT as RAW_TRACEPOINT
from ktap.bpf import RAW_TRACEPOINT_OPEN as RAW_TRACEPOINT_OPEN
from ktap.bpf import RINGBUF as RINGBUF
from ktap.bpf import SAMPLE_RAW as SAMPLE_RAW
from ktap.bpf import SAMPLE_TIME as SAMPLE_TIME
from ktap.bpf import TEST_RUN as TEST_RUN
from ktap.bpf import TRACEPOINT as TRACEPOINT
from ktap.bpf import TYPE_SOFTWARE as TYPE_SOFTWARE
from ktap.bpf import TYPE_TRACEPOINT as TYPE_TRACEPOINT
from ktap.bpf import address_of as address_of
from ktap.bpf import attach_raw_tracepoint as attach_raw_tracepoint
from ktap.bpf import attempt as attempt
from ktap.bpf import bpf_call as bpf_call
from ktap.bpf import create_map as create_map
from ktap.bpf import create_map_of_maps as create_map_of_maps
from ktap.bpf import enable as enable
from ktap.bpf import load as load
from ktap.bpf import open_attribute as open_attribute
from ktap.bpf import run_at_perf_event as run_at_perf_event
from ktap.bpf import set_program as set_program
from ktap.bpf import update as update
from vm.named_tuple import NamedTuple


def remedy(error: OSError) -> Optional[str]:
    """What the user can do about an error of this module, None when nothing is known."""
    if error.errno in (errno.EPERM, errno.EACCES):
        return "tracing needs root, or CAP_BPF and CAP_PERFMON; ktap --replay FILE needs neither"
    if error.errno == errno.ENOSYS:
        return "this kernel has no BPF; ktap doctor shows what it has"
    if error.errno == errno.EMFILE:
        return "too many open files; raise the limit with ulimit -n"
    if error.errno == errno.ENOMEM:
        return "not enough memory; try a smaller --buffer-bytes"
    if error.errno == errno.EINTR:  # what trace_uprobe.c says of an event that tracefs has enabled
        return "a probe that is defined in tracefs serves it or a tracer: disable the event there (echo 0 > enable)"
    return None


# -- maps ---------------------------------------------------------------------------------------


def lookup(fd: int, key: bytes, value_bytes: int) -> Optional[bytes]:
    """The value under a key, None where there is none (per-CPU kinds: the values of all CPUs, one after the other)."""
    key_buffer = ctypes.create_string_buffer(key, len(key))
    value = ctypes.create_string_buffer(value_bytes)
    try:
        bpf_call(MAP_LOOKUP, struct.pack("=IIQQQ", fd, 0, address_of(key_buffer), address_of(value), 0), "map lookup")
    except OSError as error:
        if error.errno == errno.ENOENT:
            return None
        raise
    return value.raw


def delete(fd: int, key: bytes) -> None:
    """Remove a key."""
    key_buffer = ctypes.create_string_buffer(key, len(key))
    bpf_call(MAP_DELETE, struct.pack("=IIQQQ", fd, 0, address_of(key_buffer), 0, 0), "map delete")


def freeze(fd: int) -> None:
    """Let no process change a map any more."""
    bpf_call(MAP_FREEZE, struct.pack("=I", fd), "map freeze")


def keys(fd: int, key_bytes: int) -> Iterator[bytes]:
    """The keys of a map, as they are met."""
    following = ctypes.create_string_buffer(key_bytes)
    current: Optional[ctypes.Array[ctypes.c_char]] = None
    while True:
        start = address_of(current) if current is not None else 0
        try:
            bpf_call(MAP_NEXT_KEY, struct.pack("=IIQQQ", fd, 0, start, address_of(following), 0), "map next key")
        except OSError as error:
            if error.errno == errno.ENOENT:
                return
            raise
        yield following.raw
        current = ctypes.create_string_buffer(following.raw, key_bytes)


def take_all(fd: int, key_bytes: int, value_bytes: int, remove: bool) -> Iterator[tuple[bytes, bytes]]:
    """All entries of a hash map, `BATCH_ENTRIES` a call; `remove` empties it on the way (per-CPU kinds as `lookup`).

    Source: linux/bpf.h, BPF_MAP_LOOKUP_BATCH and BPF_MAP_LOOKUP_AND_DELETE_BATCH (Linux 5.6).
    """
    count = BATCH_ENTRIES
    position, following = ctypes.create_string_buffer(max(4, key_bytes)), ctypes.create_string_buffer(max(4, key_bytes))
    command = MAP_TAKE_BATCH if remove else MAP_LOOKUP_BATCH
    first = True
    while True:
        found_keys = ctypes.create_string_buffer(count * key_bytes)
        values = ctypes.create_string_buffer(count * value_bytes)
        begin = 0 if first else address_of(position)
        attribute = struct.pack(
            "=QQQQIIQQ", begin, address_of(following), address_of(found_keys), address_of(values), count, fd, 0, 0
        )
        result, left = attempt(command, attribute)
        error = max(0, -result)
        if error == errno.ENOSPC:  # one bucket holds more than a batch
            count *= 2
            continue
        if error not in (0, errno.ENOENT):
            raise OSError(error, os.strerror(error), "map batch")
        (got,) = struct.unpack_from("=I", left, 32)
        all_keys, all_values = found_keys.raw, values.raw
        for number in range(got):
            key = all_keys[number * key_bytes : (number + 1) * key_bytes]
            yield key, all_values[number * value_bytes : (number + 1) * value_bytes]
        if error == errno.ENOENT:
            return
        position, following, first = following, position, False


# -- programs -----------------------------------------------------------------------------------


def wait_for_programs() -> None:
    """Return when every program that runs now has ended: so long the kernel waits when a map in a map is exchanged.

    Source: kernel/bpf/syscall.c, maybe_wait_bpf_programs. Raises OSError.
    """
    inner = create_map(ARRAY, "ktap_wait", 4, 4, 1)
    try:
        os.close(create_map_of_maps("ktap_waits", inner))
    finally:
        os.close(inner)


def loads(kind: int, instructions: bytes) -> bool:
    """Whether the kernel takes a program. Raises OSError where BPF may not be used at all."""
    try:
        os.close(load(kind, instructions))
    except OSError as error:
        if error.errno in (errno.EPERM, errno.ENOSYS):
            raise
        return False
    return True


@cache
def instruction_set() -> str:
    """`v4` where the kernel takes it (Linux 6.6), else `v3`: asked with a sign-extending move."""
    sign_extending_move = struct.pack("<BBhi", 0xB7, 0, 0, 1) + struct.pack("<BBhi", 0xBF, 0, 8, 0)
    return "v4" if loads(RAW_TRACEPOINT, sign_extending_move + EXIT) else "v3"


@cache
def has_ring() -> bool:
    """Whether the kernel has ring buffers (Linux 5.8)."""
    try:
        os.close(create_map(RINGBUF, "ktap_ask", 0, 0, os.sysconf("SC_PAGESIZE")))
    except OSError as error:
        if error.errno in (errno.EPERM, errno.ENOSYS):
            raise
        return False
    return True


@cache
def has_dynptr() -> bool:
    """Whether space of any size can be reserved in a ring (bpf_ringbuf_reserve_dynptr, Linux 5.19)."""
    reserve_dynptr, discard_dynptr, stack_pointer = 198, 200, 10
    ring = create_map(RINGBUF, "ktap_try", 0, 0, os.sysconf("SC_PAGESIZE"))
    pointer = struct.pack("<BBhi", 0xBF, 4 | stack_pointer << 4, 0, 0) + struct.pack("<BBhi", 0x07, 4, 0, -16)
    again = struct.pack("<BBhi", 0xBF, 1 | stack_pointer << 4, 0, 0) + struct.pack("<BBhi", 0x07, 1, 0, -16)
    code = [
        struct.pack("<BBhi", 0x18, 1 | 1 << 4, 0, ring) + bytes(8),
        struct.pack("<BBhi", 0xB7, 2, 0, 8),
        struct.pack("<BBhi", 0xB7, 3, 0, 0),
        pointer,
        struct.pack("<BBhi", 0x85, 0, 0, reserve_dynptr),
        again,
        struct.pack("<BBhi", 0xB7, 2, 0, 0),
        struct.pack("<BBhi", 0x85, 0, 0, discard_dynptr),
        struct.pack("<BBhi", 0xB7, 0, 0, 0),
        EXIT,
    ]
    try:
        return loads(RAW_TRACEPOINT, b"".join(code))
    finally:
        os.close(ring)


@cache
def reaches(variable: int) -> bool:
    """Whether programs may refer to a per-CPU variable of the kernel, by its id in BTF."""
    pseudo_btf_id = 3
    load_address = struct.pack("<BBhi", 0x18, 1 | pseudo_btf_id << 4, 0, variable) + bytes(8)
    return loads(RAW_TRACEPOINT, load_address + RETURN_ZERO)


EXIT = struct.pack("<BBhi", 0x95, 0, 0, 0)
RETURN_ZERO = struct.pack("<BBhi", 0xB7, 0, 0, 0) + EXIT
"""The smallest program."""


def calls(*helpers: int) -> bytes:
    """A program that calls helpers that take no arguments, and returns the last one's result."""
    return b"".join(struct.pack("<BBhi", 0x85, 0, 0, h) for h in helpers) + EXIT


def create_link(attribute: bytes, what: str) -> int:
    """Attach a program by a link (BPF_LINK_CREATE); detached when the descriptor is closed. Raises OSError."""
    return bpf_call(LINK_CREATE, attribute, what)[0]


def test_run(program: int, context: bytes) -> int:
    """What a raw tracepoint program returns for a made-up context (BPF_PROG_TEST_RUN)."""
    buffer = ctypes.create_string_buffer(context, len(context))
    attribute = struct.pack(
        "=IIIIQQIIIIQQII", program, 0, 0, 0, 0, 0, 0, 0, len(context), 0, address_of(buffer), 0, 0, 0
    )
    result: int = struct.unpack_from("=I", bpf_call(TEST_RUN, attribute, "test run")[1], 4)[0]
    return result


class ProgramInfo(NamedTuple):
    """What the kernel knows of a loaded program."""

    id: int
    name: str
    misses: int
    """How often it was not run because one was running already on that CPU."""


def program_info(fd: int) -> ProgramInfo:
    """Id, name and misses (`recursion_misses`, Linux 5.12; 0 before)."""
    info = ctypes.create_string_buffer(232)
    bpf_call(INFO_BY_FD, struct.pack("=IIQ", fd, len(info), address_of(info)), "program info")
    number = struct.unpack_from("=I", info.raw, 4)[0]
    name = info.raw[64:80].split(b"\0")[0].decode()
    return ProgramInfo(number, name, struct.unpack_from("=Q", info.raw, 208)[0])


def object_ids(command: int) -> list[int]:
    """Ids of everything loaded in the kernel: PROGRAM_NEXT_ID, MAP_NEXT_ID or LINK_NEXT_ID."""
    found: list[int] = []
    current = 0
    while True:
        try:
            current = struct.unpack_from("=I", bpf_call(command, struct.pack("=III", current, 0, 0), "next id")[1], 4)[
                0
            ]
        except OSError as error:
            if error.errno == errno.ENOENT:
                return found
            raise
        found.append(current)


# -- perf events --------------------------------------------------------------------------------


class Counter(NamedTuple):
    """The parts of a perf_event_attr that are used."""

    type: int
    config: int
    period: int = 0
    sample_type: int = 0
    flags: int = 0
    wakeup: int = 0
    """Events, or bytes with FLAG_WATERMARK, until a reader is woken."""
    breakpoint: int = 0
    """What a watchpoint waits for."""
    config1: int = 0
    config2: int = 0
    """Of a PMU that has more to say than `config` does."""
    clock: int = 0
    """What records are stamped with, where FLAG_CLOCK says that it is to be chosen."""
    read_format: int = 0

    @property
    def attribute(self) -> bytes:
        """The perf_event_attr."""
        head = (self.type, ATTRIBUTE_BYTES, self.config, self.period, self.sample_type)
        flags = (self.read_format, self.flags, self.wakeup)
        tail = (self.breakpoint, self.config1, self.config2, self.clock)
        packed = struct.pack("=IIQQQQQIIQQ20xI", *head, *flags, *tail)
        return packed.ljust(ATTRIBUTE_BYTES, b"\0")


def open_perf_event(counter: Counter, cpu: int, pid: int = -1, what: str = "perf event") -> int:
    """perf_event_open(2), close-on-exec. Raises OSError."""
    return open_attribute(counter.attribute, cpu, pid, what)


# -- the machine --------------------------------------------------------------------------------


class Compat(NamedTuple):
    """How a task in a system call of a 32-bit program is told: bits of a word of its thread_info, which it begins with."""

    offset: int
    mask: int


def release() -> tuple[int, ...]:
    """The release of the running kernel: major and minor."""
    return tuple(int(part) for part in re.findall(r"\d+", os.uname().release)[:2])


@cache
def compat() -> Optional[Compat]:
    """Where the running kernel says that a system call is a 32-bit program's; None where it has none or it is not known.

    Source: asm/thread_info.h: x86 sets TS_COMPAT (2) of `status`, which has stood behind `flags` and, since
    Linux 5.11, `syscall_work`; arm64 sets TIF_32BIT (22) of `flags`.
    """
    machine = os.uname().machine
    if machine == "x86_64":
        return Compat(16 if release() >= (5, 11) else 8, 2)
    return Compat(0, 1 << 22) if machine == "aarch64" else None


@cache
def reads_in_place() -> bool:
    """Whether programs may follow a pointer of the kernel whose type it knows, without a helper: it has BTF."""
    return instruction_set() == "v4" and os.path.exists("/sys/kernel/btf/vmlinux")


@cache
def online_cpus() -> tuple[int, ...]:
    """The numbers of the processors that are online."""
    return _cpu_list("/sys/devices/system/cpu/online")


@cache
def possible_cpus() -> int:
    """How many values a per-CPU map has for a key."""
    return len(_cpu_list("/sys/devices/system/cpu/possible"))


def _cpu_list(path: str) -> tuple[int, ...]:
    """A list such as `0-3,6`."""
    found: list[int] = []
    with open(path) as file:
        for part in file.read().strip().split(","):
            first, _, last = part.partition("-")
            found.extend(range(int(first), int(last or first) + 1))
    return tuple(found)


INITIAL_PID_NAMESPACE = "pid:[4026531836]"
GET_CURRENT_PID_TGID = 14


def own_process() -> int:
    """This process's number as the kernel's programs see it, which in a container is not os.getpid()."""
    if os.readlink("/proc/self/ns/pid") == INITIAL_PID_NAMESPACE:
        return os.getpid()
    shift = struct.pack("<BBhi", 0x77, 0, 0, 32)
    program = load(RAW_TRACEPOINT, calls(GET_CURRENT_PID_TGID)[:-8] + shift + EXIT)
    try:
        return test_run(program, bytes(16))
    finally:
        os.close(program)
