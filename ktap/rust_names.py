"""Names of Rust functions as compilers write them since 2025 (`_R…`), read.

    rust_name("_RNvMs_NtCs123_4shop4tillINtB4_4TillxE3add")    # "<shop::till::Till<i64>>::add"

A name is a path; paths have types in them, types have paths, and anything may refer back to an earlier
place of the name. Hashes of crates are left out. Source: Rust RFC 2603, "Rust Symbol Name Mangling v0".
"""

from __future__ import annotations

from typing import Callable, Dict, List, Optional

BASIC = {
    **{"a": "i8", "b": "bool", "c": "char", "d": "f64", "e": "str", "f": "f32", "h": "u8", "i": "isize"},
    **{"j": "usize", "l": "i32", "m": "u32", "n": "i128", "o": "u128", "p": "_", "s": "i16", "t": "u16"},
    **{"u": "()", "v": "...", "x": "i64", "y": "u64", "z": "!"},
}
INTEGERS = frozenset("ahijlmnostxy")
DIGITS = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
SPECIAL = {"C": "closure", "S": "shim"}
"""Namespaces of things that have no name of their own."""
MOST_DEPTH = 200
MOST_SIGNS = 1 << 18
"""Names that refer back could be longer than memory is."""


class Unread(Exception):
    """The name is not one, or too large."""


def rust_name(name: str) -> Optional[str]:
    """The name as its programmer wrote it, None where it cannot be read."""
    text = name[2:].partition(".")[0]  # LLVM adds `.llvm.1234` to copies
    if not name.startswith("_R") or not text or not text.isascii() or text[0].isdigit():
        return None
    try:
        return Reader(text).path(True)
    except (Unread, IndexError):
        return None


