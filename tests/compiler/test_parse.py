"""The parser: what reads as what, where it stands, and that nothing but a Refusal comes of any text."""

from __future__ import annotations

import re
from dataclasses import fields
from typing import Iterator, Union

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compiler import tree
from compiler.parse import parse
from compiler.show import show
from tests.compiler.parsing import EVERYTHING, body, expression, kinds, statement
from vm.program import Span


def brackets(node: tree.Expression) -> str:
    """An expression with all its brackets."""
    if isinstance(node, tree.Binary):
        return f"({brackets(node.left)} {node.operator} {brackets(node.right)})"
    if isinstance(node, tree.Unary):
        return f"({node.operator}{brackets(node.operand)})"
    if isinstance(node, tree.Parenthesized):
        return f"[{brackets(node.inner)}]"
    if isinstance(node, tree.Name):
        return node.name
    if isinstance(node, tree.Literal):
        return str(node.value)
    if isinstance(node, tree.Call):
        return f"{brackets(node.function)}({', '.join(map(brackets, node.arguments))})"
    if isinstance(node, tree.Member):
        return f"{brackets(node.table)}.{node.name}"
    if isinstance(node, tree.Index):
        return f"{brackets(node.table)}[{', '.join(map(brackets, node.keys))}]"
    raise AssertionError(node)


def walk(node: tree.Node) -> Iterator[tree.Node]:
    yield node
    for field in fields(node):
        value = getattr(node, field.name)
        for item in value if isinstance(value, tuple) else (value,):
            for part in item if isinstance(item, tuple) else (item,):
                if isinstance(part, tree.Node):
                    yield from walk(part)


# -- expressions ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        ("a || b && c", "(a || (b && c))"),
        ("a && b == c", "(a && (b == c))"),
        ("a < b | c", "(a < (b | c))"),
        ("a | b ^ c", "(a | (b ^ c))"),
        ("a ^ b & c", "(a ^ (b & c))"),
        ("a & b << c", "(a & (b << c))"),
        ("a >> b .. c", "(a >> (b .. c))"),
        ("a .. b + c", "(a .. (b + c))"),
        ("a + b * c", "(a + (b * c))"),
        ("a - b / c % d", "(a - ((b / c) % d))"),
        ("a * -b", "(a * (-b))"),
        ("-a.b[c](d)", "(-a.b[c](d))"),
        ("!a == b", "((!a) == b)"),
        ("not a and b or c", "(((!a) && b) || c)"),
        ("a .. b .. c", "(a .. (b .. c))"),
        ("a - b - c", "((a - b) - c)"),
        ("a << b >> c", "((a << b) >> c)"),
        ("a || b || c", "((a || b) || c)"),
        ("a <= b != c >= d > e", "((((a <= b) != c) >= d) > e)"),
        ("- - ~ ! a", "(-(-(~(!a))))"),
        ("(a + b) * c", "([(a + b)] * c)"),
        ("a&&b||c&d", "((a && b) || (c & d))"),
        ("1..2", "(1 .. 2)"),
        ("a<-b", "(a < (-b))"),
        ("tick-5", "(tick - 5)"),
        ("profile-99-hz", "((profile - 99) - hz)"),
        ("f(x)[1].y(2)", "f(x)[1].y(2)"),
        ("t[a, b]", "t[a, b]"),
        ("a[b[1]]", "a[b[1]]"),
        ("t[[[k]]]", "t[b'k']"),
        ("t[ [[k]] ]", "t[b'k']"),
        ("args.function.end", "args.function.end"),
        ('(f or g)("s")', "[(f || g)](b's')"),
        ('ffi.cast("struct sk_buff *", p).len', "ffi.cast(b'struct sk_buff *', p).len"),
        ("andy or orb", "(andy || orb)"),
        ("iffy", "iffy"),
    ],
)
def test_precedence(text: str, meaning: str) -> None:
    assert brackets(expression(text)) == meaning


LEVELS = [["||", "or"], ["&&", "and"], ["<", ">", "<=", ">=", "==", "!="], ["|"], ["^"], ["&"], ["<<", ">>"], [".."]]
LEVELS += [["+", "-"], ["*", "/", "%"]]
LEVEL = {operator: level for level, operators in enumerate(LEVELS) for operator in operators}


