"""What names mean, and every error that the walk over a script tells."""

from __future__ import annotations

import pytest

from compiler import tree
from compiler.meaning import Builtin, EventValue, Global, Local, Meaning, Scopes, Upvalue
from compiler.parse import parse
from compiler.scope import resolve

BUILTINS = ("print", "printf", "pairs", "string.sub", "string.find", "table.new", "exit", "cpu_mask")


def resolved(text: str) -> tuple[tree.Script, Scopes]:
    script = parse(text, "test.kp").script
    return script, resolve(script, BUILTINS)


def told(text: str) -> list[str]:
    """The diagnostics as `line:column: message; hint`, warnings with a `?` before."""
    scopes = resolved(text)[1]
    lines = []
    for diagnostic in scopes.diagnostics:
        assert diagnostic.span is not None
        hint = "" if diagnostic.hint is None else f"; {diagnostic.hint}"
        mark = "? " * diagnostic.warning
        lines.append(f"{mark}{diagnostic.span.line}:{diagnostic.span.column}: {diagnostic.message}{hint}")
    return lines


def meanings(text: str) -> dict[str, Meaning]:
    """The meaning of every marked expression of a script, by the text it has there."""
    script, scopes = resolved(text)
    lines = text.split("\n")
    found: dict[str, Meaning] = {}
    todo: list[object] = [script]
    while todo:
        part = todo.pop()
        if type(part) is tuple:
            todo.extend(part)
        elif isinstance(part, tree.Node):
            todo.extend(vars(part).values())
            meaning = scopes.meanings.get(id(part))
            if meaning is not None:
                found[lines[part.span.line - 1][part.span.column - 1 : part.span.end_column - 1]] = meaning
    return found


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("break", ["1:1: `break` outside a loop"]),
        ("continue", ["1:1: `continue` outside a loop"]),
        ("while (true) { f = function () { break } }", ["1:34: `break` outside a loop"]),
        (
            "function f() { return ... }",
            ["1:23: `...` outside a variadic function; write `...` as the function's last parameter"],
        ),
        ("function f(a, b, a, _, _) { }", ["1:18: two parameters named `a`"]),
        (
            "function f() { trace sched:* { } }",
            ["1:16: probes can be set in the main chunk only; move it out of the function"],
        ),
        (
            "trace_begin { trace_end { } }",
            ["1:15: probes can be set in the main chunk only; move it out of the function"],
        ),
        ("print(args)", ["1:7: `args` stands only before the name of a field; write `args.NAME`, or `arg0` to `arg9`"]),
        (
            "print(args[1])",
            ["1:7: `args` stands only before the name of a field; write `args.NAME`, or `arg0` to `arg9`"],
        ),
        ("args.x = 1", ["1:1: `args` is a value of the event: it cannot be changed"]),
        ("curtask.pid += 1", ["1:1: `curtask` is a value of the event: it cannot be changed"]),
        ("print.x = 1", ["1:1: `print` is a builtin: it has no entries"]),
        ("print(pid(1))", ["1:7: `pid` is a value of the event, not a function"]),
        ("print(args.x())", ["1:7: `args.x` is a value of the event, not a function"]),
        ("pritn(1)", ["1:1: unknown function `pritn`; did you mean `print`?"]),
        ("frobnicate(1)", ["1:1: unknown function `frobnicate`"]),
        ("string.sbu(1)", ["1:8: `string` has no `sbu`; did you mean `string.sub`?"]),
        ("string.frobnicate(1)", ["1:8: `string` has no `frobnicate`"]),
        ("strng.sub(1)", ["1:1: unknown name `strng`; did you mean `string.sub`?"]),
        ("nothing.sub.x(1)", ["1:1: unknown name `nothing`"]),
        ("print(zzz[1])", ["1:7: unknown name `zzz`"]),
        ("print(execnme)", ["1:7: unknown name `execnme`; did you mean `execname`?"]),
        ("var counter = 1 print(countr)", ["1:23: unknown name `countr`; did you mean `counter`?"]),
        ("total = 1 function f(x) { var y print(totl) }", ["1:39: unknown name `totl`; did you mean `total`?"]),
        ("print(xyzzy, xyzzy)", ["? 1:7: `xyzzy` is never assigned, so it is always nil"]),
        ("val1 = 1 print(val2)", ["? 1:16: `val2` is never assigned, so it is always nil; did you mean `val1`?"]),
        ("print(debug)", ["? 1:7: `debug` is never assigned, so it is always nil"]),
        ("print(rexecname)", ["? 1:7: `rexecname` is never assigned, so it is always nil; did you mean `execname`?"]),
        ("b = 1 print(a)", ["? 1:13: `a` is never assigned, so it is always nil"]),
        ("counts = {} count[1] += 1", ["? 1:13: `count` is never assigned: a new table; did you mean `counts`?"]),
        (
            "if (1) { var inner = 1 } print(inner)",
            ["? 1:32: `inner` is never assigned, so it is always nil; the variable of line 1 cannot be seen here"],
        ),
        (
            "print(later) var later = 1",
            ["? 1:7: `later` is never assigned, so it is always nil; the variable of line 1 cannot be seen here"],
        ),
        ("n += 1", ["? 1:1: `n` is nil here and stays nil: nothing sets it first; write n = 0 in the main chunk"]),
        (
            "trace sched:* { n = 2 * (n + 1) - cpu }",
            ["? 1:17: `n` is nil here and stays nil: nothing sets it first; write n = 0 in the main chunk"],
        ),
        (
            "var n n += 1",
            ["? 1:7: `n` is nil here and stays nil: nothing sets it first; write n = 0 in the main chunk"],
        ),
        (
            "counter = 0 tick-1s { countr += 1 }",
            ["? 1:23: `countr` is nil here and stays nil: nothing sets it first; did you mean `counter`?"],
        ),
        ("string_x.sub(1)", ["1:1: unknown name `string_x`; did you mean `string.sub`?"]),
        ("strin.foo(1)", ["1:1: unknown name `strin`; did you mean `string`?"]),
        ("f(1) break", ["1:1: unknown function `f`", "1:6: `break` outside a loop"]),
    ],
)
def test_told(text: str, expected: list[str]) -> None:
    assert told(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "while (1) { break } repeat { continue } until (1) for (i = 1, 2) { break } for (k in pairs({})) { continue }",
        "for (i = 0; i < 3; i += 1) { if (i) { continue } break }",
        "print(...) function f(...) { return ... }",
        "if (pid) { trace sched:* { } } while (1) { tick-1s { } }",
        "print(arg[0], arg.x)",
        "s[1] += 1 print(s)",
        "tick-1s { n += 1 } n = 0 var m trace_begin { m = 0 } tick-1s { m -= 1 }",
        "var a, b = f() a += 1 b += 1 c, d = f() c += 1 d += 1 function f(x) { x += 1 return x }",
        "for (i = 1, 2) { i += 1 } for (k, v in pairs({})) { v += 1 } var f, g = print, 1 g += 1",
        "n = (n || 0) + 1 s <<< 1 print = print t ..= 'x' var u u = u + f(u) u = 3 function f(x) { return x }",
        "print(f()) function f() { }",
        "function string.trim(s) { return s } print(string.trim(1), string.sub(1))",
        "x = string y = print y(x.sub)",
        "pid = 3 print(pid.x, pid(1))",
        "var function f(n) { return f(n) }",
        "f.g = 1 f.g.h()",
        "trace sched:* { print(pid(), curtask.mm.x, args.a.b, arg9, argevent) }",
    ],
)
def test_nothing_to_tell(text: str) -> None:
    assert told(text) == []


