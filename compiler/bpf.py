"""The BPF back end: LLVM IR text to BPF instructions, in memory, with their open references.

An external global of the IR (`@ring = external global i8`) is an open reference: a 64-bit immediate
that is filled in when the program is loaded, with a map or with a plain number (`link`).

LLVM's BPF back end *ends the process* on what it cannot select, so what it is known to die of is
looked for first (`forbidden`). Source of the object's layout: System V ABI, ELF-64 object file
format; relocation types: Linux Documentation/bpf/llvm_reloc.rst.
"""

from __future__ import annotations

import re
import struct
from functools import cache
from typing import TYPE_CHECKING, Mapping, Union

from compiler.ir import MARK
from vm.named_tuple import NamedTuple

if TYPE_CHECKING:
    from types import ModuleType

HEADER = 'target datalayout = "e-m:e-p:64:64-i64:64-i128:128-n32:64-S128"\ntarget triple = "bpf"\n'
"""What every module starts with."""

STACK_BYTES = 512
"""The stack of a program (MAX_BPF_STACK of linux/filter.h)."""

LARGE_STACK_BYTES = 1 << 16
"""What the back end is told: at the true limit it ends the process, where the verifier only refuses the program."""

FORBIDDEN = (
    (r"\b(f(add|sub|mul|div|rem|neg|cmp)|[us]itofp|fpto[us]i|float|double)\b", "floating point"),
    (r"\bi128\b", "128-bit integers"),
    (r"\b(invoke|landingpad|resume|indirectbr|callbr|va_arg)\b", "control flow that BPF lacks"),
    (r"\balloca\b[^\n]*,\s*i(32|64)\s+%", "an alloca of variable size"),
    (r'define[^\n]*@(\w+)\([^\n]*section "\1"', "room for a function and a section of one name"),
    (r"call[^\n]*@llvm\.(memcpy|memmove|memset)[^\n]*i64 %", "a block move of variable size"),
)
"""What the back end has no instructions for, on any cpu."""

FORBIDDEN_BELOW_V4 = ((r"\b(sdiv|srem)\b", "signed division"),)
"""Added by the v4 instruction set (Linux 6.6)."""

CALL, GOTO, GOTO_IF_ZERO, GOTO_UNLESS_ZERO, MAY_GOTO = 0x85, 0x05, 0x15, 0x55, 0xE5
"""Opcodes of instructions (linux/bpf.h). MAY_GOTO jumps once a program has looped for too long (Linux 6.9): with it the
verifier takes loops whose end it cannot see."""

R_BPF_64_64 = 1
BPF_PSEUDO_MAP_FD, BPF_PSEUDO_BTF_ID = 1, 3
SHT_SYMTAB, SHT_REL = 2, 9
TYPE_SIZES = {"i1": 1, "i8": 1, "i16": 2, "i32": 4, "i64": 8, "ptr": 8}


class BackendError(Exception):
    """The IR is not valid, or holds something the back end cannot take."""


class Reference(NamedTuple):
    """A 64-bit immediate to be filled in: the byte offset of its instruction, and the global it names."""

    offset: int
    name: str


class Code(NamedTuple):
    """A program: its instructions, 8 bytes each, and the references that `link` fills in."""

    instructions: bytes
    references: tuple[Reference, ...]
    kept: bool = False
    """It was made by an earlier run."""


class KernelVariable(NamedTuple):
    """A value for a reference: a variable of the kernel, by its id in the kernel's BTF."""

    btf_id: int


class MapFd(NamedTuple):
    """A value for a reference: the map behind a file descriptor."""

    fd: int


def compile_program(ir: str, cpu: str) -> Code:
    """The one function of an IR module (without HEADER) as BPF instructions.

    `cpu` is `v3` or `v4`. The IR is compiled as it stands, without LLVM's optimiser, so that the bounds
    checks in it reach the verifier in the form they were written in. Raises BackendError.
    """
    reason = forbidden(ir, cpu)
    if reason is not None:
        raise BackendError(f"the BPF back end has no {reason}")
    llvm = _llvm()
    try:
        module = llvm.parse_assembly(HEADER + ir)
        module.verify()
    except RuntimeError as error:
        raise BackendError(str(error)) from error
    image: bytes = _target_machine(cpu).emit_object(module)
    return with_ways_out(_code(image))


def with_ways_out(code: Code) -> Code:
    """The program with MAY_GOTO for every marked place (`compiler.ir.Writer.may_go`).

    LLVM has the instruction in its assembler alone, so what is written is the call of a helper that there
    is not, and a jump where it gives 0. Raises BackendError where the two are not side by side.
    """
    out = bytearray(code.instructions)
    for place in range(0, len(out), 8):
        operation, _, _, number = struct.unpack_from("<BBhi", out, place)
        if operation != CALL or number != MARK:
            continue
        jump, tested, far, against = struct.unpack_from("<BBhi", out, place + 8)
        if tested != 0 or against != 0 or jump not in (GOTO_IF_ZERO, GOTO_UNLESS_ZERO):
            raise BackendError("a loop's way out was moved")
        if jump == GOTO_IF_ZERO:
            struct.pack_into("<BBhiBBhi", out, place, GOTO, 0, 0, 0, MAY_GOTO, 0, far, 0)
        else:
            struct.pack_into("<BBhiBBhi", out, place, MAY_GOTO, 0, 1, 0, GOTO, 0, far, 0)
    return code._replace(instructions=bytes(out))


