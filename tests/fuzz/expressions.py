"""Drawn expressions of a known kind, so that most handlers can be lowered: integers, strings, booleans, and nil."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Optional

from tests.fuzz.draws import Draws
from tests.fuzz.events import BOOLEAN, INTEGER, MAYBE, MAYBE_TEXT, NUMBERS, SMALL, TEXT, Readable

ARITHMETIC = ("+", "-", "*", "&", "|", "^", "<<", ">>")
ORDER = ("<", "<=", ">", ">=")
TEXTS = (
    *('""', '"a"', "'b'", '"abc"', '"cat"', '"\\xc3\\xa9"', '"/etc/passwd"', '"sixteen-letters!"'),
    *('"12345678"', '"12345678a"', '"12345678b"', '"123456789012345"'),
)
TEXT_SIZES = (0, 1, 1, 3, 3, 2, 11, 16, 8, 9, 9, 15)
RARE_TEXTS = ('"nul\\0in it"', "[[raw \\n]]", '"' + "q" * 70 + '"', '"' + "k" * 300 + '"')
RARE_SIZES = (9, 6, 70, 300)
MOST_JOINED_BYTES = 600
LIBRARY = ("a", "b", "abc", "cat", "é", "/etc/passwd", "12345678a", "12345678b")

SUM, STATS, KEYED, CONSTANT = "sum", "stats", "keyed", "constant"
"""What handlers do with a table: add to it, sample into it, anything under keys of the thread, or read it."""


@dataclass(frozen=True)
class Shared:
    """A table of the main chunk: how it is used, the kinds of the parts of its keys, the kind of its values."""

    name: str
    use: str
    parts: tuple[str, ...]
    value: str
    thread: str = ""
    """The part of the key (`tid` or `cpu`) that makes entries those of the running thread: the first one."""
    size: int = 0
    """The most bytes of its strings."""


@dataclass(frozen=True)
class Routine:
    """A function: the kinds of its parameters and results. `handler`: it is a local of one."""

    name: str
    parameters: tuple[str, ...]
    results: tuple[str, ...]


@dataclass
class Scope:
    """What can be named where something is written."""

    values: list[Readable] = field(default_factory=list)
    """Locals, parameters, constants and the event's values."""
    assignable: list[Readable] = field(default_factory=list)
    tables: list[Shared] = field(default_factory=list)
    routines: list[Routine] = field(default_factory=list)
    pointer: str = ""

    def copy(self) -> Scope:
        return Scope(list(self.values), list(self.assignable), self.tables, list(self.routines), self.pointer)


