"""Records of probes on functions and markers: the format that the kernel's own uprobe_events would give them,
and the code that fills one from the registers.

A record begins like every tracepoint's; then come `__probe_ip` (at a return `__probe_func`), the fetch
arguments, and behind them `__probe_ret_ip` and `__probe_retval`. So filters, fields, argstr and handlers in
the kernel read these events as they read tracepoints.
Source: kernel/trace/trace_probe.c and trace_probe_tmpl.h.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, List, Optional, Sequence, Tuple

from ktap.demand import Expression, Read, Text, Value
from ktap.event_format import (
    BYTES,
    DATA_LOC,
    ENTRY_ADDRESS,
    INLINE,
    INTEGER,
    INTEGERS,
    RETURN_ADDRESS,
    RETURN_FUNCTION,
    RETVAL,
    TEXT,
    TEXTS,
    EventFormat,
    Field,
)
from ktap.fetch import Argument, Shape, element
from vm.named_tuple import NamedTuple
from vm.values import wrap

if TYPE_CHECKING:
    from compiler.ir import Writer
    from ktap.capture import Frame

GROUP = "uprobes"
FUNCTION = Value("function")
"""The address of the function that returns, which only the kernel knows."""
HEADER_BYTES = 8
"""The common fields."""
COMM_BYTES = 16
TEXT_WORD_BYTES = 4
"""What says where a string lies, and its size."""
MOST_TEXTS_BYTES = 48 << 10
"""What all strings of a record have together: twelve of them are as long as one alone may be."""
STACK_RECORD_BYTES = 160
"""A record up to this size is made on the program's stack."""

DECLARED = {"u": "u", "x": "u", "s": "s", "c": "u", "b": "u", "y": "u", "Y": "u"}
PRINTED = {"u": "%u", "x": "0x%x", "s": "%d", "c": "'%c'", "b": "%u"}
LONG_PRINTED = {"u": "%Lu", "x": "0x%Lx", "s": "%Ld", "b": "%Lu", "y": "%pS", "Y": '\\"%pS\\"'}


class Part(NamedTuple):
    """One value of a record: where it goes, what it is."""

    offset: int
    what: Expression
    shape: Shape


class Recipe(NamedTuple):
    """How a record is made."""

    parts: Tuple[Part, ...]
    fixed_bytes: int

    @property
    def strings(self) -> int:
        """How many values vary in size."""
        return sum(part.shape.letter == "S" for part in self.parts)

    @property
    def on_stack(self) -> bool:
        """Whether a record is made on the program's stack."""
        return not self.strings and self.fixed_bytes <= STACK_RECORD_BYTES

    @property
    def most_bytes(self) -> int:
        """Size of the largest record."""
        return self.fixed_bytes + sum(text_bytes(part.what) for part in self.parts if part.shape.letter == "S")


def text_bytes(what: Expression) -> int:
    """Of a string at most, with the NUL at its end."""
    if isinstance(what, Text):
        return len(what.value) + 1
    return what.most_bytes if isinstance(what, Read) else COMM_BYTES


class Record(NamedTuple):
    """The format of an event's records, and how they are made."""

    format: EventFormat
    recipe: Recipe


def record_of(
    name: str, arguments: Sequence[Argument], address: Argument, hidden: Sequence[Argument], shown: bool
) -> Record:
    """The record of an event called `name`.

    `address` comes first, `hidden` last; only `arguments` are in the text, and only where `shown`.
    """
    fields: List[Field] = []
    parts: List[Part] = []
    offset = HEADER_BYTES
    for argument in (address, *arguments, *hidden):
        field = _field(argument, offset)
        fields.append(field)
        parts += _parts(argument, field.offset)
        offset = field.offset + field.size
    head, values = '"(0x%lx)', [f"REC->{address.name}"]
    if address.name == ENTRY_ADDRESS:  # the kernel adds the 0x itself, where it prints such events
        head = '"(%lx)'
    if address.name == RETURN_FUNCTION:
        head = '"(<- %lx)'
    if any(argument.name == RETURN_ADDRESS for argument in hidden):
        head, values = '"(%lx <- %lx)', [f"REC->{address.name}", f"REC->{RETURN_ADDRESS}"]
    for argument in arguments if shown else ():
        text, value = _printed(argument)
        head += f" {argument.name}={text}"
        values += value
    event_format = EventFormat(GROUP, name, 0, (), tuple(fields), ", ".join([head + '"', *values]))
    return Record(event_format, Recipe(_bounded(parts), offset + 7 & ~7))


