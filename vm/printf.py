"""C formats: a format string becomes, once, a plan for the types of its arguments; a call fills it in.

The conversions are those of printf(3) for integers, strings and pointers. Integers have 64 bits
unless `h` (16) or `hh` (8) says less; `%u %x %X %o` show the same bits without a sign; `%s` takes
any value. There are no floats.
"""

from __future__ import annotations

from typing import Callable, Optional, Union

from vm.fault import Fault
from vm.named_tuple import NamedTuple

STAR = -1
"""A width or precision that is taken from the arguments."""

FLAGS = b"-+ #0"
LENGTHS = {b"hh": 8, b"h": 16, b"l": 64, b"ll": 64, b"q": 64, b"j": 64, b"z": 64, b"t": 64, b"": 64}
SIGNED, UNSIGNED = "di", "uxXop"
BASES = {"d": "d", "i": "d", "u": "d", "x": "x", "X": "X", "o": "o", "p": "x"}
CACHED_FORMATS = 256
CACHED_FORMAT_BYTES = 4096
"""Longer formats are parsed each time: they are made by the script, and the cache is not charged to it."""
CACHED_PLANS = 64
MANY_ARGUMENTS = 32
"""From this many arguments on, the size of the result is checked before it is built."""

Text = Callable[[object], bytes]
Describe = Callable[[object], str]


class Conversion(NamedTuple):
    """One `%…` of a format. `width` and `precision` are characters, None, or STAR."""

    written: str
    flags: bytes
    width: Optional[int]
    precision: Optional[int]
    bits: int
    letter: str


class Plan(NamedTuple):
    """How to format arguments of given types: a template for Python's %, and what to do to each first."""

    template: bytes
    converters: Optional[tuple[Callable[[object], object], ...]]
    """None when the template takes the arguments as they are."""


def parse(text: bytes) -> list[Union[bytes, Conversion]]:
    """Split a format into literal bytes and conversions. Raises Fault format."""
    pieces: list[Union[bytes, Conversion]] = []
    start = 0
    while True:
        place = text.find(b"%", start)
        if place < 0:
            pieces.append(text[start:])
            return pieces
        pieces.append(text[start:place])
        if text[place + 1 : place + 2] == b"%":
            pieces.append(b"%")
            start = place + 2
        else:
            conversion, start = parse_conversion(text, place)
            pieces.append(conversion)


def parse_conversion(text: bytes, start: int) -> tuple[Conversion, int]:
    """The conversion whose `%` is at `start`, and where it ends. Raises Fault format."""
    place = start + 1
    while text[place : place + 1] and text[place] in FLAGS:
        place += 1
    flags = text[start + 1 : place]
    width, place = parse_number(text, place)
    precision = None
    if text[place : place + 1] == b".":
        precision, place = parse_number(text, place + 1)
        precision = 0 if precision is None else precision
    length_start = place
    while text[place : place + 1] and text[place] in b"hlqjzt":
        place += 1
    length = text[length_start:place]
    letter = text[place : place + 1].decode("latin-1")
    written = text[start : place + 1].decode("latin-1")
    if not letter.isprintable():
        written = written.encode("unicode_escape").decode("ascii")
    if not letter:
        raise Fault("format", f"`{written}` at the end of a format is no whole conversion", "write `%%` for a percent")
    if letter in "eEfFgGaA":
        raise Fault("format", f"`{written}` prints a float, and there are no floats", "use %d")
    if letter not in "diuxXocsp" or length not in LENGTHS:
        raise Fault("format", f"`{written}` is no conversion", "those are %d %i %u %x %X %o %c %s %p %%")
    return Conversion(written, flags, width, precision, LENGTHS[length], letter), place + 1


def parse_number(text: bytes, place: int) -> tuple[Optional[int], int]:
    """A number, `*` (STAR) or nothing (None) at `place`, and where it ends."""
    if text[place : place + 1] == b"*":
        return STAR, place + 1
    end = place
    while text[end : end + 1].isdigit():
        end += 1
    if end - place > 9:
        raise Fault("format", f"width `{text[place : place + 9].decode()}…` is too large")
    return (int(text[place:end]) if end > place else None), end


