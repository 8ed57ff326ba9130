"""Operators in full: 64 bits and no more, C's division, nil, and what each type may be used for."""

from __future__ import annotations

import ctypes
from typing import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vm import operators
from vm.fault import Fault
from vm.limits import Limits
from vm.memory import Account
from vm.operators import BINARY, MAX_PACK, Generator
from vm.values import Address, Cdata, EventValue, Iterator, Stack, Table, make_key

INT_MIN, INT_MAX = -(1 << 63), (1 << 63) - 1
ARITHMETIC = ("ADD", "SUB", "MUL", "DIV", "MOD", "BAND", "BOR", "BXOR", "SHL", "SHR")
ACCOUNT = Account(Limits(), lambda: ())

integers = st.one_of(st.sampled_from((0, 1, -1, 2, 63, 64, INT_MIN, INT_MAX)), st.integers(INT_MIN, INT_MAX))


def function(depth: int, *_: object) -> object:
    return None


def in_c(operator: str, x: int, y: int) -> int:
    """What C gives for two int64_t (shift counts modulo 64), worked out on unsigned words where that is its meaning."""
    a, b = ctypes.c_uint64(x).value, ctypes.c_uint64(y).value
    if operator in ("DIV", "MOD"):
        quotient = abs(x) // abs(y) * (1 if (x < 0) == (y < 0) else -1)
        return ctypes.c_int64(quotient if operator == "DIV" else x - quotient * y).value
    value = {
        "ADD": a + b,
        "SUB": a - b,
        "MUL": a * b,
        "BAND": a & b,
        "BOR": a | b,
        "BXOR": a ^ b,
        "SHL": a << (b % 64),
        "SHR": a >> (b % 64),
    }[operator]
    return ctypes.c_int64(value).value


@pytest.mark.parametrize("operator", ARITHMETIC)
@given(x=integers, y=integers)
def test_arithmetic_is_that_of_c(operator: str, x: int, y: int) -> None:
    if operator in ("DIV", "MOD") and y == 0:
        with pytest.raises(Fault, match=r"^divide 0$") as caught:
            BINARY[operator](x, y)
        assert caught.value.kind == "divide"
    else:
        assert BINARY[operator](x, y) == in_c(operator, x, y)


@pytest.mark.parametrize(
    "operator, x, y, result",
    [
        ("ADD", INT_MAX, 1, INT_MIN),
        ("SUB", INT_MIN, 1, INT_MAX),
        ("MUL", 1 << 32, 1 << 32, 0),
        ("DIV", INT_MIN, -1, INT_MIN),
        ("DIV", -7, 2, -3),
        ("MOD", -7, 2, -1),
        ("MOD", 7, -2, 1),
        ("SHL", 1, 63, INT_MIN),
        ("SHL", 1, 64, 1),
        ("SHR", -1, 1, INT_MAX),
        ("SHR", -1, 64, -1),
        ("SHR", 5, -1, 0),
    ],
)
def test_ends_of_the_range(operator: str, x: int, y: int, result: int) -> None:
    assert BINARY[operator](x, y) == result


@pytest.mark.parametrize("operator", ARITHMETIC)
def test_arithmetic_with_nil_is_nil(operator: str) -> None:
    assert BINARY[operator](None, 1) is None
    assert BINARY[operator](0, None) is None
    assert BINARY[operator](None, None) is None


@pytest.mark.parametrize(
    "operator, verb",
    [
        ("ADD", "add"),
        ("SUB", "subtract"),
        ("MUL", "multiply"),
        ("DIV", "divide"),
        ("MOD", "take the remainder of"),
        ("BAND", "apply & to"),
        ("BOR", "apply | to"),
        ("BXOR", "apply ^ to"),
        ("SHL", "shift"),
        ("SHR", "shift"),
    ],
)
@pytest.mark.parametrize("value, name", [(True, "a boolean"), (b"1", "a string"), (function, "a function")])
def test_arithmetic_with_other_types(operator: str, verb: str, value: object, name: str) -> None:
    for x, y, names in ((value, 1, f"{name} and an integer"), (1, value, f"an integer and {name}")):
        with pytest.raises(Fault) as caught:
            BINARY[operator](x, y)
        assert (caught.value.kind, caught.value.message) == ("type", f"cannot {verb} {names}")
    with pytest.raises(Fault, match=f"{name} and nil"):
        BINARY[operator](value, None)


def test_an_address_counts_as_its_number() -> None:
    difference = BINARY["SUB"](Address(0x1010), Address(0x1000))
    assert difference == 16 and type(difference) is int
    assert BINARY["LT"](Address(1), 2) is True
    assert BINARY["LE"](Address(2), 2) is True
    assert BINARY["LE"](3, Address(2)) is False
    assert BINARY["EQ"](Address(2), 2) is True
    assert BINARY["NE"](2, Address(3)) is True
    assert operators.negate(Address(3)) == -3
    assert operators.complement(Address(0)) == -1


def test_negation() -> None:
    assert operators.negate(INT_MIN) == INT_MIN
    assert operators.negate(5) == -5
    assert operators.negate(None) is None
    assert operators.complement(5) == -6
    assert operators.complement(None) is None
    with pytest.raises(Fault, match=r"^cannot negate a string$"):
        operators.negate(b"1")
    with pytest.raises(Fault, match=r"^cannot apply ~ to a boolean$"):
        operators.complement(True)


DIFFERENT: list[object] = [
    None,
    True,
    False,
    0,
    1,
    b"",
    b"1",
    b"0",
    Table(ACCOUNT),
    Table(ACCOUNT),
    function,
    Stack((1,)),
    Stack((1,), "user", 1),
    make_key((1, 2)),
    make_key((1, True)),
]


