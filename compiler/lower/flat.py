"""Flat code: a handler as blocks of simple operations, with calls inlined and constants in place.

It is what inference, partition and emission work on. Registers are numbered through the whole
handler (an inlined call has registers of its own), operands are registers or constants, variables
are named by what they are and not by where a function finds them.
"""

from __future__ import annotations

from typing import Callable, Dict, FrozenSet, List, Optional, Sequence, Set, Tuple, Union

from vm.named_tuple import NamedTuple
from vm.program import Span


class NotLowered(Exception):
    """This handler stays in the VM: where, why, and what would change it."""

    def __init__(self, span: Optional[Span], reason: str, remedy: Optional[str] = None) -> None:
        super().__init__(reason)
        self.span = span
        self.reason = reason
        self.remedy = remedy


class Refused(Exception):
    """A handler of the group cannot be lowered; the others may be, without it."""

    def __init__(self, handler: int, why: NotLowered) -> None:
        super().__init__(why.reason)
        self.handler = handler
        self.why = why


class Variable(NamedTuple):
    """A variable that outlives a handler: a global (`identity` is its name's constant) or a captured local (of a box)."""

    kind: str
    identity: int
    name: str


class Constant(NamedTuple):
    """A value known before the handler runs: any value of the VM, tables and functions too."""

    value: object


class Builtin(NamedTuple):
    """A builtin as a value."""

    name: str


Operand = Union[int, Constant]
"""A register or a constant."""


class Call(NamedTuple):
    """A call that is inlined: the function that makes it, and where."""

    function: int
    span: Span


class Place(NamedTuple):
    """Where an operation comes from: its function, and the calls that led there, innermost first."""

    function: int
    callers: Tuple[Call, ...] = ()

    def frames(self, span: Span) -> Tuple[Call, ...]:
        """The operation at a span and the calls around it, as a fault names them."""
        return (Call(self.function, span), *self.callers)


class Operation(NamedTuple):
    """One step: `target` is the register it writes (None: none). `name` says more where the op needs it.

    The ops are those of `vm.opcodes` that compute (MOVE, ADD, EQ, …, GETINDEX, SETINDEX, ADDINDEX, SUBINDEX,
    GETENTRY, SAMPLE, STATADD, KEY, EVENT) and

    ========  ===================================================================
    FUNCTION  target = a function, of which no more is known here
    GETVAR    target = the variable `variable`
    SETVAR    the variable = arguments[0]
    BUILTIN   target = the builtin `name` of the arguments
    ROUND     one more loop round
    CHECKINT  fault unless arguments[0] is an integer (a bound of a for loop)
    CHECKSTEP fault where arguments[0] is zero
    INRANGE   target = whether a counting loop with (value, last, step) has a round at value
    ADVANCE   target = whether value + step (arguments) neither overflows nor passes last; wraps nothing
    ========  ===================================================================
    """

    op: str
    target: Optional[int]
    arguments: Tuple[Operand, ...]
    span: Span
    name: str = ""
    variable: Optional[Variable] = None
    place: Place = Place(0)


class Jump(NamedTuple):
    """Continue at a block."""

    block: int


class Branch(NamedTuple):
    """Continue at `then` unless the condition is nil or false, else at `otherwise`."""

    condition: Operand
    then: int
    otherwise: int


class Stop(NamedTuple):
    """The handler has run."""


Terminator = Union[Jump, Branch, Stop]


class Block:
    """Operations in order, then one terminator."""

    __slots__ = ("operations", "terminator")

    def __init__(self) -> None:
        self.operations: List[Operation] = []
        self.terminator: Terminator = Stop()


class FlatHandler(NamedTuple):
    """A handler in flat code; block 0 is its entry."""

    blocks: Tuple[Block, ...]
    registers: int
    functions: Tuple[int, ...]
    """Indexes of the functions of the program whose code is in it, its own first."""


def successors(terminator: Terminator) -> Tuple[int, ...]:
    """The blocks that can come next."""
    if isinstance(terminator, Jump):
        return (terminator.block,)
    if isinstance(terminator, Branch):
        return (terminator.then, terminator.otherwise)
    return ()


def order(blocks: Sequence[Block]) -> List[int]:
    """The blocks that can be reached, each before those it leads to but by a loop's way back."""
    return ordered(lambda number: successors(blocks[number].terminator))


def ordered(following_of: Callable[[int], Sequence[int]]) -> List[int]:
    """The same where it is given which blocks can follow one."""
    found: List[int] = []
    seen = {0}
    path = [(0, iter(reversed(following_of(0))))]
    while path:
        number, following = path[-1]
        target = next((t for t in following if t not in seen), None)
        if target is None:
            found.append(number)
            path.pop()
        else:
            seen.add(target)
            path.append((target, iter(reversed(following_of(target)))))
    return found[::-1]


def live(blocks: Sequence[Block]) -> List[FrozenSet[int]]:
    """For every block, the registers whose values at its start are used."""
    needs: List[Set[int]] = []
    writes: List[Set[int]] = []
    for block in blocks:
        needed: Set[int] = set()
        written: Set[int] = set()
        for operation in block.operations:
            needed.update(a for a in operation.arguments if isinstance(a, int) and a not in written)
            if operation.target is not None:
                written.add(operation.target)
        end = block.terminator
        if isinstance(end, Branch) and isinstance(end.condition, int) and end.condition not in written:
            needed.add(end.condition)
        needs.append(needed)
        writes.append(written)
    found: List[FrozenSet[int]] = [frozenset()] * len(blocks)
    backwards = order(blocks)[::-1]
    changed = True
    while changed:
        changed = False
        for number in backwards:
            behind = frozenset().union(*(found[target] for target in successors(blocks[number].terminator)))
            now = frozenset(needs[number] | (behind - writes[number]))
            changed |= now != found[number]
            found[number] = now
    return found


def show(handler: FlatHandler) -> str:
    """The code as text, a line an operation, for dumps and tests."""

    def operand(value: Operand) -> str:
        return f"r{value}" if isinstance(value, int) else repr(value.value)

    lines: List[str] = []
    for number, block in enumerate(handler.blocks):
        lines.append(f"block {number}")
        for step in block.operations:
            head = "" if step.target is None else f"r{step.target} = "
            name = step.variable.name if step.variable else step.name
            words = [step.op, name, ", ".join(operand(a) for a in step.arguments)]
            lines.append(f"    {head}{' '.join(word for word in words if word)}")
        end = block.terminator
        if isinstance(end, Jump):
            lines.append(f"    jump {end.block}")
        elif isinstance(end, Branch):
            lines.append(f"    if {operand(end.condition)} {end.then} else {end.otherwise}")
        else:
            lines.append("    stop")
    return "\n".join(lines) + "\n"


Known = Dict[int, object]
"""What is known of registers: Constant, Builtin, LocalClosure or Pack."""
