"""What kind of value each register holds: found before translation, so that checks can be left out.

A kind is a word; ANY is always right. Only what the code itself makes certain is claimed: constants,
loop counters, fresh tables, results of operators. A kind holds on every path to an instruction.
"""

from __future__ import annotations

from typing import Callable, Dict, List, Optional, Sequence, Tuple

from vm.blocks import Block
from vm.opcodes import BY_NAME
from vm.program import Constant, Function, Instruction

ANY = "any"
INTEGER = "integer"
POSITIVE = "positive"
"""An integer above 0, known where the code was translated."""
STRING = "string"
BOOLEAN = "boolean"
NIL = "nil"
TABLE = "table"
FUNCTION = "function"

INTEGERS = (INTEGER, POSITIVE)
TRUE_KINDS = (*INTEGERS, STRING, TABLE, FUNCTION)
"""Kinds whose values all count as true."""

MAX_STATE = 200_000
"""Registers times blocks above which nothing is inferred: no program a person writes is that large."""

Kinds = List[str]


def kind_of(value: Constant) -> str:
    """The kind of a constant."""
    if value is None:
        return NIL
    if isinstance(value, bool):
        return BOOLEAN
    if isinstance(value, bytes):
        return STRING
    return POSITIVE if value > 0 else INTEGER


def join(x: str, y: str) -> str:
    """The kind of what is one or the other."""
    if x == y:
        return x
    return INTEGER if x in INTEGERS and y in INTEGERS else ANY


def both_integers(kinds: Sequence[str]) -> str:
    """The result of an operator that gives an integer for two integers."""
    return INTEGER if all([kind in INTEGERS for kind in kinds]) else ANY


def always(kind: str) -> Callable[[Sequence[str]], str]:
    """The result of an operator that gives the same kind whatever it is given."""
    return lambda kinds: kind


RESULTS: Dict[str, Callable[[Sequence[str]], str]] = {
    "MOVE": lambda kinds: kinds[0],
    **dict.fromkeys(("ADD", "SUB", "MUL", "DIV", "MOD", "BAND", "BOR", "BXOR", "SHL", "SHR"), both_integers),
    **dict.fromkeys(("NEG", "BITNOT"), both_integers),
    **dict.fromkeys(("EQ", "NE", "LT", "LE", "NOT"), always(BOOLEAN)),
    "CONCAT": always(STRING),
    "NEWTABLE": always(TABLE),
    "CLOSURE": always(FUNCTION),
    "SYMBOL": always(INTEGER),
}
"""The kind of what an opcode writes into its `w`; ANY for those that are not here."""


LOOP_ENDS: Dict[str, Callable[[Block], Optional[int]]] = {
    "FORPREP": lambda block: block.jump,
    "FORLOOP": lambda block: block.fall,
}
"""Where a counting loop goes on when there is no (further) round: there r+3 is as it was."""


def run_writes(instruction: Instruction) -> range:
    """The registers an instruction writes besides its `w`."""
    op, a, b, c = instruction
    if op in ("CALL", "CALLX"):
        return range(a, a + (1 if c < 0 else c))
    if op == "ITERNEXT":
        return range(a + 1, a + 1 + b)
    if op == "VARARG":
        return range(a, a + (1 if b < 0 else b))
    return range(0)


def step(kinds: Kinds, instruction: Instruction, constants: Sequence[Constant]) -> None:
    """Change `kinds` by what an instruction does."""
    op = instruction.op
    written: Optional[int] = None
    read = []
    for kind, operand in zip(BY_NAME[op].operands, instruction[1:]):
        if kind == "w":
            written = operand
        elif kind == "v":
            read.append(kinds[operand] if operand >= 0 else kind_of(constants[~operand]))
    if written is not None:
        result = RESULTS.get(op)
        kinds[written] = ANY if result is None else result(read)
    for register in run_writes(instruction):
        kinds[register] = ANY
    if op in ("FORPREP", "FORLOOP"):
        first = instruction.a
        positive = kinds[first + 2] == POSITIVE
        kinds[first : first + 4] = [INTEGER, INTEGER, POSITIVE if positive else INTEGER, INTEGER]


def infer(function: Function, blocks: Sequence[Block], constants: Sequence[Constant]) -> Tuple[Kinds, ...]:
    """The kinds of all registers at the beginning of each block."""
    unknown = [ANY] * function.registers
    if len(blocks) * function.registers > MAX_STATE:
        return tuple([list(unknown) for _ in blocks])
    states: List[Optional[Kinds]] = [None] * len(blocks)
    states[0] = unknown
    waiting = [0]
    while waiting:
        number = waiting.pop()
        kinds = list(states[number] or unknown)
        block = blocks[number]
        for instruction in function.code[block.first : block.last]:
            step(kinds, instruction, constants)
        last = function.code[block.last]
        before = list(kinds)
        step(kinds, last, constants)
        for target in block.targets:
            after = kinds
            if last.op in LOOP_ENDS and target == LOOP_ENDS[last.op](block):
                after = list(kinds)
                after[last.a + 3] = before[last.a + 3]
            known = states[target]
            merged = after if known is None else [join(x, y) for x, y in zip(known, after)]
            if merged != known:
                states[target] = list(merged)
                waiting.append(target)
    return tuple([state if state is not None else list(unknown) for state in states])
