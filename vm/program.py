"""What a compiled script is: functions of instructions over one pool of constants."""

from __future__ import annotations

from typing import Optional, Union

from vm.named_tuple import NamedTuple

Constant = Union[None, bool, int, bytes]
"""A constant: integers are signed 64-bit, strings are bytes."""


class Instruction(NamedTuple):
    """One instruction: the opcode's name and its operands; unused operands are 0."""

    op: str
    a: int = 0
    b: int = 0
    c: int = 0


class Span(NamedTuple):
    """A place in the source, lines and columns from 1; `end_column` is one past the last character."""

    line: int
    column: int
    end_line: int
    end_column: int


class Upvalue(NamedTuple):
    """Where a closure finds a variable: a box in a register of the function around it, or that one's upvalue."""

    from_register: bool
    slot: int
    name: str


class Function(NamedTuple):
    """One function of a script.

    Parameters arrive in registers 0 … `parameters` - 1; `registers` is how many the code uses (at
    most 250); `spans` has one entry an instruction (the line table).
    """

    name: str
    parameters: int
    variadic: bool
    registers: int
    upvalues: tuple[Upvalue, ...]
    code: tuple[Instruction, ...]
    spans: tuple[Span, ...]


class Program(NamedTuple):
    """A compiled script. Function 0 is the main chunk (variadic, no upvalues)."""

    source_name: str
    constants: tuple[Constant, ...]
    functions: tuple[Function, ...]
    source: Optional[str] = None
    """The script's text, for the line and the caret under a diagnostic; None when stripped."""


MAX_REGISTERS = 250
"""Registers of one function."""
MAX_UPVALUES = 250
"""Upvalues of one function."""
MAX_INSTRUCTIONS = 1 << 15
"""Instructions of one function: a jump's operand reaches all of them."""
MAX_CODE = 1 << 17
"""Instructions and upvalues of all functions of a program."""
MAX_CONSTANTS = 1 << 15
"""Constants of a program: an operand reaches all of them."""
MAX_FUNCTIONS = 1 << 13
"""Functions of a program."""
MAX_COLUMN = (1 << 31) - 1
"""The last line and column a span can name."""
