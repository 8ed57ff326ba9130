"""pairs, sort_pairs, len, delete, tostring, tonumber, stringof, exit."""

from __future__ import annotations

from typing import Optional

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_machine import MadeUpEvent, SmallMachine

from vm.fault import Exit, Fault
from vm.limits import Limits
from vm.values import Address, Cdata, EventValue, Iterator, Key, Stack, Table, make_key

MACHINE = SmallMachine()
SCALARS = st.one_of(st.booleans(), st.integers(-5, 5), st.binary(max_size=2))
KEYS = st.one_of(SCALARS, st.lists(SCALARS, min_size=2, max_size=3).map(make_key))


def table_of(*entries: tuple[object, object]) -> Table:
    table = Table(MACHINE.account)
    for key, value in entries:
        table.put(key, value)
    return table


def entries_of(name: str, *arguments: object) -> list[tuple[object, object]]:
    iterator = MACHINE.run(name, *arguments)
    assert isinstance(iterator, Iterator)
    return iterator.entries


def test_pairs_are_a_snapshot() -> None:
    table = table_of((b"a", 1), (True, 2))
    taken = entries_of("pairs", table)
    table.put(b"b", 3)
    assert taken == [(b"a", 1), (True, 2)]
    for wrong in ((), (None,), (b"x",)):
        with pytest.raises(Fault, match=r"^pairs: argument 1 is (nil|string), expected table$"):
            MACHINE.run("pairs", *wrong)


def test_snapshots_are_charged() -> None:
    machine = SmallMachine()
    table = table_of(*((n, n) for n in range(100)))
    for name in ("pairs", "sort_pairs"):
        before = machine.account.charged
        machine.run(name, table)
        assert machine.account.charged >= before + 100 * 64


def rank(key: object) -> int:
    return 0 if isinstance(key, bool) else 1 if isinstance(key, int) else 2 if isinstance(key, bytes) else 3


@given(st.lists(KEYS, max_size=12))
def test_sort_pairs_orders_keys_of_all_types(keys: list[object]) -> None:
    table = table_of(*((key, place) for place, key in enumerate(keys)))
    found = [key for key, _ in entries_of("sort_pairs", table)]
    assert len(found) == len(table)
    for one, other in zip(found, found[1:]):
        assert rank(one) <= rank(other)
        if rank(one) == rank(other) < 3:
            assert one < other  # type: ignore[operator]
        elif rank(one) == 3:
            assert isinstance(one, Key)
            assert isinstance(other, Key)
            assert [(rank(p), p) for p in one.parts()] <= [(rank(p), p) for p in other.parts()]


def test_sort_pairs_of_stacks_and_of_keys_that_have_no_order() -> None:
    first, second = Stack((1, 2)), Stack((1, 3))
    inner, function = table_of(), (lambda depth, *_: None)
    table = table_of((inner, 1), (function, 2), (second, 3), (first, 4), (9, 5), (Address(3), 6))
    assert [value for _, value in entries_of("sort_pairs", table)] == [6, 5, 4, 3, 2, 1]


@pytest.mark.parametrize(
    "before",
    [
        lambda depth, v1, v2, k1, k2: v1 > v2,
        lambda depth, v1, v2, k1, k2: v2 - v1,
        lambda depth, v1, v2, k1, k2: (v1 > v2,),
        lambda depth, v1, v2, k1, k2: b"yes" if k1 > k2 else None,
    ],
)
def test_sort_pairs_by_a_function(before: object) -> None:
    table = table_of((1, 10), (3, 30), (2, 20))
    assert entries_of("sort_pairs", table, before) == [(3, 30), (2, 20), (1, 10)]


def test_equal_entries_come_in_the_same_order_wherever_they_were_counted() -> None:
    """Tables of handlers in the kernel have their entries in no order."""
    for table in (table_of((3, 0), (1, 0), (2, 0)), table_of((2, 0), (3, 0), (1, 0))):
        for answer in (False, None, 0, ()):
            assert [key for key, _ in entries_of("sort_pairs", table, lambda depth, *_, a=answer: a)] == [1, 2, 3]
        rows = MACHINE.printed("print_hist", table).decode().split("\n")[1:-1]
        assert [row.split()[0] for row in rows] == ["1", "2", "3"]


def test_sort_pairs_refuses_what_is_no_function() -> None:
    with pytest.raises(Fault, match=r"^sort_pairs: argument 2 is integer, expected function$"):
        MACHINE.run("sort_pairs", table_of(), 1)


