"""Texts that are no scripts: all that is wrong is told, in bounded time, whatever the text is."""

from __future__ import annotations

import random
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compiler.parse import DEEPEST, MOST_ERRORS, parse
from compiler.show import show
from tests.compiler.parsing import EVERYTHING, kinds, refusal
from vm.diagnostic import Refusal
from vm.program import Span


def test_all_errors_are_told_in_order() -> None:
    text = "x = = 1\nf = function () {\n    y = 1 1\n}\ntrace a:b {\n    z = )\n}\n"
    places = [diagnostic.span[:2] for diagnostic in refusal(text).diagnostics if diagnostic.span]
    assert places == [(1, 5), (3, 11), (6, 9)]


def test_a_wrong_head_hides_no_errors_in_its_block() -> None:
    text = "if (a = b) {\n    x = 1 1\n} elseif (c = d) {\n    y = 2 2\n} else {\n    z = 3 3\n}\nw = 4 4\n"
    lines = [diagnostic.span.line for diagnostic in refusal(text).diagnostics if diagnostic.span]
    assert lines == [1, 2, 4, 6, 8]


def test_no_more_errors_are_told_than_anyone_reads() -> None:
    assert len(refusal("x = = 1\n" * 1000).diagnostics) == MOST_ERRORS


def test_the_end_of_the_file() -> None:
    (diagnostic,) = refusal("a =").diagnostics
    assert diagnostic.message == "unexpected symbol near '<eof>'"
    assert refusal("a =  \n\n").render() == "t.kp:1:4: unexpected symbol near '<eof>'\na =  \n   ^"


def test_a_character_that_no_bytes_stand_for() -> None:
    (diagnostic,) = refusal("x = 1\ny = '\ud800'").diagnostics
    assert diagnostic.span == Span(2, 6, 2, 7)


@pytest.mark.parametrize(
    "text",
    [
        "(" * 100_000,
        "[" * 100_000,
        "{" * 100_000,
        "x = " + "{" * 100_000,
        "x = " + "-" * 1_000_000 + "1",
        "x = " + "not " * 100_000 + "1",
        "x = " + "a .. " * 100_000 + "a",
        "x = " + "1 + " * 50_000 + "1",
        "x = a" + ".b" * 50_000,
        "x = a" + "()" * 50_000,
        "x = " + "function () { return " * 100_000,
        "if (a) {" * 300 + "}" * 300,
        "x = '" + "a" * 1_000_000,
        "`" * 100_000,
        "}" * 100_000,
        "else " * 100_000,
        "trace " + "(" * 100_000,
        "trace " + "/" * 100_000,
        "trace a:b /" + "(" * 100_000 + "/ { }",
        "\0" * 100_000,
        "x = = " + "[[ " * 100_000,
        "x = 'a\\\n" * 1000,
    ],
    ids=lambda text: text[:12].encode("unicode_escape").decode(),
)
def test_hostile_texts_are_refused(text: str) -> None:
    started = time.monotonic()
    told = refusal(text)
    assert told.diagnostics
    assert len(told.render()) < 100_000
    assert time.monotonic() - started < 60


def test_depth_up_to_the_limit() -> None:
    half = DEEPEST // 2 - 10
    assert kinds("x = " + "(" * half + "1" + ")" * half) == ["Assign"]
    assert kinds("if (a) {" * (half // 2) + "}" * (half // 2)) == ["If"]
    assert "deep" in refusal("x = " + "(" * DEEPEST * 2 + "1" + ")" * DEEPEST * 2).diagnostics[0].message


WORDS = r"""
    if else elseif while for in repeat until break continue return function var local nil true false and or not
    trace trace_begin trace_end tick-1s a b foo 1 0x10 1.5 "s" 's' "un ` `sym` # @ $ ? : elif end \ [[raw]]
    [[ ]] -- // /* ( ) { } ( ) { } [ ] , ; = == != < <= > + - * / % .. ... ..= += <<< << >> & && | || ^ ~ ! .
    sched:x syscalls:* /pid==1/ probe:/lib/x:m fd=%di $arg1 é
"""


@given(st.lists(st.sampled_from([*WORDS.split(), "\0", "\n", "\n"]), max_size=60), st.sampled_from([" ", "", "\n"]))
def test_any_row_of_words_is_read_or_refused(words: list[str], joint: str) -> None:
    text = joint.join(words)
    try:
        parsed = parse(text, "t.kp")
    except Refusal as told:
        assert 0 < len(told.diagnostics) <= MOST_ERRORS
        assert told.render()
    else:
        assert show(parsed.script) == show(parse(text, "t.kp").script)


@given(st.text())
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        parse(text, "t.kp")
    except Refusal as told:
        assert told.diagnostics


@given(st.binary())
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    try:
        parse(data, "t.kp")
    except Refusal as told:
        assert told.diagnostics


@given(st.integers(0, 2**32), st.integers(1, 6))
def test_a_script_with_some_characters_changed(seed: int, changes: int) -> None:
    chance = random.Random(seed)
    text = list(EVERYTHING)
    for _ in range(changes):
        text[chance.randrange(len(text))] = chance.choice("(){}[],;='\"/#. a1\n")
    try:
        parse("".join(text), "t.kp")
    except Refusal as told:
        assert len(told.diagnostics) <= 4 * changes
        assert told.render()


def test_two_hundred_lines_are_read_at_once() -> None:
    text = EVERYTHING * 12
    parse(text, "t.kp")
    fastest = min(timed(text) for _ in range(5))
    assert fastest < 0.5


def timed(text: str) -> float:
    started = time.perf_counter()
    parse(text, "t.kp")
    return time.perf_counter() - started
