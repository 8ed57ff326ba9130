"""Statements to instructions, and a script to a program."""

from __future__ import annotations

from itertools import zip_longest
from typing import Callable, Optional, Sequence

from compiler import tree
from compiler.emit import Label
from compiler.expressions import (
    call,
    closure,
    compute,
    condition,
    entry_span,
    is_several,
    key_of,
    named,
    operate,
    prepare_call,
    push,
    push_all,
    push_exactly,
    results,
)
from compiler.meaning import Global, Local, Scopes, Upvalue, Variable
from compiler.scope import loop_start
from compiler.unit import Body, Loop, Unit
from vm.diagnostic import Diagnostic
from vm.opcodes import PACK
from vm.program import MAX_CODE, MAX_CONSTANTS, Function, Program, Span

ROTATED_NODES = 24
"""A loop's condition of at most so many nodes is emitted twice, before the loop and at its end: a jump less a round."""


def generate(script: tree.Script, scopes: Scopes) -> tuple[Program, list[Diagnostic]]:
    """The program of a script without scope errors, and what of it is more than a program can hold."""
    unit = Unit(script, scopes, statements)
    main = Body(unit, script.body.span)
    unit.functions.append(None)
    for name in scopes.tables:
        register = main.code.take()
        main.emit(script.body.span, "NEWTABLE", register)
        main.emit(script.body.span, "SETGLOBAL", main.name(name), register)
        main.code.top = register
    statements(main, script.body)
    unit.functions[0] = main.finish("main chunk", 0, True, ())
    functions = tuple(function for function in unit.functions if function is not None)
    _check_sizes(unit, script.body.span, functions)
    return Program(script.source_name, tuple(unit.pool.constants), functions, script.source), unit.diagnostics


def _check_sizes(unit: Unit, span: Span, functions: Sequence[Function]) -> None:
    if len(unit.pool.constants) > MAX_CONSTANTS:
        unit.tell(span, f"a script of more than {MAX_CONSTANTS} different constants")
    if sum(len(function.code) + len(function.upvalues) for function in functions) > MAX_CODE:
        unit.tell(span, f"a script of more than {MAX_CODE} instructions")


def statements(body: Body, block: tree.Block) -> None:
    """The statements of a block; those that nothing leads to are left out."""
    top = body.code.top
    run(body, block)
    body.code.top = top


def run(body: Body, block: tree.Block) -> None:
    """The statements of a block whose variables stay after it."""
    for statement in block.body:
        if not body.code.reachable:
            return
        STATEMENTS[type(statement)](body, statement)


# -- variables ---------------------------------------------------------------------------------


def define(body: Body, variable: Variable, span: Span, operand: int) -> None:
    """Start a variable's life in its register, with a box of its own when closures share it."""
    if variable.captured:
        body.emit(span, "BOX", variable.register, operand)
    else:
        body.move(span, variable.register, operand)


def store(body: Body, target: tree.Target, place: tuple[int, int], operand: int) -> None:
    """Assign a value; `place` is the table and key of an entry, computed before."""
    meaning = body.meaning(target)
    if isinstance(target, (tree.Index, tree.Member)):
        body.emit(entry_span(target), "SETINDEX", *place, operand)
    elif isinstance(meaning, Upvalue):
        body.emit(target.span, "SETUP", meaning.slot, operand)
    elif isinstance(meaning, Local) and meaning.variable.captured:
        body.emit(target.span, "SETBOX", meaning.variable.register, operand)
    elif isinstance(meaning, Local):
        body.move(target.span, meaning.variable.register, operand)
    else:
        assert isinstance(meaning, Global)
        body.emit(target.span, "SETGLOBAL", body.name(meaning.name), operand)


def plain_register(body: Body, target: tree.Target) -> Optional[int]:
    """The register of a target that is a variable in a register, not in a box."""
    meaning = body.meaning(target)
    if isinstance(meaning, Local) and not meaning.variable.captured:
        return meaning.variable.register
    return None


