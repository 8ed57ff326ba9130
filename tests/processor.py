"""What probes of tests are written with, for the processor that runs them: registers, functions of its kernel, flags."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Mapping, NamedTuple

from ktap.functions import kernel_functions


class Processor(NamedTuple):
    """The words of one kind of processor."""

    registers: Mapping[str, str]
    """Registers by those of x86-64 that have the same part in calls, or just as many bits."""
    system_call: str
    """The function of the kernel that all system calls go through."""
    execve: str
    execve_arguments: int
    """Where what it is given has the first argument of the call, and how far behind is the second."""
    second_argument: int
    forbidden: str
    """A function in which the kernel refuses probes."""
    lock: str
    """What takes or releases a lock that probes take, too."""
    large_file: int
    """What the kernel adds to the flags of open (O_LARGEFILE)."""
    breakpoint: int
    """The first byte of the instruction that the kernel puts at a probe in a program."""
    within: str
    """Where an instruction is, in a function, that is neither the first nor the function tracer's."""


ADDRESSES = Path("/sys/kernel/tracing/available_filter_functions_addrs")
PROCESSORS = {
    "x86_64": Processor(
        {},
        "do_syscall_64",
        "__x64_sys_execve",
        112,
        -8,
        "exc_int3",
        "_raw_spin_unlock_irqrestore",
        0o100000,
        0xCC,  # int3
        "+0x4" if ADDRESSES.exists() else "+0x5",  # kernels that have the file begin functions with ENDBR (4 bytes)
    ),
    "aarch64": Processor(
        {
            **{"di": "x0", "si": "x1", "dx": "x2", "cx": "x3", "r8": "x4", "r15": "x5", "cs": "x6", "ss": "x7"},
            **{"ax": "x0", "ip": "pc", "flags": "pstate", "bp": "x29"},
        },
        "invoke_syscall",
        "__arm64_sys_execve",
        0,
        8,
        "el0t_64_sync_handler",
        "queued_spin_lock_slowpath",
        0o400000,
        0xA0,  # brk #5
        "+0xc",
    ),
}
HERE = PROCESSORS[os.uname().machine]


def words(text: str) -> str:
    """A probe that is written with registers of x86-64, with this processor's."""
    return re.sub(r"%(\w+)", lambda found: f"%{HERE.registers.get(found[1], found[1])}", text)


def has_typed() -> bool:
    """Whether fentry can be had: the function tracer calls programs by themselves."""
    return bool(kernel_functions().addresses(["register_ftrace_direct"]))
