"""Blocks of bytecode: where they begin, what loops write, and what is known where ways meet."""

from __future__ import annotations

from typing import Dict, FrozenSet, List, Sequence, Set, Tuple

from compiler.lower.flat import Constant, Known
from compiler.lower.snapshot import written_upvalues
from vm.opcodes import BY_NAME
from vm.program import Function, Instruction, Program


def leaders(code: Sequence[Instruction]) -> List[int]:
    """The indexes at which blocks begin."""
    starts = {0}
    for index, instruction in enumerate(code):
        row = BY_NAME[instruction.op]
        if row.jumps:
            starts.add(_target(instruction))
        if (row.jumps or row.ends) and index + 1 < len(code):
            starts.add(index + 1)
    return sorted(starts)


def _target(instruction: Instruction) -> int:
    return instruction[1 + BY_NAME[instruction.op].operands.index("j")]  # type: ignore[return-value]


def following(code: Sequence[Instruction], index: int) -> List[int]:
    """The instructions that can come after one."""
    row = BY_NAME[code[index].op]
    found = [_target(code[index])] if row.jumps else []
    if not row.ends and index + 1 < len(code):
        found.append(index + 1)
    return found


def loop_writes(code: Sequence[Instruction]) -> Dict[int, FrozenSet[int]]:
    """For every instruction that is jumped back to: the registers that can be written before the jump."""
    loops: Dict[int, FrozenSet[int]] = {}
    for index, instruction in enumerate(code):
        if BY_NAME[instruction.op].jumps and _target(instruction) <= index:
            head = _target(instruction)
            written = {r for i in code[head : index + 1] for r in written_registers(i)}
            loops[head] = loops.get(head, frozenset()) | frozenset(written)
    return loops


def written_registers(instruction: Instruction) -> Tuple[int, ...]:
    """The registers an instruction can write."""
    op, a, b, c = instruction
    if op in ("FORPREP", "FORLOOP"):
        return (a, a + 3)
    if op in ("CALL", "CALLX"):
        return tuple(range(a, a + max(c, 1)))
    if op == "VARARG":
        return tuple(range(a, a + max(b, 1)))
    if op == "ITERNEXT":
        return tuple(range(a, a + b + 1))
    if op == "SETBOX" or BY_NAME[op].operands.startswith("w"):
        return (a,)
    return ()


def meet(states: Sequence[Known]) -> Known:
    """What all of them know alike."""
    first, *rest = states
    return {r: known for r, known in first.items() if all(_same(state.get(r), known) for state in rest)}


def _same(one: object, other: object) -> bool:
    if isinstance(one, Constant) and isinstance(other, Constant):
        return type(one.value) is type(other.value) and (one.value is other.value or one.value == other.value)
    return type(one) is type(other) and one == other


def assigned_by_closures(program: Program, function: Function) -> Set[int]:
    """Registers with a box that a function made here may assign whenever it is called."""
    found: Set[int] = set()
    for instruction in function.code:
        if instruction.op == "CLOSURE":
            upvalues = program.functions[instruction.b].upvalues
            written = written_upvalues(program, instruction.b, {})
            found |= {upvalues[slot].slot for slot in written if upvalues[slot].from_register}
    return found
