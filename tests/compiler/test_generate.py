"""Generated code: what it looks like (golden listings), where its instructions stand, and what is too much.

After a change that is meant, `python tests/compiler/test_generate.py` from the top writes the listings anew.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from compiler import tree
from compiler.compile import CompileResult, builtin_names, compile_source, compile_tree
from compiler.parse import parse
from vm.diagnostic import Refusal
from vm.disassemble import disassemble
from vm.program import Function, Instruction, Span
from vm.verify import verify

GOLDEN = Path(__file__).parent / "golden"


def compiled(text: str) -> CompileResult:
    result = compile_source(text, "test.kp")
    verify(result.program)
    return result


def main_code(text: str) -> tuple[Instruction, ...]:
    return compiled(text).program.functions[0].code


def listing(path: Path) -> str:
    return disassemble(compile_source(path.read_text(), path.name).program)


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.kp")), ids=lambda path: path.stem)
def test_golden(path: Path) -> None:
    assert listing(path) == path.with_suffix(".txt").read_text()
    verify(compile_source(path.read_text(), path.name).program)


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.kp")), ids=lambda path: path.stem)
def test_unfolded_code_passes_the_verifier(path: Path) -> None:
    script = parse(path.read_text(), path.name).script
    verify(compile_tree(script, builtin_names(), folding=False).program)


def test_the_same_text_gives_the_same_program() -> None:
    for path in sorted(GOLDEN.glob("*.kp")):
        text = path.read_text()
        assert compile_source(text, "a.kp").program == compile_source(text, "a.kp").program


def test_counting_by_name_takes_three_instructions() -> None:
    handler = compiled("trace syscalls:* { s[execname] += 1 }").program.functions[1]
    assert [instruction.op for instruction in handler.code] == ["GETGLOBAL", "EVENT", "ADDINDEX", "RETURN"]


def test_a_counting_loop_has_only_its_body() -> None:
    code = main_code("var n = 0 for (i = 1, 1000) { n += i }")
    assert [instruction.op for instruction in code] == ["MOVE"] * 4 + ["FORPREP", "ADD", "FORLOOP", "RETURN"]


def test_names_of_functions() -> None:
    text = """function f() { }
