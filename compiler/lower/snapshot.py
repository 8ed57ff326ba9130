"""The state of a script after its main chunk: what variables hold, and which of them anything can still write."""

from __future__ import annotations

from types import FunctionType
from typing import Callable, Dict, List, Mapping, NamedTuple, Optional, Sequence, Set, Tuple

from vm.program import Function, Program
from vm.values import Table


class Closure(NamedTuple):
    """A function of the script as a value: its index in the program and its boxes."""

    function: int
    boxes: Tuple[List[object], ...]


ClosureOf = Callable[[object], Optional[Closure]]
"""Takes a function value apart; None for a builtin."""


class Snapshot(NamedTuple):
    """Variables by name and what later code may write."""

    program: Program
    globals: Mapping[str, object]
    closure_of: ClosureOf
    written_globals: frozenset[str]
    written_boxes: frozenset[int]
    """By id of the box."""


def take(
    program: Program, global_values: Mapping[str, object], handlers: Sequence[object], closure_of: ClosureOf
) -> Snapshot:
    """The snapshot of a machine whose main chunk has run; `handlers` are the function values of all probes."""
    writes = [written_upvalues(program, number, {}) for number in range(len(program.functions))]
    names: Set[str] = set()
    for function in program.functions[1:]:
        names |= globals_written_by(program, function)
    boxes: Set[int] = set()
    for closure in _closures([*global_values.values(), *handlers], closure_of):
        boxes |= {id(closure.boxes[slot]) for slot in writes[closure.function]}
    return Snapshot(program, global_values, closure_of, frozenset(names), frozenset(boxes))


def globals_written_by(program: Program, function: Function) -> Set[str]:
    """Names of the globals that a function's own code assigns."""
    return {text(program, i.a) for i in function.code if i.op == "SETGLOBAL"}


def text(program: Program, constant: int) -> str:
    """A string constant that is a name."""
    value = program.constants[constant]
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)


def written_upvalues(program: Program, number: int, seen: Dict[int, Set[int]]) -> Set[int]:
    """Upvalues that function `number`, or one it makes, assigns."""
    if number in seen:
        return seen[number]
    function = program.functions[number]
    slots = seen[number] = {i.a for i in function.code if i.op == "SETUP"}
    for instruction in function.code:
        if instruction.op == "CLOSURE":
            inner = written_upvalues(program, instruction.b, seen)
            upvalues = program.functions[instruction.b].upvalues
            slots |= {upvalues[slot].slot for slot in inner if not upvalues[slot].from_register}
    return slots


def _closures(roots: Sequence[object], closure_of: ClosureOf) -> List[Closure]:
    """Every closure that can be reached from the roots through tables and boxes."""
    found: List[Closure] = []
    seen: Set[int] = set()
    todo = list(roots)
    while todo:
        value = todo.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, Table):
            todo += [*value.keys(), *value.values()]
        elif isinstance(value, FunctionType):
            closure = closure_of(value)
            if closure is not None:
                found.append(closure)
                todo += [box[0] for box in closure.boxes]
    return found
