"""Compiled expressions of a print format, and C's rules for the types of integers (ISO C 6.3.1)."""

from __future__ import annotations

import sys
from typing import Callable, Optional, Union

from ktap import c_expression as c
from ktap.c_expression import Integer
from vm.named_tuple import NamedTuple


class Number(NamedTuple):
    """A compiled integer: its Python source, its type, its value where it is constant."""

    source: str
    type: Integer
    constant: Optional[int] = None
    target: str = ""
    """The type it points to, empty where it is no pointer or arithmetic on it is that of integers."""


class Data(NamedTuple):
    """Compiled bytes: text, or what an array or a pointer into the record holds."""

    source: str
    element: Integer


Compiled = Union[Number, Data]


def element_reader(element: Integer) -> Callable[[bytes, int], int]:
    """Reads one element of an array; 0 past its end, where the kernel would read what comes next."""
    size, signed = element

    def read(data: bytes, index: int) -> int:
        if index < 0:
            return 0
        return int.from_bytes(data[index * size : index * size + size], sys.byteorder, signed=signed)

    return read


def _divide(a: int, b: int) -> int:
    if b == 0:
        return 0
    quotient = abs(a) // abs(b)
    return quotient if (a < 0) == (b < 0) else -quotient


def _remainder(a: int, b: int) -> int:
    return a - b * _divide(a, b)


ARITHMETIC: dict[str, Callable[[int, int], int]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": _divide,
    "%": _remainder,
    "&": lambda a, b: a & b,
    "|": lambda a, b: a | b,
    "^": lambda a, b: a ^ b,
}
COMPARISONS: dict[str, Callable[[int, int], bool]] = {
    "==": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
    "<": lambda a, b: a < b,
    ">": lambda a, b: a > b,
    "<=": lambda a, b: a <= b,
    ">=": lambda a, b: a >= b,
}


def wrapped(value: int, kind: Integer) -> int:
    """An integer as a type has it."""
    bits = kind.size * 8
    value &= (1 << bits) - 1
    return value - (1 << bits) if kind.signed and value >> (bits - 1) else value


def wrap(source: str, kind: Integer) -> str:
    """Source that brings the integer of `source` into a type."""
    mask, half = (1 << kind.size * 8) - 1, 1 << (kind.size * 8 - 1)
    return f"((({source} & {mask}) ^ {half}) - {half})" if kind.signed else f"({source} & {mask})"


def literal(value: int, kind: Integer) -> Number:
    """A constant, wrapped into its type."""
    value = wrapped(value, kind)
    return Number(str(value) if value >= 0 else f"({value})", kind, value)


def promote(value: Number) -> Number:
    """The integer promotion: what is narrower than int becomes int."""
    if value.type.size >= 4:
        return value
    return Number(value.source, c.INT, value.constant)


def common(a: Integer, b: Integer) -> Integer:
    """The usual arithmetic conversions of two promoted types."""
    if a.size != b.size:
        return a if a.size > b.size else b
    return Integer(a.size, a.signed and b.signed)


def convert(value: Number, kind: Integer) -> Number:
    """A value converted to a type, wrapped only where it might not fit."""
    if value.constant is not None:
        return literal(value.constant, kind)
    old = value.type
    fits = old == kind or (old.size < kind.size and (kind.signed or not old.signed))
    return Number(value.source if fits else wrap(value.source, kind), kind)
