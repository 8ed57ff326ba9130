"""Registers of a stopped program: where struct pt_regs has them, and which ones a call uses.

Source: asm/ptrace.h (x86, arm64), and the calling conventions: System V ABI for x86-64, AAPCS64 for arm64.
The names are those that kprobe_events takes (regs_query_register_offset of each architecture), and those of the
parts of registers that static markers use.
"""

from __future__ import annotations

from typing import Dict, Mapping, Optional, Tuple

from vm.named_tuple import NamedTuple

WORD_BYTES = 8


class Part(NamedTuple):
    """A register, or a part of one, in struct pt_regs."""

    offset: int
    size_bytes: int = WORD_BYTES


class Machine(NamedTuple):
    """An architecture."""

    name: str
    """As uname -m has it."""
    registers: Mapping[str, Part]
    parts: Mapping[str, Part]
    """Other names of registers and of parts of them: `eax`, `w0`."""
    arguments: Tuple[str, ...]
    """Which registers have the arguments of a call, first to last."""
    result: str
    stack: str
    instruction: str
    stack_words: int
    """Words between the stack pointer and the first argument that found no register, when a function begins."""
    link: Optional[str] = None
    """Which register has the address that a function returns to, when it begins; None where that is on the stack."""
    instruction_bytes: int = 1
    """What addresses of instructions are multiples of."""


def _in_order(names: str) -> Dict[str, Part]:
    return {name: Part(WORD_BYTES * number) for number, name in enumerate(names.split())}


X86 = _in_order("r15 r14 r13 r12 bp bx r11 r10 r9 r8 ax cx dx si di orig_ax ip cs flags sp ss")
ARM = {
    **_in_order(" ".join(f"x{number}" for number in range(31))),
    "sp": Part(248),
    "pc": Part(256),
    "pstate": Part(264),
}


def _x86_parts() -> Dict[str, Part]:
    found: Dict[str, Part] = {}
    for name in ("ax", "bx", "cx", "dx", "si", "di", "bp", "sp"):
        at = X86[name].offset
        found.update({f"r{name}": Part(at), f"e{name}": Part(at, 4)})
        found[f"{name[0]}l" if name.endswith("x") else f"{name}l"] = Part(at, 1)
        if name.endswith("x"):
            found[f"{name[0]}h"] = Part(at + 1, 1)
    for number in range(8, 16):
        at = X86[f"r{number}"].offset
        found.update({f"r{number}d": Part(at, 4), f"r{number}w": Part(at, 2), f"r{number}b": Part(at, 1)})
    return {**found, "rip": Part(X86["ip"].offset)}


def _arm_parts() -> Dict[str, Part]:
    found = {f"w{number}": Part(WORD_BYTES * number, 4) for number in range(31)}
    return {**found, "lr": ARM["x30"], "fp": ARM["x29"]}


MACHINES: Mapping[str, Machine] = {
    "x86_64": Machine("x86_64", X86, _x86_parts(), ("di", "si", "dx", "cx", "r8", "r9"), "ax", "sp", "ip", 1),
    "aarch64": Machine(
        "aarch64", ARM, _arm_parts(), tuple(f"x{number}" for number in range(8)), "x0", "sp", "pc", 0, "x30", 4
    ),
}
"""By machine, as uname -m names it."""


SAMPLED = {
    "x86_64": "ax bx cx dx si di bp sp ip flags cs ss - - - - r8 r9 r10 r11 r12 r13 r14 r15",
    "aarch64": " ".join([*(f"x{number}" for number in range(31)), "sp", "pc"]),
}
"""The registers that a perf event can sample, in the order of their bits (asm/perf_regs.h)."""


def argument_register(machine: Machine, number: int) -> Optional[Part]:
    """Where an argument of a call is, counted from 1; None where it is on the stack."""
    return machine.registers[machine.arguments[number - 1]] if number <= len(machine.arguments) else None


def argument_slot(machine: Machine, number: int) -> int:
    """Which word of the stack an argument is that found no register, when a function begins."""
    return machine.stack_words + number - 1 - len(machine.arguments)
