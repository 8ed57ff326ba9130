"""C declarations, as ffi.cdef takes them: parsed into types whose sizes and places are those of the C ABI.

Structures, unions, enumerations, typedefs, pointers, arrays, bit-fields, function declarations,
`__attribute__((packed))` and `((aligned(n)))`. No preprocessor. Raises Fault argument for what is no
declaration.
"""

from __future__ import annotations

import re
from typing import Callable, Dict, List, Optional, Tuple

from vm.c_types import Array, Function, Integer, Layout, Named, Pointer, Scope, Structure, Type, Types, refusal
from vm.fault import Fault

MOST_DEPTH = 50
"""How deep brackets may be nested."""
MOST_TEXT_BYTES = 1 << 18
"""How much C one script may declare."""
MOST_NAME_BYTES = 4096
"""How long the text of one type may be."""
CACHED_NAMES = 256
"""So many types are not parsed again."""

QUALIFIERS = {
    "const", "volatile", "extern", "static", "inline", "restrict", "register", "__restrict", "__const", "__inline",
}  # fmt: skip
BASE_WORDS = {"void", "char", "short", "int", "long", "signed", "unsigned", "float", "double", "_Bool", "__signed__"}

TOKEN = re.compile(
    r"\s+|//[^\n]*|/\*.*?\*/|(?P<token>[A-Za-z_]\w*|0[xX][0-9A-Fa-f]+[uUlL]*|\d+[uUlL]*|<<|>>|\.\.\.|[{}()\[\];:,*=+\-/%&|^~])",
    re.DOTALL,
)