def climb(words: list[str], least: int) -> str:
    """The same, by precedence climbing: an independent account of the table of operators."""
    left = words.pop(0)
    while words and LEVEL[words[0]] >= least:
        operator = words.pop(0)
        level = LEVEL[operator]
        right = climb(words, level if operator == ".." else level + 1)
        left = f"({left} {dict(zip(('or', 'and'), ('||', '&&'))).get(operator, operator)} {right})"
    return left


@given(st.lists(st.sampled_from(sorted(LEVEL)), max_size=12))
def test_any_row_of_operators_groups_as_their_levels_say(operators: list[str]) -> None:
    words = ["a0"]
    for number, operator in enumerate(operators, 1):
        words += [operator, f"a{number}"]
    assert brackets(expression(" ".join(words))) == climb(words, 0)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("nil", None),
        ("true", True),
        ("false", False),
        ("0", 0),
        ("007", 7),
        ("0x2A", 42),
        ("0Xff", 255),
        ("9223372036854775807", 2**63 - 1),
        ("9223372036854775808", -(2**63)),
        ("0xffffffffffffffff", -1),
        ("18446744073709551615", -1),
        ('"a\\n\\t\\\\\\"\\x41\\101\\0"', b'a\n\t\\"AA\0'),
        ("'it\\'s \"so\"'", b'it\'s "so"'),
        ('"\\a\\b\\f\\v\\r\\e\\?"', b"\a\b\f\v\r\x1b?"),
        ('"\\033[1m\\x1b[m"', b"\x1b[1m\x1b[m"),
        ('"a\\\nb"', b"a\nb"),
        ('"a\\\r\nb"', b"a\nb"),
        ('"grün"', "grün".encode()),
        ("[[a\\n]]", b"a\\n"),
        ("[[\na\nb]]", b"a\nb"),
        ("[[\r\na]]", b"a"),
        ("[[]]", b""),
        ("[[a]b]]", b"a]b"),
        ('""', b""),
        ('"# no comment"', b"# no comment"),
    ],
)
def test_literals(text: str, value: object) -> None:
    node = expression(text)
    assert isinstance(node, tree.Literal)
    assert node.value == value and type(node.value) is type(value)


def test_bytes_that_are_no_text_survive_in_strings() -> None:
    assign = body(b'x = "\xff\xfe" # \x80\ny = [[\xc3\xa4\x80]]')
    values = [each.values[0] for each in assign if isinstance(each, tree.Assign)]
    assert [value.value for value in values if isinstance(value, tree.Literal)] == [b"\xff\xfe", b"\xc3\xa4\x80"]


@given(st.binary())
def test_any_bytes_survive_as_escapes_and_as_they_are(data: bytes) -> None:
    escaped = "".join(f"\\x{byte:02x}" for byte in data)
    octal = "".join(f"\\{byte:03o}" for byte in data)
    plain = data.translate(None, b'"\\\n')
    (assign,) = body(f'x = "{escaped}", "{octal}", "'.encode() + plain + b'"')
    assert isinstance(assign, tree.Assign)
    assert [each.value for each in assign.values if isinstance(each, tree.Literal)] == [data, data, plain]


@pytest.mark.parametrize("text", ["0x10000000000000000", "18446744073709551616", "9" * 100_000, "0x" + "f" * 100_000])
def test_an_integer_beyond_64_bits_saturates_and_warns(text: str) -> None:
    parsed = parse(f"x = {text}", "t.kp")
    (assign,) = parsed.script.body.body
    assert isinstance(assign, tree.Assign) and isinstance(assign.values[0], tree.Literal)
    assert assign.values[0].value == 2**63 - 1
    (warning,) = parsed.warnings
    assert warning.warning and warning.span == assign.values[0].span


def test_leading_zeros_are_no_digits() -> None:
    parsed = parse("x = " + "0" * 100_000 + "7", "t.kp")
    assert parsed.warnings == ()


