"""The names that translated code uses: what each stands for when a machine begins."""

from __future__ import annotations

from typing import TYPE_CHECKING, Dict, Mapping, Union

from vm import operators
from vm.aggregate import Stats
from vm.library import named
from vm.values import TAIL, Function, Key, Table, make_key, wrap

if TYPE_CHECKING:
    from vm.machine import Machine

Name = Union[int, bytes]

OPERATORS = (
    *("add", "add_index", "append", "bit_and", "bit_or", "bit_xor", "bounded", "complement", "divide", "entry"),
    *("equal", "fit", "index", "less", "less_equal", "loop_bounds", "modulo", "multiply", "negate", "not_callable"),
    *("prepare_iterator", "results", "set_index", "shift_left", "shift_right", "subtract", "subtract_index"),
)
"""What templates use of vm.operators."""

VALUES: Mapping[str, object] = {
    "TAIL": TAIL,
    "Function": Function,
    "Key": Key,
    "PLAIN": frozenset((int, bytes)),
    "Stats": Stats,
    "Table": Table,
    "list_iterator": type(iter([])),
    "make_key": make_key,
    "wrap": wrap,
}


def namespace(machine: Machine, arguments: Mapping[Name, object]) -> Dict[str, object]:
    """All names of a machine's translated code; `arguments` becomes the script's table `arg`."""
    names: Dict[str, object] = {name: getattr(operators, name) for name in OPERATORS}
    names.update(VALUES)
    names.update(
        DEPTH=machine.limits.call_depth,
        E=machine.idle,
        NAMES=names,
        account=machine.account,
        add_stats=machine.add_stats,
        built=machine.account.built,
        calls=iter(()),
        charge=machine.account.charge,
        concatenate=machine.concatenate,
        finish=machine.pack,
        next_entry=machine.next_entry,
        one=machine.one,
        out_of_calls=machine.out_of_calls,
        out_of_rounds=machine.out_of_rounds,
        pack=machine.pack,
        rounds=iter(()),
        sample=machine.sample,
        set_probe=machine.set_probe,
        symbol=machine.symbol,
        too_deep=operators.too_deep,
    )
    for index, value in enumerate(machine.program.constants):
        if isinstance(value, bytes):
            names[f"c{index}"] = value
            names[f"g{index}"] = None
    for number in range(len(machine.program.functions)):
        names[f"make{number}"] = machine.maker(number)
    names.update(operands(machine, arguments))
    return names


def operands(machine: Machine, arguments: Mapping[Name, object]) -> Dict[str, object]:
    """The globals (`g0`), builtins (`f0`) and paths of events (`p0`) that instructions name by a constant."""
    wanted = {
        (instruction.op, instruction.b)
        for function in machine.program.functions
        for instruction in function.code
        if instruction.op in ("GETGLOBAL", "BUILTIN", "EVENT")
    }
    names: Dict[str, object] = {}
    canonical = machine.translator.canonical
    for op, index in wanted:
        text = machine.program.constants[index]
        name = text.decode("ascii", "replace") if isinstance(text, bytes) else ""
        if op == "BUILTIN":
            names[f"f{canonical[index]}"] = machine.builtins[name]
        elif op == "EVENT":
            names[f"p{canonical[index]}"] = name.partition(".")[2]
        elif name == "arg":
            names[f"g{canonical[index]}"] = new_table(machine, arguments)
        else:
            names[f"g{canonical[index]}"] = first_value(machine, name)
    return names


def first_value(machine: Machine, name: str) -> object:
    """What a global is before it was assigned: the builtin or the table of builtins of that name, or nil."""
    members = named(name)
    if name in members:
        return machine.builtins[name]
    contents: Dict[Name, object] = {full[len(name) + 1 :].encode(): machine.builtins[full] for full in members}
    return new_table(machine, contents) if contents else None


def new_table(machine: Machine, contents: Mapping[Name, object]) -> Table:
    """A table of the script."""
    table = Table(machine.account)
    for key, value in contents.items():
        table.put(key, value)
    return table
