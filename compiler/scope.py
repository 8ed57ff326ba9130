"""Scope analysis: which variable a name is, what closures capture, and what may stand where.

The walk knows the variables of the script; what the other names mean is decided at its end
(`compiler.meaning`), because an assignment further down makes a name a global everywhere.
"""

from __future__ import annotations

from typing import Callable, Collection, Iterable, Optional, Union

from compiler import tree
from compiler.meaning import (
    EVENT_NAMES,
    PATHS,
    SHORT,
    Capture,
    Global,
    Local,
    Meaning,
    Names,
    Scopes,
    Upvalue,
    Use,
    Variable,
)
from compiler.spell import suggest
from vm.diagnostic import Diagnostic
from vm.event import OLDER_NAMES
from vm.program import MAX_UPVALUES, Span

ARITHMETIC = frozenset("+-*/%")
"""The operators that give nil when a side is nil."""


class FunctionScope:
    """A function while it is walked: its blocks of variables and its loops, inmost last, and its captures."""

    def __init__(self, outer: Optional[FunctionScope], variadic: bool) -> None:
        self.outer = outer
        self.variadic = variadic
        self.blocks: list[dict[str, Variable]] = []
        self.loops: list[Loop] = []
        self.captures: list[Capture] = []

    def find(self, name: str) -> Optional[Variable]:
        """The variable of this function that the name is here."""
        return next((block[name] for block in reversed(self.blocks) if name in block), None)

    def capture(self, variable: Variable) -> int:
        """The upvalue for a variable that belongs to a function further out."""
        for index, known in enumerate(self.captures):
            if known.variable is variable:
                return index
        variable.captured = True
        outer = -1 if self.outer is None or variable.function is self.outer else self.outer.capture(variable)
        self.captures.append(Capture(variable, outer))
        return len(self.captures) - 1


class Updates:
    """Which variables are only ever computed from what they were: nil, when nothing else sets them."""

    def __init__(self) -> None:
        self.given: set[Union[str, Variable]] = set()
        """Those with a value from elsewhere: globals by name."""
        self.computed: dict[Union[str, Variable], tree.Name] = {}
        """Where each was computed from itself first."""

    def assign(self, variable: Union[str, Variable], node: tree.Name, from_itself: bool) -> None:
        """A variable is given a value."""
        if from_itself:
            self.computed.setdefault(variable, node)
        else:
            self.given.add(variable)

    def nil(self) -> Iterable[tree.Name]:
        """Where those are computed that stay nil."""
        return (node for variable, node in self.computed.items() if variable not in self.given)


class Loop:
    """A loop while it is walked: whether a `continue` belongs to it."""

    __slots__ = ("continues",)

    def __init__(self) -> None:
        self.continues = False


def resolve(script: tree.Script, builtins: Collection[str]) -> Scopes:
    """What the names of a script mean, and every scope error in it as a diagnostic, in order of place.

    `builtins` are the full names of all builtins (`print`, `string.sub`).
    """
    walk = Walk(script.source_name, builtins)
    walk.main(script.body)
    walk.tell_nil_updates()
    Names(walk.scopes, script.source_name, builtins, walk.assigned, walk.uses).decide(walk.uses)
    walk.scopes.diagnostics.sort(key=lambda diagnostic: diagnostic.span or Span(0, 0, 0, 0))
    return walk.scopes


def loop_start(node: tree.ClassicFor) -> Optional[tree.Statement]:
    """How a `for` of three parts starts: `i = 0` declares `i`, a variable of the loop."""
    start = node.start
    if isinstance(start, tree.Assign):
        names = tuple(target for target in start.targets if isinstance(target, tree.Name))
        if len(names) == len(start.targets):
            return tree.Local(start.span, names, start.values)
    return start