def test_symbols_and_varargs() -> None:
    symbol = expression("`vfs_read.isra.0`")
    assert isinstance(symbol, tree.Symbol) and symbol.name == "vfs_read.isra.0"
    function = expression("function (a, ...) { return ... }")
    assert isinstance(function, tree.FunctionExpression)
    assert function.variadic and [each.name for each in function.parameters] == ["a"]
    only = expression("function (...) { }")
    assert isinstance(only, tree.FunctionExpression) and only.variadic and only.parameters == ()


def test_tables() -> None:
    node = expression("{1, 2; [k] = v, name = w, f(), {},}")
    assert isinstance(node, tree.TableExpression)
    keys = [entry.key for entry in node.entries]
    assert keys[0] is None and keys[1] is None and keys[4] is None and keys[5] is None
    assert isinstance(keys[2], tree.Name)
    assert isinstance(keys[3], tree.Literal) and keys[3].value == b"name"
    assert expression("{}") == tree.TableExpression(Span(1, 5, 1, 7), ())


# -- statements -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("", []),
        (";;;", []),
        ("#!/usr/bin/env ktap\n# only comments", []),
        ("\ufeffx = 1", ["Assign"]),
        ("x = 1;y = 2", ["Assign", "Assign"]),
        ("x = 1 y = 2 f() g()", ["Assign", "Assign", "Evaluate", "Evaluate"]),
        ("a, t[k], u.v = 1, 2", ["Assign"]),
        ("a += 1 a -= 1 a *= 1 a /= 1 a %= 1 a ..= b", ["Update"] * 6),
        ("s[k] <<< v s <<< 1", ["Sample", "Sample"]),
        ("var a local b, c = 1, 2", ["Local", "Local"]),
        ("{ x = 1 { } }", ["Block"]),
        ("while (a) { break continue }", ["While"]),
        ("repeat { } until (a)", ["Repeat"]),
        ("for (i = 1, 2) { } for (i = 1, 2, 3) { } for (var i = 1, 2) { }", ["CountingFor"] * 3),
        ("for (k in t) { } for (a, b, v in pairs(t)) { } for (var k, v in f, s, c) { }", ["IteratingFor"] * 3),
        ("for (;;) { } for (i = 0; i < 3; i += 1) { } for (var i, j = 0, 1; ; f()) { }", ["ClassicFor"] * 3),
        ("return", ["Return"]),
        ("return; x = 1", ["Return", "Assign"]),
        ("return f(x), 2", ["Return"]),
        ("function f(a, b) { } function t.u.f() { }", ["FunctionStatement"] * 2),
        ("local function f() { f() } var function g() { }", ["Local", "FunctionStatement"] * 2),
        ("trace_begin { } trace_end { } tick-5s { } profile-99hz { }", ["Trace"] * 4),
    ],
)
def test_statements(text: str, names: list[str]) -> None:
    assert kinds(text) == names


def test_an_if_is_flat_however_else_if_is_written() -> None:
    node = statement("if (a) { } elseif (b) { } else if (c) { x = 1 } else { }")
    assert isinstance(node, tree.If)
    assert [brackets(condition) for condition, _ in node.branches] == ["a", "b", "c"]
    assert node.otherwise is not None
    short = statement("if (a) { }")
    assert isinstance(short, tree.If) and short.otherwise is None


def test_parts_of_loops() -> None:
    counting = statement("for (i = a, b, c) { }")
    assert isinstance(counting, tree.CountingFor) and counting.step is not None
    assert (counting.variable.name, brackets(counting.last), brackets(counting.step)) == ("i", "b", "c")
    classic = statement("for (;;) { }")
    assert isinstance(classic, tree.ClassicFor)
    assert (classic.start, classic.condition, classic.update) == (None, None, None)
    iterating = statement("for (a, b in f, s) { }")
    assert isinstance(iterating, tree.IteratingFor)
    assert [name.name for name in iterating.names] == ["a", "b"] and len(iterating.iterated) == 2


def test_functions_know_their_names() -> None:
    plain, member = body("function f(a) { } function t.u.f() { }")
    assert isinstance(plain, tree.FunctionStatement) and plain.function.name == "f"
    assert isinstance(member, tree.FunctionStatement) and member.function.name == "t.u.f"
    assert isinstance(member.target, tree.Member) and member.target.name_span == Span(1, 32, 1, 33)
    anonymous = expression("function () { }")
    assert isinstance(anonymous, tree.FunctionExpression) and anonymous.name == ""