BINARY: Dict[str, Tuple[int, Callable[[int, int], int]]] = {
    "|": (1, lambda a, b: a | b),
    "^": (2, lambda a, b: a ^ b),
    "&": (3, lambda a, b: a & b),
    "<<": (4, lambda a, b: a << (b & 63)),
    ">>": (4, lambda a, b: a >> (b & 63)),
    "+": (5, lambda a, b: a + b),
    "-": (5, lambda a, b: a - b),
    "*": (6, lambda a, b: a * b),
    "/": (6, lambda a, b: (abs(a) // abs(b)) * (1 if (a < 0) == (b < 0) else -1)),
    "%": (6, lambda a, b: abs(a) % abs(b) * (1 if a >= 0 else -1)),
}
"""Operators of constant expressions: how tightly they bind, and what they do."""


def tokens(text: str) -> List[str]:
    """The tokens of a text; comments and white space are left out."""
    found: List[str] = []
    place = 0
    while place < len(text):
        match = TOKEN.match(text, place)
        if match is None:
            raise refusal(f"`{text[place]}` is not part of a C declaration")
        if match.group("token"):
            found.append(match.group("token"))
        place = match.end()
    return found


class Declarations(Scope):
    """What a script has declared, in front of what `beyond` knows."""

    def __init__(self, beyond: Optional[Types] = None, pointer_bytes: int = 8, char_signed: bool = True) -> None:
        super().__init__(beyond, pointer_bytes, char_signed)
        self.enumerators: Dict[str, int] = {}
        self.functions: Dict[str, Type] = {}
        self.text_bytes = 0
        self.named: Dict[str, Type] = {}
        """Types that `type_named` has parsed."""

    def declare(self, text: str) -> None:
        """Take declarations, each ended by `;`. Raises Fault argument; what came before the error stays."""
        self.text_bytes += len(text)
        if self.text_bytes > MOST_TEXT_BYTES:
            raise refusal(f"more than {MOST_TEXT_BYTES} bytes of declarations")
        self.named.clear()
        parser = Parser(tokens(text), self)
        while parser.peek():
            parser.declaration()

    def type_named(self, text: str) -> Type:
        """The type that a text such as `struct sk_buff *` or `unsigned char[6]` names."""
        if text in self.named:
            return self.named[text]
        if len(text) > MOST_NAME_BYTES:
            raise refusal(f"the name of a type is longer than {MOST_NAME_BYTES} bytes")
        parser = Parser(tokens(text), self)
        _, type = parser.declarator(parser.specifiers())
        if parser.peek():
            raise refusal(f"unexpected `{parser.peek()}` after a type")
        if len(self.named) >= CACHED_NAMES:
            self.named.clear()
        self.named[text] = type
        return type


class Parser:
    """Recursive descent over tokens; what it finds goes into `scope`."""

    def __init__(self, tokens: List[str], scope: Declarations) -> None:
        self.tokens = tokens
        self.place = 0
        self.scope = scope
        self.depth = 0

    def peek(self) -> str:
        """The next token, "" at the end."""
        return self.tokens[self.place] if self.place < len(self.tokens) else ""

    def take(self) -> str:
        """The next token, which is then behind us."""
        token = self.peek()
        if not token:
            raise refusal("it ends too early")
        self.place += 1
        return token

    def accept(self, token: str) -> bool:
        """Take the next token if it is this one."""
        if self.peek() != token:
            return False
        self.place += 1
        return True

    def expect(self, token: str) -> None:
        """Take this token, which must come next."""
        if not self.accept(token):
            raise self.unexpected(f"`{token}`")

    def unexpected(self, wanted: str) -> Fault:
        """The fault that something else comes next than what is wanted."""
        return refusal(f"expected {wanted}, found " + (f"`{self.peek()}`" if self.peek() else "its end"))

    def another(self) -> bool:
        """After a declarator: whether another one follows (`,`) or the declaration ends (`;`)."""
        if self.accept(","):
            return True
        if not self.accept(";"):
            raise self.unexpected("`,` or `;`")
        return False

    def deeper(self) -> None:
        """Enter a bracket (the caller leaves it by `self.depth -= 1`)."""
        self.depth += 1
        if self.depth > MOST_DEPTH:
            raise refusal("brackets are nested too deep")

    def name(self) -> str:
        """An identifier, "" if none comes next."""
        token = self.peek()
        return self.take() if token[:1].isalpha() or token[:1] == "_" else ""

    def skip_brackets(self) -> None:
        """Pass over what stands in brackets, the opening one being taken."""
        open_brackets = 1
        while open_brackets:
            token = self.take()
            open_brackets += (token == "(") - (token == ")")

    def declaration(self) -> None:
        """One declaration through its `;`."""
        typedef = self.accept("typedef")
        base = self.specifiers()
        more = not self.accept(";")
        while more:
            name, type = self.declarator(base)
            self.attributes()
            if not name:
                raise self.unexpected("a name")
            if typedef:
                self.scope.types[name] = type
            elif isinstance(type, Function):
                self.scope.functions[name] = type
            more = self.another()

    def specifiers(self) -> Type:
        """The type in front of declarators: `struct s { … }`, `unsigned long`, `u32`."""
        words: List[str] = []
        found: Optional[Type] = None
        while True:
            token = self.peek()
            if token in QUALIFIERS:
                self.take()
            elif token == "__attribute__":
                self.attributes()
            elif found is None and not words and token in ("struct", "union", "enum"):
                self.take()
                found = self.enumeration() if token == "enum" else self.structure(token)
            elif found is None and token in BASE_WORDS:
                words.append(self.take())
            elif found is None and not words and (token[:1].isalpha() or token[:1] == "_"):
                found = Named(self.take())
                self.scope.resolve(found)
            else:
                break
        if words:
            return base_type(words, self.scope)
        if found is None:
            raise self.unexpected("a type")
        return found

    def attributes(self) -> Dict[str, int]:
        """What attributes say that matters to layout: {"packed": 1, "aligned": 8}."""
        found: Dict[str, int] = {}
        while self.accept("__attribute__"):
            self.expect("(")
            self.expect("(")
            while not self.accept(")"):
                name = self.take().strip("_")
                if name == "aligned":
                    found[name] = 16
                    if self.accept("("):
                        found[name] = self.expression()
                        self.expect(")")
                elif name == "packed":
                    found[name] = 1
                elif self.accept("("):
                    self.skip_brackets()
            self.expect(")")
        return found

    def structure(self, kind: str) -> Type:
        """A structure or union behind its keyword."""
        attributes = self.attributes()
        tag = self.name()
        name = f"{kind} {tag}" if tag else kind
        if not self.accept("{"):
            if not tag:
                raise refusal(f"a {kind} needs a name or members")
            return Named(name)
        self.deeper()
        layout = Layout(self.scope, kind == "union")
        while not self.accept("}"):
            self.members(layout)
        self.depth -= 1
        attributes.update(self.attributes())
        made = layout.finish(name, bool(attributes.get("packed")), attributes.get("aligned", 1))
        if tag:
            self.scope.types[name] = made
        return made

    def members(self, layout: Layout) -> None:
        """One declaration of members."""
        base = self.specifiers()
        more = not self.accept(";")
        if not more and isinstance(base, Structure):
            layout.add("", base, None, 0)
        while more:
            name, type = ("", base) if self.peek() == ":" else self.declarator(base)
            bits = self.expression() if self.accept(":") else None
            if not name and bits is None:
                raise self.unexpected("a name")
            layout.add(name, type, bits, self.attributes().get("aligned", 0))
            more = self.another()

    def enumeration(self) -> Type:
        """An enumeration behind its keyword: as large as an int."""
        tag = self.name()
        name = f"enum {tag}" if tag else "enum"
        if self.accept("{"):
            value, signed = 0, False
            while not self.accept("}"):
                enumerator = self.name()
                if not enumerator:
                    raise self.unexpected("a name")
                value = self.expression() if self.accept("=") else value
                self.scope.enumerators[enumerator] = value
                signed |= value < 0
                value += 1
                if self.peek() != "}":
                    self.expect(",")
            made = Integer(name, 4, signed)
            if tag:
                self.scope.types[name] = made
            return made
        if not tag:
            raise refusal("an enum needs a name or values")
        return Named(name)

    def declarator(self, base: Type) -> Tuple[str, Type]:
        """What stands around a name: `*name[4]`, `(*name)(int)`; the name is "" where none is written."""
        self.deeper()
        while self.peek() in QUALIFIERS or self.peek() == "*":
            if self.take() == "*":
                base = Pointer(base)
        inner: Optional[int] = None
        name = ""
        if self.peek() == "(" and self.place + 1 < len(self.tokens) and self.tokens[self.place + 1] in ("*", "("):
            self.take()
            inner = self.place
            self.skip_brackets()
        else:
            name = self.name()
        type = self.suffixes(base)
        if inner is not None:
            after, self.place = self.place, inner
            name, type = self.declarator(type)
            self.expect(")")
            self.place = after
        self.depth -= 1
        return name, type

    def suffixes(self, base: Type) -> Type:
        """Lengths of arrays and parameter lists behind a name."""
        counts: List[int] = []
        while True:
            if self.accept("["):
                counts.append(0 if self.peek() == "]" else self.expression())
                self.expect("]")
                if not 0 <= counts[-1] < 1 << 32:
                    raise refusal(f"an array of {counts[-1]} elements")
            elif self.accept("("):
                self.skip_brackets()
                base = Function(base)
            else:
                break
        if len(counts) > MOST_DEPTH:
            raise refusal("an array of too many dimensions")
        for count in reversed(counts):
            base = Array(base, count)
        return base

    def expression(self, tightness: int = 0) -> int:
        """A constant expression; operators that bind less than `tightness` are left."""
        self.deeper()
        value = self.operand()
        while self.peek() in BINARY and BINARY[self.peek()][0] > tightness:
            operator = self.take()
            level, compute = BINARY[operator]
            right = self.expression(level)
            if operator in "/%" and right == 0:
                raise refusal("division by zero")
            value = (compute(value, right) + (1 << 63)) % (1 << 64) - (1 << 63)
        self.depth -= 1
        return value

    def operand(self) -> int:
        """A number, an enumerator, `sizeof(type)`, a bracket, or one of them behind a sign."""
        token = self.take()
        if token in ("-", "+", "~"):
            self.deeper()
            value = self.operand()
            self.depth -= 1
            return {"-": -value, "+": value, "~": ~value}[token]
        if token == "(":
            value = self.expression()
            self.expect(")")
            return value
        if token == "sizeof":
            self.expect("(")
            _, type = self.declarator(self.specifiers())
            self.expect(")")
            return self.scope.size_bytes(type)
        if token in self.scope.enumerators:
            return self.scope.enumerators[token]
        digits = token.rstrip("uUlL")
        if not digits[:1].isdigit() or len(digits) > 24:
            raise refusal(f"expected a number, found `{token}`")
        octal = len(digits) > 1 and digits.isdigit() and digits[0] == "0"
        try:
            return int(digits, 8 if octal else 0)
        except ValueError:
            raise refusal(f"expected a number, found `{token}`") from None


def base_type(words: List[str], scope: Declarations) -> Type:
    """The type that words such as `long unsigned int` mean, in any order."""
    counts = {word: words.count(word) for word in words}
    unsigned = "unsigned " if counts.pop("unsigned", 0) else ""
    signed = counts.pop("signed", 0) + counts.pop("__signed__", 0)
    longs = counts.pop("long", 0)
    short = counts.pop("short", 0)
    if longs or short or len(counts) == 0:
        counts.pop("int", 0)
    rest = " ".join(counts)
    size = "short" if short else " ".join(["long"] * longs)
    name = " ".join(part for part in (size, rest) if part) or "int"
    if unsigned:
        name = unsigned + name
    elif signed and name == "char":
        name = "signed char"
    found = scope.types.get(name)
    if found is None or (signed and unsigned) or (short and longs):
        raise refusal(f"`{' '.join(words)}` is no type")
    return found
