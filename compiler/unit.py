"""What the generator's parts share: the program in the making and the function being generated."""

from __future__ import annotations

from typing import Callable, Optional

from compiler import tree
from compiler.emit import Code, Label, Operand, Pool
from compiler.meaning import Meaning, Scopes, Variable
from vm.diagnostic import Diagnostic
from vm.program import MAX_FUNCTIONS, MAX_INSTRUCTIONS, MAX_REGISTERS, Function, Span, Upvalue


class Unit:
    """A program in the making. Functions are numbered in the order in which they are met."""

    def __init__(self, script: tree.Script, scopes: Scopes, body: Callable[[Body, tree.Block], None]) -> None:
        self.source_name = script.source_name
        self.lines = script.source.split("\n")
        self.scopes = scopes
        self.body = body
        """Generates the statements of a function."""
        self.pool = Pool()
        self.functions: list[Optional[Function]] = []
        self.diagnostics: list[Diagnostic] = []

    def tell(self, span: Span, message: str, hint: Optional[str] = None) -> None:
        """Add an error."""
        self.diagnostics.append(Diagnostic(self.source_name, span, message, hint))

    def function(self, node: tree.FunctionExpression, outer: Body, name: str) -> int:
        """Generate a function that stands in `outer`; the result is its number."""
        number = len(self.functions)
        self.functions.append(None)
        inner = Body(self, node.span)
        for parameter in node.parameters:
            self.scopes.declared[id(parameter)].register = inner.code.take()
        for parameter in node.parameters:
            variable = self.scopes.declared[id(parameter)]
            if variable.captured:
                inner.code.emit(parameter.span, "BOX", variable.register, variable.register)
        self.body(inner, node.body)
        upvalues = tuple(
            Upvalue(
                capture.outer < 0,
                capture.variable.register if capture.outer < 0 else capture.outer,
                capture.variable.name,
            )
            for capture in self.scopes.captures[id(node)]
        )
        self.functions[number] = inner.finish(name, len(node.parameters), node.variadic, upvalues)
        if number == MAX_FUNCTIONS:
            self.tell(node.span, f"a script of more than {MAX_FUNCTIONS} functions")
        return number


class Loop:
    """Where `break` and `continue` go in the loop being generated."""

    __slots__ = ("again", "end")

    def __init__(self) -> None:
        self.again = Label()
        self.end = Label()


class Body:
    """The function being generated."""

    def __init__(self, unit: Unit, span: Span) -> None:
        self.unit = unit
        self.span = span
        self.code = Code()
        self.loops: list[Loop] = []
        self._full = False

    # -- instructions and operands

    def emit(self, span: Span, op: str, *operands: Operand) -> None:
        """Add an instruction."""
        if self.code.top > MAX_REGISTERS and not self._full:
            self._full = True
            message = f"more than {MAX_REGISTERS} variables and values at a time in one function"
            self.unit.tell(span, message, "split the function, or keep values in a table")
        self.code.emit(span, op, *operands)

    def take(self, count: int = 1) -> int:
        """The first of `count` fresh registers at the top."""
        return self.code.take(count)

    def constant(self, value: object) -> int:
        """A constant as a value operand."""
        assert value is None or isinstance(value, (bool, int, bytes))
        return self.unit.pool.operand(value)

    def name(self, text: str) -> int:
        """The index of a name among the constants."""
        return self.unit.pool.index(text.encode("utf-8", "surrogateescape"))

    def move(self, span: Span, register: int, operand: int) -> None:
        """Put a value into a register, unless it is there."""
        if register != operand:
            self.emit(span, "MOVE", register, operand)

    # -- meanings

    def meaning(self, node: tree.Node) -> Optional[Meaning]:
        """What a name, or an expression that stands for one thing, means."""
        return self.unit.scopes.meanings.get(id(node))

    def variable(self, name: tree.Name) -> Variable:
        """The variable that a name declares."""
        return self.unit.scopes.declared[id(name)]

    # -- places

    def operator(self, left: tree.Node, node: tree.Node, right: tree.Node) -> Span:
        """The place of the operator between two operands; the whole expression's where it cannot be told."""
        start, end = left.span, right.span
        if start.end_line != end.line or not 0 < end.line <= len(self.unit.lines):
            return node.span
        between = self.unit.lines[end.line - 1][start.end_column - 1 : end.column - 1]
        sign = between.strip()
        if not sign:
            return node.span
        column = start.end_column + between.index(sign)
        return Span(end.line, column, end.line, column + len(sign))

    def finish(self, name: str, parameters: int, variadic: bool, upvalues: tuple[Upvalue, ...]) -> Function:
        """The function as it is now, with a return at its end."""
        last = Span(
            self.span.end_line, max(1, self.span.end_column - 1), self.span.end_line, max(2, self.span.end_column)
        )
        self.emit(last, "RETURN", 0, 0)
        if len(self.code.pending) > MAX_INSTRUCTIONS:
            self.unit.tell(self.span, f"a function of more than {MAX_INSTRUCTIONS} instructions", "split it")
        code, spans = self.code.finish()
        return Function(name, parameters, variadic, max(self.code.most, 1), upvalues, code, spans)
