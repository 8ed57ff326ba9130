"""What the operators do, in full. Translated code does the common case itself and comes here for the rest.

Every function takes values and gives a value; all raise Fault("type") for values they cannot take.
Arithmetic and bits give nil where an operand is nil; an address counts as its number.
"""

from __future__ import annotations

from typing import Callable, Dict, List, NoReturn, Optional, Tuple

from vm.fault import Fault
from vm.values import (
    Address,
    Cdata,
    EventValue,
    Function,
    Iterator,
    Key,
    Table,
    describe,
    wrap,
)

WORD = 0xFFFFFFFFFFFFFFFF
"""64 bits, all set."""
MAX_PACK = 4096
"""The most values one call may pass on or give back behind `...`."""

Binary = Callable[[object, object], object]
Entry = Tuple[object, object]


def integer(value: object) -> Optional[int]:
    """The number of an integer or an address, None for anything else."""
    if type(value) is int:
        return value
    return int(value) if isinstance(value, Address) else None


# -- arithmetic -------------------------------------------------------------------------------


def quotient(x: int, y: int) -> int:
    """Division as in C: truncated toward zero. Raises Fault("divide")."""
    if y == 0:
        raise Fault("divide", "divide 0")
    return x // y if (x < 0) == (y < 0) else -(-x // y)


def remainder(x: int, y: int) -> int:
    """The rest as in C: it has the sign of the left side. Raises Fault("divide")."""
    if y == 0:
        raise Fault("divide", "divide 0")
    rest = abs(x) % abs(y)
    return rest if x >= 0 else -rest


def arithmetic(verb: str, compute: Callable[[int, int], int]) -> Binary:
    """The operator that `compute` is on integers; `verb` is what a message says cannot be done."""

    def operator(x: object, y: object) -> object:
        a, b = integer(x), integer(y)
        if a is not None and b is not None:
            return wrap(compute(a, b))
        if (x is None or a is not None) and (y is None or b is not None):
            return None
        raise Fault("type", f"cannot {verb} {describe(x)} and {describe(y)}")

    return operator


add = arithmetic("add", lambda x, y: x + y)
subtract = arithmetic("subtract", lambda x, y: x - y)
multiply = arithmetic("multiply", lambda x, y: x * y)
divide = arithmetic("divide", quotient)
modulo = arithmetic("take the remainder of", remainder)
bit_and = arithmetic("apply & to", lambda x, y: x & y)
bit_or = arithmetic("apply | to", lambda x, y: x | y)
bit_xor = arithmetic("apply ^ to", lambda x, y: x ^ y)
shift_left = arithmetic("shift", lambda x, y: x << (y & 63))
shift_right = arithmetic("shift", lambda x, y: (x & WORD) >> (y & 63))


def negate(x: object) -> object:
    """`-x`."""
    if x is None:
        return None
    number = integer(x)
    if number is None:
        raise Fault("type", f"cannot negate {describe(x)}")
    return wrap(-number)


def complement(x: object) -> object:
    """`~x`."""
    if x is None:
        return None
    number = integer(x)
    if number is None:
        raise Fault("type", f"cannot apply ~ to {describe(x)}")
    return ~number


# -- comparison -------------------------------------------------------------------------------


def equal(x: object, y: object) -> bool:
    """`x == y`: false across types, an address and an integer being one type."""
    if type(x) is type(y):
        return x == y
    a, b = integer(x), integer(y)
    return a is not None and a == b


def less(x: object, y: object) -> bool:
    """`x < y`."""
    a, b = integer(x), integer(y)
    if a is not None and b is not None:
        return a < b
    if isinstance(x, bytes) and isinstance(y, bytes):
        return x < y
    raise Fault("type", f"cannot compare {describe(x)} and {describe(y)}")


def less_equal(x: object, y: object) -> bool:
    """`x <= y`."""
    return not less(y, x) if type(x) is type(y) else less(x, y) or equal(x, y)


# -- tables -----------------------------------------------------------------------------------


def index(container: object, key: object) -> object:
    """`container[key]`, also a member of an event or of cdata."""
    if isinstance(container, Table):
        return container.read(key)
    if isinstance(container, (Cdata, EventValue)):
        return container.member(key)
    raise Fault("type", f"cannot index {describe(container)}")


def entry(container: object, key: object) -> object:
    """`container[key]`, 0 where that is missing."""
    value = index(container, key)
    return 0 if value is None else value


