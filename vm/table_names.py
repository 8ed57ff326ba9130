"""What a script calls a table: by the global that holds it, or the local of the main chunk that handlers use."""

from __future__ import annotations

from types import FunctionType
from typing import TYPE_CHECKING, Optional

from vm.values import Table

if TYPE_CHECKING:
    from vm.machine import Machine


def name_of(machine: Machine, table: Table) -> Optional[str]:
    """The name of a table; None where no variable that lasts holds it."""
    for name, value in machine.names.items():
        if value is table and name.startswith("g") and name[1:].isdigit():
            constant = machine.program.constants[int(name[1:])]
            return constant.decode("latin-1") if isinstance(constant, bytes) else None
    for handler in machine.handlers:
        number = machine.function_number(handler)
        if number is None or not isinstance(handler, FunctionType):
            continue
        upvalues = machine.program.functions[number].upvalues
        for cell_name, cell in zip(handler.__code__.co_freevars, handler.__closure__ or ()):
            box = cell.cell_contents
            slot = cell_name[1:]
            if isinstance(box, list) and box and box[0] is table and slot.isdigit() and int(slot) < len(upvalues):
                return upvalues[int(slot)].name
    return None
