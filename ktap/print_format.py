"""argstr: the text of an event, as the tracefs `trace` file shows it after its header columns.

A `print fmt:` is compiled once an event to a Python function of the raw record: one struct unpack for
the integer fields it reads, one bytes template for the text. The source is put together from this
module's own templates, integers and indexes into a tuple of constants: no text of a format file (which
in a replay comes from a file) ever reaches it. What cannot be evaluated outside the kernel is shown as
`name=value` pairs of the fields.

Source: include/trace/stages/stage3_trace_output.h, kernel/trace/trace_output.c and, for system calls,
which the kernel prints with code of its own, kernel/trace/trace_syscalls.c.
"""

from __future__ import annotations

from typing import Callable, Dict, Optional, Sequence, cast

from ktap import event_format
from ktap.c_expression import Unsupported, parse_list
from ktap.event_format import EventFormat, Raw
from ktap.pointer_format import KernelNames
from vm.named_tuple import NamedTuple

Formatter = Callable[[Raw], bytes]


class EventText(NamedTuple):
    """How an event is shown."""

    show: Formatter
    """Gives the text of a raw record. Raises struct.error when the record is too short for its format."""
    asks_names: bool
    """Whether it asks for symbols, kernel strings or pointer hashes."""
    fallback: Optional[str]
    """Why the fields are shown instead of the kernel's own text; None where they are not."""


def event_text(event: EventFormat, names: KernelNames, release: str) -> EventText:
    """How to show an event of a kernel of `release` (as uname -r prints it)."""
    if event.is_syscall:
        return EventText(syscall_text(event, release), False, None)
    from ktap.print_compiler import compile_text
    from ktap.probe_text import probe_items

    try:
        items = parse_list(event.print_format)
        if event.is_probe:
            items = probe_items(items)
        show, asks_names = compile_text(event, items, names)
    except Unsupported as reason:
        return EventText(field_text(event), False, str(reason))
    return EventText(show, asks_names, None)


def field_text(event: EventFormat) -> Formatter:
    """`name: field=value field=value …`: strings as they are, bytes and pointers in hexadecimal, arrays in braces."""
    head = f"{event.name}:".encode()
    shown = [(f" {field.name}=".encode(), _field_text(field)) for field in event.fields]

    def show(raw: Raw) -> bytes:
        return head + b"".join([label + text(raw) for label, text in shown])

    return show


def _field_text(field: event_format.Field) -> Formatter:
    if field.kind in (event_format.INTEGER, event_format.POINTER):
        read = event_format.integer_reader(field.offset, field.size, field.signed)
        if field.kind == event_format.POINTER:
            return lambda raw: b"0x%x" % (read(raw) & MASK)
        return lambda raw: b"%d" % read(raw)
    if field.kind == event_format.INTEGERS:
        braces = event_format.reader(field, _braces)
        return lambda raw: cast(bytes, braces(raw))
    if field.kind == event_format.TEXTS:
        each = event_format.locate_each(field)
        return lambda raw: b"{" + b",".join([event_format.cut(text) for text in each(raw)]) + b"}"
    find = event_format.locate(field)
    if field.kind == event_format.TEXT:
        return lambda raw: event_format.cut(find(raw))
    return lambda raw: find(raw).hex().encode()


MASK = (1 << 64) - 1


def _braces(values: Sequence[object]) -> bytes:
    return b"{" + b",".join([str(value).encode() for value in values]) + b"}"


SYSCALL_PREFIX_SINCE = (6, 15)
"""From this kernel on a system call's arguments of 10 and more are shown with `0x`; before, bare."""


def _version(release: str) -> tuple[int, int]:
    numbers = [int("".join(c for c in part if c.isdigit()) or 0) for part in release.split("-")[0].split(".")[:2]]
    return (numbers[0], numbers[1]) if len(numbers) == 2 else (0, 0)


def syscall_text(event: EventFormat, release: str) -> Formatter:
    """`sys_openat(dfd: 0xffffff9c, …)` for an entry, `sys_openat -> 0x3` for an exit."""
    from struct import Struct

    kind, _, call = event.name.removeprefix("sys_").replace("%", "%%").partition("_")
    name = f"sys_{call}"
    if kind == "exit":
        result, offset = Struct("=Q").unpack_from, event.fields[-1].offset
        head = f"{name} -> 0x%x".encode()
        return lambda raw: head % result(raw, offset)
    arguments = [f for f in event.fields if f.offset >= 16 and f.place == event_format.INLINE]
    if not arguments:
        whole = f"{name}()".replace("%%", "%").encode()
        return lambda raw: whole
    unpack = Struct(f"={len(arguments)}Q").unpack_from
    plain = _version(release) < SYSCALL_PREFIX_SINCE
    labels = ", ".join(f"{f.name}: {'%x' if plain else '%b'}" for f in arguments)
    template = f"{name}({labels})".encode()
    if plain:
        return lambda raw: template % unpack(raw, 16)
    shown = SHOWN.__getitem__
    return lambda raw: template % tuple(map(shown, unpack(raw, 16)))


class Arguments(Dict[int, bytes]):
    """Arguments of system calls as they are shown; most come again and again."""

    MOST = 1 << 16

    def __missing__(self, value: int) -> bytes:
        """Decimal up to 9, else hexadecimal."""
        if len(self) >= self.MOST:
            self.clear()
        text = self[value] = b"%d" % value if value < 10 else b"0x%x" % value
        return text


SHOWN = Arguments()
