"""Expressions to instructions.

`compute` gives a value operand: a constant, the register of a variable as it is, or a fresh register,
the one at the top. The other forms (`push`, `into`, `arguments`, `condition`) stand on it.
"""

from __future__ import annotations

from typing import Callable, Optional, Sequence

from compiler import tree
from compiler.emit import Label
from compiler.fold import truth
from compiler.meaning import Builtin, EventValue, Global, Local, Upvalue
from compiler.unit import Body
from vm.opcodes import PACK
from vm.program import Span

BINARY = {
    "+": "ADD",
    "-": "SUB",
    "*": "MUL",
    "/": "DIV",
    "%": "MOD",
    "&": "BAND",
    "|": "BOR",
    "^": "BXOR",
    "<<": "SHL",
    ">>": "SHR",
    "..": "CONCAT",
    "==": "EQ",
    "!=": "NE",
    "<": "LT",
    "<=": "LE",
}
SWAPPED = {">": "LT", ">=": "LE"}
"""Operators that are another with its operands swapped; the left one is computed first all the same."""
UNARY = {"-": "NEG", "!": "NOT", "~": "BITNOT"}


def compute(body: Body, node: tree.Expression, hint: Optional[int] = None) -> int:
    """Instructions that compute one value; the result is the operand it can be read from.

    `hint` is a register where the value would be welcome: it is written at most once, last.
    """
    return EXPRESSIONS[type(node)](body, node, hint)


def into(body: Body, node: tree.Expression, register: int) -> None:
    """Compute a value into a register, which may be that of a variable the expression reads."""
    top = body.code.top
    body.move(node.span, register, compute(body, node, register))
    body.code.top = top


def push(body: Body, node: tree.Expression) -> int:
    """Compute a value into the fresh register at the top."""
    top = body.code.top
    operand = compute(body, node)
    if operand != top:
        body.emit(node.span, "MOVE", body.take(), operand)
    return top


def push_run(body: Body, nodes: Sequence[tree.Expression]) -> int:
    """Compute values into fresh registers in a row; the result is the first of them."""
    first = body.code.top
    for node in nodes:
        push(body, node)
    return first


def is_several(body: Body, node: tree.Expression) -> bool:
    """Whether an expression can give any number of values: calls and `...`, but not `pid()`."""
    return isinstance(node, (tree.Call, tree.Vararg)) and body.meaning(node) is None


def push_all(body: Body, nodes: Sequence[tree.Expression]) -> bool:
    """Compute a list of values into fresh registers; True when the last one is a pack of several."""
    if not nodes or not is_several(body, nodes[-1]):
        push_run(body, nodes)
        return False
    push_run(body, nodes[:-1])
    results(body, nodes[-1], PACK)
    return True


def push_exactly(body: Body, nodes: Sequence[tree.Expression], count: int, span: Span) -> int:
    """Compute a list of values into exactly `count` fresh registers in a row, as assignments do.

    What is too much is computed and dropped, what is missing is nil or comes from a last call or `...`.
    """
    first = body.code.top
    for index, node in enumerate(nodes):
        missing = count - index
        if index == len(nodes) - 1 and missing > 1 and is_several(body, node):
            results(body, node, missing)
        elif index >= count:
            top = body.code.top
            compute(body, node)
            body.code.top = top
        else:
            push(body, node)
    while body.code.top < first + count:
        body.emit(span, "MOVE", body.take(), body.constant(None))
    return first


def results(body: Body, node: tree.Expression, count: int) -> int:
    """Compute a call or `...` into `count` fresh registers at the top (PACK: one); the result is the first."""
    if isinstance(node, tree.Call):
        return call(body, node, count)
    first = body.take(1 if count == PACK else count)
    body.emit(node.span, "VARARG", first, count)
    return first


def call(body: Body, node: tree.Call, count: int) -> int:
    """A call with `count` results in fresh registers from the top on; the result is the first."""
    first, arguments, pack = prepare_call(body, node)
    body.emit(node.function.span, "CALLX" if pack else "CALL", first, arguments, count)
    body.code.top = first
    body.take(1 if count == PACK else count)
    return first


def prepare_call(body: Body, node: tree.Call) -> tuple[int, int, bool]:
    """Function and arguments in a row: the first register, the number of arguments, whether the last is a pack."""
    first = push(body, node.function)
    pack = push_all(body, node.arguments)
    return first, len(node.arguments), pack


# -- the kinds of expressions ------------------------------------------------------------------


