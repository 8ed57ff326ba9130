"""Symbols that stand for values while bytecode is walked, and what is known where two ways meet."""

from __future__ import annotations

from typing import Dict, FrozenSet, Optional, Union

from ktap import demand
from vm.c_types import Type
from vm.named_tuple import NamedTuple


class Known(NamedTuple):
    """A constant of the script that is no number."""

    value: Union[bool, bytes, None]


class Closures(NamedTuple):
    """One of several functions of the script."""

    functions: FrozenSet[int]


class Builtin(NamedTuple):
    """A builtin by its name."""

    name: str


class Box(NamedTuple):
    """A variable that closures share, by the place that makes it: a function and an instruction."""

    function: int
    place: int


class Task(NamedTuple):
    """The running task, or a member of it by its path."""

    path: str


class Lasting(NamedTuple):
    """A value of an event that went through a variable which outlives it."""

    name: str


class Pointed(NamedTuple):
    """A typed pointer: what it points at, and its address."""

    target: Type
    address: demand.Expression


class Single(NamedTuple):
    """A pack of exactly one value: the results of a call, to be spread."""

    value: Union[Known, Closures, Builtin, Box, Task, Lasting, Pointed, demand.Expression]


Symbol = Union[Known, Closures, Builtin, Box, Task, Lasting, Pointed, Single, demand.Expression]
State = Dict[int, Symbol]
"""What is known of the registers; one that is missing can be anything."""

EXPRESSIONS = (demand.Value, demand.Number, demand.Symbol, demand.Binary, demand.Read)


def same(first: Optional[Symbol], second: Optional[Symbol]) -> bool:
    """Whether two symbols are one: named tuples of different classes can be equal."""
    return type(first) is type(second) and first == second


def either(first: Optional[Symbol], second: Optional[Symbol]) -> Optional[Symbol]:
    """What is known of a value that is one of two."""
    if same(first, second):
        return first
    if isinstance(first, Closures) and isinstance(second, Closures):
        return Closures(first.functions | second.functions)
    nil = Known(None)
    if first == nil and isinstance(second, Closures):
        return second
    if second == nil and isinstance(first, Closures):
        return first
    return None


def lasting(symbol: Optional[Symbol]) -> Optional[Symbol]:
    """What is known of a value when it is read from a variable that outlives the event."""
    if isinstance(symbol, EXPRESSIONS):
        names = demand.inputs(symbol)
        return Lasting(names[0]) if names else symbol
    if isinstance(symbol, Task):
        return Lasting("curtask")
    if isinstance(symbol, Pointed):
        return lasting(symbol.address)
    return symbol


def stored(first: Optional[Symbol], second: Optional[Symbol]) -> Optional[Symbol]:
    """What is known of a variable that is given one of two values; that one was an event's is worth remembering."""
    second = lasting(second)
    for symbol in (first, second):
        if isinstance(symbol, Lasting):
            return symbol
    return either(first, second)


def depth(expression: demand.Expression) -> int:
    """How many operations are nested in an expression."""
    if isinstance(expression, demand.Binary):
        return 1 + max(depth(expression.left), depth(expression.right))
    return 1 + depth(expression.address) if isinstance(expression, demand.Read) else 1


def merge(first: Optional[State], second: State) -> State:
    """What holds in both."""
    if first is None:
        return dict(second)
    merged: State = {}
    for register in first.keys() & second.keys():
        symbol = either(first[register], second[register])
        if symbol is not None:
            merged[register] = symbol
    return merged
