"""printf: against the C library for integers and strings, and every way a format can be wrong."""

from __future__ import annotations

import ctypes
from typing import Optional, Tuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vm.fault import Fault
from vm.printf import CACHED_FORMAT_BYTES, CACHED_FORMATS, CACHED_PLANS, Format, formatter, ordinal, parse
from vm.values import Address, Cdata, describe

LIBC = ctypes.CDLL(None)


def show(value: object) -> bytes:
    return value if isinstance(value, bytes) else f"<{value}>".encode()


fill = formatter("printf", show, describe, 1000)

INT64 = st.integers(-(1 << 63), (1 << 63) - 1)
FLAGS = st.text("-+ #0", max_size=4)
SIZE = st.one_of(st.none(), st.integers(0, 60))


def from_c(format: str, *arguments: object) -> bytes:
    buffer = ctypes.create_string_buffer(400)
    LIBC.snprintf(buffer, 400, format.encode(), *arguments)
    return buffer.value


def directive(flags: str, width: Optional[int], precision: Optional[int], rest: str) -> str:
    return f"%{flags}{'' if width is None else width}{'' if precision is None else f'.{precision}'}{rest}"


@given(FLAGS, SIZE, SIZE, st.sampled_from("diuxXo"), INT64)
def test_integers_are_formatted_as_by_the_c_library(
    flags: str, width: Optional[int], precision: Optional[int], letter: str, value: int
) -> None:
    if letter in "diu":
        flags = flags.replace("#", "")
    written = directive(flags, width, precision, letter)
    in_c = directive(flags, width, precision, "ll" + letter)
    for text in (written, in_c):
        assert fill(text.encode(), (value,)) == from_c(in_c, ctypes.c_longlong(value))


@given(
    FLAGS,
    SIZE,
    st.sampled_from(["hd", "hi", "hu", "hx", "hhd", "hhu", "hhX", "ho", "ld", "lu", "zx", "jd", "td"]),
    INT64,
)
def test_lengths_are_those_of_the_c_library(flags: str, width: Optional[int], rest: str, value: int) -> None:
    flags = flags.replace("#", "")
    written = directive(flags, width, None, rest)
    assert fill(written.encode(), (value,)) == from_c(written, ctypes.c_longlong(value))


@given(st.booleans(), SIZE, SIZE, st.binary(max_size=50).map(lambda b: b.replace(b"\0", b"")))
def test_strings_are_formatted_as_by_the_c_library(
    left: bool, width: Optional[int], precision: Optional[int], value: bytes
) -> None:
    written = directive("-" if left else "", width, precision, "s")
    assert fill(written.encode(), (value,)) == from_c(written, value)


@given(st.booleans(), SIZE, st.integers(1, 255))
def test_characters_are_formatted_as_by_the_c_library(left: bool, width: Optional[int], value: int) -> None:
    written = directive("-" if left else "", width, None, "c")
    assert fill(written.encode(), (value,)) == from_c(written, value)


@given(st.integers(-70, 70), st.integers(-5, 30), INT64)
def test_widths_and_precisions_may_be_arguments(width: int, precision: int, value: int) -> None:
    expected = from_c("%*.*lld|", ctypes.c_int(width), ctypes.c_int(precision), ctypes.c_longlong(value))
    assert fill(b"%*.*d|", (width, precision, value)) == expected


@pytest.mark.parametrize(
    ("format", "arguments", "expected"),
    [
        (b"", (), b""),
        (b"100%%", (), b"100%"),
        (b"%%d %d", (1,), b"%d 1"),
        (b"%s|%s|%s", (None, True, 7), b"<None>|<True>|7"),
        (b"%5s|%-5s|", (1, 2), b"    1|2    |"),
        (b"%.2s", (12345,), b"<1"),
        (b"%x %X %o", (-1, 255, 8), b"ffffffffffffffff FF 10"),
        (b"%u", (-1,), b"18446744073709551615"),
        (b"%p", (0xFFFF888000000000 - (1 << 64),), b"0xffff888000000000"),
        (b"%20p|", (255,), b"                0xff|"),
        (b"%c%c", (0x41, 0x141), b"AA"),
        (b"%d %d", (1, 2, 3), b"1 2"),
        (b"%d", (Address(5),), b"5"),
        (b"%hx", (-1,), b"ffff"),
        (b"\xff%d\x00", (1,), b"\xff1\x00"),
    ],
)
def test_formats(format: bytes, arguments: Tuple[object, ...], expected: bytes) -> None:
    assert fill(format, arguments) == expected
    assert fill(format, arguments) == expected