def place_of(body: Body, target: tree.Target, changed: Sequence[int] = ()) -> tuple[int, int]:
    """Table and key of an entry that is a target, safe from changes of the registers `changed`."""
    if isinstance(target, tree.Name):
        return (0, 0)
    table = _copied(body, target.span, compute(body, target.table), changed)
    return table, _copied(body, target.span, key_of(body, target), changed)


def _copied(body: Body, span: Span, operand: int, changed: Sequence[int]) -> int:
    if operand not in changed:
        return operand
    register = body.take()
    body.emit(span, "MOVE", register, operand)
    return register


def text_of(target: tree.Expression) -> str:
    """A target as chains of calls show it: `f`, `t.f`."""
    if isinstance(target, tree.Name):
        return target.name
    if isinstance(target, tree.Member):
        table = text_of(target.table)
        return f"{table}.{target.name}" if table else target.name
    return ""


# -- assignments -------------------------------------------------------------------------------


def _local(body: Body, node: tree.Local) -> None:
    variables = [body.variable(name) for name in node.names]
    fresh = [variable for variable in variables if variable.register < 0]
    if len(fresh) < len(variables):  # of a repeat that has placed its variables before
        for variable in fresh:
            variable.register = body.take()
        top = body.code.top
        first = push_exactly(body, node.values, len(variables), node.span)
        for index, (variable, name) in enumerate(zip(variables, node.names)):
            define(body, variable, name.span, first + index)
        body.code.top = top
    elif len(node.values) in (0, len(variables)):
        for variable, name, value in zip_longest(variables, node.names, node.values):
            top = body.code.top
            operand = body.constant(None) if value is None else named(body, value, name.name)
            body.code.top = top
            register = body.take()
            variable.register = register
            define(body, variable, name.span, operand)
    else:
        first = push_exactly(body, node.values, len(variables), node.span)
        for index, (variable, name) in enumerate(zip(variables, node.names)):
            variable.register = first + index
            define(body, variable, name.span, first + index)


def _assign(body: Body, node: tree.Assign) -> None:
    top = body.code.top
    registers = [plain_register(body, target) for target in node.targets]
    changed = [register for register in registers if register is not None] if len(registers) > 1 else []
    places = [place_of(body, target, changed) for target in node.targets]
    if len(node.values) == len(node.targets):
        last = len(node.values) - 1
        operands = []
        for index, (target, value) in enumerate(zip(node.targets, node.values)):
            operand = named(body, value, text_of(target), registers[last] if index == last else None)
            operands.append(operand if index == last else _copied(body, value.span, operand, changed))
    else:
        first = push_exactly(body, node.values, len(node.targets), node.span)
        operands = list(range(first, first + len(node.targets)))
    for target, place, operand in reversed(list(zip(node.targets, places, operands))):
        store(body, target, place, operand)
    body.code.top = top


ENTRY_UPDATES = {"+": "ADDINDEX", "-": "SUBINDEX"}


def _update(body: Body, node: tree.Update) -> None:
    top = body.code.top
    span = body.operator(node.target, node, node.value)
    if isinstance(node.target, tree.Name):
        _compute_and_store(
            body, node.target, node.value, lambda w, left, right: operate(body, span, node.operator, w, left, right)
        )
    else:
        table, key = place_of(body, node.target)
        value = compute(body, node.value)
        if node.operator in ENTRY_UPDATES:
            body.emit(span, ENTRY_UPDATES[node.operator], table, key, value)
        else:
            old = body.take()
            body.emit(entry_span(node.target), "GETINDEX" if node.operator == ".." else "GETENTRY", old, table, key)
            operate(body, span, node.operator, old, old, value)
            body.emit(entry_span(node.target), "SETINDEX", table, key, old)
    body.code.top = top


