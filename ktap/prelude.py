"""What runs before events do, and whether it matters that it does.

A main chunk that computes for a while, asks for the time or starts a program has done so before the first event
counts. One that only sets tables, variables and probes takes no time, depends on nothing, and does nothing that
could be seen or makes events: there it is all the same whether events count from just before or just after it.
"""

from __future__ import annotations

from typing import Dict, Sequence, Set

from vm.blocks import jump_target
from vm.opcodes import BY_NAME
from vm.program import Constant, Function, Program

HARMLESS = frozenset({b"print", b"printf"})
"""Builtins that code may call."""
SLOW = frozenset({"FORPREP", "FORLOOP", "ITERPREP", "ITERNEXT", "CALLX", "TAILCALL", "TAILCALLX", "EVENT"})


def is_quick(program: Program) -> bool:
    """Whether nobody can tell if events count just before the main chunk has run, or just after it.

    A program with trace_begin is left alone, whatever that does.
    """
    main = program.functions[0]
    begins = any(row.op == "PROBE" and program.constants[row.b] == b"trace_begin" for row in main.code)
    return not begins and is_harmless(main, program.constants)


def is_harmless(function: Function, constants: Sequence[Constant]) -> bool:
    """Whether a function has no loop and calls nothing but HARMLESS builtins."""
    known: Dict[int, Constant] = {}  # what registers hold, as far as it is a builtin
    targets: Set[int] = set()
    for index, instruction in enumerate(function.code):
        op, a, b, _ = instruction
        target = jump_target(instruction)
        if op in SLOW or (target is not None and target <= index):
            return False
        if target is not None:
            targets.add(target)
        if index in targets or op == "VARARG":
            known.clear()
        if op == "BUILTIN":
            known[a] = constants[b]
        elif op == "CALL":
            if known.get(a) not in HARMLESS:
                return False
            known = {register: name for register, name in known.items() if register < a}
        elif BY_NAME[op].operands.startswith("w"):
            known.pop(a, None)
    return True
