"""C expressions as print formats hold them: tokens, a Pratt parser, and plain nodes.

The language is that of the `print fmt:` line of a tracepoint's `format` file: C expressions over
`REC->field` with the kernel's macros already expanded, the printing macros of
include/trace/stages/stage3_trace_output.h as calls, `{ value, "name" }` pairs, and GNU statement
expressions that declare scalars. Operators and their precedence are those of C (ISO C 6.5).
"""

from __future__ import annotations

import re
from typing import Optional, Union

from vm.named_tuple import NamedTuple


class Unsupported(Exception):
    """An expression that cannot be evaluated outside the kernel; the message says why."""


class Integer(NamedTuple):
    """An integer type: its size in bytes and whether it is signed."""

    size: int
    signed: bool


class Number(NamedTuple):
    """An integer constant."""

    value: int
    type: Integer


class Text(NamedTuple):
    """A string literal, adjacent ones joined."""

    value: bytes


class Member(NamedTuple):
    """`REC->name`."""

    name: str


class Word(NamedTuple):
    """Any other name: a declared variable, an enumerator, or the field a macro is given."""

    name: str


class Call(NamedTuple):
    """`name(arguments)`."""

    name: str
    arguments: tuple[Node, ...]


class Unary(NamedTuple):
    """`! ~ - + & *` before an operand."""

    operator: str
    operand: Node


class Binary(NamedTuple):
    """Two operands and an operator between them."""

    operator: str
    left: Node
    right: Node


class Choice(NamedTuple):
    """`condition ? yes : no`."""

    condition: Node
    yes: Node
    no: Node


class Cast(NamedTuple):
    """`(type) operand`; `type` is None where its name says nothing about its size."""

    type: Optional[Integer]
    pointer_to: Optional[Integer]
    target: str
    """What it is a pointer to, as written; empty for what is no pointer."""
    operand: Node


class Element(NamedTuple):
    """`array[index]`."""

    array: Node
    place: Node


class Braces(NamedTuple):
    """`{ value, "name" }`."""

    items: tuple[Node, ...]


class SizeOf(NamedTuple):
    """`sizeof(type)`, in bytes."""

    size: int


class Block(NamedTuple):
    """`({ type name = value; …; result; })`."""

    variables: tuple[tuple[str, Optional[Integer], Node], ...]
    result: Node


Node = Union[Number, Text, Member, Word, Call, Unary, Binary, Choice, Cast, Element, Braces, SizeOf, Block]

INT, UNSIGNED, LONG, UNSIGNED_LONG = Integer(4, True), Integer(4, False), Integer(8, True), Integer(8, False)
CHARACTER = Integer(1, True)