def _bounded(parts: Sequence[Part]) -> Tuple[Part, ...]:
    """The parts with strings short enough for one record: a word says where a string is with 16 bits."""
    reads = [part for part in parts if part.shape.letter == "S" and isinstance(part.what, Read)]
    most = MOST_TEXTS_BYTES // max(1, len(reads))
    return tuple(
        part._replace(what=part.what._replace(most_bytes=min(most, part.what.most_bytes)))
        if part.shape.letter == "S" and isinstance(part.what, Read)
        else part
        for part in parts
    )


def format_source_of(event: EventFormat) -> str:
    """What a `format` file would say of such an event; see ktap.event_format.parse_format."""
    rows = [
        f"\tfield:{field.declaration};\toffset:{field.offset};\tsize:{field.size};\tsigned:{field.signed:d};"
        for field in event.fields
    ]
    return "\n".join([f"name: {event.name}", "ID: 0", "format:", *rows, "", f"print fmt: {event.print_format}", ""])


def _parts(argument: Argument, offset: int) -> List[Part]:
    """What a field is made of: an array of strings of several."""
    what, shape = argument.what, argument.shape
    if shape.letter != "S" or not shape.length:
        return [Part(offset, what, shape)]
    one = shape._replace(length=0)
    return [Part(offset + TEXT_WORD_BYTES * number, element(what, number), one) for number in range(shape.length)]


def _field(argument: Argument, offset: int) -> Field:
    name, shape = argument.name, argument.shape
    if shape.letter == "S" and shape.length:
        offset = offset + 3 & ~3
        declaration = f"__data_loc char[][{shape.length}] {name}"
        return Field(name, "char", offset, TEXT_WORD_BYTES * shape.length, True, TEXTS, DATA_LOC, 1, declaration)
    if shape.letter == "S":
        offset = offset + 3 & ~3
        return Field(name, "char", offset, TEXT_WORD_BYTES, True, TEXT, DATA_LOC, 1, f"__data_loc char[] {name}")
    size = shape.size_bytes
    offset = offset + size - 1 & -size
    type_name = f"{DECLARED[shape.letter]}{8 * size}"
    signed = shape.letter == "s"
    if not shape.length:
        return Field(name, type_name, offset, size, signed, INTEGER, INLINE, size, f"{type_name} {name}")
    kind = INTEGERS if size > 1 else BYTES
    declaration = f"{type_name} {name}[{shape.length}]"
    return Field(name, type_name, offset, size * shape.length, signed, kind, INLINE, size, declaration)


def _printed(argument: Argument) -> Tuple[str, List[str]]:
    """How the kernel prints a value: its format, and what it takes."""
    name, shape = argument.name, argument.shape
    if shape.letter == "S" and shape.length:
        text = ",".join(['\\"%s\\"'] * shape.length)
        return "{" + text + "}", [f"__get_str({name}[{n}])" for n in range(shape.length)]
    if shape.letter == "S":
        return '\\"%s\\"', [f"__get_str({name})"]
    text = (LONG_PRINTED if shape.size_bytes == 8 else PRINTED)[shape.letter]
    if not shape.length:
        return text, [f"REC->{name}"]
    return "{" + ",".join([text] * shape.length) + "}", [f"REC->{name}[{n}]" for n in range(shape.length)]


# -- code -----------------------------------------------------------------------------------------


def fill_record(frame: Frame, recipe: Recipe, room: Optional[str] = None) -> str:
    """Make a record, but for its first 8 bytes, of what the frame's base (the registers) holds; where it is."""
    w = frame.w
    if recipe.on_stack:
        space = w.local(recipe.fixed_bytes, "record")
    else:
        key = w.local(4, "key")
        w.store(4, frame.task.cpu, key)
        space = w.lookup("fetched", key)
    w.store(8, 0, space)
    _clear_gaps(frame, recipe, space)
    position = str(recipe.fixed_bytes)
    for part in recipe.parts:
        if part.shape.letter == "S":
            position = _text(frame, part, space, position)
        elif part.shape.length:
            assert isinstance(part.what, Read)
            size = part.shape.size_bytes * part.shape.length
            w.call(f"probe_read_{part.what.space}", w.at(space, part.offset), size, frame.expression(part.what.address))
            for number in range(part.shape.length if part.shape.bits else 0):
                _cut_bits(frame, part, space, part.offset + number * part.shape.size_bytes)
        else:
            value = _word(frame, part)
            w.store(part.shape.size_bytes, w.narrowed(value, part.shape.size_bytes), space, part.offset)
    return space


