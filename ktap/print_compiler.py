"""Compiles the expressions of a print format to one Python function of the raw record.

Integers follow C on a 64-bit kernel: every expression has a type, values are kept as that type has
them (an unsigned one is never negative), and results are wrapped where an operation can leave it.
"""

from __future__ import annotations

from struct import Struct
from typing import Callable, Optional

from ktap import c_expression as c
from ktap import event_format as ef
from ktap.c_expression import Integer, Node, Unsupported
from ktap.pointer_format import KernelNames
from ktap.print_macros import MACROS
from ktap.print_values import (
    ARITHMETIC,
    COMPARISONS,
    Compiled,
    Data,
    Number,
    common,
    convert,
    element_reader,
    literal,
    promote,
    wrap,
    wrapped,
)


def compile_text(
    event: ef.EventFormat, items: tuple[Node, ...], names: KernelNames
) -> tuple[Callable[[bytes], bytes], bool]:
    """The function that shows a raw record, and whether it asks `names`. Raises Unsupported."""
    from ktap.print_directives import Directives

    if not items or not isinstance(items[0], c.Text):
        raise Unsupported("no format string")
    compiler = Compiler(event, names)
    directives = Directives(compiler)
    template, arguments = directives.compile(items[0].value, items[1:])
    return compiler.function(
        event.name.encode().replace(b"%", b"%%") + b": " + template, arguments
    ), compiler.asks_names


MOST_SOURCE = 10_000
"""Characters of the source of a variable, which stands in full wherever it is used."""