class Walk:
    """One walk over a script."""

    def __init__(self, source_name: str, builtins: Collection[str]) -> None:
        self.source_name = source_name
        self.known = {*EVENT_NAMES, *PATHS, *OLDER_NAMES, *(name.split(".")[0] for name in builtins)}
        """Names of the language: what could have been meant instead is of no interest."""
        self.scopes = Scopes()
        self.uses: list[Use] = []
        self.assigned: set[str] = set()
        self.updates = Updates()
        self.function = FunctionScope(None, variadic=True)

    def tell(self, span: Span, message: str, hint: Optional[str] = None) -> None:
        """Add an error."""
        self.scopes.diagnostics.append(Diagnostic(self.source_name, span, message, hint))

    def tell_nil_updates(self) -> None:
        """Warn of `n += 1` where nothing sets `n`: arithmetic with nil is nil."""
        for node in self.updates.nil():
            message = f"`{node.name}` is nil here and stays nil: nothing sets it first"
            known = {given if isinstance(given, str) else given.name for given in self.updates.given}
            near = suggest(node.name, known) if len(node.name) > SHORT else None
            hint = f"write {node.name} = 0 in the main chunk" if near is None else f"did you mean `{near}`?"
            self.scopes.diagnostics.append(Diagnostic(self.source_name, node.span, message, hint, warning=True))

    # -- variables

    def declare(self, name: tree.Name, given: bool = True) -> None:
        """A new variable of the inmost block; one that is not given a value is nil."""
        variable = Variable(name.name, name.span, self.function)
        if given:
            self.updates.given.add(variable)
        self.function.blocks[-1][name.name] = variable
        self.scopes.declared[id(name)] = variable

    def find(self, name: str) -> Optional[Variable]:
        """The variable in scope that the name is, from the inmost block of the inmost function outwards."""
        function: Optional[FunctionScope] = self.function
        while function is not None:
            variable = function.find(name)
            if variable is not None:
                return variable
            function = function.outer
        return None

    def lookup(self, name: str) -> Optional[Meaning]:
        """What the name is when it is a variable in scope."""
        variable = self.find(name)
        if variable is None:
            return None
        here = variable.function is self.function
        return Local(variable) if here else Upvalue(self.function.capture(variable))

    def visible(self) -> tuple[str, ...]:
        """The names of all variables in scope."""
        names: set[str] = set()
        function: Optional[FunctionScope] = self.function
        while function is not None:
            names.update(*function.blocks)
            function = function.outer
        return tuple(sorted(names))

    # -- expressions

    def expressions(self, nodes: Iterable[tree.Expression]) -> None:
        """Walk several expressions."""
        for node in nodes:
            self.expression(node)

    def expression(self, node: tree.Expression, call: Optional[tree.Call] = None, looked_into: bool = False) -> None:
        """Walk an expression that is called by `call`, or that is indexed."""
        if isinstance(node, (tree.Name, tree.Member)):
            self.chain(node, call, looked_into)
        elif isinstance(node, tree.Call):
            self.expression(node.function, call=node)
            self.expressions(node.arguments)
        elif isinstance(node, tree.Index):
            self.expression(node.table, looked_into=True)
            self.expressions(node.keys)
        elif isinstance(node, tree.Binary):
            self.expressions((node.left, node.right))
        elif isinstance(node, tree.Unary):
            self.expression(node.operand)
        elif isinstance(node, tree.Parenthesized):
            self.expression(node.inner)
        elif isinstance(node, tree.TableExpression):
            for entry in node.entries:
                self.expressions((entry.value,) if entry.key is None else (entry.key, entry.value))
        elif isinstance(node, tree.FunctionExpression):
            self.function_expression(node)
        elif isinstance(node, tree.Vararg) and not self.function.variadic:
            self.tell(node.span, "`...` outside a variadic function", "write `...` as the function's last parameter")

    def chain(self, node: tree.Expression, call: Optional[tree.Call], looked_into: bool) -> None:
        """A name with any number of members behind it, or members of another expression."""
        parts = [node]
        while isinstance(last := parts[-1], tree.Member):
            parts.append(last.table)
        root = parts[-1]
        if not isinstance(root, tree.Name):
            self.expression(root, looked_into=True)
            return
        meaning = self.lookup(root.name)
        if meaning is not None:
            self.scopes.meanings[id(root)] = meaning
        else:
            visible = () if root.name in self.known else self.visible()
            self.uses.append(Use(tuple(reversed(parts)), call, looked_into, False, visible))

    def function_expression(self, node: tree.FunctionExpression) -> None:
        """A function: its parameters are variables of a block around its body."""
        self.function = FunctionScope(self.function, node.variadic)
        self.function.blocks.append({})
        for parameter in node.parameters:
            if parameter.name != "_" and parameter.name in self.function.blocks[-1]:
                self.tell(parameter.span, f"two parameters named `{parameter.name}`")
            self.declare(parameter)
        self.block(node.body)
        captures = self.scopes.captures[id(node)] = self.function.captures
        if len(captures) > MAX_UPVALUES:
            self.tell(node.span, f"a function that shares more than {MAX_UPVALUES} variables with those around it")
        outer = self.function.outer
        assert outer is not None
        self.function = outer

    # -- statements

    def main(self, body: tree.Block) -> None:
        """The main chunk."""
        self.block(body)

    def block(self, node: tree.Block) -> None:
        """Statements in a block of their own."""
        self.function.blocks.append({})
        self.statements(node)
        self.function.blocks.pop()

    def statements(self, node: tree.Block) -> None:
        """Statements in the block that is open."""
        for statement in node.body:
            self.statement(statement)

    def statement(self, node: tree.Statement) -> None:
        """Any statement."""
        STATEMENTS[type(node)](self, node)

    def loop(self, body: tree.Block) -> None:
        """The body of a loop."""
        self.function.loops.append(Loop())
        self.block(body)
        self.function.loops.pop()

    def target(self, node: tree.Expression, from_itself: bool = False) -> None:
        """What is assigned to; `from_itself` when it is computed from what it was."""
        if isinstance(node, tree.Name):
            meaning = self.lookup(node.name)
            self.updates.assign(self.find(node.name) or node.name, node, from_itself)
            if meaning is None:
                self.assigned.add(node.name)
                meaning = Global(node.name)
            self.scopes.meanings[id(node)] = meaning
        elif isinstance(node, (tree.Index, tree.Member)):
            table = node.table
            if isinstance(table, tree.Name) and self.lookup(table.name) is None:
                self.uses.append(Use((table,), stored_into=True, visible=self.visible()))
            else:
                self.expression(table, looked_into=True)
            if isinstance(node, tree.Index):
                self.expressions(node.keys)
        else:
            self.tell(node.span, "cannot assign to this", "a variable or an entry of a table can be assigned to")