def unsigned(value: object) -> object:
    """The 64 bits of an integer as a number without a sign."""
    return value & 0xFFFFFFFFFFFFFFFF  # type: ignore[operator]


def character(value: object) -> object:
    """The byte that %c prints."""
    return value & 0xFF  # type: ignore[operator]


def integer_text(conversion: Conversion, value: int) -> bytes:
    """An integer as printf(3) shows it under any flags, width and precision."""
    flags, letter, bits = conversion.flags, conversion.letter, conversion.bits
    value &= (1 << bits) - 1
    sign = ""
    if letter in SIGNED:
        if value >> (bits - 1):
            value, sign = (1 << bits) - value, "-"
        else:
            sign = "+" if b"+" in flags else " " if b" " in flags else ""
    digits = format(value, BASES[letter])
    if conversion.precision is not None:
        digits = "" if conversion.precision == 0 and value == 0 else digits.zfill(conversion.precision)
    if letter == "p":
        sign = "0x"
    elif b"#" in flags and letter in "xX" and value:
        sign = "0" + letter
    elif b"#" in flags and letter == "o" and not digits.startswith("0"):
        digits = "0" + digits
    width = conversion.width or 0
    if b"-" in flags:
        return (sign + digits).ljust(width).encode()
    if b"0" in flags and conversion.precision is None:
        return (sign + digits.rjust(width - len(sign), "0")).encode()
    return (sign + digits).rjust(width).encode()


def same(value: object) -> object:
    """The argument as it is."""
    return value


class Format:
    """A format string, with a plan for every combination of argument types it has met."""

    __slots__ = ("conversions", "describe", "name", "pieces", "plans", "starred", "text")

    def __init__(self, name: str, pieces: list[Union[bytes, Conversion]], text: Text, describe: Describe) -> None:
        self.name = name
        self.pieces = pieces
        self.conversions = [piece for piece in pieces if isinstance(piece, Conversion)]
        self.starred = any(STAR in (c.width, c.precision) for c in self.conversions)
        self.plans: dict[tuple[type, ...], Plan] = {}
        self.text = text
        self.describe = describe

    def fill(self, arguments: tuple[object, ...]) -> bytes:
        """The text for these arguments. Raises Fault format for a missing or wrong one; more than needed is fine."""
        plan = self.plans.get(tuple(map(type, arguments)))
        if plan is None:
            if self.starred:
                return self.without_stars(arguments)
            plan = self.plan(arguments)
        template, converters = plan
        if converters is None:
            return template % arguments
        return template % tuple([convert(value) for convert, value in zip(converters, arguments)])

    def plan(self, arguments: tuple[object, ...]) -> Plan:
        """Make, and keep, the plan for arguments of these types."""
        template = b""
        converters: list[Callable[[object], object]] = []
        for piece in self.pieces:
            if isinstance(piece, bytes):
                template += piece.replace(b"%", b"%%")
                continue
            place = len(converters)
            if place >= len(arguments):
                raise Fault("format", f"{self.name}: no argument for `{piece.written}` (the {ordinal(place + 1)})")
            part, convert = self.conversion_plan(piece, arguments[place], place)
            template += part
            converters.append(convert)
        plain = len(arguments) == len(converters) and all(convert is same for convert in converters)
        plan = Plan(template, None if plain else tuple(converters))
        if len(self.plans) >= CACHED_PLANS:
            self.plans.clear()
        self.plans[tuple(map(type, arguments))] = plan
        return plan

    def conversion_plan(
        self, conversion: Conversion, value: object, place: int
    ) -> tuple[bytes, Callable[[object], object]]:
        """The template and the converter of one conversion, given an argument of the type it will have."""
        flags, width, precision, letter = conversion.flags, conversion.width, conversion.precision, conversion.letter
        head = b"%" + (b"-" if b"-" in flags else b"")
        size = b"" if width is None else b"%d" % width
        if letter == "s":
            if type(value) is int and precision is None:
                return head + size + b"d", same
            size += b"" if precision is None else b".%d" % precision
            return head + size + b"b", same if type(value) is bytes else self.text
        if letter == "p" and hasattr(value, "address"):
            return b"%b", lambda pointer: integer_text(conversion, pointer.address)
        if not isinstance(value, int) or isinstance(value, bool):
            place_text = f"the {ordinal(place + 1)} argument is {self.describe(value)}"
            raise Fault(
                "format", f"{self.name}: `{conversion.written}` needs an integer, {place_text}", "%s takes any value"
            )
        if letter == "c":
            return head + size + b"c", character
        if precision is not None or conversion.bits != 64 or b"#" in flags or letter == "p":
            return b"%b", lambda number: integer_text(conversion, number)
        kept = bytes(flag for flag in flags if flag in (b"-+ 0" if letter in SIGNED else b"-0"))
        template = b"%" + kept + size + BASES[letter].encode()
        return template, same if letter in SIGNED else unsigned

    def without_stars(self, arguments: tuple[object, ...]) -> bytes:
        """Fill in widths and precisions that are arguments, then format what is left."""
        left = list(arguments)
        taken: list[object] = []
        pieces: list[Union[bytes, Conversion]] = []
        for piece in self.pieces:
            if isinstance(piece, Conversion):
                if piece.width == STAR:
                    width = self.star(left, piece)
                    flags = piece.flags + b"-" if width < 0 else piece.flags
                    piece = piece._replace(width=abs(width), flags=flags)
                if piece.precision == STAR:
                    precision = self.star(left, piece)
                    piece = piece._replace(precision=None if precision < 0 else precision)
                taken += left[:1]
                del left[:1]
            pieces.append(piece)
        return Format(self.name, pieces, self.text, self.describe).fill(tuple(taken))

    def star(self, left: list[object], conversion: Conversion) -> int:
        """Take the next argument as a width or precision."""
        value = left.pop(0) if left else None
        if type(value) is not int:
            raise Fault("format", f"{self.name}: the `*` of `{conversion.written}` needs an integer")
        if abs(value) > 65535:
            raise Fault("format", f"{self.name}: the `*` of `{conversion.written}` is given {value}: too large")
        return value


