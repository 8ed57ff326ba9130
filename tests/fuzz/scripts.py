"""Drawn scripts: a main chunk with tables, variables and functions, handlers of events, ticks, and a trace_end that
prints all there is, in order. With them the events that fire and the limits.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import NamedTuple

from corpus import Fired
from hypothesis import strategies as st

from tests.fuzz.draws import Choose, from_hypothesis
from tests.fuzz.events import BOOLEAN, CONTEXT, INTEGER, MAYBE, NUMBERS, SOURCES, TEXT, WORDS, Readable, Source, firing
from tests.fuzz.expressions import CONSTANT, KEYED, LIBRARY, PARAMETER_BYTES, STATS, SUM, Routine, Scope, Shared
from tests.fuzz.statements import Statements

WEIGHED = (*SOURCES, *(source for source in SOURCES if len(source.events) == 1))
"""Each event takes a program of its own."""


class Drawn(NamedTuple):
    """A script, what fires, and under which limits it runs."""

    source: str
    events: tuple[Fired, ...]
    limits: tuple[tuple[str, int], ...] = ()
    interrupting: bool = False
    """Whether its events may fire in the middle of one another."""

    @property
    def identity(self) -> int:
        """A number that other programs do not have."""
        return int.from_bytes(blake2b(repr(self).encode(), digest_size=8).digest(), "little")

    @property
    def handlers(self) -> int:
        return self.source.count("\ntrace ")


class Script(Statements):
    """Writes a whole script."""

    def __init__(self, choose: Choose) -> None:
        super().__init__(choose)
        self.globals = Scope()
        self.lines: list[str] = []
        self.stats_variables: list[str] = []
        self.sums: list[str] = []

    def write(self) -> Drawn:
        self.numbers = [self.pick(NUMBERS) for _ in range(3)]
        self.words = [self.pick(WORDS) for _ in range(3)]
        self.tables()
        self.variables()
        for _ in range(self.pick((0, 0, 1, 0, 1, 2))):
            self.function()
        handlers = [self.pick(WEIGHED) for _ in range(self.pick((1, 1, 2, 1, 1, 2, 1, 3)))]
        for source in handlers:
            self.handler(source)
        if self.chance(15):
            self.tick()
        self.the_end()
        names = tuple(dict.fromkeys(name for source in handlers for name in source.events))
        events = tuple(firing(self, names) for _ in range(self.number(1, 8)))
        return Drawn("\n".join(self.lines) + "\n", events, self.limits(), self.chance(10))

    # -- the main chunk -----------------------------------------------------------------------

    def tables(self) -> None:
        for _ in range(self.below(4)):
            use = self.pick((SUM, STATS, KEYED, KEYED, CONSTANT))
            parts = tuple(self.pick((INTEGER, TEXT, INTEGER, BOOLEAN)) for _ in range(self.pick((1, 1, 2, 3))))
            value = INTEGER if use in (SUM, STATS) else self.pick((INTEGER, TEXT, BOOLEAN))
            thread = ""
            if use == KEYED:
                thread = self.pick(("tid", "cpu"))
                parts = (INTEGER, *parts[1:])
            size = self.pick((16, 64, 300, 4096)) if TEXT in (*parts, value) else 0
            table = Shared(self.new("t"), use, parts, value, thread, size)
            self.globals.tables.append(table)
            word = self.pick(("", "var "))
            self.lines.append(f"{word}{table.name} = {{}}")
            self.fill(table)

    def fill(self, table: Shared) -> None:
        """Entries of the main chunk."""
        if table.use == CONSTANT or self.chance(15):
            for _ in range(self.number(1, 4)):
                key = ", ".join(self.plain(kind) for kind in table.parts)
                operator = "<<<" if table.use == STATS else "="
                self.lines.append(f"{table.name}[{key}] {operator} {self.plain(table.value)}")

    def plain(self, kind: str) -> str:
        """A value that is written out."""
        if kind == INTEGER:
            return self.literal()
        return (
            f'"{self.pick(self.words if self.chance(60) else LIBRARY)}"'
            if kind == TEXT
            else self.pick(("true", "false"))
        )

    def variables(self) -> None:
        for _ in range(self.below(3)):
            name = self.new("n")
            self.sums.append(name)
            self.lines.append(f"{self.pick(('', 'var '))}{name} = {self.literal()}")
        for _ in range(self.below(3)):
            name = self.new("s")
            self.stats_variables.append(name)
            self.lines.append(f"var {name}" if self.chance(70) else f"{name} = nil")
        for _ in range(self.below(4)):
            kind = self.pick((INTEGER, TEXT, BOOLEAN, MAYBE))
            name = self.new("c")
            text = self.plain(kind) if kind != MAYBE else "nil"
            self.lines.append(f"{self.pick(('', 'var '))}{name} = {text}")
            self.globals.values.append(Readable(name, kind, len(text.encode()) if kind == TEXT else 0))

    def function(self) -> None:
        """A function of the main chunk, which reads its parameters and the task."""
        name = self.new("f")
        parameters = tuple(self.pick((INTEGER, INTEGER, TEXT, BOOLEAN, MAYBE)) for _ in range(self.below(4)))
        results = tuple(self.pick((INTEGER, INTEGER, TEXT, BOOLEAN, MAYBE)) for _ in range(self.below(4)))
        names = [self.new("p") for _ in parameters]
        self.scope = self.globals.copy()
        for parameter, kind in zip(names, parameters):
            self.scope.values.append(Readable(parameter, kind, PARAMETER_BYTES if kind == TEXT else 0))
        self.scope.assignable = [v for v in self.scope.values if v.text in names]
        self.results, self.left, self.loops = results, 5, 1
        body = self.block(False, 3) + " " + self.return_values()
        self.results = None
        kind = self.below(4)
        if kind == 3:
            self.lines.append(
                f"make_{name} = function (unused) {{ return function ({', '.join(names)}) {{ {body} }} }}"
            )
            self.lines.append(f"{name} = make_{name}(1)")
        elif kind == 2:
            self.lines.append(f"var {name} = function ({', '.join(names)}) {{ {body} }}")
        else:
            self.lines.append(f"{self.pick(('', 'local '))}function {name}({', '.join(names)}) {{ {body} }}")
        self.globals.routines.append(Routine(name, parameters, results))

    # -- handlers -----------------------------------------------------------------------------

    def handler(self, source: Source) -> None:
        self.scope = self.globals.copy()
        self.scope.values += [*CONTEXT, *source.values]
        self.scope.pointer = source.pointer
        self.left, self.loops = self.number(1, 7), 0
        filter = f" /{self.filter(source)}/" if self.chance(20) else ""
        self.lines.append(f"trace {source.probe}{filter} {{")
        for _ in range(self.number(1, 4)):
            self.lines.append("    " + self.statement(False))
        self.lines.append("}")

    def filter(self, source: Source, depth: int = 1) -> str:
        kind = self.below(6)
        if kind == 0 and depth:
            operator = self.pick(("&&", "||"))
            return f"({self.filter(source, depth - 1)} {operator} {self.filter(source, depth - 1)})"
        if kind == 1 and depth:
            return f"!({self.filter(source, depth - 1)})"
        if kind == 2:
            names = (*source.texts_of_filters, "execname")
            return f'{self.pick(names)} {self.pick(("==", "!=", "~"))} "{self.pick(("cat", "a", "*a*", "c?t", ""))}"'
        field = self.pick((*source.filters, "pid", "tid", "uid", "cpu"))
        operator = self.pick(("==", "!=", "<", "<=", ">", ">=", "&"))
        number = self.pick((0, 1, 2, 5, 100, 2**31 - 1, 127))
        return f"{field} {operator} {number}"

    def tick(self) -> None:
        """A tick that prints, and clears what is only added to."""
        period = self.pick(("3us", "1us", "10us"))
        self.lines.append(f"tick-{period} {{")
        self.lines.append('    print("tick")')
        for table in self.globals.tables:
            if self.chance(50):
                self.lines += ["    " + line for line in self.shown(table)]
                if table.use in (SUM, STATS) and self.chance(50):
                    self.lines.append(f"    delete({table.name})")
        for name in self.sums:
            if self.chance(50):
                self.lines.append(f"    print({name})")
        self.lines.append("}")

    def the_end(self) -> None:
        self.lines.append("trace_end {")
        for table in self.globals.tables:
            self.lines += ["    " + line for line in self.shown(table)]
        for name in self.stats_variables:
            self.lines += [f"    print({self.of_stats(name)})", f"    if (count({name}) > 0) {{ hist({name}) }}"]
        self.lines += [f'    print("{name}", {name})' for name in self.sums]
        self.lines.append("}")

    def shown(self, table: Shared) -> list[str]:
        """Statements that print a table in order."""
        keys = [f"k{n}" for n in range(len(table.parts))]
        loop = f"for ({', '.join(keys)}, v in sort_pairs({table.name}))"
        if table.use != STATS:
            return [f'{loop} {{ print("{table.name}", {", ".join(keys)}, v) }}']
        more = self.pick(("", " hist(v)", " lhist(v, -4, 12, 4)"))
        return [f'{loop} {{ print("{table.name}", {", ".join(keys)}, {self.of_stats("v")}){more} }}']

    def of_stats(self, name: str) -> str:
        return f"count({name}), sum({name}), avg({name}), min({name}), max({name})"

    def limits(self) -> tuple[tuple[str, int], ...]:
        found: list[tuple[str, int]] = []
        if self.chance(15):
            found.append(("table_entries", self.pick((1024, 1, 2, 3, 4, 6))))
        if self.chance(10):
            found.append(("handler_rounds", self.number(1, 30)))
        if self.chance(8):
            found.append(("event_string_bytes", self.pick((64, 16, 256, 1000))))
        if self.chance(3):
            found.append(("call_depth", self.number(1, 4)))
        if self.chance(3):
            found.append(("string_bytes", 64))
        return tuple(found)


@st.composite
def scripts(draw: st.DrawFn) -> Drawn:
    """A script with its events."""
    return Script(from_hypothesis(draw)).write()