def test_len() -> None:
    assert MACHINE.run("len", b"abc") == 3
    assert MACHINE.run("len", table_of((1, 1), (b"x", 1))) == 2
    for wrong in ((), (7,)):
        with pytest.raises(Fault, match=r"^len: argument 1 is (nil|integer), expected string or table$"):
            MACHINE.run("len", *wrong)


def test_delete() -> None:
    table = table_of((1, 1), (True, 2), (make_key((b"a", b"b")), 3), (make_key((1, 2)), 4), (b"x", 5))
    MACHINE.run("delete", table, 1)
    MACHINE.run("delete", table, True)
    MACHINE.run("delete", table, make_key((b"a", b"b")))
    MACHINE.run("delete", table, 1, 2)
    MACHINE.run("delete", table, b"not there")
    MACHINE.run("delete", table, None)
    assert table.entries() == [(b"x", 5)]
    MACHINE.run("delete", table)
    assert table.entries() == []
    with pytest.raises(Fault, match=r"^delete: argument 1 is nil, expected table$"):
        MACHINE.run("delete")


def test_tostring() -> None:
    for value, text in ((None, b"nil"), (True, b"true"), (-7, b"-7"), (b"x", b"x"), (Address(1), b"k_1+0x1")):
        assert MACHINE.run("tostring", value) == text
    machine = SmallMachine(Limits(string_bytes=20))
    with pytest.raises(Fault) as caught:
        machine.run("tostring", Stack((1, 2, 3)))
    assert caught.value.kind == "string"


def test_stringof() -> None:
    event = MadeUpEvent()
    event.argstr = b"fd: 3"  # type: ignore[attr-defined]
    assert MACHINE.run("stringof", EventValue(event)) == b"fd: 3"  # type: ignore[arg-type]
    member = EventValue(event).member(b"tostring")  # type: ignore[arg-type]
    assert callable(member)
    assert member(1) == b"fd: 3\n"
    assert MACHINE.run("stringof", Stack((1, 2))) == b"k_1+0x1\nk_1+0x2"
    assert MACHINE.run("stringof", Address(5, 42)) == b"u42_5"
    assert MACHINE.run("stringof", b"s") == b"s"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((b"10",), 10),
        ((b"  -10\n",), -10),
        ((b"+10",), 10),
        ((b"0x1F",), 31),
        ((b"0x1f", 16), 31),
        ((b"-0x1",), -1),
        ((b"ff", 16), 255),
        ((b"zz", 36), 35 * 36 + 35),
        ((b"101", 2), 5),
        ((b"08",), 8),
        ((b"0xffffffffffffffff",), -1),
        ((b"18446744073709551615",), -1),
        ((b"-9223372036854775808",), -(1 << 63)),
        ((b"18446744073709551616",), None),
        ((b"9" * 500,), None),
        ((b"12", 2), None),
        ((b"",), None),
        ((b"1.5",), None),
        ((b"1_000",), None),
        ((b"0x",), None),
        ((b"0x1", 10), None),
        ((b"--1",), None),
        ((b"x",), None),
        ((b"1 2",), None),
        ((12,), 12),
        ((12, 16), 12),
        ((Address(3),), 3),
        ((Cdata("int *", 77, lambda key: None),), 77),
        ((None,), None),
        ((True,), None),
        ((), None),
    ],
)
def test_tonumber(arguments: tuple[object, ...], expected: Optional[int]) -> None:
    found = MACHINE.run("tonumber", *arguments)
    assert found == expected
    assert found is None or type(found) is int


@given(st.integers(-(1 << 63), (1 << 63) - 1))
def test_tonumber_is_the_opposite_of_tostring(number: int) -> None:
    assert MACHINE.run("tonumber", MACHINE.run("tostring", number)) == number


def test_tonumber_of_a_wrong_base() -> None:
    for base in (1, 37, -10):
        with pytest.raises(Fault, match=f"tonumber: base {base} is not between 2 and 36"):
            MACHINE.run("tonumber", b"1", base)


@pytest.mark.parametrize(("arguments", "status"), [((), 0), ((None,), 0), ((3,), 3), ((-1,), 255), ((256,), 0)])
def test_exit(arguments: tuple[object, ...], status: int) -> None:
    with pytest.raises(Exit) as caught:
        MACHINE.run("exit", *arguments)
    assert caught.value.status == status
