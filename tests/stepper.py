"""A second interpreter, as plain as can be: one instruction at a time, by the words of the opcode table.

It knows the opcodes that compute and jump within one function; what translated code makes of them is
compared with it.
"""

from __future__ import annotations

from typing import Dict, List, NamedTuple, Optional, Sequence, Tuple

from vm.fault import Fault
from vm.operators import BINARY, complement, loop_bounds, negate
from vm.program import Constant, Function


class End(NamedTuple):
    """How a run ended: the values returned, or the kind of fault and the instruction."""

    returned: Optional[Tuple[object, ...]]
    fault: Optional[str] = None
    place: Optional[int] = None


def run(function: Function, constants: Sequence[Constant], most_rounds: int, globals: Dict[int, object]) -> End:
    """Run a function without arguments; `globals` is changed."""
    registers: List[object] = [None] * function.registers
    place, rounds = 0, 0

    def value(operand: int) -> object:
        return registers[operand] if operand >= 0 else constants[~operand]

    def true(operand: int) -> bool:
        return value(operand) is not None and value(operand) is not False

    while True:
        op, a, b, c = function.code[place]
        target = None
        try:
            if op in BINARY:
                registers[a] = BINARY[op](value(b), value(c))
            elif op == "MOVE":
                registers[a] = value(b)
            elif op == "NOT":
                registers[a] = not true(b)
            elif op == "NEG":
                registers[a] = negate(value(b))
            elif op == "BITNOT":
                registers[a] = complement(value(b))
            elif op == "GETGLOBAL":
                registers[a] = globals.get(b)
            elif op == "SETGLOBAL":
                globals[a] = value(b)
            elif op == "JUMP":
                target = a
            elif op == "JUMPIF":
                target = b if true(a) else None
            elif op == "JUMPIFNOT":
                target = None if true(a) else b
            elif op == "FORPREP":
                first, last, step = loop_bounds(*registers[a : a + 3])
                registers[a : a + 3] = [first, last, step]
                if first <= last if step > 0 else first >= last:
                    registers[a + 3] = first
                else:
                    target = b
            elif op == "FORLOOP":
                first, last, step = loop_bounds(*registers[a : a + 3])
                if first + step <= last if step > 0 else first + step >= last:
                    registers[a] = registers[a + 3] = first + step
                    target = b
            else:
                assert op == "RETURN", op
                return End(tuple(registers[a : a + b]))
        except Fault as fault:
            return End(None, fault.kind, place)
        if target is not None and target <= place:
            rounds += 1
            if rounds > most_rounds:
                return End(None, "loop", place)
        place = place + 1 if target is None else target
