"""The string library: places against Lua's rules, limits, wrong arguments."""

from __future__ import annotations

from typing import Optional

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_machine import SmallMachine

from vm.fault import Fault
from vm.limits import Limits
from vm.values import Table

MACHINE = SmallMachine()


def lua_sub(s: bytes, first: int, last: int) -> bytes:
    """string.sub as the Lua 5.1 manual words it: negative places count from the end, then both are put in range."""
    if first < 0:
        first = len(s) + first + 1
    if last < 0:
        last = len(s) + last + 1
    return bytes(byte for place, byte in enumerate(s, 1) if max(first, 1) <= place <= last)


@given(st.binary(max_size=12), st.integers(-15, 15), st.one_of(st.none(), st.integers(-15, 15)))
def test_sub(s: bytes, first: int, last: Optional[int]) -> None:
    assert MACHINE.run("string.sub", s, first, last) == lua_sub(s, first, -1 if last is None else last)


@given(st.lists(st.binary(max_size=3), max_size=6), st.binary(min_size=1, max_size=2))
def test_split(parts: list[bytes], separator: bytes) -> None:
    table = MACHINE.run("string.split", separator.join(parts), separator)
    assert isinstance(table, Table)
    assert separator.join(value for _, value in table.entries()) == separator.join(parts)
    assert [key for key, _ in table.entries()] == list(range(1, len(table) + 1))
    assert all(separator not in value for _, value in table.entries())


def test_split_into_bytes() -> None:
    table = MACHINE.run("string.split", b"abc", b"")
    assert isinstance(table, Table)
    assert table.entries() == [(1, b"a"), (2, b"b"), (3, b"c")]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((b"hello", b"l"), (3, 3)),
        ((b"hello", b"l", 4), (4, 4)),
        ((b"hello", b"lo", -2), (4, 5)),
        ((b"hello", b"h", 2), None),
        ((b"hello", b""), (1, 0)),
        ((b"a.b", b"."), (2, 2)),
        ((b"hello", b"o", 99), None),
    ],
)
def test_find(arguments: tuple[object, ...], expected: object) -> None:
    assert MACHINE.run("string.find", *arguments) == expected


def test_the_rest() -> None:
    assert MACHINE.run("string.len", b"a\0b") == 3
    assert MACHINE.run("string.upper", b"aZ\xe4") == b"AZ\xe4"
    assert MACHINE.run("string.lower", b"aZ\xc4") == b"az\xc4"
    assert MACHINE.run("string.rep", b"ab", 3) == b"ababab"
    assert MACHINE.run("string.rep", b"ab", 0) == b""
    assert MACHINE.run("string.rep", b"ab", -1) == b""
    assert MACHINE.run("string.rep", b"", 1 << 62) == b""


def test_limits() -> None:
    machine = SmallMachine(Limits(string_bytes=100))
    assert machine.run("string.rep", b"x", 100) == b"x" * 100
    with pytest.raises(Fault) as caught:
        machine.run("string.rep", b"x", 101)
    assert caught.value.kind == "string"
    assert machine.account.charged == 100


def test_wrong_arguments_are_told_by_place_and_type() -> None:
    with pytest.raises(Fault) as caught:
        MACHINE.run("string.sub")
    assert (caught.value.kind, caught.value.message) == (
        "argument",
        "string.sub: argument 1 is nil, expected string",
    )
    with pytest.raises(Fault, match=r"^string.sub: argument 2 is boolean, expected integer$"):
        MACHINE.run("string.sub", b"x", True)
    with pytest.raises(Fault, match=r"^string.sub: argument 3 is string, expected integer$"):
        MACHINE.run("string.sub", b"x", 1, b"2")