def _sample(body: Body, node: tree.Sample) -> None:
    top = body.code.top
    span = body.operator(node.target, node, node.value)
    if isinstance(node.target, tree.Name):
        _compute_and_store(
            body, node.target, node.value, lambda w, left, right: body.emit(span, "STATADD", w, left, right)
        )
    else:
        table, key = place_of(body, node.target)
        body.emit(span, "SAMPLE", table, key, compute(body, node.value))
    body.code.top = top


def _compute_and_store(
    body: Body, target: tree.Name, value: tree.Expression, change: Callable[[int, int, int], None]
) -> None:
    """A variable becomes what `change` (result, old, operand) makes of it."""
    old = compute(body, target)
    operand = compute(body, value)
    change(old, old, operand)  # `old` is the variable's own register, or a fresh one
    store(body, target, (0, 0), old)


def _function_statement(body: Body, node: tree.FunctionStatement) -> None:
    top = body.code.top
    place = place_of(body, node.target)
    name = node.function.name or text_of(node.target)
    store(body, node.target, place, closure(body, node.function, name, plain_register(body, node.target)))
    body.code.top = top


# -- control -----------------------------------------------------------------------------------


def _evaluate(body: Body, node: tree.Evaluate) -> None:
    if is_several(body, node.call):
        top = body.code.top
        call(body, node.call, 0)
        body.code.top = top


def _if(body: Body, node: tree.If) -> None:
    end = Label()
    for test, block in node.branches:
        otherwise = Label()
        condition(body, test, False, otherwise)
        statements(body, block)
        body.emit(block.span, "JUMP", end)
        body.code.place(otherwise)
    if node.otherwise is not None:
        statements(body, node.otherwise)
    body.code.place(end)


def _may_be_twice(part: object) -> bool:
    """Whether an expression can be emitted twice: it is small and makes no function."""
    count = 0
    todo = [part]
    while todo:
        item = todo.pop()
        if type(item) is tuple:
            todo.extend(item)
        elif isinstance(item, tree.FunctionExpression):
            return False
        elif isinstance(item, tree.Node):
            count += 1
            todo.extend(vars(item).values())
    return count <= ROTATED_NODES


def _loop(body: Body, test: Optional[tree.Expression], block: tree.Block, span: Span, step: Callable[[], None]) -> None:
    """Rounds of `block`, then `step`, as long as the test holds."""
    loop, start = Loop(), Label()
    twice = test is not None and _may_be_twice(test)
    if test is not None and twice:
        condition(body, test, False, loop.end)
    body.code.place(start)
    if test is not None and not twice:
        condition(body, test, False, loop.end)
    body.loops.append(loop)
    statements(body, block)
    body.loops.pop()
    body.code.place(loop.again)
    step()
    if test is not None and twice:
        condition(body, test, True, start)
    else:
        body.emit(span, "JUMP", start)
    body.code.place(loop.end)


def _while(body: Body, node: tree.While) -> None:
    _loop(body, node.condition, node.body, node.condition.span, lambda: None)


def _classic_for(body: Body, node: tree.ClassicFor) -> None:
    top = body.code.top
    start = loop_start(node)
    shared: list[Variable] = []
    if start is not None:
        run(body, tree.Block(node.span, (start,)))
        if isinstance(start, tree.Local):
            shared = [variable for variable in map(body.variable, start.names) if variable.captured]

    def step() -> None:
        for variable in shared:  # the next round has variables of its own, with the values of this one
            value = body.take()
            body.emit(node.span, "UNBOX", value, variable.register)
            body.emit(node.span, "BOX", variable.register, value)
            body.code.top = value
        if node.update is not None and body.code.reachable:
            STATEMENTS[type(node.update)](body, node.update)

    span = node.span if node.condition is None else node.condition.span
    _loop(body, node.condition, node.body, span, step)
    body.code.top = top


