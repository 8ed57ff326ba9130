"""Registers of a stopped program: where struct pt_regs has them, and which ones a call uses.

Source: asm/ptrace.h (x86, arm64), and the calling conventions: System V ABI for x86-64, AAPCS64 for arm64.
The names are those that kprobe_events takes (regs_query_register_offset of each architecture).
"""

from __future__ import annotations

from typing import Dict, Mapping, NamedTuple, Tuple


class Registers(NamedTuple):
    """An architecture's registers."""

    offsets: Mapping[str, int]
    """Place of each register in struct pt_regs, in bytes."""
    arguments: Tuple[str, ...]
    """Which have the arguments of a call, first to last."""
    result: str
    """Which has the result of a call."""
    stack: str
    """The stack pointer."""
    stack_arguments: int
    """Words between the stack pointer and the first argument that found no register, when a function begins."""


def _in_order(names: str) -> Dict[str, int]:
    return {name: 8 * number for number, name in enumerate(names.split())}


REGISTERS: Mapping[str, Registers] = {
    "x86_64": Registers(
        _in_order("r15 r14 r13 r12 bp bx r11 r10 r9 r8 ax cx dx si di orig_ax ip cs flags sp ss"),
        ("di", "si", "dx", "cx", "r8", "r9"),
        "ax",
        "sp",
        1,
    ),
    "aarch64": Registers(
        {**_in_order(" ".join(f"x{number}" for number in range(31))), "sp": 248, "pc": 256, "pstate": 264},
        tuple(f"x{number}" for number in range(8)),
        "x0",
        "sp",
        0,
    ),
}
"""By machine, as uname -m names it."""
