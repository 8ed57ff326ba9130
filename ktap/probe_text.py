"""Texts of the events users define in `kprobe_events` and `uprobe_events`.

The kernel prints them with code of its own, which differs from the print format they show in two things:
the place is a symbol (or has `0x` before it), and a string that could not be read is `(fault)`.
Source: kernel/trace/trace_kprobe.c (print_kprobe_event), trace_uprobe.c (print_uprobe_event),
trace_probe_tmpl.h (print_probe_args).
"""

from __future__ import annotations

import re

from ktap.c_expression import Call, Member, Node, Text, Unsupported
from ktap.event_format import ENTRY_ADDRESS, RETURN_ADDRESS, RETURN_FUNCTION

QUOTED = re.compile(rb'"%s"|%[^%a-zA-Z]*[a-zA-Z]+|%%')


def probe_items(items: tuple[Node, ...]) -> tuple[Node, ...]:
    """The print format as the kernel's code prints it. Raises Unsupported."""
    if not items or not isinstance(items[0], Text):
        raise Unsupported("no format string")
    text, arguments = items[0].value, list(items[1:])
    if arguments[:1] == [Member(ENTRY_ADDRESS)] and text.startswith(b"(%lx)"):
        head, shown, rest = b"(%s)", [Call("__probe_place", (arguments[0],))], text[len(b"(%lx)") :]
    elif arguments[:2] == [Member(RETURN_FUNCTION), Member(RETURN_ADDRESS)] and text.startswith(b"(%lx <- %lx)"):
        head = b"(%s <- %s)"
        shown = [Call("__probe_place", (arguments[1],)), Call("__probe_function", (arguments[0],))]
        rest = text[len(b"(%lx <- %lx)") :]
    elif arguments[:1] == [Member(RETURN_FUNCTION)] and text.startswith(
        b"(<- %lx)"
    ):  # ktap's own, where arguments are known
        head, shown, rest = b"(<- %s)", [Call("__probe_function", (arguments[0],))], text[len(b"(<- %lx)") :]
    else:
        raise Unsupported("the place of a probe")
    left: list[Node] = list(arguments[len(shown) :])
    changed: list[Node] = []

    def change(match: re.Match[bytes]) -> bytes:
        if match[0] == b"%%":
            return match[0]
        if not left:
            raise Unsupported("fewer arguments than the format shows")
        argument = left.pop(0)
        if match[0] == b'"%s"':
            changed.append(Call("__probe_string", (argument,)))
            return b"%s"
        changed.append(argument)
        return match[0]

    return (Text(head + QUOTED.sub(change, rest)), *shown, *changed)