TYPES: dict[str, Integer] = {
    "char": CHARACTER,
    "signed char": CHARACTER,
    "unsigned char": Integer(1, False),
    "short": Integer(2, True),
    "unsigned short": Integer(2, False),
    "int": INT,
    "unsigned int": UNSIGNED,
    "unsigned": UNSIGNED,
    "long": LONG,
    "long int": LONG,
    "long long": LONG,
    "long long int": LONG,
    "unsigned long": UNSIGNED_LONG,
    "unsigned long int": UNSIGNED_LONG,
    "unsigned long long": UNSIGNED_LONG,
    "unsigned long long int": UNSIGNED_LONG,
    "bool": Integer(1, False),
    "_Bool": Integer(1, False),
    **{
        name: Integer(bits // 8, name[0] == "s" or "_s" in name or name[:3] == "int")
        for bits in (8, 16, 32, 64)
        for name in (f"u{bits}", f"s{bits}", f"__u{bits}", f"__s{bits}", f"uint{bits}_t", f"int{bits}_t")
        + ((f"__be{bits}", f"__le{bits}") if bits > 8 else ())
    },
    "size_t": UNSIGNED_LONG,
    "ssize_t": LONG,
    "loff_t": LONG,
    "off_t": LONG,
    "ino_t": UNSIGNED_LONG,
    "sector_t": UNSIGNED_LONG,
    "blkcnt_t": UNSIGNED_LONG,
    "uintptr_t": UNSIGNED_LONG,
    "ktime_t": LONG,
    "time64_t": LONG,
    "dma_addr_t": UNSIGNED_LONG,
    "phys_addr_t": UNSIGNED_LONG,
    "resource_size_t": UNSIGNED_LONG,
    "dev_t": UNSIGNED,
    "gfp_t": UNSIGNED,
    "fmode_t": UNSIGNED,
    "blk_opf_t": UNSIGNED,
    "slab_flags_t": UNSIGNED,
    "vm_fault_t": UNSIGNED,
    "isolate_mode_t": UNSIGNED,
    "uid_t": UNSIGNED,
    "gid_t": UNSIGNED,
    "pid_t": INT,
    "umode_t": Integer(2, False),
}
"""Types whose size is known, for 64-bit kernels (include/linux/types.h)."""

KEYWORDS = {
    "unsigned",
    "signed",
    "char",
    "short",
    "int",
    "long",
    "bool",
    "_Bool",
    "void",
    "struct",
    "union",
    "enum",
    "const",
}
QUALIFIERS = {"const", "volatile", "static", "__force", "__user", "__rcu"}

TOKEN = re.compile(
    r"""\s*(?:
    (?P<string>"(?:\\.|[^"\\])*") | (?P<character>'(?:\\.|[^'\\])+') |
    (?P<number>0[xX][0-9a-fA-F]+[uUlL]* | \d+[uUlL]*) | (?P<word>[A-Za-z_]\w*) |
    (?P<operator>->|<<|>>|<=|>=|==|!=|&&|\|\||[-+*/%&|^~!<>?:()\[\]{},.=;])
    )""",
    re.X,
)
BINARY = {
    operator: power
    for power, operators in enumerate(
        ("||", "&&", "|", "^", "&", "== !=", "< > <= >=", "<< >>", "+ -", "* / %"), start=2
    )
    for operator in operators.split()
}
"""Binary operators and how tightly they bind; `? :` binds at 1."""

ESCAPES = {"n": b"\n", "t": b"\t", "r": b"\r", "a": b"\a", "b": b"\b", "f": b"\f", "v": b"\v", "e": b"\x1b"}
MAX_DEPTH = 100
"""Nesting of brackets in one expression; the kernel's own reach about 25."""


def tokens(text: str) -> list[tuple[str, str]]:
    """Pairs of kind and text. Raises Unsupported at a character that belongs to none."""
    found: list[tuple[str, str]] = []
    position, end = 0, len(text.rstrip())
    while position < end:
        match = TOKEN.match(text, position)
        if match is None:
            raise Unsupported(f"character {text[position:].strip()[:1]!r}")
        assert match.lastgroup is not None
        found.append((match.lastgroup, match[match.lastgroup]))
        position = match.end()
    return found


def unescape(literal: str) -> bytes:
    """The bytes of a C string or character literal, quotes included in what is given."""

    def one(match: re.Match[str]) -> str:
        body = match[1]
        if body[0] == "x":
            return chr(int(body[1:], 16) & 255)
        if body[0] in "01234567":
            return chr(int(body, 8) & 255)
        return ESCAPES.get(body[0], body[0].encode()).decode("latin-1")

    inner = literal[1:-1].encode("utf-8", "surrogateescape").decode("latin-1")
    return re.sub(r"\\(x[0-9a-fA-F]+|[0-7]{1,3}|.)", one, inner).encode("latin-1")


def parse_list(text: str) -> tuple[Node, ...]:
    """The comma-separated expressions of a print format. Raises Unsupported."""
    parser = _Parser(tokens(text))
    items = parser.items("")
    return items


class TypeName(NamedTuple):
    """A type: itself, what it points to (None: no integer), the name of that, and whether its words can be nothing else."""

    type: Optional[Integer]
    pointer_to: Optional[Integer]
    target: str
    sure: bool


class _Parser:
    """A Pratt parser over the tokens; `depth` bounds the recursion."""

    def __init__(self, found: list[tuple[str, str]]) -> None:
        self.tokens = [*found, ("end", "")]
        self.at = 0
        self.depth = 0

    @property
    def text(self) -> str:
        return self.tokens[self.at][1] if self.tokens[self.at][0] != "string" else '"'

    def accept(self, text: str) -> bool:
        if self.text != text:
            return False
        self.at += 1
        return True

    def expect(self, text: str) -> None:
        if not self.accept(text):
            raise Unsupported(f"`{self.tokens[self.at][1][:20]}` where `{text}` is due")

    def items(self, closing: str) -> tuple[Node, ...]:
        """Expressions up to `closing`; a comma may stand before it."""
        found: list[Node] = []
        while not self.accept(closing) if closing else self.tokens[self.at][0] != "end":
            found.append(self.expression())
            if self.text != closing:
                self.expect(",")
        return tuple(found)

    def expression(self, power: int = 0) -> Node:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise Unsupported("an expression nested too deep")
        left = self.operand()
        while True:
            operator = self.text
            if operator == "?" and power <= 1:
                self.at += 1
                yes = self.expression()
                self.expect(":")
                left = Choice(left, yes, self.expression(1))
            elif BINARY.get(operator, 0) > power:
                self.at += 1
                left = Binary(operator, left, self.expression(BINARY[operator]))
            else:
                self.depth -= 1
                return left

    def operand(self) -> Node:
        kind, text = self.tokens[self.at]
        self.at += 1
        if kind == "number":
            return self.postfix(_number(text))
        if kind == "string":
            return self.postfix(self.strings(text))
        if kind == "character":
            return Number(unescape(text)[0], INT)
        if kind == "word":
            return self.postfix(self.word(text))
        if text in ("!", "~", "-", "+", "&", "*"):
            return Unary(text, self.expression(len(BINARY)))
        if text == "{":
            return Braces(self.items("}"))
        if text == "(":
            return self.brackets()
        raise Unsupported(f"`{text}` where an operand is due")

    def strings(self, first: str) -> Node:
        joined = unescape(first)
        while self.tokens[self.at][0] == "string":
            joined += unescape(self.tokens[self.at][1])
            self.at += 1
        return Text(joined)

    def word(self, text: str) -> Node:
        if text == "REC" and self.accept("->"):
            kind, name = self.tokens[self.at]
            if kind != "word":
                raise Unsupported("REC-> without a name")
            self.at += 1
            return Member(name)
        if text == "sizeof":
            self.expect("(")
            found = self.type_name()
            if found is None or found.type is None:
                raise Unsupported("sizeof of a type that is not known")
            self.expect(")")
            return SizeOf(found.type.size)
        if self.accept("("):
            return Call(text, self.items(")"))
        return Word(text)

    def postfix(self, node: Node) -> Node:
        while True:
            if self.accept("["):
                node = Element(node, self.expression())
                self.expect("]")
            elif self.text in (".", "->"):
                raise Unsupported("a member of a structure")
            else:
                return node

    def brackets(self) -> Node:
        """After `(`: a cast, a statement expression, or an expression in brackets."""
        if self.accept("{"):
            return self.postfix(self.block())
        start = self.at
        found = self.type_name()
        if found is not None and self.accept(")") and (found.sure or self.starts_operand()):
            return Cast(found.type, found.pointer_to, found.target, self.expression(len(BINARY)))
        self.at = start
        inner = self.expression()
        self.expect(")")
        return self.postfix(inner)

    def starts_operand(self) -> bool:
        kind, text = self.tokens[self.at]
        return kind in ("number", "string", "character", "word") or text in ("(", "~", "!")

    def type_name(self) -> Optional[TypeName]:
        """A type, None where there is none."""
        words: list[str] = []
        while self.tokens[self.at][0] == "word":
            words.append(self.text)
            self.at += 1
        stars = 0
        while self.accept("*") or self.text in QUALIFIERS:
            if self.text in QUALIFIERS:
                self.at += 1
            else:
                stars += 1
        if not words or words == ["REC"]:
            return None
        plain = [word for word in words if word not in QUALIFIERS]
        name = " ".join(plain)
        base = UNSIGNED if plain[:1] == ["enum"] else TYPES.get(name)
        sure = bool(KEYWORDS.intersection(words)) or base is not None or stars > 0
        if stars == 0:
            return TypeName(base, None, "", sure)
        if stars == 1:
            return TypeName(UNSIGNED_LONG, base, name, sure)
        return TypeName(UNSIGNED_LONG, UNSIGNED_LONG, "void *", sure)

    def block(self) -> Node:
        """A statement expression that declares scalars and ends with its result."""
        variables: list[tuple[str, Optional[Integer], Node]] = []
        while True:
            start = self.at
            found = self.declaration()
            if found is None:
                self.at = start
                break
            name, kind = found
            variables.append((name, kind, self.expression()))
            self.expect(";")
        result = self.expression()
        self.accept(";")
        self.expect("}")
        self.expect(")")
        return Block(tuple(variables), result)

    def declaration(self) -> Optional[tuple[str, Optional[Integer]]]:
        words: list[str] = []
        while self.tokens[self.at][0] == "word":
            words.append(self.text)
            self.at += 1
        if len(words) < 2 or not self.accept("="):
            return None
        return words[-1], TYPES.get(" ".join(w for w in words[:-1] if w not in QUALIFIERS))


def _number(text: str) -> Number:
    digits = text.rstrip("uUlL")
    suffix = text[len(digits) :].lower()
    value = int(digits, 16 if digits[:2].lower() == "0x" else 8 if digits[0] == "0" and len(digits) > 1 else 10)
    value &= (1 << 64) - 1
    decimal = digits[:2].lower() != "0x"
    if "l" not in suffix and value < 1 << 31 and "u" not in suffix:
        return Number(value, INT)
    if "l" not in suffix and value < 1 << 32 and (not decimal or "u" in suffix):
        return Number(value, UNSIGNED)
    return Number(value, Integer(8, "u" not in suffix and value < 1 << 63))