def test_a_call_goes_on_over_lines() -> None:
    assert kinds("x = f\n(a)") == ["Assign"]
    assert kinds("x = f;(a)()") == ["Assign", "Evaluate"]


# -- probes -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "events", "condition"),
    [
        ("trace sched:sched_switch { }", ["sched:sched_switch"], None),
        ("trace syscalls:*, sched:* { }", ["syscalls:*", "sched:*"], None),
        ("trace *:* { }", ["*:*"], None),
        ("trace a:b{ }", ["a:b"], None),
        ("trace a:b,c:d /x == 1/ { }", ["a:b", "c:d"], "x == 1"),
        ("trace a:b/x == 1/{ }", ["a:b"], "x == 1"),
        ('trace a:b /x == "a/b" && y ~ "*/c"/ { }', ["a:b"], 'x == "a/b" && y ~ "*/c"'),
        ("trace a:b # why\n { }", ["a:b"], None),
        ("trace raw:sched_switch, perf:cpu-cycles:1000000, watch:0xADDR:8:w { }",
         ["raw:sched_switch", "perf:cpu-cycles:1000000", "watch:0xADDR:8:w"], None),
        ("trace probe:vfs_read+0x10, probe:vfs_read%return { }", ["probe:vfs_read+0x10", "probe:vfs_read%return"], None),
        ("trace syscalls:sys_enter_[a-c,x]* { }", ["syscalls:sys_enter_[a-c,x]*"], None),
        ("trace probe:/lib/x86_64-linux-gnu/libc.so.6:mall*, probe:bash:readline { }",
         ["probe:/lib/x86_64-linux-gnu/libc.so.6:mall*", "probe:bash:readline"], None),
        ("trace sdt:/usr/lib/x.so:p:* /pid == 1/ { }", ["sdt:/usr/lib/x.so:p:*"], "pid == 1"),
        ("trace ftrace:function /ip==mutex*/ { }", ["ftrace:function"], "ip==mutex*"),
        ("trace probe:do_sys_openat2   dfd=%di\n filename=+0(%si):ustring { }",
         ["probe:do_sys_openat2 dfd=%di filename=+0(%si):ustring"], None),
        ("trace probe:f $arg3 $stack1 @jiffies:u64 %ax r=$retval -8(%sp) \\1:u8 /pid != 2/ { }",
         ["probe:f $arg3 $stack1 @jiffies:u64 %ax r=$retval -8(%sp) \\1:u8"], "pid != 2"),
        ("trace probe:f x=%di:b4@0/32 s=+0(+8($arg1)):string n=$arg1->len y=+0(%si):u32[4], probe:g file count:u64 { }",
         ["probe:f x=%di:b4@0/32 s=+0(+8($arg1)):string n=$arg1->len y=+0(%si):u32[4]", "probe:g file count:u64"], None),
        ("trace probe:./bin/x:f, sdt:../x.so:* /pid == 2/ { }", ["probe:./bin/x:f", "sdt:../x.so:*"], "pid == 2"),
        ("trace tick-1s { }", ["tick-1s"], None),
        ("tick-10ms { }", ["tick-10ms"], None),
        ('trace "sched:*" { }', ["sched:*"], None),
        ('trace "sched:* /prev_pid == 0/" { }', ["sched:*"], "prev_pid == 0"),
        ('trace "a:b", c:d /x == 1/ { }', ["a:b", "c:d"], "x == 1"),
        ('trace "a:b, c:d" { }', ["a:b", "c:d"], None),
        ('trace "a:b /x == \\"y\\"/" { }', ["a:b"], 'x == "y"'),
    ],
)  # fmt: skip
def test_events(text: str, events: list[str], condition: Union[str, None]) -> None:
    node = statement(text)
    assert isinstance(node, tree.Trace)
    assert [event.text for event in node.events] == events
    assert (node.filter.text if node.filter is not None else None) == condition
    assert node.handler.parameters == ()