class Expressions(Draws):
    """Writes expressions from what is in `scope`."""

    scope: Scope
    wild = False
    """Whether errors of type may be written."""

    # -- integers -----------------------------------------------------------------------------

    def literal(self) -> str:
        kind = self.below(5)
        number = self.pick(self.numbers if kind < 3 else SMALL if kind == 3 else NUMBERS)
        if number == -(2**63):
            return "0x8000000000000000"
        return str(number)

    def named(self, kind: str, most: int = 0) -> Optional[Readable]:
        """A value of a kind that has a name, a late one as a rule; strings of at most so many bytes."""
        found = [value for value in self.scope.values if value.kind == kind and value.size <= most]
        return found[-1 - self.below(len(found))] if found else None

    def integer(self, depth: int = 2) -> str:
        known = self.named(INTEGER)
        kind = self.below(13 if depth > 0 else 5)
        if kind in (1, 2, 3, 4) and known is not None:
            return known.text
        if kind in (5, 6, 7):
            return f"({self.integer(depth - 1)} {self.pick(ARITHMETIC)} {self.integer(depth - 1)})"
        if kind == 8:
            return self.division(depth)
        if kind == 9:
            return f"({self.maybe(depth - 1)} || {self.literal()})"
        if kind == 10:
            return f"{self.pick('-~')} {self.integer(depth - 1)}"
        if kind == 11:
            return self.call(INTEGER, depth) or f"len({self.text(depth - 1)})"
        if kind == 12:
            return self.entry(INTEGER, depth) or self.literal()
        return self.literal()

    def division(self, depth: int) -> str:
        operator = self.pick("/%")
        divisor = self.integer(depth - 1)
        if not self.chance(8):
            divisor = f"({divisor} | {self.pick((1, 8, 2**62))})" if self.chance(50) else self.pick(DIVISORS)
        return f"({self.integer(depth - 1)} {operator} {divisor})"

    def maybe(self, depth: int = 2) -> str:
        """An integer or nil."""
        known = self.named(MAYBE)
        kind = self.below(8 if depth > 0 else 3)
        if kind == 0 and known is not None:
            return known.text
        if kind == 3:
            return f"({self.maybe(depth - 1)} {self.pick(ARITHMETIC)} {self.integer(depth - 1)})"
        if kind in (4, 5):
            return self.entry(MAYBE, depth) or "nil"
        if kind == 6:
            return self.call(MAYBE, depth) or "nil"
        if kind == 7 and self.scope.pointer:
            return f"user_u{self.pick((8, 16, 32, 64))}({self.scope.pointer})"
        return known.text if known is not None else self.integer(depth - 1) if depth > 0 else "nil"

    # -- strings ------------------------------------------------------------------------------

    def text(self, depth: int = 2, most: int = 4096) -> str:
        return self.sized_text(depth, most)[0]

    def sized_text(self, depth: int = 2, most: int = 4096) -> tuple[str, int]:
        """A string and the most bytes it can have."""
        known = self.named(TEXT, most)
        kind = self.below(10 if depth > 0 else 5)
        if kind in (1, 2, 3, 4) and known is not None:
            return known.text, known.size
        if kind in (5, 6):
            return self.joined(depth, most)
        if kind == 7:
            found = self.entry(TEXT, depth, most)
            if found:
                return found, most
        if kind == 8:
            maybe, size = self.maybe_text(depth - 1, most)
            if maybe != "nil":
                return f"({maybe} || {self.pick(TEXTS[:2])})", max(size, 1)
        if kind == 9:
            found = self.call(TEXT, depth) if most >= MOST_JOINED_BYTES else ""
            if found:
                return found, MOST_JOINED_BYTES
        return self.constant_text(most)

    def constant_text(self, most: int) -> tuple[str, int]:
        if self.chance(65):
            word = self.pick(self.words)
            size = len(word.encode())
            return (f'"{word}"', size) if size <= most else ('""', 0)
        if self.chance(3):
            index = self.below(len(RARE_TEXTS))
            if RARE_SIZES[index] <= most:
                return RARE_TEXTS[index], RARE_SIZES[index]
        index = self.below(len(TEXTS))
        return (TEXTS[index], TEXT_SIZES[index]) if TEXT_SIZES[index] <= most else ('""', 0)

    def joined(self, depth: int, most: int) -> tuple[str, int]:
        most = min(most, MOST_JOINED_BYTES)
        left, size = self.sized_text(depth - 1, most // 2)
        if self.chance(30) and most - size >= 20:
            return f"({left} .. {self.integer(depth - 1)})", size + 20
        right, more = self.sized_text(depth - 1, most - size)
        return f"({left} .. {right})", size + more

    def maybe_text(self, depth: int, most: int) -> tuple[str, int]:
        """A string or nil, and the most bytes it can have."""
        known = self.named(MAYBE_TEXT, most)
        kind = self.below(4)
        if kind == 1 and self.scope.pointer:
            size = self.pick((16, 1, 32, 100))
            if size <= most:
                return f"user_string({self.scope.pointer}, {size})", size
            return (f"user_string({self.scope.pointer})", 4096) if most >= 4096 else ("nil", 0)
        if kind == 2:
            found = self.entry(MAYBE_TEXT, depth, most)
            if found:
                return found, most
        return (known.text, known.size) if known is not None else ("nil", 0)

    # -- booleans -----------------------------------------------------------------------------

    def boolean(self, depth: int = 2) -> str:
        known = self.named(BOOLEAN)
        kind = self.below(11)
        if kind == 0 and known is not None:
            return known.text
        if kind in (1, 2):
            return f"({self.integer(depth - 1)} {self.pick(ORDER)} {self.integer(depth - 1)})"
        if kind == 3:
            return f"({self.integer(depth - 1)} {self.pick(EQUALITY)} {self.maybe(depth - 1)})"
        if kind in (4, 9, 10):
            text = self.named(TEXT, 4096)
            left = self.text(depth - 1) if text is None or self.chance(20) else text.text
            return f"({left} {self.pick(ORDER + EQUALITY)} {self.text(depth - 1)})"
        if kind == 5:
            return f"({self.maybe_text(depth - 1, 4096)[0]} {self.pick(EQUALITY)} {self.text(depth - 1)})"
        if kind == 6:
            return f"({self.maybe(depth - 1)} {self.pick(EQUALITY)} nil)"
        if kind == 7 and depth > 0:
            return f"!{self.brackets(self.condition(depth - 1))}"
        if kind == 8:
            return f'(probename {self.pick(EQUALITY)} "{self.pick(("event", "exit", "sys_enter_openat"))}")'
        return self.pick(("true", "false"))

    def condition(self, depth: int = 2) -> str:
        """What is tested: of any kind."""
        kind = self.below(10)
        if depth > 0 and kind in (1, 2):
            operator = self.pick(("&&", "||", "and", "or"))
            return f"({self.condition(depth - 1)} {operator} {self.condition(depth - 1)})"
        if kind == 3:
            return self.maybe(depth)
        if kind == 4:
            return self.maybe_text(depth, 4096)[0]
        if kind == 5:
            return self.integer(depth)
        return self.boolean(depth)

    def brackets(self, text: str) -> str:
        return text if text.startswith("(") else f"({text})"

    # -- tables and calls ---------------------------------------------------------------------

    def value(self, kind: str, depth: int = 2, most: int = 4096) -> str:
        """An expression of a kind."""
        if self.wild and self.chance(2):
            kind = self.pick((INTEGER, TEXT, BOOLEAN, MAYBE))
        if kind == INTEGER:
            return self.integer(depth)
        if kind == MAYBE:
            return self.maybe(depth)
        if kind == BOOLEAN:
            return self.boolean(depth)
        return self.text(depth, most) if kind == TEXT else self.maybe_text(depth, most)[0]

    def entry(self, kind: str, depth: int, most: int = 4096) -> str:
        """A lookup of which a value of the kind comes, empty where there is no such table."""
        wanted = {MAYBE: INTEGER, MAYBE_TEXT: TEXT}.get(kind, kind)
        found = [t for t in self.scope.tables if t.use in (KEYED, CONSTANT) and t.value == wanted and t.size <= most]
        if not found:
            return ""
        table = self.pick(found)
        lookup = f"{table.name}[{self.key(table, depth - 1)}]"
        if kind == INTEGER:
            return f"({lookup} || {self.literal()})"
        return f'({lookup} || "")' if kind == TEXT else lookup

    def key(self, table: Shared, depth: int = 1) -> str:
        """The key of a table."""
        parts = [table.thread] if table.thread else []
        for kind in table.parts[len(parts) :]:
            if kind == INTEGER:
                parts.append(self.maybe(0) if self.chance(4) else self.integer(depth))
            elif kind == TEXT and not table.thread and len(table.parts) == 1 and self.chance(8):
                parts.append("probename")
            else:
                parts.append(self.value(kind, min(depth, 1), table.size))
        return ", ".join(parts)

    def call(self, result: str, depth: int) -> str:
        """A call whose first result is of a kind; empty where there is no such function."""
        found = [r for r in self.scope.routines if r.results and r.results[0] == result]
        return self.call_of(self.pick(found), depth - 1) if found else ""

    def call_of(self, routine: Routine, depth: int) -> str:
        arguments = [self.value(kind, min(depth, 1), PARAMETER_BYTES) for kind in routine.parameters]
        if arguments and routine.parameters[-1] == MAYBE and self.chance(20):
            arguments.pop()
        return f"{routine.name}({', '.join(arguments)})"


DIVISORS = ("2", "1", "3", "10", "-1", "-7", "256", "0x7fffffffffffffff", "0x8000000000000000", "1000000007")
EQUALITY = ("==", "!=")
PARAMETER_BYTES = 64
