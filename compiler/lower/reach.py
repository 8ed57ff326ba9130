"""What functions that stay in the VM may read and write of what handlers share: a bound, taken from their bytecode.

A function that names a global or an upvalue may use every table that can be reached from it. It only
reads a table that it hands to a builtin known to read, or indexes; anything else counts as a write.
"""

from __future__ import annotations

from typing import Dict, FrozenSet, List, Optional, Sequence, Tuple

from compiler.lower.flat import Variable
from compiler.lower.snapshot import Box, Closure, Snapshot, reachable, text
from vm.named_tuple import NamedTuple
from vm.opcodes import BY_NAME
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
        """Tables that the function's code may change, by following registers in the order of the code."""
        held: Dict[int, object] = {}
        found: List[Table] = []
        for instruction in function.code:
            for register in _escaping(instruction, held):
                found += _tables(held.get(register))
            self._load(instruction, boxes, held)
        return found

    def _load(self, instruction: Instruction, boxes: Sequence[Optional[Box]], held: Dict[int, object]) -> None:
        op, a, b, c = instruction
        if op == "GETGLOBAL":
            held[a] = self.snapshot.globals.get(text(self.snapshot.program, b))
        elif op == "GETUP":
            box = boxes[b]
            held[a] = box[0] if box is not None else None
        elif op == "BUILTIN":
            held[a] = text(self.snapshot.program, b)
        elif op in ("MOVE", "UNBOX", "BOX") and b >= 0:
            held[a] = held.get(b)
        elif op == "GETINDEX" and b >= 0:
            held[a] = held.get(b)  # a table inside it, perhaps: it counts as the outer one
        elif BY_NAME[op].operands.startswith("w"):
            held.pop(a, None)
        elif op in ("CALL", "CALLX"):
            for register in range(a, a + max(c, 1)):
                held.pop(register, None)

    def _variable(self, name: Tuple[str, int], written: bool, line: Optional[int]) -> None:
        before = self._variables.get(name, Sharing())
        self._variables[name] = _more(before, written, line)

    def _table(self, table: Table, written: bool, line: Optional[int]) -> None:
        self._tables[id(table)] = _more(self._tables.get(id(table), Sharing()), written, line)


def _more(before: Sharing, written: bool, line: Optional[int]) -> Sharing:
    handler = before.shared_by_handler if before.shared_by_handler is not None else line
    return Sharing(True, before.written or written, handler)


def _escaping(instruction: Instruction, held: Dict[int, object]) -> List[int]:
    """Registers whose table an instruction may change, or give to what may."""
    op, a, b, c = instruction
    if op in ("SETINDEX", "ADDINDEX", "SUBINDEX", "SAMPLE"):
        return [r for r in (a, c) if r >= 0]
    if op == "SETLIST":
        return [a, *range(b, b + max(c, 1))]
    if op in ("CALL", "CALLX", "TAILCALL", "TAILCALLX"):
        return [] if held.get(a) in READERS else list(range(a + 1, a + 1 + b))
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
