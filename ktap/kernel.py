"""The kernel's tracing interfaces as typed functions: bpf(2), perf_event_open(2).

Everything here is a file descriptor; what is attached goes when the descriptor is closed, so a process
that ends, however it ends, leaves nothing behind. Sources: linux/bpf.h, linux/perf_event.h.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import struct
from contextlib import suppress
from functools import cache
from typing import Iterator, NamedTuple, Optional

BPF_CALL = {"x86_64": 321, "aarch64": 280, "riscv64": 280, "ppc64le": 361, "s390x": 351}
PERF_CALL = {"x86_64": 298, "aarch64": 241, "riscv64": 241, "ppc64le": 319, "s390x": 331}

# commands of bpf(2)
MAP_CREATE = 0
MAP_FREEZE, MAP_LOOKUP_BATCH, MAP_TAKE_BATCH = 22, 24, 25
MAP_LOOKUP, MAP_UPDATE, MAP_DELETE, MAP_NEXT_KEY, PROGRAM_LOAD = 1, 2, 3, 4, 5
TEST_RUN, PROGRAM_NEXT_ID, MAP_NEXT_ID, INFO_BY_FD, RAW_TRACEPOINT_OPEN = 10, 11, 12, 15, 17
LINK_CREATE, LINK_NEXT_ID = 28, 31

# kinds of maps
HASH, ARRAY, PERF_EVENT_ARRAY, PERCPU_HASH, PERCPU_ARRAY, LRU_HASH, RINGBUF = 1, 2, 4, 5, 6, 9, 27
ARRAY_OF_MAPS = 12
BATCH_ENTRIES = 4096
NO_PREALLOCATION = 1
NAME_BYTES = 15
"""Of a map or a program."""

# kinds of programs
KPROBE, TRACEPOINT, PERF_EVENT, RAW_TRACEPOINT = 2, 5, 7, 17

# perf events
TYPE_SOFTWARE, TYPE_TRACEPOINT = 1, 2
CPU_CLOCK, BPF_OUTPUT = 0, 10
SAMPLE_RAW, SAMPLE_TIME = 1 << 10, 1 << 2
FLAG_DISABLED, FLAG_FREQUENCY, FLAG_WATERMARK = 1 << 0, 1 << 10, 1 << 14
FLAG_EXCLUDE_KERNEL = 1 << 5
IOC_ENABLE, IOC_DISABLE, IOC_SET_BPF = 0x2400, 0x2401, 0x40042408
OPEN_CLOEXEC = 8
ATTRIBUTE_BYTES = 136

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


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
    return None


def _architecture(table: dict[str, int], name: str) -> int:
    number = table.get(os.uname().machine)
    if number is None:
        raise OSError(errno.ENOSYS, f"number of system call {name} is not known on {os.uname().machine}", name)
    return number


def _failed(what: str) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number), what)


def _address(buffer: ctypes.Array[ctypes.c_char]) -> int:
    return ctypes.addressof(buffer)


def bpf_call(command: int, attribute: bytes, what: str) -> tuple[int, bytes]:
    """bpf(2): its result and the attribute as the kernel left it. Raises OSError."""
    buffer = ctypes.create_string_buffer(attribute, len(attribute))
    result = _libc.syscall(_architecture(BPF_CALL, "bpf"), command, buffer, len(attribute))
    if result < 0:
        raise _failed(what)
    return result, buffer.raw


def _counted(command: int, attribute: bytes, what: str) -> int:
    """Make a map or a program. Kernels before 5.11 count both against RLIMIT_MEMLOCK, which is lifted where it may be."""
    try:
        return bpf_call(command, attribute, what)[0]
    except PermissionError:
        import resource

        if resource.getrlimit(resource.RLIMIT_MEMLOCK)[0] == resource.RLIM_INFINITY:
            raise
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    return bpf_call(command, attribute, what)[0]


# -- maps ---------------------------------------------------------------------------------------


def create_map(kind: int, name: str, key_bytes: int, value_bytes: int, entries: int, flags: int = 0) -> int:
    """A new map's file descriptor. Raises OSError."""
    attribute = struct.pack(
        "=IIIIIII16s", kind, key_bytes, value_bytes, entries, flags, 0, 0, name.encode()[:NAME_BYTES]
    )
    return _counted(MAP_CREATE, attribute, f"map {name}")


