"""A small evaluator of expressions, written from the language page alone: what the compiler is compared with."""

from __future__ import annotations

from typing import Mapping, Union

from compiler import tree


class Fault:
    """What an expression gives that is an error when it runs."""

    def __repr__(self) -> str:
        return "FAULT"


FAULT = Fault()
Value = Union[None, bool, int, bytes, Fault]


def evaluate(node: tree.Expression, variables: Mapping[str, Value] = {}) -> Value:
    """The value of an expression of literals, names, operators and brackets."""
    if isinstance(node, tree.Literal):
        return node.value
    if isinstance(node, tree.Name):
        return variables[node.name]
    if isinstance(node, tree.Parenthesized):
        return evaluate(node.inner, variables)
    if isinstance(node, tree.Unary):
        return unary(node.operator, evaluate(node.operand, variables))
    assert isinstance(node, tree.Binary)
    left = evaluate(node.left, variables)
    if left is FAULT:
        return FAULT
    if node.operator == "&&":
        return evaluate(node.right, variables) if left is not None and left is not False else left
    if node.operator == "||":
        return left if left is not None and left is not False else evaluate(node.right, variables)
    right = evaluate(node.right, variables)
    return FAULT if right is FAULT else binary(node.operator, left, right)


def _signed(value: int) -> int:
    low = value % 2**64
    return low - 2**64 if low >= 2**63 else low


def unary(operator: str, value: Value) -> Value:
    """An operator before a value."""
    if value is FAULT:
        return FAULT
    if operator == "!":
        return value is None or value is False
    if value is None:
        return None
    if type(value) is not int:
        return FAULT
    return _signed(-value if operator == "-" else -value - 1)


def binary(operator: str, left: Value, right: Value) -> Value:
    """An operator that computes with both its sides."""
    if operator in ("==", "!="):
        return (type(left) is type(right) and left == right) is (operator == "==")
    if operator in ("<", "<=", ">", ">="):
        if (type(left) is int and type(right) is int) or (isinstance(left, bytes) and isinstance(right, bytes)):
            pair = (left > right) - (left < right)
        else:
            return FAULT
        return {"<": pair < 0, "<=": pair <= 0, ">": pair > 0, ">=": pair >= 0}[operator]
    if operator == "..":
        texts = [str(v).encode() if type(v) is int else v for v in (left, right)]
        return b"".join(t for t in texts if isinstance(t, bytes)) if all(isinstance(t, bytes) for t in texts) else FAULT
    if any(v is not None and type(v) is not int for v in (left, right)):
        return FAULT
    if left is None or right is None:
        return None
    assert isinstance(left, int)
    assert isinstance(right, int)
    return _arithmetic(operator, left, right)


def _arithmetic(operator: str, left: int, right: int) -> Value:
    if operator in ("/", "%"):
        if right == 0:
            return FAULT
        size = abs(left) // abs(right)
        quotient = size if (left >= 0) == (right >= 0) else -size
        return _signed(quotient if operator == "/" else left - quotient * right)
    bits = left % 2**64
    return _signed(
        {
            "+": left + right,
            "-": left - right,
            "*": left * right,
            "&": left & right,
            "|": left | right,
            "^": left ^ right,
            "<<": bits * 2 ** (right % 64),
            ">>": bits // 2 ** (right % 64),
        }[operator]
    )
