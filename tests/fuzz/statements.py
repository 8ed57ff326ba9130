"""Drawn statements of handlers and functions."""

from __future__ import annotations

from typing import Optional

from tests.fuzz.draws import Choose
from tests.fuzz.events import BOOLEAN, INTEGER, MAYBE, MAYBE_TEXT, TEXT, Readable
from tests.fuzz.expressions import (
    CONSTANT,
    MOST_JOINED_BYTES,
    PARAMETER_BYTES,
    STATS,
    SUM,
    Expressions,
    Routine,
    Scope,
    Shared,
)

SIMPLE = ("print", "local", "store", "store", "local", "assign", "assign", "add", "printf", "sample", "call")
BRANCHES = ("if", "if", "choose", "block", "closure")
LOOPS = ("count", "while", "repeat", "parts")
MOST_LOOPS = 2
"""Within one another: what the verifier follows through more takes it seconds."""
LOCAL_KINDS = (INTEGER, INTEGER, MAYBE, TEXT, BOOLEAN, MAYBE_TEXT)
LOCAL_BYTES = 300
CONVERSIONS = (
    "%d",
    "%i",
    "%u",
    "%x",
    "%#X",
    "%o",
    "%c",
    "%5d",
    "%-7d|",
    "%05d",
    "%+d",
    "% d",
    "%.3d",
    "%lld",
    "%hd",
    "%hhu",
    "%p",
)
TEXT_CONVERSIONS = ("%s", "%10s", "%-10s|", "%.3s", "%5.1s")


