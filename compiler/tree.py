"""The syntax tree: plain frozen nodes, each with its place in the source."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional, Union

from vm.program import Span


@dataclass(frozen=True)
class Node:
    """Anything that has a place."""

    span: Span


# -- expressions ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Literal(Node):
    """nil, true, false, an integer (already wrapped to signed 64 bits) or a string."""

    value: Union[bool, int, bytes, None]


@dataclass(frozen=True)
class Symbol(Node):
    """`` `name` ``: the address of a kernel symbol."""

    name: str


@dataclass(frozen=True)
class Vararg(Node):
    """`...` in a variadic function."""


@dataclass(frozen=True)
class Name(Node):
    """A variable, a builtin or an event variable: the resolver decides."""

    name: str


@dataclass(frozen=True)
class Index(Node):
    """`t[k]`, or `t[a, b]` with several keys."""

    table: Expression
    keys: tuple[Expression, ...]


@dataclass(frozen=True)
class Member(Node):
    """`t.name`; `name_span` is the place of the name alone."""

    table: Expression
    name: str
    name_span: Span


@dataclass(frozen=True)
class Call(Node):
    """`f(a, b)`."""

    function: Expression
    arguments: tuple[Expression, ...]


@dataclass(frozen=True)
class Parenthesized(Node):
    """`(e)`: exactly one value, whatever e gives."""

    inner: Expression


@dataclass(frozen=True)
class FunctionExpression(Node):
    """`function (a, b, ...) { }`; `name` is for messages (`` for an anonymous one)."""

    name: str
    parameters: tuple[Name, ...]
    variadic: bool
    body: Block


@dataclass(frozen=True)
class Entry(Node):
    """An item of a table constructor: `key` is None for a positional one."""

    key: Optional[Expression]
    value: Expression


@dataclass(frozen=True)
class TableExpression(Node):
    """`{1, 2, [k] = v, name = v}`."""

    entries: tuple[Entry, ...]


@dataclass(frozen=True)
class Unary(Node):
    """`-`, `~`, `!` (`not` is read as `!`)."""

    operator: str
    operand: Expression


@dataclass(frozen=True)
class Binary(Node):
    """Any binary operator; `and` and `or` are read as `&&` and `||`."""

    operator: str
    left: Expression
    right: Expression


Expression = Union[
    Literal,
    Symbol,
    Vararg,
    Name,
    Index,
    Member,
    Call,
    Parenthesized,
    FunctionExpression,
    TableExpression,
    Unary,
    Binary,
]
Target = Union[Name, Index, Member]

# -- statements -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Block(Node):
    """Statements with a scope of their own."""

    body: tuple[Statement, ...]


@dataclass(frozen=True)
class Local(Node):
    """`var a, b = 1, 2`."""

    names: tuple[Name, ...]
    values: tuple[Expression, ...]


@dataclass(frozen=True)
class Assign(Node):
    """`a, t[k] = 1, 2`."""

    targets: tuple[Target, ...]
    values: tuple[Expression, ...]


@dataclass(frozen=True)
class Update(Node):
    """`a += 1`: `operator` is `+ - * / %` or `..`."""

    operator: str
    target: Target
    value: Expression


@dataclass(frozen=True)
class Sample(Node):
    """`s[k] <<< v`."""

    target: Target
    value: Expression


@dataclass(frozen=True)
class Evaluate(Node):
    """A call as a statement."""

    call: Call


@dataclass(frozen=True)
class If(Node):
    """`if (c) { } elseif (c) { } else { }`: pairs of condition and block, then the last block."""

    branches: tuple[tuple[Expression, Block], ...]
    otherwise: Optional[Block]


@dataclass(frozen=True)
class While(Node):
    """`while (c) { }`."""

    condition: Expression
    body: Block


@dataclass(frozen=True)
class Repeat(Node):
    """`repeat { } until (c)`: the condition sees the body's variables."""

    body: Block
    condition: Expression


@dataclass(frozen=True)
class CountingFor(Node):
    """`for (i = first, last, step) { }`."""

    variable: Name
    first: Expression
    last: Expression
    step: Optional[Expression]
    body: Block


@dataclass(frozen=True)
class ClassicFor(Node):
    """`for (i = 0; i < 10; i += 1) { }`; each part may be left out. A name that `start` assigns is local to the loop."""

    start: Optional[Statement]
    condition: Optional[Expression]
    update: Optional[Statement]
    body: Block


@dataclass(frozen=True)
class IteratingFor(Node):
    """`for (k, v in pairs(t)) { }`."""

    names: tuple[Name, ...]
    iterated: tuple[Expression, ...]
    body: Block


@dataclass(frozen=True)
class Break(Node):
    """`break`."""


@dataclass(frozen=True)
class Continue(Node):
    """`continue`."""


@dataclass(frozen=True)
class Return(Node):
    """`return a, b`."""

    values: tuple[Expression, ...]


@dataclass(frozen=True)
class FunctionStatement(Node):
    """`function f(a) { }`, `function t.f() { }`."""

    target: Union[Name, Member]
    function: FunctionExpression


@dataclass(frozen=True)
class EventText(Node):
    """An event as written, fetch arguments included: `sched:*`, `probe:vfs_read fd=%di`, `trace_begin`, `tick-1s`."""

    text: str


@dataclass(frozen=True)
class FilterText(Node):
    """What stands between the slashes; `span` is that of the text without them."""

    text: str


@dataclass(frozen=True)
class Trace(Node):
    """`trace EVENT, EVENT /FILTER/ { }`, trace_begin, trace_end, tick-… and profile-…: a list of events, one handler.

    `handler` has no parameters, or one in the older spelling `trace "EVENT" function (e) { }`.
    """

    events: tuple[EventText, ...]
    filter: Optional[FilterText]
    handler: FunctionExpression


Statement = Union[
    Block,
    Local,
    Assign,
    Update,
    Sample,
    Evaluate,
    If,
    While,
    Repeat,
    CountingFor,
    ClassicFor,
    IteratingFor,
    Break,
    Continue,
    Return,
    FunctionStatement,
    Trace,
]


@dataclass(frozen=True)
class Script(Node):
    """A whole file."""

    source_name: str
    source: str
    body: Block
