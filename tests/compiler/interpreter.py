"""A plain interpreter of syntax trees, written from the language page alone: what compiled programs are compared with.

It knows what `tests.compiler.programs` writes: no tables but by `t[k]`, no builtins but print, no probes.
"""

from __future__ import annotations

from typing import Callable, Optional, Sequence, Union

from compiler import tree
from tests.compiler.reference import FAULT, binary, unary

Value = object


class Faulted(Exception):
    """The script met an error."""


class TooLong(Exception):
    """The script takes more steps than the test wants."""


class Leave(Exception):
    """break, continue or return."""


class Broken(Leave):
    pass


class Continued(Leave):
    def __init__(self, scope: Scope) -> None:
        self.scope = scope


class Returned(Leave):
    def __init__(self, values: list[Value]) -> None:
        self.values = values


class Scope:
    """Variables declared by one statement, and those declared before it."""

    def __init__(self, outer: Optional[Scope], names: dict[str, Value], rest: Optional[list[Value]] = None) -> None:
        self.outer = outer
        self.names = names
        self.rest: list[Value] = rest if rest is not None else outer.rest if outer is not None else []

    def holder(self, name: str) -> Optional[Scope]:
        scope: Optional[Scope] = self
        while scope is not None and name not in scope.names:
            scope = scope.outer
        return scope


Closure = Callable[[list[Value]], list[Value]]