def test_meanings_of_names() -> None:
    found = meanings(
        "trace x:y { print(args.a.b, pid, execname(), argname, argevent(), string.sub(1), curtask.mm, tid.x) }"
    )
    assert found["args.a.b"] == EventValue("args.a.b")
    assert found["pid"] == EventValue("pid")
    assert found["execname()"] == EventValue("execname")
    assert found["argname"] == EventValue("probename")
    assert found["argevent()"] == EventValue("argstr")
    assert found["string.sub"] == Builtin("string.sub")
    assert found["curtask.mm"] == EventValue("curtask.mm")
    assert found["tid"] == EventValue("tid")
    assert "tid.x" not in found
    assert found["print"] == Builtin("print")


def test_an_assignment_anywhere_makes_a_global_everywhere() -> None:
    found = meanings(
        "print(pid, argevent, string.sub)\nfunction f() { pid = 1 argevent = 2 }\nfunction print() { }\nstring = {}"
    )
    assert found["pid"] == Global("pid")
    assert found["argevent"] == Global("argevent")
    assert found["print"] == Global("print")
    assert found["string"] == Global("string")


def test_a_library_that_is_extended_is_a_table() -> None:
    found = meanings("string.trim = 1\nx = string.sub")
    assert found["string"] == Global("string")
    assert "string.sub" not in found