@pytest.mark.parametrize("place", range(len(DIFFERENT)))
def test_equality_is_within_one_type(place: int) -> None:
    for other, value in enumerate(DIFFERENT):
        assert operators.equal(DIFFERENT[place], value) is (place == other), (DIFFERENT[place], value)
        assert BINARY["NE"](DIFFERENT[place], value) is (place != other)


def test_order() -> None:
    assert operators.less(-1, 0) and not operators.less(0, 0)
    assert operators.less_equal(0, 0) and not operators.less_equal(1, 0)
    assert operators.less(b"a", b"b") and operators.less(b"a", b"aa") and operators.less(b"z", b"\xff")
    assert operators.less_equal(b"a", b"a") and not operators.less_equal(b"b", b"a")


@pytest.mark.parametrize("compare", [operators.less, operators.less_equal])
@pytest.mark.parametrize(
    "x, y, names",
    [
        (1, b"1", "an integer and a string"),
        (None, 1, "nil and an integer"),
        (True, False, "a boolean and a boolean"),
        (b"", Address(1), "a string and an address"),
    ],
)
def test_what_has_no_order(compare: Callable[[object, object], bool], x: object, y: object, names: str) -> None:
    with pytest.raises(Fault, match=rf"^cannot compare {names}$"):
        compare(x, y)


def test_indexing() -> None:
    t = Table(ACCOUNT)
    t.put(b"k", 1)
    assert operators.index(t, b"k") == 1
    assert operators.entry(t, b"k") == 1
    assert operators.entry(t, b"other") == 0
    assert operators.index(Cdata("int", 1, lambda key: (key, 5)), b"m") == (b"m", 5)
    assert operators.index(EventValue(None), b"nothing") is None  # type: ignore[arg-type]
    with pytest.raises(Fault, match=r"^cannot index nil$"):
        operators.index(None, 1)
    with pytest.raises(Fault, match=r"^cannot index a string$"):
        operators.entry(b"abc", 1)


def test_assigning_to_entries() -> None:
    t = Table(ACCOUNT)
    operators.set_index(t, True, 1)
    operators.add_index(t, True, 4)
    operators.add_index(t, b"new", 2)
    operators.subtract_index(t, b"less", 2)
    operators.subtract_index(t, b"new", 3)
    operators.add_index(t, b"new", INT_MIN)
    operators.append(t, (9,))
    assert t.entries() == [(True, 5), (b"new", INT_MAX), (b"less", -2), (1, 9)]
    operators.add_index(t, b"new", None)
    assert t.read(b"new") is None
    for assign in (operators.set_index, operators.add_index, operators.subtract_index):
        with pytest.raises(Fault, match=r"^cannot assign to an entry of an integer$"):
            assign(5, 1, 1)
    with pytest.raises(Fault, match=r"^cannot assign to an entry of nil$"):
        operators.append(None, (1,))
    with pytest.raises(Fault, match=r"^cannot add a string and an integer$"):
        operators.set_index(t, 7, b"x") or operators.add_index(t, 7, 1)


def test_packs() -> None:
    assert operators.results((1,)) == 1
    assert operators.results(()) == ()
    assert operators.results((1, 2)) == (1, 2)
    assert operators.fit((1, 2, 3), 2) == (1, 2)
    assert operators.fit((1,), 3) == (1, None, None)
    assert operators.bounded((1,) * MAX_PACK) == (1,) * MAX_PACK
    for check in (operators.bounded, operators.results):
        with pytest.raises(Fault, match="more than 4096 values"):
            check((1,) * (MAX_PACK + 1))


def test_loop_bounds() -> None:
    assert operators.loop_bounds(Address(1), 5, -1) == (1, 5, -1)
    with pytest.raises(Fault, match=r"^the step of a for loop is 0$") as caught:
        operators.loop_bounds(1, 5, 0)
    assert caught.value.kind == "step"
    for bounds in ((None, 5, 1), (1, None, 1), (1, 5, None)):
        with pytest.raises(Fault, match=r"^a for loop counts with integers, not with nil$"):
            operators.loop_bounds(*bounds)


def test_what_can_be_looped_over() -> None:
    assert list(operators.prepare_iterator(Iterator([(1, 2)]), None, None)) == [(1, 2)]  # type: ignore[call-overload]
    generator = operators.prepare_iterator(function, 1, 2)
    assert isinstance(generator, Generator) and (generator.state, generator.control) == (1, 2)
    with pytest.raises(Fault, match=r"^cannot loop over a table$") as caught:
        operators.prepare_iterator(Table(ACCOUNT), None, None)
    assert caught.value.hint == "use pairs(t)"
    with pytest.raises(Fault, match=r"^cannot loop over nil$"):
        operators.prepare_iterator(None, None, None)


def test_loop_names() -> None:
    two, three = make_key((1, True)), make_key((1, 2, 3))
    assert operators.spread((b"k", b"v"), 1) == (b"k",)
    assert operators.spread((two, b"v"), 2) == (two, b"v")
    assert operators.spread((two, b"v"), 3) == (1, True, b"v")
    assert operators.spread((b"k", b"v"), 3) == (b"k", None, b"v")
    assert operators.spread((three, b"v"), 3) == (1, 2, b"v")


def test_only_functions_are_called() -> None:
    with pytest.raises(Fault, match=r"^cannot call a table$"):
        operators.not_callable(Table(ACCOUNT))
