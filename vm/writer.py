"""What templates ask about the function they write for: names of registers, constants, globals and their kinds."""

from __future__ import annotations

from typing import List, Set

from vm.event import VARIABLES
from vm.infer import Kinds, kind_of
from vm.memory import BOX_BYTES, CLOSURE_BYTES
from vm.program import Constant, Program

EVENT_VARIABLES = frozenset([variable.name for variable in VARIABLES])


def canonical_indexes(program: Program) -> List[int]:
    """For each constant the first that is the same string: a name is one variable however often it is listed."""
    first: dict[bytes, int] = {}
    return [
        first.setdefault(value, index) if isinstance(value, bytes) else index
        for index, value in enumerate(program.constants)
    ]


class Writer:
    """The state of writing one function. `kinds` are those before the instruction that is being written."""

    def __init__(self, program: Program, canonical: List[int]) -> None:
        self.program = program
        self.canonical = canonical
        self.kinds: Kinds = []
        self.lines: List[str] = []
        """What a template that ends a block puts before its branch."""
        self.assigned: Set[str] = set()
        """The globals that the function assigns."""

    def constant(self, index: int) -> str:
        """A constant as Python: a number or the name of a string, never text of the program."""
        value = self.program.constants[index]
        return f"c{self.canonical[index]}" if isinstance(value, bytes) else repr(value)

    def value(self, operand: int) -> str:
        """A value operand: a register or a constant."""
        return f"r{operand}" if operand >= 0 else self.constant(~operand)

    def read_constant(self, operand: int) -> Constant:
        """The constant of a value operand that is below 0."""
        return self.program.constants[~operand]

    def kind(self, operand: int) -> str:
        """The kind of a value operand."""
        return self.kinds[operand] if operand >= 0 else kind_of(self.read_constant(operand))

    def beyond_booleans(self, operand: int) -> bool:
        """True for a constant integer that Python takes for no boolean."""
        value = self.read_constant(operand) if operand < 0 else None
        return isinstance(value, int) and value not in (0, 1)

    def global_name(self, index: int) -> str:
        """The Python name of the global that constant `index` names."""
        return f"g{self.canonical[index]}"

    def builtin_name(self, index: int) -> str:
        """The Python name of the builtin that constant `index` names."""
        return f"f{self.canonical[index]}"

    def event_text(self, index: int) -> str:
        """How the event's value that constant `index` names is asked for. `args.…` paths are text constants `p…`."""
        value = self.program.constants[index]
        name = value.decode("ascii", "replace") if isinstance(value, bytes) else ""
        if name in EVENT_VARIABLES:
            return f"E.{name}"
        method = "task" if name.startswith("curtask.") else "field"
        return f"E.{method}(p{self.canonical[index]})"

    def closure_bytes(self, function: int) -> int:
        """What a closure of a function of the program takes, with the boxes it keeps alive."""
        return CLOSURE_BYTES + BOX_BYTES * len(self.program.functions[function].upvalues)
