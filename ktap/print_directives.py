"""printf of the kernel: a C format string to a Python bytes template and the source of its arguments.

Source: lib/vsprintf.c (format_decode). Lengths cut the argument as C does: `%d` of a long shows its
low half. Python's own `%` on bytes does the rest; what it has not (`%pI4`, `%#o`) becomes `%s`.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Callable

from ktap import c_expression as c
from ktap import pointer_format
from ktap.c_expression import Integer, Node, Unsupported
from ktap.pointer_format import WIDTH_LIMIT
from ktap.print_values import Data, Number, convert

if TYPE_CHECKING:
    from ktap.print_compiler import Compiler

DIRECTIVE = re.compile(
    rb"%(?P<flags>[-+ #0]*)(?P<width>\d+|\*)?(?:\.(?P<precision>\d+|\*)?)?(?P<dot>)"
    rb"(?P<length>hh|h|ll|l|L|z|Z|t|j|q)?(?P<letter>.)",
    re.S,
)
LENGTHS = {b"hh": 1, b"h": 2, b"": 4, b"l": 8, b"ll": 8, b"L": 8, b"z": 8, b"Z": 8, b"t": 8, b"j": 8, b"q": 8}
LETTERS = {b"d": True, b"i": True, b"u": False, b"x": False, b"X": False, b"o": False}
"""Integer conversions, and whether they show a sign."""
POINTER_OPTIONS = re.compile(rb"[A-Za-z0-9]*")


class Directives:
    """Compiles one format string with its arguments."""

    def __init__(self, compiler: Compiler) -> None:
        self.compiler = compiler
        self.arguments: list[Node] = []
        self.sources: list[str] = []
        self.template: list[bytes] = []

    def compile(self, text: bytes, arguments: tuple[Node, ...]) -> tuple[bytes, list[str]]:
        """The template and the source of its arguments. Raises Unsupported."""
        self.arguments = list(arguments)
        position = 0
        while True:
            percent = text.find(b"%", position)
            if percent < 0:
                self.template.append(text[position:])
                return b"".join(self.template), self.sources
            self.template.append(text[position:percent])
            position = self._directive(text, percent)

    def _directive(self, text: bytes, start: int) -> int:
        """Compile the directive at `start`; gives where the text goes on."""
        match = DIRECTIVE.match(text, start)
        if match is None:
            raise Unsupported("a format that ends in %")
        letter = match["letter"]
        if letter == b"%":
            self.template.append(b"%%")
        elif letter == b"p":
            return self._pointer(match, text)
        elif letter in LETTERS:
            self._integer(match)
        elif letter == b"c":
            self._character(match)
        elif letter == b"s":
            self._string(match)
        else:
            raise Unsupported(f"the conversion %{letter.decode('latin-1')}")
        return match.end()

    def _next(self) -> Node:
        if not self.arguments:
            raise Unsupported("fewer arguments than the format shows")
        return self.arguments.pop(0)

    def _shape(self, match: re.Match[bytes], flags: bytes = b"-+ #0") -> bytes:
        """Flags (of those that may be), width and precision as Python writes them; `*` takes an argument."""
        shape = b"%" + bytes(flag for flag in match["flags"] if flag in flags)
        shape += self._count(match["width"], signed=True)
        if b"." in match[0][: match.start("dot") - match.start()]:
            shape += b"." + (self._count(match["precision"], signed=False) or b"0")
        return shape

    def _count(self, written: bytes, signed: bool) -> bytes:
        if written != b"*":
            return b"%d" % min(int(written), WIDTH_LIMIT) if written else b""
        count = convert(self.compiler.number(self._next()), c.INT)
        self.sources.append(
            f"{self.compiler.constant(_bounded_width if signed else _bounded_precision)}({count.source})"
        )
        return b"*"

    def _integer(self, match: re.Match[bytes]) -> None:
        letter = match["letter"]
        prefixed_octal = letter == b"o" and b"#" in match["flags"]
        shape = self._shape(match, b"-" if prefixed_octal else b"-+ #0")
        value = self.compiler.number(self._next())
        kind = Integer(LENGTHS[match["length"] or b""], LETTERS[letter])
        shown = convert(_widened(value, kind), kind)
        if prefixed_octal:
            self.sources.append(f"{self.compiler.constant(_octal)}({shown.source})")
            self.template.append(shape + b"s")
            return
        self.sources.append(shown.source)
        self.template.append(shape + (letter if letter in (b"x", b"X", b"o") else b"d"))

    def _character(self, match: re.Match[bytes]) -> None:
        shape = self._shape(match, b"-")
        value = convert(self.compiler.number(self._next()), Integer(1, False))
        self.sources.append(value.source)
        self.template.append(shape + b"c")

    def _string(self, match: re.Match[bytes]) -> None:
        shape = self._shape(match, b"-")
        value = self.compiler.expression(self._next())
        if isinstance(value, Number):
            self.compiler.asks_names = True
            address = convert(value, c.UNSIGNED_LONG)
            self.sources.append(f"{self.compiler.constant(self.compiler.names.string)}({address.source})")
        elif b"." in shape:
            self.sources.append(value.source if value.source[0] != "f" else self.compiler.as_text(value))
        else:
            self.sources.append(self.compiler.as_text(value))
        self.template.append(shape + b"s")

    # -- %p and what follows it -----------------------------------------------------------------

    def _pointer(self, match: re.Match[bytes], text: bytes) -> int:
        found = POINTER_OPTIONS.match(text, match.end())
        assert found is not None
        options = found[0].decode()
        if options[:1] not in pointer_format.KNOWN_OPTIONS:
            options = ""
        elif options[:1] in "sSfFBxeK":
            options = options[:1]
        elif options[:1] not in "IihbUMm":
            raise Unsupported(f"the conversion %p{options[:2]}")
        options = _trimmed(options)
        if options[:1] in ("h", "b"):
            self._counted(match, options)
        else:
            self._of_node(match, options)
        return match.end() + len(options)

    def _counted(self, match: re.Match[bytes], options: str) -> None:
        show = pointer_format.for_counted(options)
        assert show is not None
        width = match["width"]
        count = convert(self.compiler.number(self._next()), c.INT).source if width == b"*" else str(int(width or b"1"))
        data = self.compiler.data(self._next())
        self.sources.append(f"{self.compiler.constant(show)}({data.source}, {count})")
        self.template.append(b"%s")

    def _of_node(self, match: re.Match[bytes], options: str) -> None:
        shape = self._shape(match, b"-")
        value = self.compiler.expression(self._next())
        show: Callable[..., bytes]
        if isinstance(value, Data):
            of_bytes = pointer_format.for_bytes(options)
            if of_bytes is None:
                raise Unsupported(f"the address of a part of the record (%p{options})")
            show, source = of_bytes, value.source
        else:
            of_address = pointer_format.for_address(options, self.compiler.names)
            if of_address is None:
                raise Unsupported(f"the memory behind a pointer (%p{options})")
            self.compiler.asks_names |= options != "x"
            show, source = of_address, convert(value, c.UNSIGNED_LONG).source
        self.sources.append(f"{self.compiler.constant(show)}({source})")
        self.template.append(shape + b"s")


def _trimmed(options: str) -> str:
    """The options that belong to the conversion: `%pI4,` takes no more than `I4`."""
    patterns = {
        "I": r"[Ii](4[hnbl]?|6c?|S[pfschnbl]*)",
        "U": r"U[bBlL]?",
        "M": r"[Mm][FR]*",
        "h": r"h[CDN]?",
        "b": r"bl?",
    }
    pattern = patterns.get(options[:1].upper() if options[:1] in "iIMm" else options[:1])
    if pattern is None:
        return options
    match = re.match(pattern, options)
    if match is None:
        raise Unsupported(f"the conversion %p{options[:2]}")
    return match[0]


def _widened(value: Number, kind: Integer) -> Number:
    """What a variadic call passes: a narrower argument arrives as int."""
    return value if value.type.size >= 4 else Number(value.source, c.INT, value.constant)


def _octal(value: int) -> bytes:
    return b"0%o" % value if value else b"0"


def _bounded_width(count: int) -> int:
    return max(-WIDTH_LIMIT, min(count, WIDTH_LIMIT))


def _bounded_precision(count: int) -> int:
    return min(count, 1 << 16) if count >= 0 else 1 << 16