def test_a_filter_stands_between_its_slashes() -> None:
    node = statement("trace a:b\n    /x == 1\n && y/ { }".replace("y/", "y == 2/"))
    assert isinstance(node, tree.Trace) and node.filter is not None
    assert node.filter.span == Span(2, 6, 3, 11)
    quoted = statement('trace "a:b /x == 1/" { }')
    assert isinstance(quoted, tree.Trace) and quoted.filter is not None
    assert quoted.filter.span == Span(1, 13, 1, 19)
    assert quoted.events[0].span == Span(1, 8, 1, 11)


def test_older_handlers_are_functions() -> None:
    text = 'trace "a:b" function (e) { } trace_end function () { } trace_begin function () { } tick-1s function () { }'
    first, *others = body(text)
    assert isinstance(first, tree.Trace) and [each.name for each in first.handler.parameters] == ["e"]
    assert all(isinstance(each, tree.Trace) and each.handler.parameters == () for each in others)


def test_timers_are_told_from_subtractions() -> None:
    assert kinds("x = tick-5 tick-5s { } y = profile-9 profile-9hz { }") == ["Assign", "Trace", "Assign", "Trace"]
    assert kinds("x = 3\ntick-5s { }") == ["Assign", "Trace"]


def test_the_first_script_of_the_older_manual() -> None:
    text = """function eventfun (e) {
            printf("%d %d\\t%s\\t%s", cpu(), pid(), execname(), e.tostring())
    }
    kdebug.probe("tp:syscalls", eventfun)
    kdebug.probe_end(function () { printf("probe end\\n") })
    kdebug.trace_end(f)"""
    assert kinds(text) == ["FunctionStatement", "Evaluate", "Evaluate", "Evaluate"]


# -- places -----------------------------------------------------------------------------------


def test_every_node_stands_within_its_parent_and_the_text() -> None:
    script = parse(EVERYTHING, "t.kp").script
    lines = EVERYTHING.split("\n")
    seen = set()
    for node in walk(script):
        seen.add(type(node).__name__)
        start, end = node.span[:2], node.span[2:]
        assert start <= end
        assert node.span.end_column <= len(lines[node.span.end_line - 1]) + 1
        for part in walk(node):
            assert start <= part.span[:2] and part.span[2:] <= end
    assert seen == {each.__name__ for each in tree.Node.__subclasses__()}


def test_a_name_is_its_text() -> None:
    lines = EVERYTHING.split("\n")
    for node in walk(parse(EVERYTHING, "t.kp").script):
        if isinstance(node, tree.Name):
            line, column, _, end = node.span
            assert lines[line - 1][column - 1 : end - 1] == node.name
        if isinstance(node, tree.Member):
            line, column, _, end = node.name_span
            assert lines[line - 1][column - 1 : end - 1] == node.name


def shape(text: str) -> list[str]:
    """The tree without its places."""
    return re.sub(r"  \[[\d:-]+\]", "", show(parse(text, "t.kp").script)).split("\n")


def test_white_space_is_free() -> None:
    spread = EVERYTHING.replace("{", "\n{\n # here\n").replace(")", "\t)\r\n").replace("\n", "\n\v\f ")
    assert shape(spread.replace("[[raw\n\v\f ", "[[raw\n")) == shape(EVERYTHING)
    assert shape(EVERYTHING.replace(" }\n", "; }\n;")) == shape(EVERYTHING)


def test_show_is_a_line_a_node() -> None:
    assert show(parse('if (a) { f("x\\n", -1) } else { return }', "t.kp").script) == (
        "Script t.kp\n"
        "  If  [1:1-1:40]\n"
        "    Name a  [1:5-1:6]\n"
        "    Block  [1:8-1:24]\n"
        "      Evaluate  [1:10-1:22]\n"
        "        Call  [1:10-1:22]\n"
        "          function: Name f  [1:10-1:11]\n"
        '          arguments: Literal "x\\x0a"  [1:12-1:17]\n'
        "          arguments: Unary -  [1:19-1:21]\n"
        "            Literal 1  [1:20-1:21]\n"
        "    otherwise: Block  [1:30-1:40]\n"
        "      Return  [1:32-1:38]\n"
    )
