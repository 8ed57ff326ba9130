"""Instructions in the making: a program's pool of constants, a function's code with labels and registers."""

from __future__ import annotations

from bisect import bisect_left
from typing import Optional, Union

from vm.opcodes import BY_NAME, OPCODES
from vm.program import Constant, Instruction, Span


class Pool:
    """The constants of a program, each kept once, in order of first use."""

    def __init__(self) -> None:
        self.constants: list[Constant] = []
        self._indexes: dict[tuple[type, Constant], int] = {}

    def index(self, value: Constant) -> int:
        """The index of a constant. `true` and `1` are two: the type is part of the key."""
        key = (type(value), value)
        found = self._indexes.get(key)
        if found is None:
            found = self._indexes[key] = len(self.constants)
            self.constants.append(value)
        return found

    def operand(self, value: Constant) -> int:
        """A constant as a value operand."""
        return ~self.index(value)


class Label:
    """A place in the code that jumps go to; `used` once a jump to it has been emitted."""

    __slots__ = ("at", "used")

    def __init__(self) -> None:
        self.at = -1
        self.used = False


Operand = Union[int, Label]


class Pending:
    """An instruction whose jumps still name labels."""

    __slots__ = ("op", "operands", "span")

    def __init__(self, op: str, operands: tuple[Operand, ...], span: Span) -> None:
        self.op = op
        self.operands = operands
        self.span = span


class Code:
    """The instructions of one function, and which registers they use.

    Registers are a stack: locals and temporaries are taken from the top and given back by resetting
    `top`. What cannot be reached is never emitted.
    """

    def __init__(self) -> None:
        self.pending: list[Pending] = []
        self.reachable = True
        self.top = 0
        self.most = 0

    def take(self, count: int = 1) -> int:
        """The first of `count` fresh registers at the top."""
        first = self.top
        self.top += count
        self.most = max(self.most, self.top)
        return first

    def emit(self, span: Span, op: str, *operands: Operand) -> None:
        """Add an instruction, unless nothing leads here."""
        if not self.reachable:
            return
        for operand in operands:
            if isinstance(operand, Label):
                operand.used = True
        self.pending.append(Pending(op, operands, span))
        self.reachable = not BY_NAME[op].ends

    def place(self, label: Label) -> None:
        """The label is the next instruction."""
        label.at = len(self.pending)
        self.reachable = self.reachable or label.used

    def finish(self) -> tuple[tuple[Instruction, ...], tuple[Span, ...]]:
        """The code and its spans; jumps to jumps are joined, and what then has no use is left out."""
        code = [_resolved(pending) for pending in self.pending]
        spans = [pending.span for pending in self.pending]
        for index, instruction in enumerate(list(code)):
            code[index], back = _threaded(code, instruction)
            spans[index] = spans[index if back is None else back]
        _turn_branches(code, spans)
        kept = _kept(code)
        places = [bisect_left(kept, index) for index in range(len(code))]
        moved = tuple(_moved(code[index], places) for index in kept)
        return moved, tuple(spans[index] for index in kept)


JUMP_OPERANDS = {row.name: row.operands.index("j") for row in OPCODES if row.jumps}
BRANCHES = {"JUMP": "JUMP", "JUMPIF": "JUMPIFNOT", "JUMPIFNOT": "JUMPIF"}
"""The plain jumps, and which one goes on where it would jump. Only these count rounds when they go back."""


def _resolved(pending: Pending) -> Instruction:
    return Instruction(pending.op, *(o.at if isinstance(o, Label) else o for o in pending.operands))


def _target(instruction: Instruction) -> Optional[int]:
    at = JUMP_OPERANDS.get(instruction.op)
    return None if at is None else instruction[1:][at]


def _moved(instruction: Instruction, places: list[int]) -> Instruction:
    """The instruction with its target, if any, where that one is now."""
    at = JUMP_OPERANDS.get(instruction.op)
    if at is None:
        return instruction
    operands = list(instruction[1:])
    operands[at] = places[operands[at]]
    return Instruction(instruction.op, *operands)


def _threaded(code: list[Instruction], instruction: Instruction) -> tuple[Instruction, Optional[int]]:
    """A plain jump sent to where the jumps it leads to end, and the last jump of these that goes back.

    That one is the end of a loop, and its place is where the loop's limit is told.
    """
    target, back = _target(instruction), None
    if target is None or instruction.op not in BRANCHES:
        return instruction, None
    seen: set[int] = set()
    while target not in seen:
        seen.add(target)
        there = code[target]
        if there.op == "JUMP":
            back = target if there.a <= target else back
            target = there.a
        elif instruction.op != "JUMP" and there.a == instruction.a and there.op == instruction.op:
            target = there.b
        elif instruction.op != "JUMP" and there.a == instruction.a and there.op == BRANCHES[instruction.op]:
            target += 1
    if instruction.op == "JUMP":
        return Instruction("JUMP", target), back
    return Instruction(instruction.op, instruction.a, target), back


def _turn_branches(code: list[Instruction], spans: list[Span]) -> None:
    """A branch over a jump becomes the opposite branch to where that jump goes."""
    targets = {_target(instruction) for instruction in code}
    for index in range(len(code) - 2):
        branch, jump = code[index], code[index + 1]
        if (
            branch.op in ("JUMPIF", "JUMPIFNOT")
            and branch.b == index + 2
            and jump.op == "JUMP"
            and index + 1 not in targets
        ):
            code[index] = Instruction(BRANCHES[branch.op], branch.a, jump.a)
            spans[index] = spans[index + 1] if jump.a <= index else spans[index]
            code[index + 1] = Instruction("JUMP", index + 2)  # to the next instruction: left out


def _kept(code: list[Instruction]) -> list[int]:
    """The indexes of the instructions that something leads to and that do more than go to the next."""
    kept: list[int] = []
    for index in sorted(_reached(code), reverse=True):
        target = _target(code[index])
        following = kept[-1] if kept else len(code)
        if code[index].op not in BRANCHES or target is None or not index < target <= following:
            kept.append(index)
    kept.reverse()
    return kept


def _reached(code: list[Instruction]) -> set[int]:
    reached: set[int] = set()
    todo = [0]
    while todo:
        index = todo.pop()
        while index not in reached:
            reached.add(index)
            target = _target(code[index])
            if target is not None:
                todo.append(target)
            if BY_NAME[code[index].op].ends:
                break
            index += 1
    return reached