class Compiler:
    """Turns nodes into Python source, collecting the constants and the record's fields it uses."""

    def __init__(self, event: ef.EventFormat, names: KernelNames) -> None:
        self.event = event
        self.names = names
        self.asks_names = False
        self._constants: list[object] = []
        self._fields: dict[str, tuple[ef.Field, str]] = {}
        self._variables: dict[str, Compiled] = {}
        self._declared = 0

    def constant(self, value: object) -> str:
        """The source of a constant that is no integer."""
        self._constants.append(value)
        return f"k{len(self._constants) - 1}"

    def function(self, template: bytes, arguments: list[str]) -> Callable[[bytes], bytes]:
        """The finished function: unpack, then fill in the template."""
        fixed = sorted((f for f, _ in self._fields.values() if f.place == ef.INLINE), key=lambda f: f.offset)
        fixed, overlapping = _without_overlap(fixed)
        layout, at, targets = "=", 0, []
        for field in fixed:
            layout += f"{field.offset - at}x" + _letter(field)
            at = field.offset + field.size
            targets.append(self._fields[field.name][1])
        lines = []
        if targets:
            lines.append(f"    {', '.join(targets)}, = {self.constant(Struct(layout).unpack_from)}(raw)")
        for field, local in self._fields.values():
            if field.place != ef.INLINE or field in overlapping:
                lines.append(f"    {local} = {self.constant(_single(field))}(raw)")
        values = "".join(f"{a}, " for a in arguments)
        lines.append(f"    return {self.constant(template)} % ({values})")
        scope: dict[str, Callable[[bytes], bytes]] = {}
        names: dict[str, object] = {f"k{i}": value for i, value in enumerate(self._constants)}
        names["__builtins__"] = {}
        # constants are arguments with a default: locals are faster to reach than globals
        lines.insert(0, f"def show(raw, {', '.join(f'k{i}=k{i}' for i in range(len(self._constants)))}):")
        exec(compile("\n".join(lines), "<print format>", "exec"), names, scope)
        return scope["show"]

    # -- nodes --------------------------------------------------------------------------------

    def expression(self, node: Node) -> Compiled:
        """A node as Python source. Raises Unsupported."""
        method = _METHODS.get(type(node))
        if method is None:
            raise Unsupported(f"a {type(node).__name__.lower()} where a value is due")
        return method(self, node)

    def number(self, node: Node) -> Number:
        """A node that must be an integer."""
        value = self.expression(node)
        if isinstance(value, Data):
            raise Unsupported("the address of a part of the record")
        return value

    def data(self, node: Node) -> Data:
        """A node that must be bytes of the record, or text."""
        value = self.expression(node)
        if isinstance(value, Number):
            raise Unsupported("the memory behind a pointer")
        return value

    def string_of(self, array: c.Member, number: int) -> Data:
        """One of an array of strings."""
        field = self.event.field(array.name)
        if field is None or field.kind != ef.TEXTS or not 0 <= number < field.size // 4:
            raise Unsupported(f"`{array.name}[{number}]`")
        return Data(f"{self.data(array).source}[{number}]", c.CHARACTER)

    def fixed(self, node: Node) -> int:
        """A node that must be a constant integer."""
        value = self.number(node)
        if value.constant is None:
            raise Unsupported("a table entry that is not constant")
        return value.constant

    def _number(self, node: c.Number) -> Compiled:
        return literal(node.value, node.type)

    def _size(self, node: c.SizeOf) -> Compiled:
        return literal(node.size, c.UNSIGNED_LONG)

    def _text(self, node: c.Text) -> Compiled:
        return Data(self.constant(node.value), c.CHARACTER)

    def _word(self, node: c.Word) -> Compiled:
        if node.name in self._variables:
            return self._variables[node.name]
        value = self.names.constant(node.name)
        if value is not None:
            return literal(value, c.INT if -(1 << 31) <= value < 1 << 31 else c.LONG)
        raise Unsupported(f"`{node.name}`")

    def _member(self, node: c.Member) -> Compiled:
        return self.field(node.name)

    def field(self, name: str) -> Compiled:
        """A field of the record, read once into a local variable."""
        field = self.event.field(name)
        if field is None:
            raise Unsupported(f"the field `{name}`, which the format does not have")
        if name not in self._fields:
            self._fields[name] = (field, f"f{len(self._fields)}")
        local = self._fields[name][1]
        if field.kind in (ef.INTEGER, ef.POINTER):
            return Number(local, Integer(field.size, field.signed))
        signed = field.signed if field.kind != ef.TEXT else True
        return Data(local, Integer(field.element_size, signed))

    def _unary(self, node: c.Unary) -> Compiled:
        if node.operator == "&":
            inner = node.operand
            if isinstance(inner, c.Element) and isinstance(inner.place, c.Number) and inner.place.value == 0:
                inner = inner.array
            return self.data(inner)
        if node.operator == "*":
            return self._element(c.Element(node.operand, c.Number(0, c.INT)))
        if node.operator == "!":
            return self._fold(f"(0 if {self.truth(node.operand)} else 1)", c.INT, self._constant_not(node.operand))
        value = promote(self.number(node.operand))
        if node.operator == "+":
            return value
        constant = None
        if value.constant is not None:
            constant = -value.constant if node.operator == "-" else ~value.constant
        return self._fold(wrap(f"({node.operator}{value.source})", value.type), value.type, constant)

    def _constant_not(self, node: Node) -> Optional[int]:
        value = self.expression(node)
        return None if isinstance(value, Data) or value.constant is None else int(not value.constant)

    def truth(self, node: Node) -> str:
        """The source of a node as a condition; a pointer to bytes is never null."""
        value = self.expression(node)
        return value.source if isinstance(value, Number) else "True"

    def _fold(self, source: str, kind: Integer, constant: Optional[int]) -> Number:
        return Number(source, kind) if constant is None else literal(wrapped(constant, kind), kind)

    def _binary(self, node: c.Binary) -> Compiled:
        operator = node.operator
        if operator in ("&&", "||"):
            word = "and" if operator == "&&" else "or"
            return Number(f"(1 if ({self.truth(node.left)}) {word} ({self.truth(node.right)}) else 0)", c.INT)
        left, right = promote(self.number(node.left)), promote(self.number(node.right))
        if operator in ("+", "-") and (left.target or right.target):
            return self._pointer_sum(operator, left, right)
        if operator in ("<<", ">>"):
            return self._shift(operator, left, right)
        kind = common(left.type, right.type)
        a, b = convert(left, kind), convert(right, kind)
        both = None if a.constant is None or b.constant is None else (a.constant, b.constant)
        if operator in COMPARISONS:
            constant = None if both is None else int(COMPARISONS[operator](*both))
            return self._fold(f"(1 if {a.source} {operator} {b.source} else 0)", c.INT, constant)
        constant = None if both is None else ARITHMETIC[operator](*both)
        if operator in "/%":
            name = self.constant(ARITHMETIC[operator])
            return self._fold(wrap(f"{name}({a.source}, {b.source})", kind), kind, constant)
        source = f"({a.source} {operator} {b.source})"
        return self._fold(source if operator in "&|^" else wrap(source, kind), kind, constant)

    def _pointer_sum(self, operator: str, left: Number, right: Number) -> Number:
        """A pointer and a number of elements; two pointers are taken for addresses in bytes."""
        pointer, other = (left, right) if left.target else (right, left)
        size: Optional[int] = 1
        if not other.target and pointer.target != "void":
            known = c.TYPES.get(pointer.target)
            size = known.size if known is not None else self.names.constant(f"sizeof({pointer.target})")
        if size is None:
            raise Unsupported(f"arithmetic on a pointer to `{pointer.target}`")
        moved = convert(other, c.UNSIGNED_LONG)
        first, second = convert(pointer, c.UNSIGNED_LONG).source, f"{moved.source} * {size}"
        if not left.target:
            first, second = second, first
        return Number(wrap(f"({first} {operator} {second})", c.UNSIGNED_LONG), c.UNSIGNED_LONG, None, pointer.target)

    def _shift(self, operator: str, left: Number, right: Number) -> Number:
        bits = left.type.size * 8 - 1
        constant = None
        if left.constant is not None and right.constant is not None:
            count = right.constant & bits
            constant = left.constant << count if operator == "<<" else left.constant >> count
        count_source = str(right.constant & bits) if right.constant is not None else f"({right.source} & {bits})"
        source = f"({left.source} {operator} {count_source})"
        return self._fold(wrap(source, left.type) if operator == "<<" else source, left.type, constant)

    def _choice(self, node: c.Choice) -> Compiled:
        condition = self.truth(node.condition)
        yes, no = self.expression(node.yes), self.expression(node.no)
        if isinstance(yes, Data) and isinstance(no, Data):
            return Data(f"({self.as_text(yes)} if {condition} else {self.as_text(no)})", yes.element)
        if isinstance(yes, Data) or isinstance(no, Data):
            return self._text_or_null(condition, yes, no)
        kind = common(promote(yes).type, promote(no).type)
        a, b = convert(promote(yes), kind), convert(promote(no), kind)
        return Number(f"({a.source} if {condition} else {b.source})", kind)

    def _text_or_null(self, condition: str, yes: Compiled, no: Compiled) -> Compiled:
        """`condition ? text : NULL`: `%s` of a null pointer shows `(null)`."""
        null = self.constant(b"(null)")
        if isinstance(yes, Data) and isinstance(no, Number) and no.constant == 0:
            return Data(f"({self.as_text(yes)} if {condition} else {null})", yes.element)
        if isinstance(no, Data) and isinstance(yes, Number) and yes.constant == 0:
            return Data(f"({null} if {condition} else {self.as_text(no)})", no.element)
        raise Unsupported("a choice between text and a number")

    def as_text(self, value: Data) -> str:
        """The source of bytes cut at their first NUL, as `%s` prints them."""
        if value.source[0] == "k":
            return value.source
        return f"{value.source}.partition(b'\\0')[0]"

    def _cast(self, node: c.Cast) -> Compiled:
        value = self.expression(node.operand)
        if isinstance(value, Data):
            return value if node.pointer_to is None else Data(value.source, node.pointer_to)
        if node.type is None:
            return value
        return convert(value, node.type)._replace(target=node.target)

    def _element(self, node: c.Element) -> Compiled:
        array, index = self.data(node.array), self.number(node.place)
        name = self.constant(element_reader(array.element))
        return Number(f"{name}({array.source}, {index.source})", array.element)

    def _block(self, node: c.Block) -> Compiled:
        for name, kind, initial in node.variables:
            value = self.expression(initial)
            if isinstance(value, Number) and kind is not None:
                value = convert(value, kind)
            if len(value.source) > MOST_SOURCE:
                raise Unsupported("an expression that is too long")
            self._variables[name] = value
        return self.expression(node.result)

    def _call(self, node: c.Call) -> Compiled:
        macro = MACROS.get(node.name)
        if macro is None:
            raise Unsupported(f"{node.name}()")
        return macro(self, node.arguments)


