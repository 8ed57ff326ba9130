"""Constant folding: the same answers as the language page, and nothing folded that could be an error."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compiler import tree
from compiler.fold import STRING_BYTES, fold, wrapped
from compiler.parse import parse
from tests.compiler.reference import FAULT, evaluate
from vm.program import Span

LEAST = -(1 << 63)
MOST = (1 << 63) - 1
SPAN = Span(1, 1, 1, 2)


def script_of(expression: tree.Expression) -> tree.Script:
    body = tree.Block(SPAN, (tree.Return(SPAN, (expression,)),))
    return tree.Script(SPAN, "test.kp", "", body)


def folded(expression: tree.Expression) -> tree.Expression:
    (statement,) = fold(script_of(expression)).body.body
    assert isinstance(statement, tree.Return)
    return statement.values[0]


def folded_text(text: str) -> tree.Expression:
    (statement,) = fold(parse(f"return {text}", "test.kp").script).body.body
    assert isinstance(statement, tree.Return)
    return statement.values[0]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1 + 2 * 3", 7),
        ("(1 + 2) * 3", 9),
        ("0x7fffffffffffffff + 1", LEAST),
        ("-0x7fffffffffffffff - 2", MOST),
        ("0xffffffffffffffff", -1),
        ("-7 / 2", -3),
        ("7 / -2", -3),
        ("-7 / -2", 3),
        ("-7 % 2", -1),
        ("7 % -2", 1),
        ("(-0x7fffffffffffffff - 1) / -1", LEAST),
        ("(-0x7fffffffffffffff - 1) % -1", 0),
        ("1 << 63", LEAST),
        ("1 << 64", 1),
        ("1 << -1", LEAST),
        ("-1 >> 60", 15),
        ("-1 >> 64", -1),
        ("6 & 3 | 8 ^ 1", 11),
        ("~5", -6),
        ("!0", False),
        ('!""', False),
        ("not nil", True),
        ("!false", True),
        ("1 == true", False),
        ("0 == false", False),
        ("nil == false", False),
        ('1 == "1"', False),
        ("nil != nil", False),
        ("2 < 10", True),
        ('"2" < "10"', False),
        ('"a" <= "a"', True),
        ('"b" > "a"', True),
        ("3 >= 3", True),
        ("3 > 3", False),
        ('1 .. 2 .. "x"', b"12x"),
        ("-1 .. -2", b"-1-2"),
        ("nil && 1", None),
        ("0 && 1", 1),
        ("false || nil", None),
        ('"" || 2', b""),
    ],
)
def test_folds(text: str, value: object) -> None:
    result = folded_text(text)
    assert isinstance(result, tree.Literal)
    assert type(result.value) is type(value)
    assert result.value == value


@pytest.mark.parametrize(
    "text",
    [
        *("1 / 0", "1 % 0", "1 + nil", "nil + 1", '"a" + 1', "true + 1", '1 < "a"', "nil < 1", "true < false"),
        *('"a" .. nil', "-nil", '~"a"', "-true", "1 .. true", "x && 1", "1 && x", "(x)"),
    ],
)
def test_leaves_alone(text: str) -> None:
    assert not isinstance(folded_text(text), tree.Literal)


def test_a_long_string_is_not_built() -> None:
    half = "x" * (STRING_BYTES // 2)
    assert isinstance(folded_text(f'"{half}" .. "{half}"'), tree.Literal)
    assert isinstance(folded_text(f'"{half}" .. "{half}y"'), tree.Binary)


def test_what_has_nothing_to_fold_is_the_same_object() -> None:
    script = parse("function f(a, b) { if (a) { t[a] = b } else { return a, b } }", "test.kp").script
    assert fold(script) is script


def test_folds_everywhere() -> None:
    script = parse("if (x) { t[1 + 1] = {a = 2 + 2, [3 + 3] = 4 + 4} } elseif (5 + 5) { f(6 + 6) }", "test.kp").script
    found: list[object] = []
    todo: list[object] = [fold(script)]
    while todo:
        part = todo.pop()
        if type(part) is tuple:
            todo.extend(part)
        elif isinstance(part, tree.Node):
            assert not isinstance(part, tree.Binary)
            todo.extend(vars(part).values())
            found.append(part.value if isinstance(part, tree.Literal) else None)
    assert {2, 4, 6, 8, 10, 12} <= set(found)


def test_a_folded_literal_has_the_place_of_the_whole() -> None:
    assert folded_text("1 + 2 * 3").span == Span(1, 8, 1, 17)


integers = st.one_of(st.integers(-3, 3), st.integers(LEAST, MOST), st.sampled_from([LEAST, MOST, 63, 64, -64]))
literals: st.SearchStrategy[tree.Expression] = st.builds(
    lambda value: tree.Literal(SPAN, value),
    st.one_of(integers, st.none(), st.booleans(), st.sampled_from([b"", b"a", b"ab", b"\xff"])),
)
expressions = st.recursive(
    literals,
    lambda inner: st.one_of(
        st.builds(lambda o, a: tree.Unary(SPAN, o, a), st.sampled_from(list("-!~")), inner),
        st.builds(
            lambda o, a, b: tree.Binary(SPAN, o, a, b),
            st.sampled_from(
                ["+", "-", "*", "/", "%", "&", "|", "^", "<<", ">>", "..", "==", "!=", "<", "<=", ">", ">=", "&&", "||"]
            ),
            inner,
            inner,
        ),
        st.builds(lambda a: tree.Parenthesized(SPAN, a), inner),
    ),
    max_leaves=12,
)


@given(expressions)
def test_folding_changes_no_value(expression: tree.Expression) -> None:
    before, after = evaluate(expression), evaluate(folded(expression))
    assert type(before) is type(after)
    assert before == after


@given(expressions)
def test_what_folds_to_a_literal_is_its_value(expression: tree.Expression) -> None:
    result = folded(expression)
    if isinstance(result, tree.Literal):
        value = evaluate(expression)
        assert value is not FAULT
        assert type(result.value) is type(value)
        assert result.value == value


@given(st.integers())
def test_wrapping(value: int) -> None:
    assert LEAST <= wrapped(value) <= MOST
    assert (wrapped(value) - value) % (1 << 64) == 0
