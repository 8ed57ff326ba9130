"""Bytecode as text, for people: driven by the opcode table, so that a new row needs nothing here."""

from __future__ import annotations

from typing import Callable, Iterator, Sequence

from vm.opcodes import BY_NAME, PACK
from vm.program import Constant, Function, Instruction, Program

LONGEST_TEXT = 200
"""Characters of a string constant that are shown."""
ESCAPES = {0x07: "\\a", 0x08: "\\b", 0x09: "\\t", 0x0A: "\\n", 0x0D: "\\r", 0x22: '\\"', 0x5C: "\\\\"}


def disassemble(program: Program) -> str:
    """The functions of a program, an instruction a line, ending with a newline.

    Source lines stand as comments before the code made from them, jump targets are labels (`L7`),
    registers are `r3`, upvalues `u0(name)`, functions `f2 name`; constants stand as the language
    writes them. The program need not have been verified.
    """
    lines = program.source.split("\n") if program.source is not None else []
    parts = [f"# {program.source_name}: {len(program.functions)} functions, {len(program.constants)} constants"]
    for number, function in enumerate(program.functions):
        parts.append("\n".join(_function_lines(program, number, function, lines)))
    return "\n\n".join(parts) + "\n"


def constant_text(value: Constant) -> str:
    """A constant as the language writes it."""
    if value is None:
        return "nil"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    shown = "".join(ESCAPES.get(c) or (chr(c) if 0x20 <= c < 0x7F else f"\\x{c:02x}") for c in value[:LONGEST_TEXT])
    return f'"{shown}"' + ("…" if len(value) > LONGEST_TEXT else "")


def _function_lines(program: Program, number: int, function: Function, source: Sequence[str]) -> Iterator[str]:
    yield _signature(number, function)
    targets = {
        operand
        for instruction in function.code
        for kind, operand in zip(BY_NAME[instruction.op].operands, instruction[1:])
        if kind == "j"
    }
    line = 0
    for index, instruction in enumerate(function.code):
        span = function.spans[index]
        if span.line != line:
            line = span.line
            text = source[line - 1].strip() if line <= len(source) else ""
            yield f"{'':8}# {line}: {text}".rstrip()
        label = f"L{index}:" if index in targets else ""
        yield f"{label:7} {index:5}  {_instruction(program, function, instruction)}"


def _signature(number: int, function: Function) -> str:
    parameters = [f"r{register}" for register in range(function.parameters)] + ["..."] * function.variadic
    text = f"{_called(number, function)}({', '.join(parameters)}): {function.registers} registers"
    if function.upvalues:
        places = (
            f"u{n}({u.name}) = {'r' if u.from_register else 'u'}{u.slot}" for n, u in enumerate(function.upvalues)
        )
        text += f"; {', '.join(places)}"
    return text


def _called(number: int, function: Function) -> str:
    return f"f{number} {function.name}".rstrip()


def _instruction(program: Program, function: Function, instruction: Instruction) -> str:
    row = BY_NAME[instruction.op]
    operands = (SHOWN[kind](program, function, operand) for kind, operand in zip(row.operands, instruction[1:]))
    return f"{row.name:10} {', '.join(operands)}".rstrip()


def _value(program: Program, function: Function, operand: int) -> str:
    return f"r{operand}" if operand >= 0 else _constant(program, function, ~operand)


def _constant(program: Program, function: Function, operand: int) -> str:
    if 0 <= operand < len(program.constants):
        return constant_text(program.constants[operand])
    return f"constant {operand}?"


def _register(program: Program, function: Function, operand: int) -> str:
    return f"r{operand}"


def _count(program: Program, function: Function, operand: int) -> str:
    return "all" if operand == PACK else str(operand)


def _label(program: Program, function: Function, operand: int) -> str:
    return f"L{operand}"


def _upvalue(program: Program, function: Function, operand: int) -> str:
    known = 0 <= operand < len(function.upvalues)
    return f"u{operand}({function.upvalues[operand].name})" if known else f"u{operand}?"


def _function(program: Program, function: Function, operand: int) -> str:
    known = 0 <= operand < len(program.functions)
    return _called(operand, program.functions[operand]) if known else f"f{operand}?"


SHOWN: dict[str, Callable[[Program, Function, int], str]] = {
    "w": _register,
    "v": _value,
    "k": _constant,
    "n": _count,
    "j": _label,
    "u": _upvalue,
    "p": _function,
    "b": _register,
    "r": _register,
}
"""How an operand is shown, by its kind."""
