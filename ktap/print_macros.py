"""The printing macros of tracepoints: what `__print_flags(...)` and its kin mean.

Source: include/trace/stages/stage3_trace_output.h and kernel/trace/trace_output.c. A macro is compiled
by a function of the compiler and its arguments; what it does at run time is a function of plain values.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Callable, Sequence

from ktap import c_expression as c
from ktap.c_expression import Node, Unsupported
from ktap.print_values import Compiled, Data, Number, convert, element_reader, literal

if TYPE_CHECKING:
    from ktap.print_compiler import Compiler

Macro = Callable[["Compiler", "tuple[Node, ...]"], Compiled]
CACHE_LIMIT = 4096
"""Texts of flags and symbols kept for each macro; enough for all that one event shows."""
BYTES_LIMIT = 1 << 16
"""A record is smaller than a page of the ring buffer; nothing of it is longer."""

# -- at run time --------------------------------------------------------------------------------


def flags_text(delimiter: bytes, table: Sequence[tuple[int, bytes]]) -> Callable[[int], bytes]:
    """`__print_flags`: the names of the bits set, what is left over in hexadecimal."""

    def show(flags: int) -> bytes:
        parts = []
        for mask, name in table:
            if not flags:
                break
            if flags & mask == mask:
                parts.append(name)
                flags &= ~mask
        if flags:
            parts.append(b"0x%x" % flags)
        return delimiter.join(parts)

    return _cached(show)


def symbolic_text(table: Sequence[tuple[int, bytes]]) -> Callable[[int], bytes]:
    """`__print_symbolic`: the first name of a value, the value in hexadecimal where it has none."""
    names: dict[int, bytes] = {}
    for value, name in table:
        names.setdefault(value, name)

    def show(value: int) -> bytes:
        return names[value] if value in names else b"0x%x" % value

    return show


def _cached(show: Callable[[int], bytes]) -> Callable[[int], bytes]:
    texts: dict[int, bytes] = {}

    def cached(value: int) -> bytes:
        text = texts.get(value)
        if text is None:
            text = show(value)
            if len(texts) < CACHE_LIMIT:
                texts[value] = text
        return text

    return cached


def hex_text(separator: bytes) -> Callable[[bytes, int], bytes]:
    """`__print_hex`, `__print_hex_str`: two digits a byte."""
    return lambda data, size: separator.join(b"%02x" % byte for byte in data[: max(size, 0)])


def array_text(element_size: int) -> Callable[[bytes, int], bytes]:
    """`__print_array`: `{0x1,0x2}`."""
    read = element_reader(c.Integer(element_size, False))

    def show(data: bytes, count: int) -> bytes:
        count = min(count, len(data) // element_size)
        return b"{" + b",".join(b"0x%x" % read(data, i) for i in range(count)) + b"}"

    return show


def bitmask_text(data: bytes) -> bytes:
    """`__get_bitmask`, `__get_cpumask`."""
    from ktap.pointer_format import bitmap

    return bitmap(data, 8 * len(data))


# -- at compile time ----------------------------------------------------------------------------


def _table(compiler: Compiler, nodes: Sequence[Node]) -> list[tuple[int, bytes]]:
    """The `{ value, "name" }` pairs; a terminating `{ -1, NULL }` ends them."""
    pairs = []
    for node in nodes:
        if node == c.Braces(()):
            continue
        if not isinstance(node, c.Braces) or len(node.items) != 2:
            raise Unsupported("a table of names of an unknown shape")
        value, name = node.items
        if not isinstance(name, c.Text):
            break
        pairs.append((compiler.fixed(value) & (1 << 64) - 1, name.value))
    return pairs


def _flags(compiler: Compiler, arguments: tuple[Node, ...]) -> Compiled:
    _require(len(arguments) >= 2)
    value = convert(compiler.number(arguments[0]), c.UNSIGNED_LONG)
    delimiter = arguments[1].value if isinstance(arguments[1], c.Text) else b""
    show = compiler.constant(flags_text(delimiter, _table(compiler, arguments[2:])))
    return _text(f"{show}({value.source})")


def _symbolic(compiler: Compiler, arguments: tuple[Node, ...]) -> Compiled:
    _require(len(arguments) >= 1)
    value = convert(compiler.number(arguments[0]), c.UNSIGNED_LONG)
    show = compiler.constant(symbolic_text(_table(compiler, arguments[1:])))
    return _text(f"{show}({value.source})")


def _hex(separator: bytes) -> Macro:
    def compile_hex(compiler: Compiler, arguments: tuple[Node, ...]) -> Compiled:
        _require(len(arguments) == 2)
        data, size = compiler.data(arguments[0]), compiler.number(arguments[1])
        return _text(f"{compiler.constant(hex_text(separator))}({data.source}, {size.source})")

    return compile_hex


def _array(compiler: Compiler, arguments: tuple[Node, ...]) -> Compiled:
    _require(len(arguments) == 3)
    data, count = compiler.data(arguments[0]), compiler.number(arguments[1])
    size = compiler.fixed(arguments[2])
    _require(size in (1, 2, 4, 8))
    return _text(f"{compiler.constant(array_text(size))}({data.source}, {count.source})")


def _dynamic_array(compiler: Compiler, arguments: tuple[Node, ...]) -> Compiled:
    _require(len(arguments) == 2)
    data, size = compiler.data(_member(arguments[0])), compiler.fixed(arguments[1])
    _require(size in (1, 2, 4, 8))
    return _text(f"{compiler.constant(array_text(size))}({data.source}, {BYTES_LIMIT})")


def _member(node: Node) -> c.Member:
    """The field that a `__get_…(field)` names."""
    if not isinstance(node, c.Word):
        raise Unsupported("a dynamic field without a name")
    return c.Member(node.name)


def _get(compiler: Compiler, arguments: tuple[Node, ...]) -> Compiled:
    _require(len(arguments) == 1)
    (node,) = arguments
    if isinstance(node, c.Element):
        return compiler.string_of(_member(node.array), compiler.fixed(node.place))
    return compiler.data(_member(node))


def _get_length(compiler: Compiler, arguments: tuple[Node, ...]) -> Compiled:
    _require(len(arguments) == 1)
    data = compiler.data(_member(arguments[0]))
    return Number(f"{data.source}.__len__()", c.INT)


def _get_bitmask(compiler: Compiler, arguments: tuple[Node, ...]) -> Compiled:
    _require(len(arguments) == 1)
    data = compiler.data(_member(arguments[0]))
    return _text(f"{compiler.constant(bitmask_text)}({data.source})")


def _get_socket_address(compiler: Compiler, arguments: tuple[Node, ...]) -> Compiled:
    from ktap.pointer_format import socket_address

    _require(len(arguments) == 1)
    data = compiler.data(_member(arguments[0]))
    return _text(f"{compiler.constant(lambda raw: socket_address(raw, 'Ipc'))}({data.source})")


def _nanoseconds(operator: str, kind: c.Integer) -> Macro:
    def compile_part(compiler: Compiler, arguments: tuple[Node, ...]) -> Compiled:
        _require(len(arguments) == 1)
        value = convert(compiler.number(arguments[0]), c.UNSIGNED_LONG)
        return Number(f"({value.source} {operator} 1000000000)", kind)

    return compile_part


def _expect(compiler: Compiler, arguments: tuple[Node, ...]) -> Compiled:
    _require(len(arguments) == 2)
    return convert(compiler.number(arguments[0]), c.LONG)


def _constant_p(compiler: Compiler, arguments: tuple[Node, ...]) -> Compiled:
    return literal(0, c.INT)


def _probe_place(compiler: Compiler, arguments: tuple[Node, ...]) -> Compiled:
    """The place of a probe: a symbol in the kernel, hexadecimal in a process."""
    return _probe_address(compiler, arguments, compiler.names.symbol)


def _probe_function(compiler: Compiler, arguments: tuple[Node, ...]) -> Compiled:
    return _probe_address(compiler, arguments, compiler.names.symbol_name)


def _probe_address(compiler: Compiler, arguments: tuple[Node, ...], name: Callable[[int], bytes]) -> Compiled:
    def show(address: int) -> bytes:
        return name(address) if address >> 63 else b"0x%x" % address

    compiler.asks_names = True
    address = convert(compiler.number(arguments[0]), c.UNSIGNED_LONG)
    return _text(f"{compiler.constant(show)}({address.source})")


def _probe_string(compiler: Compiler, arguments: tuple[Node, ...]) -> Compiled:
    """A string in quotes, or that it could not be read: then it has no bytes, not even a NUL."""
    data = compiler.data(arguments[0])
    quoted = compiler.constant(lambda raw: b'"%s"' % raw.partition(b"\0")[0] if raw else b"(fault)")
    return _text(f"{quoted}({data.source})")


def _require(holds: bool) -> None:
    if not holds:
        raise Unsupported("a printing macro with unknown arguments")


def _text(source: str) -> Data:
    return Data(source, c.CHARACTER)


MACROS: dict[str, Macro] = {
    "__print_flags": _flags,
    "__print_flags_u64": _flags,
    "__print_symbolic": _symbolic,
    "__print_symbolic_u64": _symbolic,
    "__print_hex": _hex(b" "),
    "__print_hex_str": _hex(b""),
    "__print_array": _array,
    "__print_dynamic_array": _dynamic_array,
    "__print_ns_to_secs": _nanoseconds("//", c.UNSIGNED_LONG),
    "__print_ns_without_secs": _nanoseconds("%", c.UNSIGNED),
    "__get_str": _get,
    "__get_rel_str": _get,
    "__get_dynamic_array": _get,
    "__get_rel_dynamic_array": _get,
    "__get_dynamic_array_len": _get_length,
    "__get_rel_dynamic_array_len": _get_length,
    "__get_bitmask": _get_bitmask,
    "__get_rel_bitmask": _get_bitmask,
    "__get_cpumask": _get_bitmask,
    "__get_rel_cpumask": _get_bitmask,
    "__get_sockaddr": _get_socket_address,
    "__get_rel_sockaddr": _get_socket_address,
    "__probe_place": _probe_place,
    "__probe_function": _probe_function,
    "__probe_string": _probe_string,
    "__builtin_expect": _expect,
    "__builtin_constant_p": _constant_p,
}
"""Every macro that is known; a call of any other is one into the kernel."""