def as_table(value: object) -> Table:
    """The value, which must be a table to be assigned into."""
    if isinstance(value, Table):
        return value
    raise Fault("type", f"cannot assign to an entry of {describe(value)}")


def set_index(container: object, key: object, value: object) -> None:
    """`container[key] = value`. Also raises Fault("key") and Fault("memory")."""
    if type(container) is Table:
        container.put(key, value)
    else:
        as_table(container)


def add_index(container: object, key: object, value: object) -> None:
    """`container[key] += value`, a missing entry counting as 0."""
    table = as_table(container)
    old = table.read(key)
    table.put(key, add(0 if old is None else old, value))


def subtract_index(container: object, key: object, value: object) -> None:
    """`container[key] -= value`, a missing entry counting as 0."""
    table = as_table(container)
    old = table.read(key)
    table.put(key, subtract(0 if old is None else old, value))


def append(container: object, values: Tuple[object, ...]) -> None:
    """Put `values` behind the last of a table's leading integer keys."""
    as_table(container).append(values)


# -- calls and loops --------------------------------------------------------------------------


def not_callable_fault(value: object) -> Fault:
    """The fault of calling what is no function."""
    return Fault("type", f"cannot call {describe(value)}")


def not_callable(value: object) -> NoReturn:
    """Raises that fault."""
    raise not_callable_fault(value)


def too_deep() -> Fault:
    """The fault of calls nested too deep."""
    return Fault("depth", "stack overflow", "raise the limit with --max-depth")


def bounded(pack: Tuple[object, ...]) -> Tuple[object, ...]:
    """The pack, which must not be longer than MAX_PACK. Raises Fault("argument")."""
    if len(pack) > MAX_PACK:
        raise Fault("argument", f"more than {MAX_PACK} values behind `...`")
    return pack


def results(pack: Tuple[object, ...]) -> object:
    """What a function returns for these results: one as itself, none or several as the pack."""
    return bounded(pack) if len(pack) != 1 else pack[0]


def fit(pack: Tuple[object, ...], count: int) -> Tuple[object, ...]:
    """Exactly `count` values: the first ones, nil for those that are missing."""
    missing = count - len(pack)
    return pack[:count] if missing <= 0 else pack + (None,) * missing


def loop_bounds(first: object, last: object, step: object) -> Tuple[int, int, int]:
    """What a counting loop counts with. Raises Fault("type") and Fault("step")."""
    numbers: List[int] = []
    for value in (first, last, step):
        number = integer(value)
        if number is None:
            raise Fault("type", f"a for loop counts with integers, not with {describe(value)}")
        numbers.append(number)
    if numbers[2] == 0:
        raise Fault("step", "the step of a for loop is 0")
    return numbers[0], numbers[1], numbers[2]


class Generator:
    """A loop over a function: each round calls it with the state and the control, its first result."""

    __slots__ = ("control", "function", "state")

    def __init__(self, function: object, state: object, control: object) -> None:
        self.function = function
        self.state = state
        self.control = control


def prepare_iterator(value: object, state: object, control: object) -> object:
    """What ITERPREP puts into its register: an iterator of Python over (key, value), or a Generator."""
    if isinstance(value, Iterator):
        return iter(value.entries)
    if isinstance(value, Function):
        return Generator(value, state, control)
    hint = "use pairs(t)" if isinstance(value, Table) else None
    raise Fault("type", f"cannot loop over {describe(value)}", hint)


def spread(found: Entry, count: int) -> Tuple[object, ...]:
    """A key and a value over `count` loop names: the value is the last, a multi-key has a name for each part.

    With one name that is the key, with two a multi-key stays whole.
    """
    if count == 2:
        return found
    key, value = found
    if count == 1:
        return (key,)
    parts = key.parts() if isinstance(key, Key) else (key,)
    return (*fit(parts, count - 1), value)


BINARY: Dict[str, Binary] = {
    "ADD": add,
    "SUB": subtract,
    "MUL": multiply,
    "DIV": divide,
    "MOD": modulo,
    "BAND": bit_and,
    "BOR": bit_or,
    "BXOR": bit_xor,
    "SHL": shift_left,
    "SHR": shift_right,
    "EQ": equal,
    "NE": lambda x, y: not equal(x, y),
    "LT": less,
    "LE": less_equal,
}
"""The binary operators by opcode: the reference that other machines are compared with."""