# -- the record ---------------------------------------------------------------------------------

LETTERS = {1: "b", 2: "h", 4: "i", 8: "q"}


def _letter(field: ef.Field) -> str:
    if field.kind in (ef.INTEGER, ef.POINTER):
        letter = LETTERS[field.size]
        return letter if field.signed else letter.upper()
    return f"{field.size}s"


def _single(field: ef.Field) -> Callable[[bytes], object]:
    """Reads a field by itself: a dynamic one, or one that shares its bytes with another."""
    if field.kind == ef.TEXTS:
        return ef.locate_each(field)
    if field.kind not in (ef.INTEGER, ef.POINTER):
        return ef.locate(field)
    unpack = Struct("=" + _letter(field)).unpack_from

    def read(raw: bytes) -> object:
        value: object = unpack(raw, field.offset)[0]
        return value

    return read


def _without_overlap(fields: list[ef.Field]) -> tuple[list[ef.Field], list[ef.Field]]:
    """Fields in order of offset, and those left out because they overlap or have no fixed size."""
    kept: list[ef.Field] = []
    rest: list[ef.Field] = []
    end = 0
    for field in fields:
        if field.offset < end or field.size == 0:
            rest.append(field)
        else:
            kept.append(field)
            end = field.offset + field.size
    return kept, rest


_METHODS: dict[type, Callable[..., Compiled]] = {
    c.Number: Compiler._number,
    c.SizeOf: Compiler._size,
    c.Text: Compiler._text,
    c.Word: Compiler._word,
    c.Member: Compiler._member,
    c.Unary: Compiler._unary,
    c.Binary: Compiler._binary,
    c.Choice: Compiler._choice,
    c.Cast: Compiler._cast,
    c.Element: Compiler._element,
    c.Block: Compiler._block,
    c.Call: Compiler._call,
}
