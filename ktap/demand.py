"""What handlers ask of an event: plain data between the analysis of a script and the capture programs."""

from __future__ import annotations

from typing import FrozenSet, Iterable, NamedTuple, Optional, Tuple, Union

STRING, BYTES = "string", "bytes"
USER, KERNEL = "user", "kernel"


class Value(NamedTuple):
    """An event variable used as a number: `arg1`, `args.filename`, `retval`, `curtask`."""

    name: str


class Sum(NamedTuple):
    """An expression plus a constant."""

    base: Expression
    constant: int


class Read(NamedTuple):
    """Memory at an address: `kind` is STRING or BYTES; at most `most_bytes`, or `length` where that is less.

    As a number (the address of another read) it is the integer of its 1, 2, 4 or 8 bytes.
    """

    space: str
    kind: str
    address: Expression
    most_bytes: int
    length: Optional[Expression] = None


Expression = Union[Value, Sum, Read]


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
    if isinstance(expression, Sum):
        return inputs(expression.base)
    own = inputs(expression.address)
    return own + inputs(expression.length) if expression.length is not None else own