def _clear_gaps(frame: Frame, recipe: Recipe, space: str) -> None:
    """The bytes between values are copied with the rest, so they must be something."""
    covered = [False] * recipe.fixed_bytes
    for part in recipe.parts:
        size = 4 if part.shape.letter == "S" else part.shape.size_bytes * max(1, part.shape.length)
        covered[part.offset : part.offset + size] = [True] * size
    for word in range(HEADER_BYTES, recipe.fixed_bytes, 8):
        if not all(covered[word : word + 8]):
            frame.w.store(8, 0, space, word)
    for part in recipe.parts:
        if part.shape.length:
            for word in range(part.offset & ~7, part.offset + part.shape.size_bytes * part.shape.length, 8):
                frame.w.store(8, 0, space, word)


def _word(frame: Frame, part: Part) -> str:
    """A value as an i64."""
    w = frame.w
    if part.what == FUNCTION:
        return w.call("get_func_ip", "%ctx")
    value = frame.expression(part.what)
    return _bits(w, value, part.shape) if part.shape.bits else value


def _bits(w: Writer, value: str, shape: Shape) -> str:
    shifted = w.value(f"lshr i64 {value}, {shape.shift}")
    return w.value(f"and i64 {shifted}, {wrap((1 << shape.bits) - 1)}")


def _cut_bits(frame: Frame, part: Part, space: str, offset: int) -> None:
    """Make the element of an array the bit field in it."""
    w, size = frame.w, part.shape.size_bytes
    value = _bits(w, w.load_wide(size, False, space, offset), part.shape)
    w.store(size, w.narrowed(value, size), space, offset)


def _text(frame: Frame, part: Part, space: str, position: str) -> str:
    """Put a string at a position behind the fixed part, and note where; the position behind it."""
    w, what, most = frame.w, part.what, text_bytes(part.what)
    target = w.at(space, position)
    length = str(most)
    if isinstance(what, Text):
        _constant(w, what.value + b"\0", target)
    elif isinstance(what, Read):
        length = w.text_bytes(w.call(f"probe_read_{what.space}_str", target, most, frame.expression(what.address)))
        unread = w.value(f"icmp ugt i64 {length}, {most}")
        length = w.value(f"select i1 {unread}, i64 0, i64 {length}")
    else:
        frame.write_name(target)
    where = w.value(f"or i64 {position}, {w.value(f'shl i64 {length}, 16')}")
    w.store(4, w.narrowed(where, 4), space, part.offset)
    return _behind(frame, position, length, most)


def _constant(w: Writer, data: bytes, target: str) -> None:
    """Write bytes that are known; a text may begin anywhere."""
    for offset, byte in enumerate(data):
        w.store(1, byte, target, offset)


def _behind(frame: Frame, position: str, length: str, most: int) -> str:
    """The position behind a string; the bound, which always holds, is said in a way that the verifier follows."""
    w = frame.w
    if length.isdigit():
        return str(int(position) + int(length)) if position.isdigit() else w.value(f"add i64 {position}, {length}")
    some, none, both = w.fresh("some"), w.fresh("none"), w.fresh("both")
    w.branch(w.value(f"icmp ugt i64 {length}, {most}"), none, some)
    w.label(some)
    moved = w.value(f"add i64 {position}, {length}")
    w.goto(both)
    w.label(none)
    w.goto(both)
    w.label(both)
    return w.value(f"phi i64 [ {moved}, %{some} ], [ {position}, %{none} ]")


def address_argument(what: Expression, returns: bool) -> Argument:
    """The first value of every record: where the probe is."""
    return Argument(RETURN_FUNCTION if returns else ENTRY_ADDRESS, what, Shape("x"))


def return_arguments(where: Expression, value: Expression) -> Tuple[Argument, ...]:
    """The last values of a return's record: where it returns to, and with what."""
    return Argument(RETURN_ADDRESS, where, Shape("x")), Argument(RETVAL, value, Shape("s"))
