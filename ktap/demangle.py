"""Names of C++ and Rust functions as their programmers wrote them.

C++ (and Rust's older mangling, which looks the same) is read by libstdc++'s own __cxa_demangle, where
the library is there; the hash that such a Rust name ends in is taken off. Rust's newer mangling (`_R…`)
is read here as far as paths go. Source: Itanium C++ ABI, 5.1; Rust RFC 2603.
"""

from __future__ import annotations

import ctypes
import re
from functools import cache, lru_cache
from typing import Callable, Optional, Tuple

LIBRARIES = ("libstdc++.so.6", "libc++abi.so.1")
RUST_HASH = re.compile(r"::h[0-9a-f]{16}$")
RUST_CHARACTER = re.compile(r"\$u([0-9a-f]{1,6})\$")
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


def is_mangled(name: str) -> bool:
    """Whether a name may be another one in disguise."""
    return name.startswith(("_Z", "_R", "__Z"))


@lru_cache(maxsize=1 << 16)
def demangle(name: str) -> str:
    """The name as it was written; the same where it is no mangled one, or cannot be read."""
    if name.startswith("_R"):
        return _rust(name) or name
    if not is_mangled(name):
        return name
    read = _reader()
    found = read(name) if read is not None else None
    if found is None:
        return name
    if RUST_HASH.search(found):
        found = RUST_HASH.sub("", found)
        found = RUST_CHARACTER.sub(lambda match: chr(int(match[1], 16)), found)
        for escape, sign in RUST_ESCAPES.items():
            found = found.replace(escape, sign)
        found = re.sub(r"(^|::)_(?=[<&*(\[])", r"\1", found)  # a name may not begin with an escape
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


IDENTIFIER = re.compile(r"(u?)(\d+)_?")


def _rust(name: str) -> Optional[str]:
    """A path of Rust's newer mangling: `_RNvC5crate4name` is `crate::name`; None for what is no plain path."""
    found = _rust_path(name, 2)
    return found[0] if found is not None else None


def _rust_path(name: str, at: int) -> Optional[Tuple[str, int]]:
    kind = name[at : at + 1]
    if kind == "C":
        return _rust_identifier(name, _disambiguated(name, at + 1))
    if kind == "N":
        inner = _rust_path(name, at + 2)
        own = _rust_identifier(name, _disambiguated(name, inner[1])) if inner is not None else None
        if inner is None or own is None:
            return None
        text = own[0] or "{closure}"
        return f"{inner[0]}::{text}", own[1]
    if kind == "I":
        return _rust_path(name, at + 1)
    return None


def _disambiguated(name: str, at: int) -> int:
    """Behind `s` … `_`, which tells things of one name apart."""
    if name[at : at + 1] == "s":
        end = name.find("_", at)
        return end + 1 if end >= 0 else at
    return at


def _rust_identifier(name: str, at: int) -> Optional[Tuple[str, int]]:
    found = IDENTIFIER.match(name, at)
    if found is None:
        return None
    length = int(found[2])
    start = found.end() if length else found.end(2)
    return name[start : start + length], start + length