def _repeat(body: Body, node: tree.Repeat) -> None:
    top = body.code.top
    loop, start = Loop(), Label()
    body.code.place(start)
    for variable in body.unit.scopes.kept.get(id(node), ()):
        variable.register = body.take()
        define(body, variable, variable.span, body.constant(None))
    body.loops.append(loop)
    run(body, node.body)
    body.loops.pop()
    body.code.place(loop.again)
    if body.code.reachable:
        condition(body, node.condition, False, start)
    body.code.place(loop.end)
    body.code.top = top


def _counting_for(body: Body, node: tree.CountingFor) -> None:
    first = push(body, node.first)
    push(body, node.last)
    if node.step is None:
        body.emit(node.variable.span, "MOVE", body.take(), body.constant(1))
    else:
        push(body, node.step)
    loop, start, variable = Loop(), Label(), body.variable(node.variable)
    variable.register = body.take()
    body.emit(_covered(node.first, node.last if node.step is None else node.step), "FORPREP", first, loop.end)
    body.code.place(start)
    define(body, variable, node.variable.span, variable.register)
    body.loops.append(loop)
    statements(body, node.body)
    body.loops.pop()
    body.code.place(loop.again)
    body.emit(node.variable.span, "FORLOOP", first, start)
    body.code.place(loop.end)
    body.code.top = first


def _iterating_for(body: Body, node: tree.IteratingFor) -> None:
    span = _covered(node.iterated[0], node.iterated[-1])
    first = push_exactly(body, node.iterated, 3, span)
    body.emit(span, "ITERPREP", first, first)
    body.code.top = first + 1
    loop, variables = Loop(), [body.variable(name) for name in node.names]
    body.code.place(loop.again)
    for variable in variables:
        variable.register = body.take()
    body.emit(span, "ITERNEXT", first, len(variables), loop.end)
    for variable in variables:
        define(body, variable, variable.span, variable.register)
    body.loops.append(loop)
    statements(body, node.body)
    body.loops.pop()
    body.emit(span, "JUMP", loop.again)
    body.code.place(loop.end)
    body.code.top = first


def _covered(first: tree.Node, last: tree.Node) -> Span:
    return Span(first.span.line, first.span.column, last.span.end_line, last.span.end_column)


def _break(body: Body, node: tree.Break) -> None:
    body.emit(node.span, "JUMP", body.loops[-1].end)


def _continue(body: Body, node: tree.Continue) -> None:
    body.emit(node.span, "JUMP", body.loops[-1].again)


def _return(body: Body, node: tree.Return) -> None:
    top = body.code.top
    values = node.values
    if not values:
        body.emit(node.span, "RETURN", 0, 0)
    elif len(values) == 1 and isinstance(values[0], tree.Call) and is_several(body, values[0]):
        first, arguments, pack = prepare_call(body, values[0])
        body.emit(values[0].function.span, "TAILCALLX" if pack else "TAILCALL", first, arguments)
    elif len(values) == 1 and is_several(body, values[0]):
        body.emit(node.span, "RETURNX", results(body, values[0], PACK), 1)
    elif len(values) == 1:
        operand = compute(body, values[0])
        if operand < 0:
            body.emit(values[0].span, "MOVE", body.take(), operand)
        body.emit(node.span, "RETURN", operand if operand >= 0 else top, 1)
    else:
        pack = push_all(body, values)
        body.emit(node.span, "RETURNX" if pack else "RETURN", top, len(values))
    body.code.top = top


# -- probes ------------------------------------------------------------------------------------


TIMES = ("tick-", "profile-", "trace_begin", "trace_end")


def _trace(body: Body, node: tree.Trace) -> None:
    first = node.events[0].text
    name = first if first.startswith(TIMES) else f"trace {first}"
    if len(node.events) > 1:
        name += ", …"
    top = body.code.top
    handler = closure(body, node.handler, name)
    given = body.unit.pool.index(None) if node.filter is None else body.name(node.filter.text)
    for event in node.events:
        body.emit(event.span, "PROBE", handler, body.name(event.text), given)
    body.code.top = top


Handler = Callable[..., None]
STATEMENTS: dict[type[tree.Node], Handler] = {
    tree.Block: statements,
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