def test_a_pointer_can_be_a_cdata() -> None:
    pointer = Cdata("char *", -1, lambda key: None)
    assert fill(b"%p", (pointer,)) == b"0xffffffffffffffff"
    with pytest.raises(Fault, match="needs an integer, the 1st argument is a cdata value"):
        fill(b"%d", (pointer,))


@pytest.mark.parametrize(
    ("format", "arguments", "message"),
    [
        (b"%d", (b"x",), "printf: `%d` needs an integer, the 1st argument is a string"),
        (b"%s %5lx", (1, None), "printf: `%5lx` needs an integer, the 2nd argument is nil"),
        (b"%d", (True,), "printf: `%d` needs an integer, the 1st argument is a boolean"),
        (b"%c", (b"x",), "printf: `%c` needs an integer, the 1st argument is a string"),
        (b"%d and %s", (1,), "printf: no argument for `%s` (the 2nd)"),
        (b"%", (), "`%` at the end of a format is no whole conversion"),
        (b"%-5", (), "`%-5` at the end of a format is no whole conversion"),
        (b"%5.1f", (1,), "`%5.1f` prints a float, and there are no floats"),
        (b"%y", (1,), "`%y` is no conversion"),
        (b"%hld", (1,), "`%hld` is no conversion"),
        (b"%n", (1,), "`%n` is no conversion"),
        (b"%1234567890d", (1,), "width `123456789…` is too large"),
        (b"%.1234567890d", (1,), "width `123456789…` is too large"),
        (b"%*d", (b"x", 1), "printf: the `*` of `%*d` needs an integer"),
        (b"%*d", (), "printf: the `*` of `%*d` needs an integer"),
        (b"%*d", (99999, 1), "printf: the `*` of `%*d` is given 99999: too large"),
        (b"%*d", (1,), "printf: no argument for `%*d` (the 1st)"),
    ],
)
def test_wrong_formats(format: bytes, arguments: Tuple[object, ...], message: str) -> None:
    with pytest.raises(Fault) as caught:
        fill(format, arguments)
    assert (caught.value.kind, caught.value.message) == ("format", message)


def test_no_format_makes_more_than_the_limit() -> None:
    assert len(fill(b"%900d", (1,))) == 900
    for format in (b"%1001d", b"%.1001d", b"%600d%600d", b"x" * 1001):
        with pytest.raises(Fault) as caught:
            fill(format, (1, 2))
        assert caught.value.kind == "string"
    many = (b"x" * 500,) * 40
    with pytest.raises(Fault) as caught:
        fill(b"%s" * 40, many)
    assert caught.value.kind == "string"
    assert fill(b"%s" * 40, (b"x",) * 40) == b"x" * 40


def test_caches_are_bounded() -> None:
    for number in range(CACHED_FORMATS + 10):
        assert fill(b"%d" + b"%d" % number, (7,)) == b"7%d" % number
    roomy = formatter("printf", show, describe, 1 << 20)
    assert roomy(b"%d" + b"x" * CACHED_FORMAT_BYTES, (7,)) == b"7" + b"x" * CACHED_FORMAT_BYTES
    made = Format("printf", parse(b"%s%s%s%s"), show, describe)
    kinds = (1, b"x", None, True)
    for n in range(4**4):
        arguments = tuple(kinds[n // 4**place % 4] for place in range(4))
        assert made.fill(arguments) == b"".join(b"1" if a is kinds[0] else show(a) for a in arguments)
        assert len(made.plans) <= CACHED_PLANS


@pytest.mark.parametrize(
    ("number", "text"), [(1, "1st"), (2, "2nd"), (3, "3rd"), (4, "4th"), (11, "11th"), (22, "22nd"), (112, "112th")]
)
def test_ordinals(number: int, text: str) -> None:
    assert ordinal(number) == text