def plan_of(written: bytes, arguments: tuple[object, ...], text: Text, describe: Describe) -> Optional[Plan]:
    """How to format many tuples of arguments that have the types of these; None where that depends on the values.

    Raises Fault format.
    """
    made = Format("printf", parse(written), text, describe)
    return None if made.starred else made.plan(arguments)


def ordinal(number: int) -> str:
    """`1st`, `2nd`, `3rd`, `4th`, `11th` …"""
    if number % 100 in (11, 12, 13):
        return f"{number}th"
    return f"{number}{ {1: 'st', 2: 'nd', 3: 'rd'}.get(number % 10, 'th') }"


def formatter(
    name: str, text: Text, describe: Describe, limit_bytes: int
) -> Callable[[bytes, tuple[object, ...]], bytes]:
    """A function `(format, arguments) -> bytes` for the builtin `name`; formats are parsed once.

    `text` shows a value as tostring does, `describe` names its type in a message. The function raises
    Fault format for a format that does not fit, and Fault string where widths alone pass `limit_bytes`.
    """
    formats: dict[bytes, Format] = {}

    def prepare(written: bytes) -> Format:
        pieces = parse(written)
        widest = sum((p.width or 0) + (p.precision or 0) for p in pieces if isinstance(p, Conversion))
        if widest + len(written) > limit_bytes:
            raise Fault("string", f"{name}: a format that makes more than {limit_bytes} bytes")
        made = Format(name, pieces, text, describe)
        if len(written) <= CACHED_FORMAT_BYTES:
            if len(formats) >= CACHED_FORMATS:
                formats.clear()
            formats[written] = made
        return made

    def fill(written: bytes, arguments: tuple[object, ...]) -> bytes:
        made = formats.get(written) or prepare(written)
        if len(arguments) > MANY_ARGUMENTS:
            size = sum(len(value) for value in arguments if type(value) is bytes)
            if size > limit_bytes:
                raise Fault("string", f"{name}: text longer than {limit_bytes} bytes")
        return made.fill(arguments)

    return fill
