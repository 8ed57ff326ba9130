"""The syntax tree as text, for `ktap dump --stage ast`: a line a node, its parts indented below it."""

from __future__ import annotations

from dataclasses import fields
from typing import Iterator, Union

from compiler import tree
from vm.program import Span

UNNAMED = frozenset(("body", "entries", "inner", "operand", "call", "branches", "left", "right", "table"))
"""Parts that their node already explains."""


def show(script: tree.Script) -> str:
    """The tree of a script; the same script gives the same text."""
    lines = [f"Script {script.source_name}"]
    for statement in script.body.body:
        lines.extend(_lines(statement, "", 1))
    return "\n".join(lines) + "\n"


def _lines(node: tree.Node, label: str, depth: int) -> Iterator[str]:
    words = [type(node).__name__]
    parts: list[tuple[str, tree.Node]] = []
    for field in fields(node):
        value = getattr(node, field.name)
        name = "" if field.name in UNNAMED else f"{field.name}: "
        if field.name in ("span", "name_span"):
            continue
        if isinstance(value, (tree.Node, tuple)):
            parts.extend((name, part) for part in _nodes(value))
        elif isinstance(node, tree.Literal):
            words.append(literal(value))
        elif value is True:
            words.append(field.name)
        elif value:
            words.append(str(value))
    yield f"{'  ' * depth}{label}{' '.join(words)}  {_place(node.span)}"
    for name, part in parts:
        yield from _lines(part, name, depth + 1)


def _nodes(value: Union[tree.Node, tuple[object, ...]]) -> Iterator[tree.Node]:
    """The nodes in a field: one, several, or pairs of them."""
    if isinstance(value, tree.Node):
        yield value
    else:
        for item in value:
            if isinstance(item, (tree.Node, tuple)):
                yield from _nodes(item)


def _place(span: Span) -> str:
    return f"[{span.line}:{span.column}-{span.end_line}:{span.end_column}]"


def literal(value: Union[bool, int, bytes, None]) -> str:
    """A literal as a script could write it."""
    if isinstance(value, bytes):
        text = "".join(chr(c) if 32 <= c < 127 and c not in (34, 92) else f"\\x{c:02x}" for c in value)
        return f'"{text}"'
    return (
        {None: "nil", True: "true", False: "false"}[value] if value is None or isinstance(value, bool) else str(value)
    )
