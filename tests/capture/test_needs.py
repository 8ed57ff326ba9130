"""What handlers ask of their events, found in the bytecode."""

from __future__ import annotations

import pytest

from compiler.compile import compile_source
from ktap.demand import BYTES, KERNEL, STRING, USER, Binary, Demand, Number, Read, Symbol, Value, evaluate, placed
from ktap.needs import Needs, needs, symbols_of


def found(script: str, string_bytes: int = 100) -> Needs:
    """The needs of the last function of a script as a handler."""
    program = compile_source(script, "test.kp").program
    takes_event = "function (e)" in script
    return needs(program, [(len(program.functions) - 1, takes_event)], string_bytes)


def demand(script: str) -> Demand:
    result = found(script)
    assert not result.diagnostics
    (only,) = result.of_function.values()
    return only


@pytest.mark.parametrize(
    ("body", "variables"),
    [
        ("", set()),
        ("print(pid, execname)", {"pid", "execname"}),
        ("var p = arg0  s[p] += arg1", {"arg0", "arg1"}),
        ("if (cpu == 0) { print(argstr) } else { print(args.next_comm) }", {"cpu", "argstr", "args.next_comm"}),
        ("print(curtask.real_parent.pid)", {"curtask.real_parent.pid"}),
        ("var t = curtask  print(t.real_parent.tgid)", {"curtask", "curtask.real_parent", "curtask.real_parent.tgid"}),
        ("print(usym(arg0))", {"arg0", "pid"}),
    ],
)
def test_variables(body: str, variables: set[str]) -> None:
    assert demand(f"trace sched:sched_switch {{ {body} }}").variables == variables


def test_what_called_functions_read_counts_too() -> None:
    script = """
    function a() { return b(uid) }
    function b(x) { return x + gid }
    trace sched:sched_switch { print(a()) }
    """
    assert demand(script).variables == {"uid", "gid"}


def test_functions_that_are_not_called_ask_for_nothing() -> None:
    script = "function a() { return argstr }\ntrace sched:sched_switch { print(pid) }"
    assert demand(script).variables == {"pid"}


@pytest.mark.parametrize(
    "script",
    [
        "t = { f = function () { return argstr } }\ntrace sched:sched_switch { print(t.f()) }",
        "function call(f) { return f() }\ntrace sched:sched_switch { print(call(function () { return argstr })) }",
        "var f = function () { return argstr }\ntrace sched:sched_switch { print(f()) }",
        "trace sched:sched_switch { for (k, v in sort_pairs(t, function (a, b) { return len(argstr) < a })) { } }",
        "function make() { return function () { return argstr } }\ntrace sched:sched_switch { print(make()()) }",
        'kdebug.probe("tp:sched:sched_switch", function (e) { print(e.tostring()) })',
    ],
)
def test_functions_whose_calls_cannot_be_seen_count_for_every_handler(script: str) -> None:
    assert "argstr" in demand(script).variables


ARG1 = Value("arg1")


@pytest.mark.parametrize(
    ("body", "reads"),
    [
        ("user_string(arg1)", {Read(USER, STRING, ARG1, 101)}),
        ("user_string(arg1, 20)", {Read(USER, STRING, ARG1, 21)}),
        ("user_string(arg1, 1000)", {Read(USER, STRING, ARG1, 101)}),
        ("user_string(arg1, arg2)", {Read(USER, STRING, ARG1, 101)}),
        ("kernel_string(args.name)", {Read(KERNEL, STRING, Value("args.name"), 101)}),
        ("user_buf(arg1, 8)", {Read(USER, BYTES, ARG1, 8)}),
        ("user_buf(arg1, arg2)", {Read(USER, BYTES, ARG1, 100, Value("arg2"))}),
        ("user_u32(arg1 + 4)", {Read(USER, BYTES, Binary("ADD", ARG1, Number(4)), 4)}),
        ("kernel_u64(`jiffies`)", {Read(KERNEL, BYTES, Symbol("jiffies"), 8)}),
        ("user_u8(user_u64(arg1))", {Read(USER, BYTES, ARG1, 8), Read(USER, BYTES, Read(USER, BYTES, ARG1, 8), 1)}),
        ("var p = arg1  if (pid) { p = arg1 }  print(user_u16(p))", {Read(USER, BYTES, ARG1, 2)}),
        ("user_string(nil)", set()),
    ],
)
def test_reads(body: str, reads: set[Read]) -> None:
    assert demand(f"trace sched:sched_switch {{ {body} }}").reads == reads


def test_a_pointer_that_is_one_of_two_is_refused_with_its_place() -> None:
    script = "trace syscalls:* {\n  var p = arg1\n  if (pid == 1) { p = arg2 }\n  print(user_string(p))\n}"
    (problem,) = found(script).diagnostics
    assert problem.message.startswith("user_string: it cannot be told")
    assert problem.span is not None and (problem.span.line, problem.span.column) == (4, 9)


@pytest.mark.parametrize(
    ("body", "kernel", "user"),
    [
        ("stack()", 127, 0),
        ("stack(5)", 5, 0),
        ("stack(5, 2)", 7, 0),
        ("stack(nil, 3)", 127, 0),
        ("stack(arg1)", 127, 0),
        ("ustack(3)", 0, 3),
        ("stack(2) stack(9) ustack()", 9, 127),
        ("print_backtrace()", 127, 0),
    ],
)
def test_stacks(body: str, kernel: int, user: int) -> None:
    asked = demand(f"trace sched:sched_switch {{ {body} }}")
    assert (asked.kernel_stack, asked.user_stack) == (kernel, user)


def test_states() -> None:
    body = 'print(in_interrupt(), in_iowait(), curr_taskinfo("prio"))'
    assert demand(f"trace sched:sched_switch {{ {body} }}").states == {"in_interrupt", "in_iowait", "prio"}


def test_the_older_handlers_are_given_the_text() -> None:
    assert "argstr" in demand('trace "sched:sched_switch" function (e) { print(e) }').variables


def test_recursion_and_loops_end() -> None:
    script = """
    function f(p, n) { if (n > 0) { return f(p + 8, n - 1) }  return user_u64(p) }
    trace sched:sched_switch { print(f(arg1, 3)) }
    """
    result = found(script)
    assert result.diagnostics or result.of_function


def test_symbols_in_reads() -> None:
    assert symbols_of([demand("trace sched:* { kernel_u32(kernel_u64(`a`) + `b`) }")]) == {"a", "b"}


def test_expressions_are_computed_as_in_the_kernel() -> None:
    values = {"arg1": -1, "arg2": 70}
    for operator, wanted in (("ADD", 69), ("MUL", -70), ("SHL", -64), ("SHR", 0x03FFFFFFFFFFFFFF), ("BAND", 70)):
        expression = Binary(operator, Value("arg1"), Value("arg2"))
        assert evaluate(expression, lambda e: values[e.name]) == wanted  # type: ignore[union-attr]


def test_an_expression_without_its_variable_is_none() -> None:
    read = Read(USER, BYTES, Binary("ADD", ARG1, Value("arg9")), 4, None)
    assert placed(read, lambda what: Number(1) if what == ARG1 else None) is None
    assert placed(read, lambda what: Number(1)) == read._replace(address=Binary("ADD", Number(1), Number(1)))
