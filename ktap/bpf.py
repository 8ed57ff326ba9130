"""The system calls of the kernel's tracing: bpf(2) and perf_event_open(2), and little else.

Everything here is a file descriptor; what is attached goes when the descriptor is closed, so a process
that ends, however it ends, leaves nothing behind. Sources: linux/bpf.h, linux/perf_event.h.

What ktap.early imports is written so that it loads in a millisecond or two: without typing, re and what else
takes long itself.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct

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


def _architecture(table: dict[str, int], name: str) -> int:
    number = table.get(os.uname().machine)
    if number is None:
        raise OSError(errno.ENOSYS, f"number of system call {name} is not known on {os.uname().machine}", name)
    return number


def address_of(buffer: ctypes.Array[ctypes.c_char]) -> int:
    """Where a buffer lies."""
    return ctypes.addressof(buffer)


ENOTSUPP = 524
"""An error that the kernel keeps to itself, as a rule; of a probe: it cannot step over the instruction."""


def text_of(number: int) -> str:
    """What an error is in words, also where the C library has none."""
    return "Not supported" if number == ENOTSUPP else os.strerror(number)


def bpf_call(command: int, attribute: bytes, what: str) -> tuple[int, bytes]:
    """bpf(2): its result and the attribute as the kernel left it. Raises OSError."""
    result, left = attempt(command, attribute)
    if result < 0:
        raise OSError(-result, text_of(-result), what)
    return result, left


def attempt(command: int, attribute: bytes) -> tuple[int, bytes]:
    """The same for a call that may well fail: the result is then the negative error."""
    buffer = ctypes.create_string_buffer(attribute, len(attribute))
    result: int = _libc.syscall(_architecture(BPF_CALL, "bpf"), command, buffer, len(attribute))
    return (result if result >= 0 else -ctypes.get_errno()), buffer.raw


def _counted(command: int, attribute: bytes, what: str) -> int:
    """Make a map or a program. Kernels before 5.11 count both against RLIMIT_MEMLOCK, which is lifted where it may be."""
    try:
        return bpf_call(command, attribute, what)[0]
    except PermissionError as error:
        import resource

        if resource.getrlimit(resource.RLIMIT_MEMLOCK)[0] == resource.RLIM_INFINITY:
            raise
        try:
            resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        except (OSError, ValueError):
            raise error from None
    return bpf_call(command, attribute, what)[0]


# -- maps ---------------------------------------------------------------------------------------


def create_map(kind: int, name: str, key_bytes: int, value_bytes: int, entries: int, flags: int = 0) -> int:
    """A new map's file descriptor. Raises OSError."""
    attribute = struct.pack(
        "=IIIIIII16s", kind, key_bytes, value_bytes, entries, flags, 0, 0, name.encode()[:NAME_BYTES]
    )
    return _counted(MAP_CREATE, attribute, f"map {name}")


def update(fd: int, key: bytes, value: bytes) -> None:
    """Set the value under a key."""
    key_buffer = ctypes.create_string_buffer(key, len(key))
    buffer = ctypes.create_string_buffer(value, len(value))
    bpf_call(MAP_UPDATE, struct.pack("=IIQQQ", fd, 0, address_of(key_buffer), address_of(buffer), 0), "map update")


def create_map_of_maps(name: str, inner: int) -> int:
    """An array of one map; `inner` is a map of the kind it holds, and what it holds at first. Raises OSError."""
    attribute = struct.pack("=IIIIII I16s", ARRAY_OF_MAPS, 4, 4, 1, 0, inner, 0, name.encode()[:15])
    outer, _ = bpf_call(MAP_CREATE, attribute, f"map {name}")
    update(outer, bytes(4), struct.pack("=I", inner))
    return outer


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
        address_of(code),
        address_of(license_text),
        1 if log_bytes else 0,
        log_bytes,
        address_of(log) if log_bytes else 0,
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


def attach_raw_tracepoint(program: int, name: str) -> int:
    """Attach a raw tracepoint program; detached when the descriptor is closed. Raises OSError."""
    text = ctypes.create_string_buffer(name.encode())
    return bpf_call(RAW_TRACEPOINT_OPEN, struct.pack("=QII", address_of(text), program, 0), f"raw tracepoint {name}")[0]


# -- perf events --------------------------------------------------------------------------------


def open_attribute(attribute: bytes, cpu: int, pid: int, what: str, leader: int = -1) -> int:
    """perf_event_open(2) with a struct perf_event_attr, close-on-exec, in the group of a leader. Raises OSError."""
    buffer = ctypes.create_string_buffer(attribute.ljust(ATTRIBUTE_BYTES, b"\0"), ATTRIBUTE_BYTES)
    number = _architecture(PERF_CALL, "perf_event_open")
    fd: int = _libc.syscall(number, buffer, pid, cpu, leader, OPEN_CLOEXEC)
    if fd < 0:
        error = ctypes.get_errno()
        raise OSError(error, text_of(error), what)
    return fd


def set_program(event: int, program: int) -> None:
    """Run a program at each event of a perf event. Raises OSError."""
    import fcntl

    fcntl.ioctl(event, IOC_SET_BPF, program)


def enable(event: int) -> None:
    """Let a perf event count."""
    import fcntl

    fcntl.ioctl(event, IOC_ENABLE, 0)


def run_at_perf_event(attribute: bytes, cpu: int, program: int, counting: bool, what: str) -> int:
    """A perf event on one processor that has a program, and counts. Raises OSError."""
    fd = open_attribute(attribute, cpu, -1, what)
    try:
        set_program(fd, program)
        if counting:
            enable(fd)
    except OSError:
        os.close(fd)
        raise
    return fd
