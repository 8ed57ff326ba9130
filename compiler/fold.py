"""Constant folding: a tree to a smaller tree with the same meaning.

Only operators over literals are folded, so no name and nothing that could be an error ever leaves the
tree. What would be a fault (`1 / 0`, `"a" + 1`) stays and faults when it runs.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Callable, TypeVar, Union

from compiler import tree

Value = Union[None, bool, int, bytes]
Some = TypeVar("Some", bound=tree.Node)

STRING_BYTES = 1024
"""A longer string is not built by the compiler: the limit on strings is the machine's."""


def fold(script: tree.Script) -> tree.Script:
    """The script with every operator over literals computed; parts without one are the same objects."""
    return _with_parts(script)


def _fold(part: object) -> object:
    if type(part) is tuple:
        items = tuple(_fold(item) for item in part)
        return items if any(new is not old for new, old in zip(items, part)) else part
    if not isinstance(part, tree.Node):
        return part
    node = _with_parts(part)
    if isinstance(node, tree.Parenthesized) and isinstance(node.inner, tree.Literal):
        return tree.Literal(node.span, node.inner.value)
    if isinstance(node, tree.Unary) and isinstance(node.operand, tree.Literal):
        return _unary(node, node.operand.value)
    if isinstance(node, tree.Binary) and isinstance(node.left, tree.Literal) and isinstance(node.right, tree.Literal):
        return _binary(node, node.left.value, node.right.value)
    return node


def _with_parts(node: Some) -> Some:
    """The node with its parts folded: the same object when none of them changed."""
    changed: dict[str, Any] = {name: new for name, old in vars(node).items() if (new := _fold(old)) is not old}
    return replace(node, **changed) if changed else node


# -- the operators, as the machine computes them ----------------------------------------------


def wrapped(value: int) -> int:
    """An integer of the language: signed, 64 bits."""
    return ((value + (1 << 63)) & ((1 << 64) - 1)) - (1 << 63)


def _divide(left: int, right: int) -> int:
    quotient = abs(left) // abs(right)
    return quotient if (left < 0) == (right < 0) else -quotient


def _modulo(left: int, right: int) -> int:
    remainder = abs(left) % abs(right)
    return -remainder if left < 0 else remainder


INTEGERS: dict[str, Callable[[int, int], int]] = {
    "+": lambda left, right: left + right,
    "-": lambda left, right: left - right,
    "*": lambda left, right: left * right,
    "/": _divide,
    "%": _modulo,
    "&": lambda left, right: left & right,
    "|": lambda left, right: left | right,
    "^": lambda left, right: left ^ right,
    "<<": lambda left, right: left << (right & 63),
    ">>": lambda left, right: (left & ((1 << 64) - 1)) >> (right & 63),
}
UNARY_INTEGERS: dict[str, Callable[[int], int]] = {"-": lambda value: -value, "~": lambda value: ~value}
EQUALITIES = {"==": True, "!=": False}


def truth(value: Value) -> bool:
    """Only nil and false are false."""
    return value is not None and value is not False


def _unary(node: tree.Unary, value: Value) -> tree.Expression:
    if node.operator == "!":
        return tree.Literal(node.span, not truth(value))
    if type(value) is int:
        return tree.Literal(node.span, wrapped(UNARY_INTEGERS[node.operator](value)))
    return node


def _binary(node: tree.Binary, left: Value, right: Value) -> tree.Expression:
    operator = node.operator
    if operator in ("&&", "||"):
        return tree.Literal(node.span, right if truth(left) is (operator == "&&") else left)
    if operator in EQUALITIES:
        equal = type(left) is type(right) and left == right
        return tree.Literal(node.span, equal is EQUALITIES[operator])
    if operator == "..":
        return _concatenation(node, left, right)
    if type(left) is int and type(right) is int:
        if operator in INTEGERS and not (operator in "/%" and right == 0):
            return tree.Literal(node.span, wrapped(INTEGERS[operator](left, right)))
        return _comparison(node, left < right, left == right)
    if isinstance(left, bytes) and isinstance(right, bytes):
        return _comparison(node, left < right, left == right)
    return node


def _comparison(node: tree.Binary, less: bool, equal: bool) -> tree.Expression:
    results = {"<": less, "<=": less or equal, ">": not (less or equal), ">=": not less}
    return tree.Literal(node.span, results[node.operator]) if node.operator in results else node


def _concatenation(node: tree.Binary, left: Value, right: Value) -> tree.Expression:
    parts = []
    for value in (left, right):
        if type(value) is int:
            parts.append(b"%d" % value)
        elif isinstance(value, bytes):
            parts.append(value)
        else:
            return node
    joined = b"".join(parts)
    return tree.Literal(node.span, joined) if len(joined) <= STRING_BYTES else node
