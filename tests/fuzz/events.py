"""The events of drawn scripts: what a handler can read of them, and drawn firings with extreme values."""

from __future__ import annotations

from typing import NamedTuple

from corpus import Fired

from tests.fuzz.draws import Draws

INTEGER, MAYBE, TEXT, MAYBE_TEXT, BOOLEAN = "integer", "integer or nil", "string", "string or nil", "boolean"
"""Kinds of values."""

FIELD_BYTES, COMM_BYTES, PATH_BYTES = 16, 16, 4096
MEMORY = 0x2_0000_0000
"""Where cases have memory; nothing of the test lies there."""


class Readable(NamedTuple):
    """A value of an event: its spelling, its kind, and the most bytes of a string."""

    text: str
    kind: str
    size: int = 0


def integers(*names: str) -> tuple[Readable, ...]:
    return tuple(Readable(name, INTEGER) for name in names)


class Source(NamedTuple):
    """What a handler is for: the words behind `trace`, the events that fire it, what it can read, what a filter can."""

    probe: str
    events: tuple[str, ...]
    values: tuple[Readable, ...]
    filters: tuple[str, ...] = ()
    texts_of_filters: tuple[str, ...] = ()
    pointer: str = ""


CONTEXT = (
    *integers("pid", "tid", "cpu", "uid", "gid", "cgroup", "nsecs"),
    Readable("execname", TEXT, COMM_BYTES),
    Readable("ppid", MAYBE),
    Readable("arg9", MAYBE),
)
EVENT = (
    *integers("args.a", "args.b", "arg0", "args.c", "args.d", "args.e", "args.f", "arg5"),
    Readable("args.text", TEXT, FIELD_BYTES),
    Readable("args.path", TEXT, PATH_BYTES),
    Readable("arg7", TEXT, PATH_BYTES),
)
SOURCES = (
    Source("test:event", ("test:event",), EVENT, ("a", "b", "d", "e", "f"), ("text", "path")),
    Source("test:exit", ("test:exit",), integers("args.a", "args.ret", "arg1"), ("a", "ret")),
    Source(
        "test:other", ("test:other",), integers("args.a", "args.small", "args.name"), ("a", "small"), (), "args.name"
    ),
    Source(
        "test:event, test:exit", ("test:event", "test:exit"), (*integers("args.a"), Readable("args.b", MAYBE)), ("a",)
    ),
    Source(
        "test:*", ("test:event", "test:exit", "test:other"), (*integers("args.a"), Readable("args.ret", MAYBE)), ("a",)
    ),
    Source("raw:event", ("test:event",), integers("args.a", "args.b", "args.c", "arg0")),
    Source(
        "syscalls:sys_enter_openat",
        ("syscalls:sys_enter_openat",),
        integers("args.dfd", "args.flags", "args.mode", "arg0", "arg3"),
        ("flags", "mode"),
        (),
        "args.filename",
    ),
    Source("syscalls:sys_exit_openat", ("syscalls:sys_exit_openat",), integers("args.ret", "retval", "arg1"), ("ret",)),
)

NUMBERS = (
    *(0, 1, 2, -1, 3, 7, 10, 63, 64, 65, 100, 127, 128, 255, 256, -128, 1000, 32767, -32768, 65535),
    *(2**31 - 1, -(2**31), 2**31, 2**32 - 1, 2**32, 2**53 + 1, 10**18, 2**63 - 1, -(2**63), -(2**63) + 1),
)
SMALL = (0, 1, 2, -1, 3, 5)
WORDS = (
    *("", "a", "b", "abc", "cat", "ab", "a b", "é", "/etc/passwd", "fifteen-letters", "sixteen-letters!"),
    *("12345678", "12345678a", "12345678b", "123456789012345"),
)
LONG = (
    "/usr/lib/" * 8,
    "x" * 63,
    "x" * 64,
    "x" * 65,
    "long/" * 60,
    "y" * 255,
    "y" * 256,
    "y" * 257,
    "z" * 1000,
    "é" * 900,
)
NUMERIC = {
    "test:event": ("a", "b", "c", "d", "e", "f"),
    "test:exit": ("a", "ret"),
    "test:other": ("a", "small"),
    "syscalls:sys_enter_openat": ("dfd", "flags", "mode"),
    "syscalls:sys_exit_openat": ("ret",),
}
POINTERS = {"test:other": "name", "syscalls:sys_enter_openat": "filename"}
IN_MEMORY = (
    "memory there",
    "8 bytes.",
    "12345678a",
    "12345678b",
    "cut\\0here and more",
    "m" * 31,
    "m" * 32,
    "m" * 33,
    "long " * 100,
)


def number(draws: Draws) -> int:
    """A number as events and scripts have them: small as a rule."""
    kind = draws.below(10)
    if kind < 5:
        return draws.pick(draws.numbers)
    if kind < 7:
        return draws.pick(SMALL)
    return draws.pick(NUMBERS) if kind < 9 else draws.number(0, 2**64 - 1) - 2**63


def word(draws: Draws, words: tuple[str, ...]) -> str:
    """A string of an event: one that the script knows, as a rule."""
    return draws.pick(draws.words) if draws.chance(60) else draws.pick(words)


def firing(draws: Draws, names: tuple[str, ...]) -> Fired:
    """One event, with what is said of it."""
    name = draws.pick(names)
    values: dict[str, str] = {}
    for field in NUMERIC[name]:
        if draws.chance(70):
            values[field] = str(number(draws))
    if name == "test:event":
        for field, words in (("text", WORDS), ("path", WORDS + LONG)):
            if draws.chance(60):
                values[field] = word(draws, words)
    if name in POINTERS and draws.chance(85):
        place = MEMORY + 64 * draws.below(3)
        values[POINTERS[name]] = f"{place:#x}"
        if draws.chance(75):
            values[f"user@{place:#x}"] = draws.pick(IN_MEMORY)
    for field, choices in TASK.items():
        if draws.chance(40):
            values[field] = word(draws, choices) if field == "execname" else draws.pick(choices)
    gap = draws.pick((1000, 1, 2500, 5000, 20000)) if draws.chance(20) else 1000
    return Fired(name, values, gap)


TASK = {
    "pid": ("100", "5", "4194304", "1"),
    "tid": ("101", "5", "7", "4194304"),
    "cpu": ("1", "0", "3", "255"),
    "uid": ("1000", "0", "4294967295"),
    "gid": ("1000", "0", "4294967295"),
    "ppid": ("7", "0", "100"),
    "cgroup": ("77", "4294967296", "9223372036854775807"),
    "execname": ("cat", "12345678a", "12345678b", "12345678", "", "fifteen-letters", "sixteen-letters!", "é", "a b"),
}
