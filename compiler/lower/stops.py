"""Whether a handler can stop a run: by exit(), or by a fault."""

from __future__ import annotations

from typing import Dict

from compiler.lower.flat import Constant, FlatHandler, Operation
from compiler.lower.infer import State, Typing

STORES = frozenset(["SETINDEX", "ADDINDEX", "SUBINDEX", "SAMPLE"])


def can_stop(flat: FlatHandler, typing: Typing, entries: Dict[int, State]) -> bool:
    """True where a fault or exit() is possible in code that can be reached."""
    for number, entry in entries.items():
        for operation, types, _ in typing.typed(flat.blocks[number], entry):
            if operation.op == "ROUND" or (operation.op == "BUILTIN" and operation.name == "exit"):
                return True
            if operation.op in ("DIV", "MOD") and not _nonzero(operation):
                return True
            if operation.op == "BUILTIN" and operation.name == "printf" and any(t.can_be("nil") for t in types[1:]):
                return True
            if operation.op in ("SAMPLE", "STATADD") and types[-1].can_be("nil"):
                return True
            if operation.op in STORES and types[1].can_be("nil"):
                return True
            if operation.op in ("LT", "LE") and any(t.can_be("nil") for t in types):
                return True
            if operation.op == "KEY" and any(t.can_be("nil") for t in types):
                return True
    return False


def _nonzero(operation: Operation) -> bool:
    divisor = operation.arguments[1]
    return isinstance(divisor, Constant) and divisor.value != 0
