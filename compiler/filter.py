"""The event filter of a probe: from the text between the slashes to a predicate, and back for the kernel.

The language is the kernel's (Documentation/trace/events.rst, section 5), with words that need no quotes, `!`
before anything, and `==` and `!=` with a `*` in the word meant as globs. Numbers are read as the kernel
reads them (kstrtoull with base 0): `0x` is hexadecimal, a leading 0 octal. It is parsed by hand: a filter is
read again whenever a compiled script attaches its probes, where loading the grammar's parser would cost more
than all else.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from dataclasses import dataclass
from dataclasses import field as attribute
from typing import NoReturn, Optional, Tuple, Union

from vm.program import Span

TOKEN = re.compile(
    r"""(?P<blank>\s+)
    |(?P<quoted>"[^"]*"|'[^']*')
    |(?P<sign>&&|\|\||[=!<>]=|=~|!~|[<>&~!()=|])
    |(?P<word>(?:\[[^\]\s]*\]|[^\s()&|!"'=<>~])+)
    |(?P<other>[\s\S])""",
    re.VERBOSE,
)
FIELD = re.compile(r"[A-Za-z_][\w.]*", re.ASCII)
NUMBER = re.compile(r"-?(?:0[xX][0-9a-fA-F]+|\d+)", re.ASCII)
NUMERIC = ("<", "<=", ">", ">=", "&")
OPERATORS = ("==", "!=", "~", *NUMERIC)
DEEPEST = 50
"""Brackets and `!` within one another."""

HINTS = {
    "=": "did you mean '=='?",
    "and": "'and' is written && in a filter",
    "or": "'or' is written || in a filter",
    "not": "'not' is written ! in a filter",
    "|": "did you mean '||'?",
    "=~": "did you mean '~'?",
    "!~": "'not like' is written !(name ~ word)",
}


@dataclass(frozen=True)
class Compare:
    """`field op value`: `op` is one of `OPERATORS`, the value of `~` a glob (`* ? [a-z]`).

    An integer is as written, from -2**63 up to 2**64 - 1. A string is compared only by `==`, `!=`, `~`.
    """

    field: str
    op: str
    value: Union[int, bytes]
    span: Span = attribute(compare=False)


@dataclass(frozen=True)
class Not:
    """`!inner`."""

    inner: Predicate


@dataclass(frozen=True)
class And:
    """All of two or more."""

    parts: Tuple[Predicate, ...]


@dataclass(frozen=True)
class Or:
    """Any of two or more."""

    parts: Tuple[Predicate, ...]


Predicate = Union[Compare, Not, And, Or]


class FilterError(Exception):
    """A filter that cannot be read; `span` is the place in the script."""

    def __init__(self, message: str, span: Span, hint: Optional[str] = None) -> None:
        super().__init__(message)
        self.message = message
        self.span = span
        self.hint = hint


def parse_filter(text: str, span: Span) -> Predicate:
    """Read what stands between the slashes; `span` is its place in the script. Raises FilterError."""
    reader = _Reader(text, span)
    predicate = reader.either(0)
    if reader.text:
        reader.fail(HINTS.get(reader.text))
    return predicate


def to_kernel(predicate: Predicate) -> str:
    """The predicate in the kernel's own syntax, as the `filter` files of tracefs and
    PERF_EVENT_IOC_SET_FILTER take it."""
    if isinstance(predicate, Not):
        return f"!({to_kernel(predicate.inner)})"
    if isinstance(predicate, Compare):
        return f"{predicate.field} {predicate.op} {_value(predicate.value)}"
    sign = " && " if isinstance(predicate, And) else " || "
    return sign.join(
        f"({to_kernel(part)})" if isinstance(part, (And, Or)) else to_kernel(part) for part in predicate.parts
    )


def _value(value: Union[int, bytes]) -> str:
    if isinstance(value, int):
        return str(value)
    text = value.decode("utf-8", "surrogateescape")
    quote = "'" if '"' in text else '"'  # the kernel knows no escapes; no text has both: it was read from quotes
    return f"{quote}{text}{quote}"


class _Reader:
    """Recursive descent, with one token in hand: `text` (empty at the end) of `kind` at `start`."""

    def __init__(self, source: str, span: Span) -> None:
        self.source = source
        self.span = span
        self.newlines = [match.start() for match in re.finditer("\n", source)]
        self.start = self.end = 0
        self.text = ""
        self.kind = ""
        self.step()

    def step(self) -> str:
        """On to the next token; gives the text of the last."""
        last = self.text
        match = TOKEN.match(self.source, self.end)
        if match is not None and match.lastgroup == "blank":
            match = TOKEN.match(self.source, match.end())
        self.start, self.end = match.span() if match is not None else (len(self.source), len(self.source))
        self.text = match[0] if match is not None else ""
        self.kind = match.lastgroup or "" if match is not None else "end"
        return last

    def place(self, start: int, end: int) -> Span:
        """The place in the script of characters `start` … `end` of the filter."""

        def at(offset: int) -> Tuple[int, int]:
            before = bisect_left(self.newlines, offset)
            column = offset - self.newlines[before - 1] if before else self.span.column + offset
            return self.span.line + before, column

        return Span(*at(start), *at(end))

    def fail(self, hint: Optional[str] = None, message: str = "") -> NoReturn:
        """Raise the error that the token in hand is."""
        where = self.place(self.start, self.end)
        if not message:
            message = (
                f"unexpected symbol near '{self.text}' in the filter" if self.text else "the filter ends too early"
            )
        raise FilterError(message, where, hint)

    def either(self, depth: int) -> Predicate:
        """`a || b`."""
        parts = [self.both(depth)]
        while self.text == "||":
            self.step()
            parts.append(self.both(depth))
        return Or(tuple(parts)) if len(parts) > 1 else parts[0]

    def both(self, depth: int) -> Predicate:
        """`a && b`."""
        parts = [self.test(depth)]
        while self.text == "&&":
            self.step()
            parts.append(self.test(depth))
        return And(tuple(parts)) if len(parts) > 1 else parts[0]

    def test(self, depth: int) -> Predicate:
        """`!a`, `(a)`, or a comparison."""
        if depth > DEEPEST:
            self.fail(message=f"a filter nested more than {DEEPEST} deep")
        if self.text == "!":
            self.step()
            return Not(self.test(depth + 1))
        if self.text == "(":
            self.step()
            inner = self.either(depth + 1)
            if self.text != ")":
                self.fail(HINTS.get(self.text, "')' is missing"))
            self.step()
            return inner
        return self.comparison()

    def comparison(self) -> Predicate:
        """`field op value`."""
        start = self.start
        if self.kind != "word" or not FIELD.fullmatch(self.text):
            self.fail("a comparison begins with the name of a field")
        name = self.step()
        if self.text not in OPERATORS:
            self.fail(HINTS.get(name) or HINTS.get(self.text) or f"one of {' '.join(OPERATORS)} must follow '{name}'")
        operator = self.step()
        value = self.value(operator)
        last = self.end
        self.step()
        span = self.place(start, last)
        if isinstance(value, bytes) and b"*" in value and operator in ("==", "!="):
            glob = Compare(name, "~", value, span)
            return glob if operator == "==" else Not(glob)
        return Compare(name, operator, value, span)

    def value(self, operator: str) -> Union[int, bytes]:
        """What the token in hand is as a value; the token stays in hand."""
        if self.kind not in ("word", "quoted"):
            self.fail(HINTS.get(operator + self.text))
        if self.kind == "word" and operator != "~" and NUMBER.fullmatch(self.text):
            return self.number()
        if operator in NUMERIC:
            self.fail(message=f"'{operator}' compares with a number, not with '{self.text.strip(chr(34))}'")
        text = self.text[1:-1] if self.kind == "quoted" else self.text
        return text.encode("utf-8", "surrogateescape")

    def number(self) -> int:
        """The integer in hand."""
        digits = self.text.lstrip("-")
        octal = len(digits) > 1 and digits.isdecimal() and digits[0] == "0"
        if octal and not re.fullmatch("[0-7]+", digits):
            self.fail(message=f"'{self.text}' is no octal number")
        value = int(self.text, 8 if octal else 0) if len(digits) <= 66 else 2**64
        if not -(2**63) <= value < 2**64:
            self.fail(message="the number is beyond 64 bits")
        return value