def test_a_variable_hides_what_the_language_has() -> None:
    found = meanings("var pid, print = 1, 2\nx = pid\ny = print")
    assert isinstance(found["pid"], Local)
    assert isinstance(found["print"], Local)


def test_tables_from_the_start() -> None:
    scopes = resolved("s[pid] += 1 t.x = 1 u[1] <<< 2 function v.f() { } w = {} w[1] = 1 var x x[1] = 1")[1]
    assert scopes.tables == ["s", "t", "u", "v"]


def test_captures_reach_through_functions() -> None:
    text = "var a, b function f() { var c return function () { return a, c, a } } print(b)"
    script, scopes = resolved(text)
    outer = script.body.body[1]
    assert isinstance(outer, tree.FunctionStatement)
    inner = outer.function.body.body[1]
    assert isinstance(inner, tree.Return)
    captures = scopes.captures[id(outer.function)]
    assert [(capture.variable.name, capture.outer) for capture in captures] == [("a", -1)]
    captures = scopes.captures[id(inner.values[0])]
    assert [(capture.variable.name, capture.outer) for capture in captures] == [("a", 0), ("c", -1)]
    variables = {variable.name: variable.captured for variable in scopes.declared.values()}
    assert variables == {"a": True, "b": False, "c": True}


def test_blocks_end_variables() -> None:
    found = meanings("{ var inside = 1 }\nprint(inside)\nfor (i = 1, 2) { }\nj = i\nwhile (0) { var k }\nj = k")
    assert isinstance(found["inside"], Global)
    assert isinstance(found["i"], Global)
    assert isinstance(found["k"], Global)


def test_a_value_is_computed_before_its_variable_begins() -> None:
    script, scopes = resolved("var x = 1 { var x = x }")
    block = script.body.body[1]
    assert isinstance(block, tree.Block)
    local = block.body[0]
    assert isinstance(local, tree.Local)
    meaning = scopes.meanings[id(local.values[0])]
    assert isinstance(meaning, Local)
    assert meaning.variable is not scopes.declared[id(local.names[0])]


def test_the_condition_of_repeat_sees_the_body() -> None:
    found = meanings("repeat { var done = 1 } until (done)")
    assert isinstance(found["done"], Local)


def test_a_loop_that_starts_with_an_assignment_has_its_own_variable() -> None:
    assert isinstance(meanings("for (i = 0; i < 3; i += 1) { x = i }")["i"], Local)
    assert isinstance(meanings("i = 5\nfor (i, t[1] = 0, 1; t[1] < 3; i += 1) { }")["i"], Global)


def test_upvalues() -> None:
    assert meanings("var a\nfunction f() { return a }")["a"] == Upvalue(0)


def test_too_many_captures() -> None:
    names = [f"v{n}" for n in range(251)]
    declarations = " ".join(f"var {name}" for name in names)
    lines = told(f"function g() {{ {declarations} return function () {{ return {', '.join(names)} }} }}")
    assert len(lines) == 1
    assert "shares more than 250 variables" in lines[0]


def test_what_cannot_be_assigned_to_is_refused_in_any_tree() -> None:
    script = parse("x = 1", "test.kp").script
    assign = script.body.body[0]
    assert isinstance(assign, tree.Assign)
    wrong = tree.Assign(assign.span, (assign.values[0],), assign.values)  # type: ignore[arg-type]
    body = tree.Block(script.body.span, (wrong,))
    scopes = resolve(tree.Script(script.span, "test.kp", "", body), BUILTINS)
    assert [diagnostic.message for diagnostic in scopes.diagnostics] == ["cannot assign to this"]
