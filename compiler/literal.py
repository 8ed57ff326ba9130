"""What the digits and the quotes of a script stand for."""

from __future__ import annotations

import re
from typing import Optional

from vm.named_tuple import NamedTuple

LARGEST = 2**63 - 1
ESCAPE = re.compile(r"\\(x[0-9a-fA-F]{1,2}|[0-7]{1,3}|\r\n|[\s\S])")
ESCAPES = {
    "n": b"\n", "t": b"\t", "r": b"\r", "a": b"\a", "b": b"\b", "f": b"\f", "v": b"\v", "e": b"\x1b",
    "\\": b"\\", '"': b'"', "'": b"'", "?": b"?", "\n": b"\n", "\r\n": b"\n",
}  # fmt: skip


class BadEscape(NamedTuple):
    """An escape that means nothing: where it is in the literal, in characters, and its text."""

    start: int
    end: int
    text: str


def integer(text: str) -> tuple[int, bool]:
    """The value of a decimal or hexadecimal literal as signed 64 bits, and whether it fits 64 bits.

    One that does not is `LARGEST`.
    """
    hexadecimal = text[:2] in ("0x", "0X")
    digits = text[2 * hexadecimal :].lstrip("0") or "0"
    # no more than 20 digits are ever converted: for a million of them it would take very long
    value = int(digits, 16 if hexadecimal else 10) if len(digits) <= 20 else 2**64
    if value >= 2**64:
        return LARGEST, False
    return value - 2**64 if value > LARGEST else value, True


def raw(text: str) -> bytes:
    """The bytes of `[[text]]`: a newline right after the brackets is not part of it, as in Lua."""
    return encode(re.sub(r"\A\r?\n", "", text[2:-2]))


def unquote(text: str) -> tuple[bytes, list[BadEscape]]:
    """The bytes of a string literal with its quotes, and the escapes that are none."""
    bad = []
    parts: list[bytes] = []
    end = 1
    for match in ESCAPE.finditer(text, 1, len(text) - 1):
        parts.append(encode(text[end : match.start()]))
        end = match.end()
        value = _escaped(match[1])
        if value is None:
            bad.append(BadEscape(match.start(), end, match[0]))
        else:
            parts.append(value)
    parts.append(encode(text[end:-1]))
    return b"".join(parts), bad


def _escaped(code: str) -> Optional[bytes]:
    """What follows a backslash stands for; None where it is no escape."""
    if code in ESCAPES:
        return ESCAPES[code]
    if code[0] in "01234567":
        number = int(code, 8)
    elif code[0] == "x" and len(code) > 1:
        number = int(code[1:], 16)
    else:
        return None
    return bytes((number,)) if number < 256 else None


def encode(text: str) -> bytes:
    """The bytes of the script that were read as `text`."""
    return text.encode("utf-8", "surrogateescape")
