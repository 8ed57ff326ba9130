"""Event filters: what they mean, how the kernel is told, and where their errors stand."""

from __future__ import annotations

from typing import Optional

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compiler.filter import And, Compare, FilterError, Not, Or, Predicate, parse_filter, to_kernel
from vm.program import Span

PLACE = Span(3, 10, 3, 90)


def read(text: str) -> Predicate:
    return parse_filter(text, PLACE)


def compare(field: str, op: str, value: object) -> Compare:
    assert isinstance(value, (int, bytes))
    return Compare(field, op, value, PLACE)


A, B, C = (compare(name, "==", 1) for name in "abc")


@pytest.mark.parametrize(
    ("text", "predicate"),
    [
        ("prev_pid == 0", compare("prev_pid", "==", 0)),
        ("prev_pid==0", compare("prev_pid", "==", 0)),
        ("  pid  !=  -1\n", compare("pid", "!=", -1)),
        ("a < 1", compare("a", "<", 1)),
        ("a <= 0x1F", compare("a", "<=", 31)),
        ("a > 010", compare("a", ">", 8)),
        ("a >= 0", compare("a", ">=", 0)),
        ("flags & 0x8000", compare("flags", "&", 0x8000)),
        ("a == 18446744073709551615", compare("a", "==", 2**64 - 1)),
        ("a == -9223372036854775808", compare("a", "==", -(2**63))),
        ('next_comm ~ "ba*"', compare("next_comm", "~", b"ba*")),
        ("next_comm ~ ba[sS]h?", compare("next_comm", "~", b"ba[sS]h?")),
        ("comm ~ 12", compare("comm", "~", b"12")),
        ("comm == bash", compare("comm", "==", b"bash")),
        ("comm == 'a \"b\" /c'", compare("comm", "==", b'a "b" /c')),
        ('comm == "a\\n"', compare("comm", "==", b"a\\n")),
        ("comm == [!a]b", compare("comm", "==", b"[!a]b")),
        ("comm == kworker/u8:2", compare("comm", "==", b"kworker/u8:2")),
        ("ip==mutex*", compare("ip", "~", b"mutex*")),
        ('ip == "*mutex*"', compare("ip", "~", b"*mutex*")),
        ("ip != mutex*", Not(compare("ip", "~", b"mutex*"))),
        ("execname == 'ünï'", compare("execname", "==", "ünï".encode())),
        ("a == 1 && b == 1", And((A, B))),
        ("a == 1 || b == 1 && c == 1", Or((A, And((B, C))))),
        ("a == 1 && b == 1 && c == 1", And((A, B, C))),
        ("(a == 1 || b == 1) && c == 1", And((Or((A, B)), C))),
        ("!(a == 1)", Not(A)),
        ("!a == 1", Not(A)),
        ("!!((a == 1))", Not(Not(A))),
        ("a&1&&b&1", And((compare("a", "&", 1), compare("b", "&", 1)))),
        ("name.ustring == x", compare("name.ustring", "==", b"x")),
    ],
)
def test_meanings(text: str, predicate: Predicate) -> None:
    assert read(text) == predicate


def test_all_of_and_any_of_are_not_the_same() -> None:
    assert And((A, B)) != Or((A, B))
    assert read("a == 1 && b == 1") != read("a == 1 || b == 1")


def test_a_comparison_knows_its_place() -> None:
    predicate = read('a == 1 &&\n  b ~ "x y"')
    assert isinstance(predicate, And)
    spans = [part.span for part in predicate.parts if isinstance(part, Compare)]
    assert spans == [Span(3, 10, 3, 16), Span(4, 3, 4, 12)]


@pytest.mark.parametrize(
    ("text", "rendered"),
    [
        ("a == 0x10", "a == 16"),
        ("comm == bash", 'comm == "bash"'),
        ("comm == 'x\"y'", "comm == 'x\"y'"),
        ('comm == "it\'s"', 'comm == "it\'s"'),
        ("ip != m*", '!(ip ~ "m*")'),
        ("(a == 1 || b == 1) && !c == 1", "(a == 1 || b == 1) && !(c == 1)"),
        ("a == 1 || b == 1 && c == 1", "a == 1 || (b == 1 && c == 1)"),
        ("!(a == 1 && b == 1)", "!(a == 1 && b == 1)"),
    ],
)
def test_the_kernels_own_syntax(text: str, rendered: str) -> None:
    assert to_kernel(read(text)) == rendered


NAMES = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,8}", fullmatch=True)
TEXTS = st.one_of(
    st.text(st.characters(blacklist_characters="\"'*", blacklist_categories=("Cs",))),
    st.text(st.sampled_from("ab'*? \\/[]")),
    st.text(st.sampled_from('ab"*? \\/[]')),
).map(str.encode)