def lookup(fd: int, key: bytes, value_bytes: int) -> Optional[bytes]:
    """The value under a key, None where there is none (per-CPU kinds: the values of all CPUs, one after the other)."""
    key_buffer = ctypes.create_string_buffer(key, len(key))
    value = ctypes.create_string_buffer(value_bytes)
    try:
        bpf_call(MAP_LOOKUP, struct.pack("=IIQQQ", fd, 0, _address(key_buffer), _address(value), 0), "map lookup")
    except OSError as error:
        if error.errno == errno.ENOENT:
            return None
        raise
    return value.raw


def update(fd: int, key: bytes, value: bytes) -> None:
    """Set the value under a key."""
    key_buffer = ctypes.create_string_buffer(key, len(key))
    buffer = ctypes.create_string_buffer(value, len(value))
    bpf_call(MAP_UPDATE, struct.pack("=IIQQQ", fd, 0, _address(key_buffer), _address(buffer), 0), "map update")


def delete(fd: int, key: bytes) -> None:
    """Remove a key."""
    key_buffer = ctypes.create_string_buffer(key, len(key))
    bpf_call(MAP_DELETE, struct.pack("=IIQQQ", fd, 0, _address(key_buffer), 0, 0), "map delete")


def freeze(fd: int) -> None:
    """Let no process change a map any more."""
    bpf_call(MAP_FREEZE, struct.pack("=I", fd), "map freeze")


def keys(fd: int, key_bytes: int) -> Iterator[bytes]:
    """The keys of a map, as they are met."""
    following = ctypes.create_string_buffer(key_bytes)
    current: Optional[ctypes.Array[ctypes.c_char]] = None
    while True:
        start = _address(current) if current is not None else 0
        try:
            bpf_call(MAP_NEXT_KEY, struct.pack("=IIQQQ", fd, 0, start, _address(following), 0), "map next key")
        except OSError as error:
            if error.errno == errno.ENOENT:
                return
            raise
        yield following.raw
        current = ctypes.create_string_buffer(following.raw, key_bytes)


def create_map_of_maps(name: str, inner: int) -> int:
    """An array of one map; `inner` is a map of the kind it holds, and what it holds at first. Raises OSError."""
    attribute = struct.pack("=IIIIII I16s", ARRAY_OF_MAPS, 4, 4, 1, 0, inner, 0, name.encode()[:15])
    outer, _ = bpf_call(MAP_CREATE, attribute, f"map {name}")
    update(outer, bytes(4), struct.pack("=I", inner))
    return outer


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
        begin = 0 if first else _address(position)
        attribute = struct.pack(
            "=QQQQIIQQ", begin, _address(following), _address(found_keys), _address(values), count, fd, 0, 0
        )
        buffer = ctypes.create_string_buffer(attribute, len(attribute))
        result = _libc.syscall(_architecture(BPF_CALL, "bpf"), command, buffer, len(attribute))
        error = ctypes.get_errno() if result < 0 else 0
        if error == errno.ENOSPC:  # one bucket holds more than a batch
            count *= 2
            continue
        if error not in (0, errno.ENOENT):
            raise _failed("map batch")
        (got,) = struct.unpack_from("=I", buffer.raw, 32)
        all_keys, all_values = found_keys.raw, values.raw
        for number in range(got):
            key = all_keys[number * key_bytes : (number + 1) * key_bytes]
            yield key, all_values[number * value_bytes : (number + 1) * value_bytes]
        if error == errno.ENOENT:
            return
        position, following, first = following, position, False


# -- programs -----------------------------------------------------------------------------------


