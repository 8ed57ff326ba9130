"""What functions that stay in the VM may read and write of what handlers share: a bound, taken from their bytecode.

A function that names a global or an upvalue may use every table that can be reached from it. It only
reads a table that it hands to a builtin known to read, or indexes; anything else counts as a write.
"""

from __future__ import annotations

from typing import Dict, FrozenSet, List, Optional, Sequence, Tuple

from compiler.lower.control import following, leaders, written_registers
from compiler.lower.flat import Variable
from compiler.lower.snapshot import Box, Closure, Snapshot, reachable, text
from vm.named_tuple import NamedTuple
from vm.program import Function, Instruction
from vm.values import Table

READERS: FrozenSet[str] = frozenset(
    [
        "pairs",
        "sort_pairs",
        "len",
        "print",
        "printf",
        "sprintf",
        "print_hist",
        "tostring",
        "count",
        "sum",
        "avg",
        "min",
        "max",
        "hist",
        "lhist",
        "table.count",
    ]
)
"""Builtins that change no table they are given."""


Held = Dict[int, Dict[int, object]]
"""By register, what it may hold: tables and names of builtins, each under something that tells it apart."""
UNKNOWN: Dict[int, object] = {0: None}
"""Neither, as far as is known."""


class Sharing(NamedTuple):
    """How the VM uses a table or a variable while events fire."""

    read: bool = False
    written: bool = False
    shared_by_handler: Optional[int] = None
    """The line of a handler of events in the VM that uses it."""


class Reach:
    """What a set of functions in the VM may touch."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        self._tables: Dict[int, Sharing] = {}
        self._variables: Dict[Tuple[str, int], Sharing] = {}

    def table(self, table: Table) -> Sharing:
        """How a table is used."""
        return self._tables.get(id(table), Sharing())

    def variable(self, variable: Variable) -> Sharing:
        """How a variable is used."""
        name = (variable.kind, variable.identity if variable.kind == "box" else hash(variable.name))
        return self._variables.get(name, Sharing())

    def add(self, closure: Closure, handler_line: Optional[int]) -> None:
        """Note all that a function, and those it may call, can touch; `handler_line` where it is for events."""
        for function, boxes in reachable(self.snapshot, closure):
            self._add_code(function, boxes, handler_line)

    def _add_code(self, function: Function, boxes: Sequence[Optional[Box]], line: Optional[int]) -> None:
        program = self.snapshot.program
        for instruction in function.code:
            op, a, b, _ = instruction
            if op in ("GETGLOBAL", "SETGLOBAL"):
                name = text(program, b if op == "GETGLOBAL" else a)
                value = self.snapshot.globals.get(name)
                self._variable(("global", hash(name)), op == "SETGLOBAL", line)
            elif op in ("GETUP", "SETUP"):
                box = boxes[b if op == "GETUP" else a]
                value = box[0] if box is not None else None
                if box is not None:
                    self._variable(("box", id(box)), op == "SETUP", line)
            else:
                value = None
            for table in _tables(value):
                self._table(table, False, line)
        for table in self._written_tables(function, boxes):
            self._table(table, True, line)

    def _written_tables(self, function: Function, boxes: Sequence[Optional[Box]]) -> List[Table]:
        """Tables that the function's code may change, by following what registers may hold through its blocks."""
        code = function.code
        starts = leaders(code)
        entering: Dict[int, Held] = {0: {}}
        found: Dict[int, Table] = {}
        todo = [0]
        while todo:
            start = todo.pop()
            end = next((leader for leader in starts if leader > start), len(code))
            held = dict(entering[start])
            for instruction in code[start:end]:
                for register in _escaping(instruction, held):
                    found.update((id(t), t) for value in held.get(register, {}).values() for t in _tables(value))
                self._load(instruction, boxes, held)
            for target in following(code, end - 1):
                wider = _merged(entering.get(target), held)
                if wider != entering.get(target):
                    entering[target] = wider
                    todo.append(target)
        return list(found.values())

    def _load(self, instruction: Instruction, boxes: Sequence[Optional[Box]], held: Held) -> None:
        op, a, b, _ = instruction
        if op == "GETGLOBAL":
            held[a] = _one(self.snapshot.globals.get(text(self.snapshot.program, b)))
        elif op == "GETUP":
            box = boxes[b]
            held[a] = _one(box[0] if box is not None else None)
        elif op == "BUILTIN":
            held[a] = _one(text(self.snapshot.program, b))
        elif op in ("MOVE", "UNBOX", "BOX", "SETBOX") and b >= 0:
            held[a] = held.get(b, UNKNOWN)
        elif op == "GETINDEX" and b >= 0:
            held[a] = held.get(b, UNKNOWN)  # a table inside it, perhaps: it counts as the outer one
        else:
            for register in written_registers(instruction):
                held.pop(register, None)

    def _variable(self, name: Tuple[str, int], written: bool, line: Optional[int]) -> None:
        before = self._variables.get(name, Sharing())
        self._variables[name] = _more(before, written, line)

    def _table(self, table: Table, written: bool, line: Optional[int]) -> None:
        self._tables[id(table)] = _more(self._tables.get(id(table), Sharing()), written, line)


def _more(before: Sharing, written: bool, line: Optional[int]) -> Sharing:
    handler = before.shared_by_handler if before.shared_by_handler is not None else line
    return Sharing(True, before.written or written, handler)


def _one(value: object) -> Dict[int, object]:
    """The one thing that a register holds: tables, and names of builtins, by what they are."""
    if isinstance(value, str):
        return {hash(value): value}
    return {id(value): value} if isinstance(value, Table) else UNKNOWN


def _merged(one: Optional[Held], other: Held) -> Held:
    """What registers may hold where two ways meet."""
    if one is None:
        return dict(other)
    return {r: {**one.get(r, UNKNOWN), **other.get(r, UNKNOWN)} for r in {*one, *other}}


def _escaping(instruction: Instruction, held: Held) -> List[int]:
    """Registers whose table an instruction may change, or give to what may."""
    op, a, b, c = instruction
    if op in ("SETINDEX", "ADDINDEX", "SUBINDEX", "SAMPLE"):
        return [r for r in (a, c) if r >= 0]
    if op == "SETLIST":
        return [a, *range(b, b + max(c, 1))]
    if op in ("CALL", "CALLX", "TAILCALL", "TAILCALLX"):
        callees = held.get(a, {}).values()
        harmless = bool(callees) and all(isinstance(name, str) and name in READERS for name in callees)
        return [] if harmless else list(range(a + 1, a + 1 + b))
    if op in ("RETURN", "RETURNX"):
        return list(range(a, a + max(b, 1)))
    if op in ("SETGLOBAL", "SETUP", "SETBOX"):
        return [b] if b >= 0 else []
    return []


def _tables(value: object) -> List[Table]:
    """Every table that can be reached from a value."""
    found: Dict[int, Table] = {}
    todo = [value]
    while todo:
        item = todo.pop()
        if isinstance(item, Table) and id(item) not in found:
            found[id(item)] = item
            todo += [*item.keys(), *item.values()]
    return list(found.values())