def forbidden(ir: str, cpu: str) -> str | None:
    """What in the IR would end the process inside LLVM, None when there is nothing known."""
    rows = FORBIDDEN if cpu == "v4" else FORBIDDEN + FORBIDDEN_BELOW_V4
    for pattern, name in rows:
        if re.search(pattern, ir):
            return name
    if _stack_bytes(ir) > STACK_BYTES:
        return f"stack for more than {STACK_BYTES} bytes"
    if any(len(call.split(",")) > 5 for call in re.findall(r"\bto ptr\)\s*\(([^()]*)\)", ir)):
        return "calls of more than five arguments"
    return None


def link(code: Code, values: Mapping[str, Union[int, MapFd, KernelVariable]]) -> bytes:
    """The instructions with every reference filled in. Raises KeyError for one that has no value."""
    out = bytearray(code.instructions)
    for reference in code.references:
        value = values[reference.name]
        if isinstance(value, MapFd):
            out[reference.offset + 1] = (out[reference.offset + 1] & 0x0F) | (BPF_PSEUDO_MAP_FD << 4)
            number = value.fd
        elif isinstance(value, KernelVariable):
            out[reference.offset + 1] = (out[reference.offset + 1] & 0x0F) | (BPF_PSEUDO_BTF_ID << 4)
            number = value.btf_id
        else:  # the object's relocations keep what is added to a global in place
            low, high = struct.unpack_from("<I4xI", out, reference.offset + 4)
            number = (value + low + (high << 32)) & 0xFFFFFFFFFFFFFFFF
        struct.pack_into("<I", out, reference.offset + 4, number & 0xFFFFFFFF)
        struct.pack_into("<I", out, reference.offset + 12, number >> 32)
    return bytes(out)


def _stack_bytes(ir: str) -> int:
    """The bytes of all allocas, each rounded up to 8."""
    total = 0
    for count, element in re.findall(r"\balloca\s+(?:\[(\d+) x )?(\w+)", ir):
        size = int(count or 1) * TYPE_SIZES.get(element, STACK_BYTES + 1)
        total += (size + 7) & ~7
    return total


@cache
def _llvm() -> ModuleType:
    import llvmlite.binding  # type: ignore[import-untyped]

    llvmlite.binding.set_option("ktap", f"-bpf-stack-size={LARGE_STACK_BYTES}")
    llvmlite.binding.initialize_all_targets()
    llvmlite.binding.initialize_all_asmprinters()
    module: ModuleType = llvmlite.binding
    return module


def prepare() -> None:
    """Load LLVM, which the first program would else wait for."""
    _target_machine("v4")


class _TargetMachine:
    """What is used of llvmlite's TargetMachine, which comes without types."""

    def emit_object(self, module: object) -> bytes:
        raise NotImplementedError


@cache
def _target_machine(cpu: str) -> _TargetMachine:
    machine: _TargetMachine = _llvm().Target.from_triple("bpf").create_target_machine(cpu=cpu, opt=2)
    return machine


class _Section(NamedTuple):
    name: int
    type: int
    flags: int
    address: int
    offset: int
    size: int
    link: int
    info: int
    align: int
    entry_size: int


def _code(image: bytes) -> Code:
    """The section of the object that holds instructions, and the relocations of it."""
    (table,) = struct.unpack_from("<Q", image, 40)
    entry_size, count, _names = struct.unpack_from("<HHH", image, 58)
    sections = [_Section(*struct.unpack_from("<IIQQQQIIQQ", image, table + i * entry_size)) for i in range(count)]
    executable = [i for i, s in enumerate(sections) if s.flags & 4 and s.size]
    if len(executable) != 1:
        raise BackendError(f"{len(executable)} functions in a module that should hold one")
    text = sections[executable[0]]
    references = []
    for section in sections:
        if section.type != SHT_REL or section.info != executable[0]:
            continue
        symbols = sections[section.link]
        strings = sections[symbols.link].offset
        for offset in range(section.offset, section.offset + section.size, 16):
            place, info = struct.unpack_from("<QQ", image, offset)
            (name,) = struct.unpack_from("<I", image, symbols.offset + (info >> 32) * 24)
            label = image[strings + name : image.index(b"\0", strings + name)].decode()
            if info & 0xFFFFFFFF != R_BPF_64_64:
                raise BackendError(f"a call of {label or 'a function'}, which BPF has not")
            references.append(Reference(place, label))
    return Code(image[text.offset : text.offset + text.size], tuple(references))