class Interpreter:
    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.globals: dict[str, Value] = {}
        self.printed: list[str] = []

    def run(self, script: tree.Script) -> str:
        """What the script prints, with FAULT at its end when it meets an error."""
        try:
            self.block(script.body, Scope(None, {}))
        except Faulted:
            self.printed.append("FAULT")
        except Returned:
            pass
        return "".join(f"{line}\n" for line in self.printed)

    # -- expressions

    def values(self, nodes: Sequence[tree.Expression], scope: Scope) -> list[Value]:
        found: list[Value] = []
        for index, node in enumerate(nodes):
            results = self.results(node, scope)
            found.extend(results if index == len(nodes) - 1 else [*results, None][:1])
        return found

    def value(self, node: tree.Expression, scope: Scope) -> Value:
        return [*self.results(node, scope), None][0]

    def results(self, node: tree.Expression, scope: Scope) -> list[Value]:
        self.steps -= 1
        if self.steps < 0:
            raise TooLong
        if isinstance(node, tree.Call):
            if isinstance(node.function, tree.Name) and node.function.name == "print":
                self.printed.append("\t".join(map(shown, self.values(node.arguments, scope))))
                return []
            function = self.value(node.function, scope)
            arguments = self.values(node.arguments, scope)
            if not callable(function):
                raise Faulted
            return list(function(arguments))
        if isinstance(node, tree.Vararg):
            return scope.rest
        return [self.single(node, scope)]

    def single(self, node: tree.Expression, scope: Scope) -> Value:
        if isinstance(node, tree.Literal):
            return node.value
        if isinstance(node, tree.Name):
            holder = scope.holder(node.name)
            return self.globals.get(node.name) if holder is None else holder.names[node.name]
        if isinstance(node, tree.Parenthesized):
            return self.value(node.inner, scope)
        if isinstance(node, tree.FunctionExpression):
            return self.function(node, scope)
        if isinstance(node, tree.TableExpression):
            return {}
        if isinstance(node, tree.Index):
            table = self.value(node.table, scope)
            key = self.key(node, scope)
            if not isinstance(table, dict):
                raise Faulted
            return table.get(key)
        if isinstance(node, tree.Unary):
            return checked(unary(node.operator, self.value(node.operand, scope)))  # type: ignore[arg-type]
        assert isinstance(node, tree.Binary)
        left = self.value(node.left, scope)
        if node.operator in ("&&", "||"):
            if (left is None or left is False) is (node.operator == "&&"):
                return left
            return self.value(node.right, scope)
        return checked(binary(node.operator, left, self.value(node.right, scope)))  # type: ignore[arg-type]

    def key(self, node: tree.Index, scope: Scope) -> tuple[tuple[type, Value], ...]:
        parts = [self.value(key, scope) for key in node.keys]
        if len(parts) > 1 and None in parts:
            raise Faulted
        return tuple((type(part), part) for part in parts)

    def function(self, node: tree.FunctionExpression, scope: Scope) -> Closure:
        def call(arguments: list[Value]) -> list[Value]:
            count = len(node.parameters)
            given = (arguments + [None] * count)[:count]
            names = {parameter.name: value for parameter, value in zip(node.parameters, given)}
            try:
                self.block(node.body, Scope(scope, names, arguments[count:] if node.variadic else []))
            except Returned as returned:
                return returned.values
            return []

        return call

    def test(self, node: tree.Expression, scope: Scope) -> bool:
        value = self.value(node, scope)
        return value is not None and value is not False

    # -- statements

    def block(self, block: tree.Block, scope: Scope) -> Scope:
        for statement in block.body:
            scope = self.statement(statement, scope)
        return scope

    def statement(self, node: tree.Statement, scope: Scope) -> Scope:
        """Run a statement; the result is the scope of what comes after it."""
        if isinstance(node, tree.Local):
            values = self.values(node.values, scope)
            return Scope(scope, dict(zip([name.name for name in node.names], values + [None] * len(node.names))))
        if isinstance(node, tree.Assign):
            places = [self.place(target, scope) for target in node.targets]
            values = self.values(node.values, scope) + [None] * len(places)
            for place, value in reversed(list(zip(places, values))):
                place(value)
        elif isinstance(node, tree.Update):
            self.update(node, scope)
        elif isinstance(node, tree.Evaluate):
            self.results(node.call, scope)
        elif isinstance(node, tree.Block):
            self.block(node, scope)
        elif isinstance(node, tree.If):
            self.branches(node, scope)
        elif isinstance(node, tree.Break):
            raise Broken
        elif isinstance(node, tree.Continue):
            raise Continued(scope)
        elif isinstance(node, tree.Return):
            raise Returned(self.values(node.values, scope))
        elif isinstance(node, tree.FunctionStatement):
            self.place(node.target, scope)(self.function(node.function, scope))
        else:
            self.loop(node, scope)
        return scope

    def place(self, target: tree.Expression, scope: Scope) -> Callable[[Value], None]:
        if isinstance(target, tree.Name):
            name = target.name
            holder = scope.holder(name)
            names = self.globals if holder is None else holder.names
            return lambda value: names.__setitem__(name, value)
        assert isinstance(target, tree.Index)
        table, key = self.value(target.table, scope), self.key(target, scope)

        def put(value: Value) -> None:
            if not isinstance(table, dict) or key[-1][1] is None:
                raise Faulted
            table[key] = value

        return put

    def update(self, node: tree.Update, scope: Scope) -> None:
        put = self.place(node.target, scope)
        if isinstance(node.target, tree.Name):
            old = self.value(node.target, scope)
            put(checked(binary(node.operator, old, self.value(node.value, scope))))  # type: ignore[arg-type]
            return
        assert isinstance(node.target, tree.Index)
        table, key = self.globals["t"], self.key(node.target, scope)
        assert isinstance(table, dict)
        value = self.value(node.value, scope)
        old = table.get(key)
        put(checked(binary(node.operator, 0 if old is None else old, value)))

    def branches(self, node: tree.If, scope: Scope) -> None:
        for condition, block in node.branches:
            if self.test(condition, scope):
                self.block(block, scope)
                return
        if node.otherwise is not None:
            self.block(node.otherwise, scope)

    def loop(self, node: tree.Statement, scope: Scope) -> None:
        try:
            if isinstance(node, tree.While):
                while self.test(node.condition, scope):
                    self.round(node.body, scope)
            elif isinstance(node, tree.Repeat):
                while not self.test(node.condition, self.round(node.body, scope)):
                    pass
            elif isinstance(node, tree.CountingFor):
                self.count(node, scope)
            else:
                assert isinstance(node, tree.ClassicFor)
                self.three_parts(node, scope)
        except Broken:
            pass

    def round(self, body: tree.Block, scope: Scope) -> Scope:
        try:
            return self.block(body, scope)
        except Continued as continued:
            return continued.scope

    def count(self, node: tree.CountingFor, scope: Scope) -> None:
        first, last = self.value(node.first, scope), self.value(node.last, scope)
        step = 1 if node.step is None else self.value(node.step, scope)
        if type(first) is not int or type(last) is not int or type(step) is not int or step == 0:
            raise Faulted
        for value in range(first, last + (1 if step > 0 else -1), step):
            self.round(node.body, Scope(scope, {node.variable.name: value}))

    def three_parts(self, node: tree.ClassicFor, scope: Scope) -> None:
        assert isinstance(node.start, tree.Assign)
        assert node.condition is not None
        assert node.update is not None
        (name,) = node.start.targets
        assert isinstance(name, tree.Name)
        inner = Scope(scope, {name.name: self.value(node.start.values[0], scope)})
        while self.test(node.condition, inner):
            self.round(node.body, inner)
            inner = Scope(scope, dict(inner.names))
            self.statement(node.update, inner)


def checked(value: Value) -> Value:
    if value is FAULT:
        raise Faulted
    return value


def shown(value: Union[Value, bytes]) -> str:
    if value is None or isinstance(value, bool):
        return {None: "nil", True: "true", False: "false"}[value]
    return value.decode() if isinstance(value, bytes) else str(value)