class Reader:
    """Reads a name from its start."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.depth = 0
        self.signs = 0
        self.lifetimes = 0
        """How many are bound around the place."""

    # -- words --------------------------------------------------------------------------------

    def next(self) -> str:
        """The next letter."""
        self.at += 1
        return self.text[self.at - 1]

    def takes(self, letter: str) -> bool:
        """Whether the next letter is this one, which is then taken."""
        if self.text[self.at : self.at + 1] != letter:
            return False
        self.at += 1
        return True

    def base62(self) -> int:
        """`_` is 0, `0_` is 1 and so on."""
        if self.takes("_"):
            return 0
        number = 0
        while not self.takes("_"):
            digit = DIGITS.find(self.next())
            if digit < 0:
                raise Unread
            number = number * 62 + digit
        return number + 1

    def optional62(self, letter: str) -> int:
        """A number behind a letter, counted from 1; 0 where the letter is not there."""
        return self.base62() + 1 if self.takes(letter) else 0

    def identifier(self) -> str:
        """A length and so many bytes; `u` before it says that they are Punycode."""
        coded = self.takes("u")
        start = self.at
        while self.text[self.at : self.at + 1].isdigit() and self.text[start : self.at] != "0":
            self.at += 1
        size = int(self.text[start : self.at] or "-1")
        self.takes("_")
        found = self.text[self.at : self.at + size]
        if size < 0 or len(found) != size:
            raise Unread
        self.at += size
        return unicode_of(found) if coded else found

    def again(self, read: Callable[[], str]) -> str:
        """What is read at an earlier place."""
        start = self.at - 1
        place = self.base62()
        if place >= start:
            raise Unread
        kept, self.at = self.at, place
        found = self.deeper(read)
        self.at = kept
        return found

    def deeper(self, read: Callable[[], str]) -> str:
        """Read a part of a part. Raises Unread where that goes on for too long."""
        self.depth += 1
        if self.depth > MOST_DEPTH:
            raise Unread
        found = read()
        self.depth -= 1
        self.signs += len(found)
        if self.signs > MOST_SIGNS:
            raise Unread
        return found

    def until_end(self, read: Callable[[], str]) -> List[str]:
        """As many as there are before the letter E."""
        found: List[str] = []
        while not self.takes("E"):
            found.append(self.deeper(read))
        return found

    # -- paths --------------------------------------------------------------------------------

    def path(self, in_value: bool) -> str:
        """A path; among values (and not in types) generic arguments have `::` before them."""
        kind = self.next()
        if kind == "C":
            self.optional62("s")
            return self.identifier()
        if kind == "N":
            return self._nested(in_value)
        if kind in "MX":
            self.optional62("s")
            self.deeper(lambda: self.path(False))  # where the implementation stands
        if kind in "MXY":
            owner = self.deeper(self.type)
            return f"<{owner}>" if kind == "M" else f"<{owner} as {self.deeper(lambda: self.path(False))}>"
        if kind == "I":
            base = self.deeper(lambda: self.path(in_value))
            return f"{base}{'::' if in_value else ''}<{', '.join(self.until_end(self.argument))}>"
        if kind == "B":
            return self.again(lambda: self.path(in_value))
        raise Unread

    def _nested(self, in_value: bool) -> str:
        space = self.next()
        base = self.deeper(lambda: self.path(in_value))
        number = self.optional62("s")
        name = self.identifier()
        if space.isupper():
            what = SPECIAL.get(space, space)
            return f"{base}::{{{what}{':' if name else ''}{name}#{number}}}"
        return f"{base}::{name}" if name else base

    def argument(self) -> str:
        """A generic argument."""
        if self.takes("L"):
            return self.lifetime(self.base62())
        return self.constant() if self.takes("K") else self.type()

    def lifetime(self, number: int) -> str:
        """By how many are bound between the place and the one that is meant."""
        if number == 0:
            return "'_"
        depth = self.lifetimes - number
        if depth < 0:
            raise Unread
        return f"'{chr(ord('a') + depth)}" if depth < 26 else f"'_{depth}"

    def bound(self, read: Callable[[], str]) -> str:
        """What may be for all of some lifetimes."""
        count = self.optional62("G")
        if count > MOST_DEPTH:
            raise Unread
        self.lifetimes += count
        names = ", ".join(self.lifetime(count - number) for number in range(count))
        found = read()
        self.lifetimes -= count
        return f"for<{names}> {found}" if count else found

    # -- types --------------------------------------------------------------------------------

    def type(self) -> str:
        """A type."""
        kind = self.next()
        if kind in BASIC:
            return BASIC[kind]
        read = TYPES.get(kind)
        if read is not None:
            return read(self)
        self.at -= 1
        return self.deeper(lambda: self.path(False))

    def _reference(self, changes: str) -> str:
        number = self.base62() if self.takes("L") else 0
        name = f"{self.lifetime(number)} " if number else ""
        return f"&{name}{changes}{self.deeper(self.type)}"

    def _array(self) -> str:
        element = self.deeper(self.type)
        return f"[{element}; {self.deeper(self.constant)}]"

    def _tuple(self) -> str:
        found = self.until_end(self.type)
        return f"({found[0]},)" if len(found) == 1 else f"({', '.join(found)})"

    def _function(self) -> str:
        return self.bound(self._signature)

    def _signature(self) -> str:
        unsafe = "unsafe " if self.takes("U") else ""
        convention = ""
        if self.takes("K"):
            named = "C" if self.takes("C") else self.identifier().replace("_", "-")
            convention = f'extern "{named}" '
        given = ", ".join(self.until_end(self.type))
        result = self.deeper(self.type)
        return f"{unsafe}{convention}fn({given}){'' if result == '()' else f' -> {result}'}"

    def _dynamic(self) -> str:
        traits = self.bound(lambda: " + ".join(self.until_end(self._trait)))
        if not self.takes("L"):
            raise Unread
        number = self.base62()
        return f"dyn {traits}{f' + {self.lifetime(number)}' if number else ''}"

    def _trait(self) -> str:
        base = self.path(False)
        bindings = []
        while self.takes("p"):
            name = self.identifier()
            bindings.append(f"{name} = {self.deeper(self.type)}")
        if not bindings:
            return base
        inside = ", ".join(bindings)
        return f"{base[:-1]}, {inside}>" if base.endswith(">") else f"{base}<{inside}>"

    # -- constants ----------------------------------------------------------------------------

    def constant(self) -> str:
        """A constant of a type."""
        kind = self.next()
        if kind == "p":
            return "_"
        if kind == "B":
            return self.again(self.constant)
        if kind in INTEGERS:
            sign = "-" if self.takes("n") else ""
            return f"{sign}{int(self._hexadecimal() or '0', 16)}"
        if kind == "b":
            return {"0": "false", "1": "true"}.get(self._hexadecimal() or "0", "_")
        if kind == "c":
            return repr(chr(int(self._hexadecimal() or "0", 16)))
        if kind == "e":
            text = bytes.fromhex(self._hexadecimal()).decode("utf-8", "replace")
            return '"' + text.replace('"', '\\"') + '"'
        if kind in "RQ":
            return f"&{'mut ' if kind == 'Q' else ''}{self.deeper(self.constant)}"
        if kind == "A":
            return f"[{', '.join(self.until_end(self.constant))}]"
        if kind == "T":
            found = self.until_end(self.constant)
            return f"({found[0]},)" if len(found) == 1 else f"({', '.join(found)})"
        if kind == "V":
            return self._composed()
        raise Unread

    def _composed(self) -> str:
        """A constant of a structure or an enumeration: its name, then nothing, a tuple or fields."""
        kind = self.next()
        name = self.deeper(lambda: self.path(True))
        if kind == "U":
            return name
        if kind == "T":
            return f"{name}({', '.join(self.until_end(self.constant))})"
        if kind != "S":
            raise Unread
        return f"{name} {{ {', '.join(self.until_end(self._field))} }}"

    def _field(self) -> str:
        self.optional62("s")
        name = self.identifier()
        return f"{name}: {self.constant()}"

    def _hexadecimal(self) -> str:
        end = self.text.find("_", self.at)
        found = self.text[self.at : end]
        if end < 0 or any(sign not in "0123456789abcdef" for sign in found):
            raise Unread
        self.at = end + 1
        return found


TYPES: Dict[str, Callable[[Reader], str]] = {
    "A": Reader._array,
    "S": lambda reader: f"[{reader.deeper(reader.type)}]",
    "T": Reader._tuple,
    "R": lambda reader: reader._reference(""),
    "Q": lambda reader: reader._reference("mut "),
    "P": lambda reader: f"*const {reader.deeper(reader.type)}",
    "O": lambda reader: f"*mut {reader.deeper(reader.type)}",
    "F": Reader._function,
    "D": Reader._dynamic,
    "B": lambda reader: reader.again(reader.type),
}
"""Types by their letter, besides the basic ones and paths."""


def unicode_of(coded: str) -> str:
    """Punycode, in which Rust has `_` for the `-` of the RFC. Raises Unread."""
    plain, _, rest = coded.rpartition("_")
    try:
        return f"{plain}-{rest}".encode("ascii").decode("punycode") if plain else rest.encode().decode("punycode")
    except (UnicodeError, ValueError) as error:
        raise Unread from error
