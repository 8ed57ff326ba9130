"""BPF instructions as text, one a line, in the notation of the kernel's verifier.

    7: r1 = ring ll
    9: if r0 == 0 goto 24

Driven by tables of the instruction set (Documentation/bpf/standardization/instruction-set.rst). What it does
not know it shows as bytes.
"""

from __future__ import annotations

import struct
from typing import Callable, List, Mapping, Optional

from compiler.bpf import Code
from compiler.ir import HELPERS
from vm.named_tuple import NamedTuple

LD, LDX, ST, STX, ALU, JMP, JMP32, ALU64 = range(8)
"""Classes: the low three bits of an opcode."""
SIZES = {0x00: ("u32", "s32"), 0x08: ("u16", "s16"), 0x10: ("u8", "s8"), 0x18: ("u64", "s64")}
"""Sizes of loads and stores, as plain and as sign-extending."""
MEMORY, SIGNED_MEMORY, ATOMIC = 0x60, 0x80, 0xC0
"""Modes of loads and stores."""
REGISTER_SOURCE = 0x08
ARITHMETIC = {
    0x00: "+=",
    0x10: "-=",
    0x20: "*=",
    0x30: "/=",
    0x40: "|=",
    0x50: "&=",
    0x60: "<<=",
    0x70: ">>=",
    0x90: "%=",
    0xA0: "^=",
    0xB0: "=",
    0xC0: "s>>=",
}
SIGNED = {0x30: "s/=", 0x90: "s%="}
"""Division and remainder with an offset of 1."""
NEGATE, SWAP = 0x80, 0xD0
CONDITIONS = {
    0x10: "==",
    0x20: ">",
    0x30: ">=",
    0x40: "&",
    0x50: "!=",
    0x60: "s>",
    0x70: "s>=",
    0xA0: "<",
    0xB0: "<=",
    0xC0: "s<",
    0xD0: "s<=",
}
ALWAYS, CALL, EXIT, MAYBE = 0x00, 0x80, 0x90, 0xE0
ATOMICS = {
    0x00: "lock *{0} += {1}",
    0x40: "lock *{0} |= {1}",
    0x50: "lock *{0} &= {1}",
    0xA0: "lock *{0} ^= {1}",
    0x01: "{1} = atomic_fetch_add({0}, {1})",
    0x41: "{1} = atomic_fetch_or({0}, {1})",
    0x51: "{1} = atomic_fetch_and({0}, {1})",
    0xA1: "{1} = atomic_fetch_xor({0}, {1})",
    0xE1: "{1} = atomic_xchg({0}, {1})",
    0xF1: "r0 = atomic_cmpxchg({0}, r0, {1})",
}
NAMES = {helper.number: name for name, helper in HELPERS.items()}


class Instruction(NamedTuple):
    """One instruction, decoded; `place` is its number."""

    place: int
    opcode: int
    target: int
    source: int
    offset: int
    immediate: int

    @property
    def register(self) -> str:
        """How registers are called in it: all of them, or their lower half."""
        return "w" if self.opcode & 7 in (ALU, JMP32) else "r"

    @property
    def operand(self) -> str:
        """The right side of an operation: a register or a number."""
        if self.opcode & REGISTER_SOURCE:
            return f"{self.register}{self.source}"
        return str(self.immediate)


def disassemble(code: Code) -> str:
    """The text of a program; references stand by their names."""
    names = {reference.offset // 8: reference.name for reference in code.references}
    lines: List[str] = []
    place, count = 0, len(code.instructions) // 8
    while place < count:
        opcode, registers, offset, immediate = struct.unpack_from("<BBhi", code.instructions, place * 8)
        step = Instruction(place, opcode, registers & 15, registers >> 4, offset, immediate)
        text = None
        if opcode == 0x18 and place + 1 < count:
            high = struct.unpack_from("<I", code.instructions, place * 8 + 12)[0]
            number = (immediate & 0xFFFFFFFF) | high << 32
            named = names.get(place)
            text = f"r{step.target} = {named or f'{number:#x}'} ll"
        else:
            decode = DECODERS.get(opcode & 7)
            text = decode(step) if decode is not None else None
        raw = code.instructions[place * 8 : place * 8 + 8].hex(" ")
        lines.append(f"{place:5}: {text or raw}")
        place += 2 if opcode == 0x18 else 1
    return "\n".join(lines) + "\n"


def _memory(step: Instruction, base: int) -> Optional[str]:
    sizes = SIZES[step.opcode & 0x18]
    mode = step.opcode & 0xE0
    kind = sizes[1] if mode == SIGNED_MEMORY else sizes[0]
    sign = "-" if step.offset < 0 else "+"
    return f"({kind} *)(r{base} {sign} {abs(step.offset)})"


def _load(step: Instruction) -> Optional[str]:
    if step.opcode & 0xE0 not in (MEMORY, SIGNED_MEMORY):
        return None
    return f"r{step.target} = *{_memory(step, step.source)}"


def _store(step: Instruction) -> Optional[str]:
    if step.opcode & 0xE0 == MEMORY:
        value = f"r{step.source}" if step.opcode & 7 == STX else f"{step.immediate}"
        return f"*{_memory(step, step.target)} = {value}"
    pattern = ATOMICS.get(step.immediate) if step.opcode & 0xE0 == ATOMIC else None
    return None if pattern is None else pattern.format(_memory(step, step.target), f"r{step.source}")


def _arithmetic(step: Instruction) -> Optional[str]:
    operation = step.opcode & 0xF0
    target = f"{step.register}{step.target}"
    if operation == NEGATE:
        return f"{target} = -{target}"
    if operation == SWAP:
        order = "bswap" if step.opcode & 7 == ALU64 else "be" if step.opcode & REGISTER_SOURCE else "le"
        return f"r{step.target} = {order}{step.immediate} r{step.target}"
    if operation == 0xB0 and step.offset:
        return f"{target} = (s{step.offset}){step.operand}"
    sign = SIGNED.get(operation) if step.offset == 1 else ARITHMETIC.get(operation)
    return None if sign is None else f"{target} {sign} {step.operand}"


def _jump(step: Instruction) -> Optional[str]:
    operation = step.opcode & 0xF0
    if operation == EXIT:
        return "exit"
    if operation == CALL:
        name = NAMES.get(step.immediate)
        return f"call {name}#{step.immediate}" if name else f"call {step.immediate}"
    far = step.immediate if operation == ALWAYS and step.opcode & 7 == JMP32 else step.offset
    goal = f"goto {step.place + 1 + far}"
    if operation == ALWAYS:
        return goal
    if operation == MAYBE:
        return f"may_goto {step.place + 1 + step.offset}"
    sign = CONDITIONS.get(operation)
    return None if sign is None else f"if {step.register}{step.target} {sign} {step.operand} {goal}"


DECODERS: Mapping[int, Callable[[Instruction], Optional[str]]] = {
    LDX: _load,
    ST: _store,
    STX: _store,
    ALU: _arithmetic,
    ALU64: _arithmetic,
    JMP: _jump,
    JMP32: _jump,
}
