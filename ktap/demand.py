"""What handlers ask of an event: plain data between the analysis of a script and the capture programs."""

from __future__ import annotations

from typing import Callable, FrozenSet, Iterable, Mapping, Optional, Tuple, Union

from vm.named_tuple import NamedTuple
from vm.values import wrap

STRING, BYTES = "string", "bytes"
USER, KERNEL = "user", "kernel"
EITHER = "either"
"""The space that an address lies in says which it is: below TASK_SIZE it is the process's (x86, arm64)."""
ANY = "any"
"""The space of a pointer whose kind says nothing of it: a system call's are the process's, all others the kernel's."""


class Value(NamedTuple):
    """An event variable used as a number: `arg1`, `args.filename`, `retval`, `curtask`."""

    name: str


class Place(NamedTuple):
    """Where an event has a value, in place of its name: an integer of the raw record, or of the context."""

    offset: int
    size_bytes: int
    signed: bool


class Number(NamedTuple):
    """A constant."""

    value: int


class Text(NamedTuple):
    """A constant string, of which a record is made; no part of an address."""

    value: bytes


class Passed(NamedTuple):
    """An argument of the call that returns, from 1: who sees both ends of a call has it."""

    number: int


class Symbol(NamedTuple):
    """The address of a kernel symbol."""

    name: str
    space: str = KERNEL


class Binary(NamedTuple):
    """A computation on two expressions: `operator` is a key of OPERATORS."""

    operator: str
    left: Expression
    right: Expression


class Read(NamedTuple):
    """Memory at an address: `kind` is STRING or BYTES; at most `most_bytes`, or `length` where that is less.

    As a number (the address of another read) it is the integer of its 1, 2, 4 or 8 bytes.
    """

    space: str
    kind: str
    address: Expression
    most_bytes: int
    length: Optional[Expression] = None


Expression = Union[Value, Place, Passed, Number, Text, Symbol, Binary, Read]

OPERATORS: Mapping[str, Tuple[str, Callable[[int, int], int]]] = {
    "ADD": ("add", lambda left, right: left + right),
    "SUB": ("sub", lambda left, right: left - right),
    "MUL": ("mul", lambda left, right: left * right),
    "BAND": ("and", lambda left, right: left & right),
    "BOR": ("or", lambda left, right: left | right),
    "BXOR": ("xor", lambda left, right: left ^ right),
    "SHL": ("shl", lambda left, right: left << (right & 63)),
    "SHR": ("lshr", lambda left, right: (left & MASK) >> (right & 63)),
}
"""What an address can be computed with, by the opcode's name: LLVM's instruction and the same in Python."""
MASK = (1 << 64) - 1


class Demand(NamedTuple):
    """Everything that the handlers of one event may read of it."""

    variables: FrozenSet[str] = frozenset()
    """As the EVENT opcode names them: `pid`, `arg1`, `args.next_comm`, `curtask.real_parent.pid`."""
    reads: FrozenSet[Read] = frozenset()
    kernel_stack: int = 0
    """Frames of the kernel stack."""
    user_stack: int = 0
    states: FrozenSet[str] = frozenset()
    """What `Event.state` is asked for."""

    def joined(self, other: Demand) -> Demand:
        """What both ask for."""
        return Demand(
            self.variables | other.variables,
            self.reads | other.reads,
            max(self.kernel_stack, other.kernel_stack),
            max(self.user_stack, other.user_stack),
            self.states | other.states,
        )


def join(demands: Iterable[Demand]) -> Demand:
    """What all of them ask for."""
    total = Demand()
    for demand in demands:
        total = total.joined(demand)
    return total


def inputs(expression: Expression) -> Tuple[str, ...]:
    """The event variables an expression is made of."""
    if isinstance(expression, Value):
        return (expression.name,)
    if isinstance(expression, Binary):
        return inputs(expression.left) + inputs(expression.right)
    if isinstance(expression, Read):
        own = inputs(expression.address)
        return own + inputs(expression.length) if expression.length is not None else own
    return ()


def looks_at_record(expression: Expression) -> bool:
    """Whether an expression whose variables were replaced has a Place in it."""
    if isinstance(expression, Binary):
        return looks_at_record(expression.left) or looks_at_record(expression.right)
    if isinstance(expression, Read):
        length = expression.length
        return looks_at_record(expression.address) or (length is not None and looks_at_record(length))
    return isinstance(expression, Place)


def settled(read: Read, space: str) -> Read:
    """The read with ANY replaced in it and in the reads that its address is made of."""

    def one(expression: Expression) -> Expression:
        if isinstance(expression, Binary):
            return Binary(expression.operator, one(expression.left), one(expression.right))
        return settled(expression, space) if isinstance(expression, Read) else expression

    length = None if read.length is None else one(read.length)
    own = KERNEL if "curtask" in inputs(read.address) else space
    return read._replace(space=own if read.space == ANY else read.space, address=one(read.address), length=length)


PlaceOf = Callable[[Union[Value, Symbol]], Optional[Expression]]
"""Says what stands for a variable or a symbol in one event; None where the event has none."""


def placed(expression: Expression, place_of: PlaceOf) -> Optional[Expression]:
    """The expression with its variables and symbols replaced; None when one of them is lacking."""
    if isinstance(expression, (Value, Symbol)):
        return place_of(expression)
    if isinstance(expression, Binary):
        left, right = placed(expression.left, place_of), placed(expression.right, place_of)
        return None if left is None or right is None else Binary(expression.operator, left, right)
    if isinstance(expression, Read):
        address = placed(expression.address, place_of)
        length = None if expression.length is None else placed(expression.length, place_of)
        if address is None or (expression.length is not None and length is None):
            return None
        return expression._replace(address=address, length=length)
    return expression


def evaluate(expression: Expression, known: Callable[[Expression], Optional[int]]) -> Optional[int]:
    """The expression's value, signed; `known` gives it for variables, symbols and reads."""
    if isinstance(expression, Number):
        return expression.value
    if isinstance(expression, Binary):
        left, right = evaluate(expression.left, known), evaluate(expression.right, known)
        if left is None or right is None:
            return None
        return wrap(OPERATORS[expression.operator][1](left, right))
    return known(expression)