def _place(body: Body, top: int, hint: Optional[int]) -> int:
    """Where an instruction writes its value: the hint, or the register at `top`, what is above being done with."""
    body.code.top = top
    return body.take() if hint is None else hint


def _literal(body: Body, node: tree.Literal, hint: Optional[int]) -> int:
    return body.constant(node.value)


def _symbol(body: Body, node: tree.Symbol, hint: Optional[int]) -> int:
    register = _place(body, body.code.top, hint)
    body.emit(node.span, "SYMBOL", register, body.name(node.name))
    return register


def _vararg(body: Body, node: tree.Vararg, hint: Optional[int]) -> int:
    register = _place(body, body.code.top, hint)
    body.emit(node.span, "VARARG", register, 1)
    return register


def _name(body: Body, node: tree.Expression, hint: Optional[int]) -> int:
    meaning = body.meaning(node)
    if isinstance(meaning, Local) and not meaning.variable.captured:
        return meaning.variable.register
    register = _place(body, body.code.top, hint)
    if isinstance(meaning, Local):
        body.emit(node.span, "UNBOX", register, meaning.variable.register)
    elif isinstance(meaning, Upvalue):
        body.emit(node.span, "GETUP", register, meaning.slot)
    elif isinstance(meaning, Global):
        body.emit(node.span, "GETGLOBAL", register, body.name(meaning.name))
    elif isinstance(meaning, EventValue):
        body.emit(node.span, "EVENT", register, body.name(meaning.path))
    else:
        assert isinstance(meaning, Builtin)
        body.emit(node.span, "BUILTIN", register, body.name(meaning.name))
    return register


def _member(body: Body, node: tree.Member, hint: Optional[int]) -> int:
    if body.meaning(node) is not None:
        return _name(body, node, hint)
    return _entry(body, node, hint)


def _entry(body: Body, node: tree.Index | tree.Member, hint: Optional[int]) -> int:
    top = body.code.top
    table = compute(body, node.table)
    key = key_of(body, node)
    register = _place(body, top, hint)
    body.emit(entry_span(node), "GETINDEX", register, table, key)
    return register


def key_of(body: Body, node: tree.Index | tree.Member) -> int:
    """The operand of an entry's key; several keys make a multi-key."""
    if isinstance(node, tree.Member):
        return body.constant(node.name.encode("utf-8", "surrogateescape"))
    if len(node.keys) == 1:
        return compute(body, node.keys[0])
    first = push_run(body, node.keys)
    body.code.top = first
    register = body.take()
    span = node.keys[0].span._replace(end_line=node.keys[-1].span.end_line, end_column=node.keys[-1].span.end_column)
    body.emit(span, "KEY", register, first, len(node.keys))
    return register


def entry_span(node: tree.Index | tree.Member) -> Span:
    """Where a fault of an entry lies: all of `t[k]`, but only what comes last in `a.b[1].c`."""
    if isinstance(node.table, tree.Name):
        return node.span
    if isinstance(node, tree.Member):
        return node.name_span
    table = node.table.span
    return Span(table.end_line, table.end_column, node.span.end_line, node.span.end_column)


def _call(body: Body, node: tree.Call, hint: Optional[int]) -> int:
    if body.meaning(node) is not None:
        return _name(body, node, hint)
    return call(body, node, 1)


def _parenthesized(body: Body, node: tree.Parenthesized, hint: Optional[int]) -> int:
    return compute(body, node.inner, hint)


def _function(body: Body, node: tree.FunctionExpression, hint: Optional[int]) -> int:
    return closure(body, node, node.name, hint)


def closure(body: Body, node: tree.FunctionExpression, name: str, hint: Optional[int] = None) -> int:
    """A function that chains of calls name `name`, or by its place where that is empty."""
    register = _place(body, body.code.top, hint)
    if body.code.reachable:
        number = body.unit.function(node, body, name or f"anonymous at {node.span.line}:{node.span.column}")
        body.emit(node.span, "CLOSURE", register, number)
    return register


def named(body: Body, node: tree.Expression, name: str, hint: Optional[int] = None) -> int:
    """As `compute`; a function without a name of its own is called `name`."""
    if isinstance(node, tree.FunctionExpression):
        return closure(body, node, node.name or name, hint)
    return compute(body, node, hint)


