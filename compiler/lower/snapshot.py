"""The state of a script after its main chunk: what variables hold, and which of them anything can still write."""

from __future__ import annotations

from typing import Callable, Dict, List, Mapping, Optional, Sequence, Set, Tuple

from vm.named_tuple import NamedTuple
from vm.program import Function, Program
from vm.values import Table

Box = List[object]


class Closure(NamedTuple):
    """A function of the script as a value: its index in the program and its boxes."""

    function: int
    boxes: Tuple[Box, ...]


class Code(NamedTuple):
    """A function that can run: with the boxes of its upvalues, None for those that are made each time."""

    function: Function
    boxes: Sequence[Optional[Box]]


ClosureOf = Callable[[object], Optional[Closure]]
"""Takes a function value apart; None for a builtin."""


class Snapshot(NamedTuple):
    """Variables by name and what code that runs while events fire may write."""

    program: Program
    globals: Mapping[str, object]
    closure_of: ClosureOf
    written_globals: frozenset[str] = frozenset()
    written_boxes: frozenset[int] = frozenset()
    """By id of the box."""


def take(
    program: Program, global_values: Mapping[str, object], running: Sequence[object], closure_of: ClosureOf
) -> Snapshot:
    """The snapshot of a machine whose main chunk has run; `running` are the handlers of events and ticks."""
    snapshot = Snapshot(program, global_values, closure_of)
    names: Set[str] = set()
    boxes: Set[int] = set()
    for function in running:
        closure = closure_of(function)
        for code in reachable(snapshot, closure) if closure is not None else ():
            for instruction in code.function.code:
                if instruction.op == "SETGLOBAL":
                    names.add(text(program, instruction.a))
                elif instruction.op == "SETUP" and code.boxes[instruction.a] is not None:
                    boxes.add(id(code.boxes[instruction.a]))
    return snapshot._replace(written_globals=frozenset(names), written_boxes=frozenset(boxes))


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


def reachable(snapshot: Snapshot, closure: Closure) -> List[Code]:
    """The function, those it makes, and all that it can reach by a name."""
    found: List[Code] = []
    todo: List[Tuple[int, Sequence[Optional[Box]]]] = [(closure.function, closure.boxes)]
    done: Set[Tuple[int, Tuple[int, ...]]] = set()
    seen: Set[int] = set()
    while todo:
        number, boxes = todo.pop()
        mark = (number, tuple(id(box) for box in boxes))
        if mark in done:
            continue
        done.add(mark)
        function = snapshot.program.functions[number]
        found.append(Code(function, boxes))
        for instruction in function.code:
            value: object = None
            if instruction.op == "CLOSURE":
                made = snapshot.program.functions[instruction.b]
                todo.append((instruction.b, [None if u.from_register else boxes[u.slot] for u in made.upvalues]))
            elif instruction.op == "GETGLOBAL":
                value = snapshot.globals.get(text(snapshot.program, instruction.b))
            elif instruction.op == "GETUP":
                box = boxes[instruction.b]
                value = box[0] if box is not None else None
            for held in functions_in(value, seen):
                reached = snapshot.closure_of(held)
                if reached is not None:
                    todo.append((reached.function, reached.boxes))
    return found


def functions_in(value: object, seen: Set[int]) -> List[object]:
    """The value if it is a function, and the functions in the tables behind it; tables in `seen` are left out."""
    if not isinstance(value, Table):
        return [value] if callable(value) else []
    if id(value) in seen:
        return []
    seen.add(id(value))
    return [function for item in value.values() for function in functions_in(item, seen)]
