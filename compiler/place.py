"""Where things stand in a source: from tokens, nodes and offsets to spans."""

from __future__ import annotations

from typing import Union

from lark import Token

from compiler import tree
from vm.program import Span

Placed = Union[Token, tree.Node]


def place(item: Placed) -> Span:
    """Where a token or a node stands."""
    if isinstance(item, Token):
        return Span(item.line or 1, item.column or 1, item.end_line or 1, item.end_column or 1)
    return item.span


def cover(first: Placed, last: Placed) -> Span:
    """From the start of one to the end of the other."""
    start, end = place(first), place(last)
    return Span(start.line, start.column, end.end_line, end.end_column)


def within(token: Token, start: int, end: int) -> Span:
    """The place of characters `start` … `end` of a token."""

    def at(offset: int) -> tuple[int, int]:
        before = token[:offset]
        line = place(token).line + before.count("\n")
        column = offset - before.rfind("\n") if "\n" in before else place(token).column + offset
        return line, column

    return Span(*at(start), *at(end))


def span_of(source: str, start: int, end: int) -> Span:
    """The place of characters `start` … `end` of a source."""

    def at(offset: int) -> tuple[int, int]:
        return source.count("\n", 0, offset) + 1, offset - source.rfind("\n", 0, offset)

    return Span(*at(start), *at(end))