class Statements(Expressions):
    """Writes statements; names of their own are made by `new`."""

    def __init__(self, choose: Choose) -> None:
        super().__init__(choose)
        self.scope = Scope()
        self.count = 0
        self.left = 0
        """Statements that may still be written."""
        self.loops = 0
        self.results: Optional[tuple[str, ...]] = None
        """What the function that is written returns; None in a handler."""
        self.sums: list[str] = []
        self.stats_variables: list[str] = []

    def new(self, letter: str) -> str:
        self.count += 1
        return f"{letter}{self.count}"

    def block(self, loop: bool, most: int = 2) -> str:
        outer = self.scope
        self.scope = outer.copy()
        text = " ".join(self.statement(loop) for _ in range(self.number(1, most)))
        self.scope = outer
        return text

    def statement(self, loop: bool) -> str:
        self.left -= 1
        nested = () if self.left <= 0 else BRANCHES + LOOPS * (self.loops < MOST_LOOPS)
        kinds = (*SIMPLE, *(("break", "continue") if loop else ()), *nested)
        if self.chance(4):
            kinds = ("leave", "leave", "leave", "exit")
        kind = self.pick(kinds)
        self.loops += kind in LOOPS
        text = getattr(self, f"write_{kind}")(loop)
        self.loops -= kind in LOOPS
        assert isinstance(text, str)
        return text

    # -- values -------------------------------------------------------------------------------

    def any_value(self, depth: int = 1) -> str:
        return self.value(self.pick((INTEGER, TEXT, BOOLEAN, MAYBE, INTEGER, MAYBE_TEXT)), depth)

    def write_print(self, loop: bool) -> str:
        values = [self.any_value() for _ in range(self.below(5))]
        if self.chance(10):
            values.append("probename")
        return f"print({', '.join(values)})"

    def write_printf(self, loop: bool) -> str:
        written, values = "", []
        for _ in range(self.number(1, 4)):
            kind = self.below(8)
            if kind < 4:
                written += self.pick(CONVERSIONS) + " "
                values.append(self.integer(1))
            elif kind < 6:
                written += self.pick(TEXT_CONVERSIONS) + " "
                values.append(self.text(1) if kind == 4 else self.any_value())
            elif kind == 6:
                written += "%*d "
                values += [str(self.below(9)), self.integer(1)]
            else:
                written += "100%% "
        return f'printf("{written}\\n"{"".join(", " + value for value in values)})'

    def sized(self, kind: str) -> tuple[str, int]:
        """An expression of a kind and the most bytes of what it gives."""
        if kind == TEXT:
            return self.sized_text(2, LOCAL_BYTES if self.chance(80) else 4096)
        if kind == MAYBE_TEXT:
            return self.maybe_text(2, LOCAL_BYTES)
        return self.value(kind), 0

    def write_local(self, loop: bool) -> str:
        several = [r for r in self.scope.routines if len(r.results) > 1]
        if several and self.chance(40):
            routine = self.pick(several)
            names = [self.new("v") for _ in routine.results]
            text = f"var {', '.join(names)} = {self.call_of(routine, 1)}"
            for name, kind in zip(names, routine.results):
                self.declare(name, kind, MOST_JOINED_BYTES if kind in (TEXT, MAYBE_TEXT) else 0)
            return text
        kinds = [self.pick(LOCAL_KINDS) for _ in range(1 + self.chance(15))]
        values = [self.sized(kind) for kind in kinds]
        names = [self.new("v") for _ in kinds]
        for name, kind, (_, size) in zip(names, kinds, values):
            self.declare(name, kind, size)
        return f"{self.pick(('var', 'local'))} {', '.join(names)} = {', '.join(text for text, _ in values)}"

    def declare(self, name: str, kind: str, size: int) -> None:
        value = Readable(name, kind, size)
        self.scope.values.append(value)
        self.scope.assignable.append(value)

    def write_assign(self, loop: bool) -> str:
        if not self.scope.assignable:
            return self.write_local(loop)
        target = self.scope.assignable[-1 - self.below(len(self.scope.assignable))]
        if target.kind == INTEGER and self.chance(40):
            return f"{target.text} {self.pick(('+=', '-=', '*='))} {self.integer()}"
        if len(self.scope.assignable) > 1 and self.chance(15):
            other = self.pick([v for v in self.scope.assignable if v != target])
            values = [self.value(v.kind, 1, v.size) for v in (target, other)]
            return f"{target.text}, {other.text} = {', '.join(values)}"
        return f"{target.text} = {self.value(target.kind, 2, target.size)}"

    # -- what handlers share ------------------------------------------------------------------

    def write_store(self, loop: bool) -> str:
        found = [table for table in self.scope.tables if table.use != CONSTANT]
        if not found:
            return self.write_add(loop)
        table = self.pick(found)
        entry = f"{table.name}[{self.key(table)}]"
        if table.use == SUM:
            return f"{entry} {self.pick(('+=', '+=', '-='))} {self.integer()}"
        if table.use == STATS:
            return f"{entry} <<< {self.integer()}"
        return self.keep(table, entry)

    def keep(self, table: Shared, entry: str) -> str:
        kind = self.below(8)
        if kind == 5 and len(table.parts) == 1:
            return f"delete({table.name}, {entry[entry.index('[') + 1 : -1]})"
        if kind == 6:
            return f"{entry} = nil"
        if table.value == INTEGER and kind in (3, 4):
            return f"{entry} {self.pick(('+=', '-=', '*='))} {self.integer()}"
        maybe = {INTEGER: MAYBE, TEXT: MAYBE_TEXT}.get(table.value)
        if kind == 7 and maybe:
            return f"{entry} = {self.value(maybe, 2, table.size)}"
        return f"{entry} = {self.value(table.value, 2, table.size)}"

    def write_add(self, loop: bool) -> str:
        if not self.sums:
            return self.write_print(loop)
        name = self.pick(self.sums)
        amount = self.integer()
        return self.pick(
            (f"{name} += {amount}", f"{name} -= {amount}", f"{name} = {name} + {amount}", f"{name} = {amount} + {name}")
        )

    def write_sample(self, loop: bool) -> str:
        if not self.stats_variables:
            return self.write_store(loop)
        return f"{self.pick(self.stats_variables)} <<< {self.integer()}"

    def write_call(self, loop: bool) -> str:
        return self.call_of(self.pick(self.scope.routines), 2) if self.scope.routines else self.write_print(loop)

    # -- flow ---------------------------------------------------------------------------------

    def write_break(self, loop: bool) -> str:
        return f"if ({self.condition(1)}) {{ break }}"

    def write_continue(self, loop: bool) -> str:
        return f"if ({self.condition(1)}) {{ continue }}"

    def write_exit(self, loop: bool) -> str:
        return f"if ({self.condition(1)}) {{ exit({self.pick(('', '3', '0'))}) }}"

    def write_leave(self, loop: bool) -> str:
        return f"if ({self.condition(1)}) {{ {self.return_values()} }}"

    def return_values(self) -> str:
        if self.results is None:
            return "return"
        same = [r for r in self.scope.routines if r.results == self.results]
        if same and self.chance(25):
            return f"return {self.call_of(self.pick(same), 1)}"
        return f"return {', '.join(self.value(kind, 1, MOST_JOINED_BYTES) for kind in self.results)}"

    def write_if(self, loop: bool) -> str:
        text = f"if ({self.condition()}) {{ {self.block(loop)} }}"
        for _ in range(self.below(3)):
            text += f" {self.pick(('elseif', 'else if'))} ({self.condition()}) {{ {self.block(loop)} }}"
        return text + (f" else {{ {self.block(loop)} }}" if self.chance(50) else "")

    def write_choose(self, loop: bool) -> str:
        """A local that several ways give a value."""
        kind = self.pick(LOCAL_KINDS)
        name = self.new("v")
        condition = self.condition()
        (one, size), (other, more) = self.sized(kind), self.sized(kind)
        self.declare(name, kind, max(size, more))
        first = f"if ({condition}) {{ {name} = {one} }} else {{ {name} = {other} }}"
        return f"var {name} {first}"

    def write_block(self, loop: bool) -> str:
        return f"{{ {self.block(loop)} }}"

    def write_count(self, loop: bool) -> str:
        name = self.new("i")
        last = self.integer(0) if self.chance(10) else str(self.number(0, 4))
        step = self.pick(("", "", ", 2", ", -1", ", 3"))
        outer = self.scope
        self.scope = outer.copy()
        self.scope.values.append(Readable(name, INTEGER))
        if self.chance(20):
            self.scope.assignable.append(Readable(name, INTEGER))
        body = self.block(True)
        self.scope = outer
        return f"for ({name} = {self.number(-1, 2)}, {last}{step}) {{ {body} }}"

    def write_while(self, loop: bool) -> str:
        counter = self.new("w")
        more = f" && {self.condition(1)}" if self.chance(30) else ""
        rounds = "" if self.chance(4) else f"{counter} += 1 "
        return f"var {counter} = 0 while ({counter} < {self.number(0, 4)}{more}) {{ {rounds}{self.block(True)} }}"

    def write_repeat(self, loop: bool) -> str:
        counter = self.new("w")
        outer = self.scope
        self.scope = outer.copy()
        body = " ".join(self.statement(True) for _ in range(self.number(1, 3)))
        inner = self.condition(1) if self.chance(40) else "false"
        self.scope = outer
        return (
            f"var {counter} = 0 repeat {{ {counter} += 1 {body} }} until ({counter} > {self.number(0, 3)} || {inner})"
        )

    def write_parts(self, loop: bool) -> str:
        name = self.new("i")
        outer = self.scope
        self.scope = outer.copy()
        self.scope.values.append(Readable(name, INTEGER))
        body = self.block(True)
        self.scope = outer
        return f"for ({name} = 0; {name} < {self.number(0, 4)}; {name} += {self.number(1, 2)}) {{ {body} }}"

    def write_closure(self, loop: bool) -> str:
        """A function of the handler's own, which may assign the handler's variables."""
        name = self.new("g")
        kinds = tuple(self.pick((INTEGER, TEXT, MAYBE)) for _ in range(self.below(3)))
        parameters = [self.new("p") for _ in kinds]
        results = (self.pick((INTEGER, TEXT, BOOLEAN, MAYBE)),) if self.chance(80) else ()
        outer, before = self.scope, self.results
        self.scope, self.results = outer.copy(), results
        for parameter, kind in zip(parameters, kinds):
            self.declare(parameter, kind, PARAMETER_BYTES if kind == TEXT else 0)
        body = " ".join([*(self.statement(False) for _ in range(self.below(3))), self.return_values()])
        self.scope, self.results = outer, before
        self.scope.routines.append(Routine(name, kinds, results))
        return f"local function {name}({', '.join(parameters)}) {{ {body} }}"
