"""Calls of kernel functions in capture programs: what their contexts are, and where these have the arguments.

The record of a call is made of registers (ktap.fetched). A *typed* program has no registers but the arguments as
words, and behind them the result: a record that is made of nothing else can be made of those too.
"""

from __future__ import annotations

from typing import List, Optional

from compiler.ir import Writer
from ktap.demand import Binary, Expression, Passed, Place, Read, Value
from ktap.fetched import FUNCTION, Part, Recipe
from ktap.registers import MACHINES, WORD_BYTES
from vm.named_tuple import NamedTuple

CALL, CALL_RETURN = "call", "call's return"
"""A function of the kernel is called, or returns; the context has the registers, and a cookie the event's number."""
TYPED_CALL, TYPED_RETURN = "typed call", "typed call's return"
"""The same, where the context has the arguments (fentry, fexit)."""
CALL_CONTEXTS = (CALL, CALL_RETURN)
TYPED_CONTEXTS = (TYPED_CALL, TYPED_RETURN)
TYPED = {CALL: TYPED_CALL, CALL_RETURN: TYPED_RETURN}


class Called(NamedTuple):
    """A function of the kernel that is probed."""

    symbol: str
    address: int
    offset: int = 0
    """Of the instruction, in the function."""
    returns: bool = False
    type_id: Optional[int] = None
    """The function's id in the kernel's BTF; None where it has none, or passes structures by value."""
    words: int = 0
    """How many arguments it has."""
    many: bool = False
    """It is one of those that a glob means."""
    hides_caller: bool = False
    """Its caller is in a register where the event fires, and on no stack: it has made no frame yet."""


FORGOTTEN = (
    "arguments of a call are known at its return only where fexit can be had (BTF, a function that the tracer may"
    " patch); elsewhere keep them by thread at the entry, as in t[tid] = arg1"
)


def remembered(recipe: Recipe) -> bool:
    """Whether a record is made of arguments of a call that returns."""
    return any(remembers(part.what) for part in recipe.parts)


def remembers(expression: Expression) -> bool:
    """Whether a value has an argument of a call that returns in it."""
    if isinstance(expression, Binary):
        return remembers(expression.left) or remembers(expression.right)
    return isinstance(expression, Passed) or (isinstance(expression, Read) and remembers(expression.address))


def typed_words(w: Writer, called: Optional[Called]) -> str:
    """A copy of a typed context: of the words themselves the verifier knows too well what they point at."""
    assert called is not None
    size = WORD_BYTES * (called.words + called.returns)
    room = w.local(max(WORD_BYTES, size), "words")
    if size:
        w.call("probe_read_kernel", room, size, w.value("ptrtoint ptr %ctx to i64"))
    return room


def typed_recipe(recipe: Recipe, called: Called, machine: str) -> Optional[Recipe]:
    """The same record made of a typed context; None where it is made of other registers, too."""
    known = MACHINES[machine]
    words = {known.registers[name].offset: index for index, name in enumerate(known.arguments[: called.words])}
    if called.returns:
        words = {known.registers[known.result].offset: called.words}

    def moved(what: Expression) -> Optional[Expression]:
        if isinstance(what, Place):
            index = words.get(what.offset)
            return None if index is None else what._replace(offset=WORD_BYTES * index)
        if isinstance(what, Passed):
            known_here = called.returns and 0 < what.number <= called.words
            return Place(WORD_BYTES * (what.number - 1), WORD_BYTES, False) if known_here else None
        if isinstance(what, Binary):
            left, right = moved(what.left), moved(what.right)
            return None if left is None or right is None else what._replace(left=left, right=right)
        if isinstance(what, Read):
            address = moved(what.address)
            return None if address is None else what._replace(address=address)
        return what if not isinstance(what, Value) or what in (FUNCTION, Value("execname"), Value("curtask")) else None

    parts: List[Part] = []
    for part in recipe.parts:
        found = moved(part.what)
        if found is None:
            return None
        parts.append(part._replace(what=found))
    return recipe._replace(parts=tuple(parts))
