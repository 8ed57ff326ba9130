"""Programs written as listings, for tests of what takes bytecode.

A line is an instruction, `label:` may stand before it, `;` begins a comment. An operand is a number as it
stands in the instruction, `@label` for a jump, `ALL` for PACK, or a constant: `=1`, `='text'`, `=nil`,
`=true`, `=false`.
"""

from __future__ import annotations

import re
from ast import literal_eval
from typing import NamedTuple, Optional

from vm.opcodes import BY_NAME, PACK
from vm.program import Constant, Function, Instruction, Program, Span, Upvalue

LINE = re.compile(r"\s*(?:(\w+):)?\s*([A-Z]+)?((?:\s+(?:='[^']*'|[^\s';]+))*)\s*(?:;.*)?$")
OPERAND = re.compile(r"='[^']*'|\S+")
WORDS: dict[str, Constant] = {"nil": None, "true": True, "false": False}


class Listing(NamedTuple):
    """A function before its constants have places."""

    text: str
    parameters: int = 0
    registers: int = 8
    variadic: bool = True
    upvalues: tuple[Upvalue, ...] = ()
    name: str = "f"


def program(*functions: Listing | str, constants: tuple[Constant, ...] = (), source: Optional[str] = None) -> Program:
    """A program of functions; the first is the main chunk. `constants` come first in the pool."""
    pool = list(constants)
    listings = [Listing(function) if isinstance(function, str) else function for function in functions]
    return Program("test.kp", *_assembled(listings, pool), source)


def _assembled(listings: list[Listing], pool: list[Constant]) -> tuple[tuple[Constant, ...], tuple[Function, ...]]:
    functions = tuple(_function(listing, pool) for listing in listings)
    return tuple(pool), functions


def _function(listing: Listing, pool: list[Constant]) -> Function:
    labels: dict[str, int] = {}
    rows: list[tuple[str, list[str]]] = []
    for line in listing.text.splitlines():
        match = LINE.match(line)
        assert match, line
        label, op, operands = match.groups()
        if label:
            labels[label] = len(rows)
        if op:
            rows.append((op, OPERAND.findall(operands)))
    code = tuple(_instruction(op, operands, labels, pool) for op, operands in rows)
    spans = tuple(Span(1 + index // 2, 1, 1 + index // 2, 9) for index in range(len(code)))
    return Function(
        listing.name, listing.parameters, listing.variadic, listing.registers, listing.upvalues, code, spans
    )


def _instruction(op: str, operands: list[str], labels: dict[str, int], pool: list[Constant]) -> Instruction:
    kinds = BY_NAME[op].operands if op in BY_NAME else ""
    return Instruction(op, *(_operand(kinds[n : n + 1], text, labels, pool) for n, text in enumerate(operands)))


def _operand(kind: str, text: str, labels: dict[str, int], pool: list[Constant]) -> int:
    if text.startswith("@"):
        return labels[text[1:]]
    if text == "ALL":
        return PACK
    if not text.startswith("="):
        return int(text)
    value = _constant(text[1:])
    places = [n for n, known in enumerate(pool) if type(known) is type(value) and known == value]
    if not places:
        pool.append(value)
    place = places[0] if places else len(pool) - 1
    return ~place if kind == "v" else place


def _constant(text: str) -> Constant:
    if text in WORDS:
        return WORDS[text]
    value = literal_eval(text)
    return value.encode() if isinstance(value, str) else int(value)