def _local(walk: Walk, node: tree.Local) -> None:
    walk.expressions(node.values)
    several = bool(node.values) and isinstance(node.values[-1], (tree.Call, tree.Vararg))
    for index, name in enumerate(node.names):
        walk.declare(name, given=several or index < len(node.values))


def _assign(walk: Walk, node: tree.Assign) -> None:
    computed = (*(_computed_from(value) for value in node.values), *[frozenset[str]()] * len(node.targets))
    for target, names in zip(node.targets, computed):
        walk.target(target, isinstance(target, tree.Name) and target.name in names)
    walk.expressions(node.values)


def _computed_from(node: tree.Expression) -> frozenset[str]:
    """The names whose values an expression adds, multiplies and so on: it is nil when one of them is."""
    if isinstance(node, tree.Parenthesized):
        return _computed_from(node.inner)
    if isinstance(node, tree.Binary) and node.operator in ARITHMETIC:
        sides = (node.left, node.right)
        names = frozenset(side.name for side in sides if isinstance(side, tree.Name))
        return names.union(*map(_computed_from, sides))
    return frozenset()


def _update(walk: Walk, node: tree.Update) -> None:
    walk.target(node.target, from_itself=node.operator in ARITHMETIC)
    walk.expression(node.value)


def _sample(walk: Walk, node: tree.Sample) -> None:
    walk.target(node.target)
    walk.expression(node.value)


def _evaluate(walk: Walk, node: tree.Evaluate) -> None:
    walk.expression(node.call)


def _if(walk: Walk, node: tree.If) -> None:
    for condition, block in node.branches:
        walk.expression(condition)
        walk.block(block)
    if node.otherwise is not None:
        walk.block(node.otherwise)


def _while(walk: Walk, node: tree.While) -> None:
    walk.expression(node.condition)
    walk.loop(node.body)


def _repeat(walk: Walk, node: tree.Repeat) -> None:
    loop = Loop()
    walk.function.blocks.append({})
    walk.function.loops.append(loop)
    walk.statements(node.body)
    walk.function.loops.pop()
    if loop.continues:
        walk.scopes.kept[id(node)] = list(walk.function.blocks[-1].values())
    walk.expression(node.condition)
    walk.function.blocks.pop()


def _counting_for(walk: Walk, node: tree.CountingFor) -> None:
    walk.expressions((node.first, node.last) if node.step is None else (node.first, node.last, node.step))
    walk.function.blocks.append({})
    walk.declare(node.variable)
    walk.loop(node.body)
    walk.function.blocks.pop()


def _classic_for(walk: Walk, node: tree.ClassicFor) -> None:
    walk.function.blocks.append({})
    start = loop_start(node)
    if start is not None:
        walk.statement(start)
    if node.condition is not None:
        walk.expression(node.condition)
    walk.loop(node.body)
    if node.update is not None:
        walk.statement(node.update)
    walk.function.blocks.pop()


def _iterating_for(walk: Walk, node: tree.IteratingFor) -> None:
    walk.expressions(node.iterated)
    walk.function.blocks.append({})
    for name in node.names:
        walk.declare(name)
    walk.loop(node.body)
    walk.function.blocks.pop()


def _break(walk: Walk, node: tree.Break) -> None:
    if not walk.function.loops:
        walk.tell(node.span, "`break` outside a loop")


def _continue(walk: Walk, node: tree.Continue) -> None:
    if not walk.function.loops:
        walk.tell(node.span, "`continue` outside a loop")
    else:
        walk.function.loops[-1].continues = True


def _return(walk: Walk, node: tree.Return) -> None:
    walk.expressions(node.values)


def _function_statement(walk: Walk, node: tree.FunctionStatement) -> None:
    walk.target(node.target)
    walk.function_expression(node.function)


def _trace(walk: Walk, node: tree.Trace) -> None:
    if walk.function.outer is not None:
        walk.tell(node.span, "probes can be set in the main chunk only", "move it out of the function")
    walk.function_expression(node.handler)


STATEMENTS: dict[type[tree.Node], Callable[..., None]] = {
    tree.Block: Walk.block,
    tree.Local: _local,
    tree.Assign: _assign,
    tree.Update: _update,
    tree.Sample: _sample,
    tree.Evaluate: _evaluate,
    tree.If: _if,
    tree.While: _while,
    tree.Repeat: _repeat,
    tree.CountingFor: _counting_for,
    tree.ClassicFor: _classic_for,
    tree.IteratingFor: _iterating_for,
    tree.Break: _break,
    tree.Continue: _continue,
    tree.Return: _return,
    tree.FunctionStatement: _function_statement,
    tree.Trace: _trace,
}