function t.f() { }
var g = function () { }
h, t.h = function () { }, function () { }
t = {k = function () { }, [1] = function () { }}
print(function () { })
trace sched:sched_switch { }
trace a:b, c:d { }
tick-1s { }
trace_end { }
t[1].x = function () { }
"""
    names = [function.name for function in compiled(text).program.functions]
    assert names == [
        *("main chunk", "f", "t.f", "g", "h", "t.h", "k", "anonymous at 5:33", "anonymous at 6:7"),
        *("trace sched:sched_switch", "trace a:b, …", "tick-1s", "trace_end", "x"),
    ]


def place_of(text: str, op: str) -> str:
    """The source text under the only instruction `op` of the program, with its line when it is not the first."""
    spans = [
        span
        for function in compiled(text).program.functions
        for instruction, span in zip(function.code, function.spans)
        if instruction.op == op
    ]
    assert len(spans) == 1
    span: Span = spans[0]
    line = text.split("\n")[span.line - 1]
    assert span.line == span.end_line
    shown = line[span.column - 1 : span.end_column - 1]
    return shown if span.line == 1 else f"{span.line}: {shown}"


@pytest.mark.parametrize(
    ("text", "op", "expected"),
    [
        ("x = y + 1 y = 1", "ADD", "+"),
        ("x = (y)*(y) y = 1", "MUL", "*"),
        ("x = y ..\n'a' y = 1", "CONCAT", ""),
        ("x = -y y = 1", "NEG", "-y"),
        ("y = 1 y /= 0", "DIV", "/="),
        ("y[1] += 0", "ADDINDEX", "+="),
        ("y[1] <<< 0", "SAMPLE", "<<<"),
        ("y <<< 0", "STATADD", "<<<"),
        ("var y = {} x = y[1]", "GETINDEX", "y[1]"),
        ("x = print().abc", "GETINDEX", "abc"),
        ("x = print()[2]", "GETINDEX", "[2]"),
        ("y[1] = 2", "SETINDEX", "y[1]"),
        ("y[pid, tid] = 2", "KEY", "pid, tid"),
        ("x = print(1)", "CALL", "print"),
        ("f() function f() { return print(1) }", "TAILCALL", "print"),
        ("for (i = 1, 2) { }", "FORPREP", "1, 2"),
        ("for (i = 1, 2) { }", "FORLOOP", "i"),
        ("for (i = 1, 2, 3) { }", "FORPREP", "1, 2, 3"),
        ("for (k in pairs({})) { print(k) }", "ITERNEXT", "pairs({})"),
        ("for (k in pairs({})) { print(k) }", "JUMP", "pairs({})"),
        ("while (1) {\n if (pid) { print(1) } else { print(2) }\n }", "JUMPIFNOT", "2: pid"),
        ("var t = {}\nwhile (t[1]) { t = 1 }", "JUMPIF", "2: t[1]"),
        ("trace a:b /x == 1/ { } x = `sym`", "SYMBOL", "`sym`"),
        ("trace  a:b { }", "PROBE", "a:b"),
    ],
)
def test_places(text: str, op: str, expected: str) -> None:
    if expected:
        assert place_of(text, op) == expected
    else:
        spans = dict(zip([i.op for i in main_code(text)], compiled(text).program.functions[0].spans))
        assert spans[op] == Span(1, 5, 2, 4)


def test_a_jump_back_through_a_branch_stands_at_the_loop() -> None:
    text = "while (1) {\n if (pid) { print(1) } else { print(2) }\n }"
    function = compiled(text).program.functions[0]
    backs = [span for instruction, span in zip(function.code, function.spans) if instruction.op == "JUMP"]
    assert [span.line for span in backs] == [1, 1]


def refused(text: str) -> list[str]:
    with pytest.raises(Refusal) as caught:
        compile_source(text, "test.kp")
    assert caught.value.source is not None
    return [diagnostic.message for diagnostic in caught.value.diagnostics]


def test_too_many_registers() -> None:
    variables = " ".join(f"var v{n} = {n}" for n in range(251))
    assert refused(variables) == ["more than 250 variables and values at a time in one function"]
    assert (
        refused(f"function f() {{ {variables} }} {variables}")
        == ["more than 250 variables and values at a time in one function"] * 2
    )
    assert refused(f"print({', '.join('1' * 260)})") == ["more than 250 variables and values at a time in one function"]
    exactly = " ".join(f"var v{n} = {n}" for n in range(250))
    assert compiled(exactly).program.functions[0].registers == 250


def test_too_many_constants() -> None:
    lines = "\n".join(f"x = {n}" for n in range(1 << 15))
    assert "a script of more than 32768 different constants" in refused(lines)


def test_too_much_code_in_a_function() -> None:
    lines = "\n".join("x = y" for n in range(1 << 14))
    assert refused(f"y = 1\n{lines}") == ["a function of more than 32768 instructions"]


def test_too_much_code() -> None:
    script = parse("y = 1 function f() { " + "x = y\n" * 16000 + "}", "test.kp").script
    body = tree.Block(script.body.span, script.body.body + script.body.body[1:] * 4)
    with pytest.raises(Refusal) as caught:
        compile_tree(tree.Script(script.span, "test.kp", script.source, body), ())
    assert str(caught.value) == "a script of more than 131072 instructions"


def test_too_many_functions() -> None:
    messages = refused("x = function () { }\n" * 8192)
    assert messages == ["a script of more than 8192 functions"]


def test_errors_and_warnings_are_told_together() -> None:
    assert refused("break\nprint(nix)\nfrobnicate()") == [
        "`break` outside a loop",
        "`nix` is never assigned, so it is always nil",
        "unknown function `frobnicate`",
    ]


def test_warnings_of_a_good_script() -> None:
    result = compiled("print(0xfffffffffffffffff)\nprint(nix)")
    assert [warning.span is not None and warning.span.line for warning in result.warnings] == [1, 2]
    assert all(warning.warning for warning in result.warnings)


def test_deep_expressions() -> None:
    compiled("x = " + "(" * 90 + "1" + ")" * 90)
    compiled("y = 1 x = y" + " + y" * 180)


def test_the_end_has_a_place_in_an_empty_script() -> None:
    function: Function = compiled("").program.functions[0]
    assert [instruction.op for instruction in function.code] == ["RETURN"]
    assert min(function.spans[0]) >= 1


def test_dead_code_makes_no_function() -> None:
    program = compiled("function f() { return 1 g = function () { } }\nif (false) { h = function () { } }").program
    assert [function.name for function in program.functions] == ["main chunk", "f"]


if __name__ == "__main__":
    for golden in sorted(GOLDEN.glob("*.kp")):
        golden.with_suffix(".txt").write_text(listing(golden))