def load(
    kind: int,
    instructions: bytes,
    log_bytes: int = 0,
    flags: int = 0,
    name: str = "ktap",
    attach_type: int = 0,
    function: int = 0,
) -> int:
    """Load a program with bpf(2) alone. Raises OSError, with the verifier's log as `strerror` where one is asked for.

    `attach_type` is how it will be attached, where its kind leaves that open; `function` the one it is for, by its id in
    BTF.
    """
    code = ctypes.create_string_buffer(instructions, len(instructions))
    license_text = ctypes.create_string_buffer(b"GPL")
    log = ctypes.create_string_buffer(log_bytes or 1)
    attribute = struct.pack(
        "=IIQQIIQII16s",
        kind,
        len(instructions) // 8,
        _address(code),
        _address(license_text),
        1 if log_bytes else 0,
        log_bytes,
        _address(log) if log_bytes else 0,
        0,
        flags,
        name.encode()[:NAME_BYTES],
    )
    if attach_type:
        attribute += struct.pack("=IIIIQIIQIII", 0, attach_type, 0, 0, 0, 0, 0, 0, 0, function, 0)
    try:
        return _counted(PROGRAM_LOAD, attribute, "program load")
    except OSError as error:
        raise OSError(error.errno, log.value.decode(errors="replace") or error.strerror, "program load") from error


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


def attach_raw_tracepoint(program: int, name: str) -> int:
    """Attach a raw tracepoint program; detached when the descriptor is closed. Raises OSError."""
    text = ctypes.create_string_buffer(name.encode())
    return bpf_call(RAW_TRACEPOINT_OPEN, struct.pack("=QII", _address(text), program, 0), f"raw tracepoint {name}")[0]


def create_link(attribute: bytes, what: str) -> int:
    """Attach a program by a link (BPF_LINK_CREATE); detached when the descriptor is closed. Raises OSError."""
    return bpf_call(LINK_CREATE, attribute, what)[0]


def test_run(program: int, context: bytes) -> int:
    """What a raw tracepoint program returns for a made-up context (BPF_PROG_TEST_RUN)."""
    buffer = ctypes.create_string_buffer(context, len(context))
    attribute = struct.pack("=IIIIQQIIIIQQII", program, 0, 0, 0, 0, 0, 0, 0, len(context), 0, _address(buffer), 0, 0, 0)
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
    bpf_call(INFO_BY_FD, struct.pack("=IIQ", fd, len(info), _address(info)), "program info")
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


def open_perf_event(counter: Counter, cpu: int, pid: int = -1, what: str = "perf event") -> int:
    """perf_event_open(2), close-on-exec. Raises OSError."""
    attribute = struct.pack(
        "=IIQQQQQIIQQ20xI",
        counter.type,
        ATTRIBUTE_BYTES,
        counter.config,
        counter.period,
        counter.sample_type,
        0,
        counter.flags,
        counter.wakeup,
        counter.breakpoint,
        counter.config1,
        counter.config2,
        counter.clock,
    ).ljust(ATTRIBUTE_BYTES, b"\0")
    return open_attribute(attribute, cpu, pid, what)


def open_attribute(attribute: bytes, cpu: int, pid: int, what: str) -> int:
    """perf_event_open(2) with a whole struct perf_event_attr. Raises OSError."""
    buffer = ctypes.create_string_buffer(attribute.ljust(ATTRIBUTE_BYTES, b"\0"), ATTRIBUTE_BYTES)
    number = _architecture(PERF_CALL, "perf_event_open")
    fd: int = _libc.syscall(number, buffer, pid, cpu, -1, OPEN_CLOEXEC)
    if fd < 0:
        raise _failed(what)
    return fd


def set_program(event: int, program: int) -> None:
    """Run a program at each event of a perf event. Raises OSError."""
    import fcntl

    fcntl.ioctl(event, IOC_SET_BPF, program)


def enable(event: int) -> None:
    """Let a perf event count."""
    import fcntl

    fcntl.ioctl(event, IOC_ENABLE, 0)


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


@cache
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