def _table(body: Body, node: tree.TableExpression, hint: Optional[int]) -> int:
    table = body.take()
    body.emit(node.span, "NEWTABLE", table)
    position = 0
    for index, entry in enumerate(node.entries):
        if entry.key is None and index == len(node.entries) - 1 and is_several(body, entry.value):
            pack = results(body, entry.value, PACK)
            body.emit(entry.span, "SETLIST", table, pack, PACK)
        elif entry.key is None:
            position += 1
            value = compute(body, entry.value)
            body.emit(entry.span, "SETINDEX", table, body.constant(position), value)
        else:
            key = compute(body, entry.key)
            literal = entry.key.value if isinstance(entry.key, tree.Literal) else None
            name = literal.decode("utf-8", "replace") if isinstance(literal, bytes) else ""
            body.emit(entry.span, "SETINDEX", table, key, named(body, entry.value, name))
        body.code.top = table + 1
    return table


def _unary(body: Body, node: tree.Unary, hint: Optional[int]) -> int:
    top = body.code.top
    operand = compute(body, node.operand)
    register = _place(body, top, hint)
    body.emit(node.span, UNARY[node.operator], register, operand)
    return register


def _binary(body: Body, node: tree.Binary, hint: Optional[int]) -> int:
    if node.operator in ("&&", "||"):
        return _logical(body, node, hint)
    top = body.code.top
    left = compute(body, node.left)
    right = compute(body, node.right)
    register = _place(body, top, hint)
    operate(body, body.operator(node.left, node, node.right), node.operator, register, left, right)
    return register


def operate(body: Body, span: Span, operator: str, register: int, left: int, right: int) -> None:
    """One operator that computes with both its operands."""
    if operator in SWAPPED:
        body.emit(span, SWAPPED[operator], register, right, left)
    else:
        body.emit(span, BINARY[operator], register, left, right)


def _logical(body: Body, node: tree.Binary, hint: Optional[int]) -> int:
    """`a && b`, `a || b`: one of the two values."""
    if isinstance(node.left, tree.Literal):
        decides = truth(node.left.value) is (node.operator == "||")
        return compute(body, node.left if decides else node.right, hint)
    left = body.meaning(node.left)
    if hint is not None and isinstance(left, Local) and not left.variable.captured and left.variable.register == hint:
        end = Label()  # `a = a || b`: the left side is in its place
        _branch(body, node, hint, end)
        into(body, node.right, hint)
        body.code.place(end)
        return hint
    register = body.take()
    _choose(body, node, register)
    return register


def _choose(body: Body, node: tree.Expression, register: int) -> None:
    """Compute a value into a register that nothing reads meanwhile."""
    while isinstance(node, tree.Parenthesized):
        node = node.inner
    if not isinstance(node, tree.Binary) or node.operator not in ("&&", "||") or isinstance(node.left, tree.Literal):
        into(body, node, register)
        return
    end = Label()
    _choose(body, node.left, register)
    _branch(body, node, register, end)
    _choose(body, node.right, register)
    body.code.place(end)


def _branch(body: Body, node: tree.Binary, register: int, end: Label) -> None:
    """Go to the end when the left side, in a register, is the value."""
    body.emit(node.left.span, "JUMPIF" if node.operator == "||" else "JUMPIFNOT", register, end)


EXPRESSIONS: dict[type[tree.Node], Callable[..., int]] = {
    tree.Literal: _literal,
    tree.Symbol: _symbol,
    tree.Vararg: _vararg,
    tree.Name: _name,
    tree.Index: _entry,
    tree.Member: _member,
    tree.Call: _call,
    tree.Parenthesized: _parenthesized,
    tree.FunctionExpression: _function,
    tree.TableExpression: _table,
    tree.Unary: _unary,
    tree.Binary: _binary,
}


# -- conditions --------------------------------------------------------------------------------


def condition(body: Body, node: tree.Expression, when: bool, label: Label) -> None:
    """Go to a label when a condition is `when`, else go on."""
    if isinstance(node, tree.Parenthesized):
        condition(body, node.inner, when, label)
    elif isinstance(node, tree.Literal):
        if truth(node.value) is when:
            body.emit(node.span, "JUMP", label)
    elif isinstance(node, tree.Unary) and node.operator == "!":
        condition(body, node.operand, not when, label)
    elif isinstance(node, tree.Binary) and node.operator in ("&&", "||"):
        if when is (node.operator == "||"):
            condition(body, node.left, when, label)
            condition(body, node.right, when, label)
        else:
            other = Label()
            condition(body, node.left, not when, other)
            condition(body, node.right, when, label)
            body.code.place(other)
    else:
        top = body.code.top
        body.emit(node.span, "JUMPIF" if when else "JUMPIFNOT", compute(body, node), label)
        body.code.top = top
