"""Names of C++ and Rust functions as their programmers wrote them.

C++ (and Rust's older mangling, which looks the same) is read by libstdc++'s own __cxa_demangle, where
the library is there; the hash that such a Rust name ends in is taken off. Rust's newer mangling (`_R…`)
is read by ktap.rust_names. Source: Itanium C++ ABI, 5.1.
"""

from __future__ import annotations

import ctypes
import re
from functools import cache, lru_cache
from typing import Callable, List, Optional, Tuple

from ktap.rust_names import rust_name

LIBRARIES = ("libstdc++.so.6", "libc++abi.so.1")
RUST_HASH = re.compile(r"::h[0-9a-f]{16}$")
RUST_BEFORE_ESCAPE = re.compile(r"(^|::)_(?=\$)")
"""A name may not begin with an escape."""
RUST_ESCAPE = re.compile(r"\$(?:SP|BP|RF|LT|GT|LP|RP|C|u[0-9a-f]{1,6})\$|\.\.")
RUST_ESCAPES = {
    "$SP$": "@",
    "$BP$": "*",
    "$RF$": "&",
    "$LT$": "<",
    "$GT$": ">",
    "$LP$": "(",
    "$RP$": ")",
    "$C$": ",",
    "..": "::",
}


def _unescaped(escape: str) -> str:
    """The sign that an escape stands for; `$u20$` gives it by its number."""
    found = RUST_ESCAPES.get(escape)
    if found is None:
        number = int(escape[2:-1], 16)
        found = chr(number) if number < 0x110000 else escape
    return found


def is_mangled(name: str) -> bool:
    """Whether a name may be another one in disguise."""
    return name.startswith(("_Z", "_R", "__Z"))


@lru_cache(maxsize=1 << 16)
def demangle(name: str) -> str:
    """The name as it was written; the same where it is no mangled one, or cannot be read."""
    if name.startswith("_R"):
        return rust_name(name) or name
    if not is_mangled(name):
        return name
    read = _reader()
    found = read(name) if read is not None else None
    if found is None:
        return name
    if RUST_HASH.search(found):
        found = RUST_BEFORE_ESCAPE.sub(r"\1", RUST_HASH.sub("", found))
        found = RUST_ESCAPE.sub(lambda match: _unescaped(match[0]), found)
    return found


@cache
def _reader() -> Optional[Callable[[str], Optional[str]]]:
    """__cxa_demangle as a function of text, None where no library has it."""
    library = None
    for soname in LIBRARIES:
        try:
            library = ctypes.CDLL(soname)
            break
        except OSError:
            continue
    if library is None:
        return None
    call = library["__cxa_demangle"]
    call.restype = ctypes.c_void_p
    call.argtypes = (ctypes.c_char_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)
    free = ctypes.CDLL(None)["free"]
    free.argtypes = (ctypes.c_void_p,)

    def read(name: str) -> Optional[str]:
        found = call(name.encode("utf-8", "surrogateescape"), None, None, None)
        if not found:
            return None
        try:
            return ctypes.string_at(found).decode("utf-8", "replace")
        finally:
            free(found)

    return read


# -- shorter spellings ----------------------------------------------------------------------------


def spellings(name: str) -> Tuple[str, str, str]:
    """A name as users may write it: whole, without result and parameters, and also without generic arguments.

    `int shop::add<int>(int)`, `shop::add<int>`, `shop::add`; of Rust `<shop::Till<i64> as shop::Adds>::add` twice,
    `shop::Till::add`.
    """
    found = demangle(name)
    short = plain(found)
    return found, short, without_arguments(short)


def plain(name: str) -> str:
    """A demangled name without its parameters and its result."""
    end = len(QUALIFIERS.sub("", name))
    if name[:end].endswith(")"):
        name = name[: _opening(name, end - 1)] or name
    if "operator" in name:
        return name
    depth = 0
    for place in range(len(name) - 1, -1, -1):
        if name[place] in CLOSING and name[place - 1 : place + 1] != "->":
            depth += 1
        elif name[place] in OPENING:
            depth -= 1
        elif name[place] == " " and not depth:
            return name[place + 1 :]
    return name


def without_arguments(name: str) -> str:
    """A plain name without generic arguments; `<A as B>::f` is `A::f`."""
    if "operator" in name:
        return name
    parts: List[str] = []
    depth = start = 0
    for place, sign in enumerate(name):
        if sign == "<":
            if not depth:
                parts.append(name[start:place].removesuffix("::") if place else "")
                start = place + 1
            depth += 1
        elif sign == ">" and name[place - 1] != "-" and depth:
            depth -= 1
            if not depth:
                if start == 1:  # whose function it is
                    parts.append(without_arguments(_owner(name[start:place])))
                start = place + 1
    return "".join(parts) + name[start:] if not depth else name


def _owner(text: str) -> str:
    """Of `A as B` the first, which may have such things in brackets."""
    depth = 0
    for place, sign in enumerate(text):
        if sign in OPENING:
            depth += 1
        elif sign in CLOSING and text[place - 1 : place + 1] != "->":
            depth -= 1
        elif not depth and text.startswith(" as ", place):
            return text[:place]
    return text


def _opening(name: str, closing: int) -> int:
    """Where the bracket opens that is closed at a place; 0 where it does not."""
    depth = 0
    for place in range(closing, -1, -1):
        depth += (name[place] == ")") - (name[place] == "(")
        if not depth:
            return place
    return 0


OPENING, CLOSING = "(<[{", ")>]}"
QUALIFIERS = re.compile(r"( const| volatile| &&?| \[clone [^]]*\]| \[abi:\w+\])*$")
"""What may stand behind the parameters."""