def normal(field: str, op: str, value: bytes) -> Predicate:
    if b"*" in value and op != "~":
        glob = compare(field, "~", value)
        return glob if op == "==" else Not(glob)
    return compare(field, op, value)


COMPARISONS = st.one_of(
    st.builds(
        compare, NAMES, st.sampled_from(["==", "!=", "<", "<=", ">", ">=", "&"]), st.integers(-(2**63), 2**64 - 1)
    ),
    st.builds(normal, NAMES, st.sampled_from(["==", "!=", "~"]), TEXTS),
)
PREDICATES = st.recursive(
    COMPARISONS,
    lambda inner: st.one_of(
        st.builds(Not, inner),
        st.lists(inner.filter(lambda p: not isinstance(p, And)), min_size=2, max_size=4).map(lambda p: And(tuple(p))),
        st.lists(inner.filter(lambda p: not isinstance(p, Or)), min_size=2, max_size=4).map(lambda p: Or(tuple(p))),
    ),
    max_leaves=12,
)


@given(PREDICATES)
def test_what_the_kernel_is_told_means_the_same(predicate: Predicate) -> None:
    assert read(to_kernel(predicate)) == predicate


@pytest.mark.parametrize(
    ("text", "message", "hint", "place"),
    [
        ("", "ends too early", "begins with the name of a field", (3, 10, 10)),
        ("  ", "ends too early", "begins with the name of a field", (3, 12, 12)),
        ("a", "ends too early", "must follow 'a'", (3, 11, 11)),
        ("a ==", "ends too early", None, (3, 14, 14)),
        ("a = 1", "near '='", "did you mean '=='?", (3, 12, 13)),
        ("a == = 1", "near '='", None, (3, 15, 16)),
        ("a =~ x", "near '=~'", "did you mean '~'?", (3, 12, 14)),
        ("a !~ x", "near '!~'", "!(name ~ word)", (3, 12, 14)),
        ("a == 1 and b == 2", "near 'and'", "&&", (3, 17, 20)),
        ("a == 1 or b == 2", "near 'or'", "||", (3, 17, 19)),
        ("not a == 1", "near 'a'", "'not' is written !", (3, 14, 15)),
        ("a == 1 | b == 2", "near '|'", "'||'", (3, 17, 18)),
        ("a == 1 b == 2", "near 'b'", None, (3, 17, 18)),
        ("(a == 1", "ends too early", "')' is missing", (3, 17, 17)),
        ("a == 1)", "near ')'", None, (3, 16, 17)),
        ("a == 1 &&", "ends too early", "begins with the name of a field", (3, 19, 19)),
        ("1 == a", "near '1'", "begins with the name of a field", (3, 10, 11)),
        ("a == 1 &&\n b == 2 &&\n  3", "near '3'", "begins with the name of a field", (5, 3, 4)),
        ("a < x", "'<' compares with a number, not with 'x'", None, (3, 14, 15)),
        ('a & "x"', "'&' compares with a number, not with 'x'", None, (3, 14, 17)),
        ("a == 08", "'08' is no octal number", None, (3, 15, 17)),
        ("a == 18446744073709551616", "beyond 64 bits", None, (3, 15, 35)),
        ("a == -9223372036854775809", "beyond 64 bits", None, (3, 15, 35)),
        ("a == " + "9" * 10_000, "beyond 64 bits", None, (3, 15, 10_015)),
        ('a == "x', "near '\"'", None, (3, 15, 16)),
        ("(" * 1000 + "a == 1" + ")" * 1000, "nested more than 50 deep", None, (3, 61, 62)),
        ("!" * 1000 + "a == 1", "nested more than 50 deep", None, (3, 61, 62)),
    ],
    ids=lambda value: str(value)[:20],
)
def test_errors(text: str, message: str, hint: Optional[str], place: tuple[int, int, int]) -> None:
    with pytest.raises(FilterError) as caught:
        read(text)
    assert message in caught.value.message
    assert caught.value.hint is None if hint is None else hint in (caught.value.hint or "")
    line, column, end = place
    assert caught.value.span == Span(line, column, line, end)


WORDS = """a b == != < & ~ && || ! ( ) 1 0x 08 " ' "x" x* = | [a b] - ,"""


@given(st.lists(st.sampled_from(WORDS.split()), max_size=20))
def test_any_row_of_words_is_read_or_refused(words: list[str]) -> None:
    text = " ".join(words)
    try:
        predicate = read(text)
    except FilterError as error:
        assert error.message
    else:
        assert read(to_kernel(predicate)) == predicate


def test_long_filters_take_no_long_time() -> None:
    predicate = read(" && ".join(["a == 1"] * 20_000))
    assert isinstance(predicate, And) and len(predicate.parts) == 20_000
