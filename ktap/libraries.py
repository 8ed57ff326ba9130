"""Programs and libraries by name: a path, a library as the loader finds it, a program as PATH does.

Source: ldconfig(8) and glibc's sysdeps/generic/dl-cache.h for the loader's cache; ld.so(8).
"""

from __future__ import annotations

import os
import platform
import re
import struct
from contextlib import suppress
from functools import cache
from typing import Dict, Iterator, List, Optional, Tuple

from ktap.elf import is_elf

CACHE = "/etc/ld.so.cache"
MAGIC = b"glibc-ld.so.cache1.1"
HEADER_BYTES, ENTRY_BYTES = 48, 24
FLAGS = {"x86_64": 0x0303, "aarch64": 0x0A03, "riscv64": 0x1003, "s390x": 0x0403, "ppc64le": 0x0503}
"""How the cache marks libraries of 64-bit programs; of other processors any is taken."""
DIRECTORIES = ("/lib64", "/usr/lib64", "/lib", "/usr/lib", "/usr/local/lib")


def find_file(name: str) -> Optional[str]:
    """The file a probe's target means: `/lib/x.so`, `libc`, `libstdc++.so.6`, `bash`; None where there is none."""
    if "/" in name:
        return _settled(name) if is_elf(name) else None
    found = _library(name) or _program(name)
    return _settled(found) if found is not None else None


def _settled(path: str) -> str:
    """The path without links, where that leads to the same file.

    What lies behind /proc/PID/exe and /proc/PID/root has a name in that process's file system, which here is another
    file's, or nobody's.
    """
    with suppress(OSError):  # a process may have ended meanwhile
        real = os.path.realpath(path)
        if os.path.samefile(real, path):
            return real
    return os.path.abspath(path)


def _library(name: str) -> Optional[str]:
    """The library of a soname, or of a soname's beginning: `libc` is `libc.so.6`."""
    cached = _cached()
    if name in cached:
        return cached[name]
    begins = re.compile(rf"{re.escape(name)}(\.so|-\d[\d.]*\.so)(\.\d+)*$").match
    matching = sorted((soname for soname in cached if begins(soname)), key=_newest)
    if matching:
        return cached[matching[-1]]
    for directory in _directories():
        path = f"{directory}/{name if '.so' in name else name + '.so'}"
        if is_elf(path):
            return path
    return None


def _newest(soname: str) -> Tuple[int, ...]:
    """Orders the versions of a library: the highest of its numbers, and names without one last resort."""
    return tuple(int(number) for number in re.findall(r"\d+", soname.partition(".so")[2]))


def _program(name: str) -> Optional[str]:
    for directory in os.environ.get("PATH", os.defpath).split(os.pathsep):
        path = os.path.join(directory or ".", name)
        if os.access(path, os.X_OK) and is_elf(path):
            return path
    return None


@cache
def _cached() -> Dict[str, str]:
    """Path by soname, out of the loader's cache; empty where there is none (musl has none)."""
    try:
        with open(CACHE, "rb") as file:
            data = file.read()
    except OSError:
        return {}
    start = data.find(MAGIC)
    found: Dict[str, str] = {}
    for soname, path, flags in _entries(data[start:]) if start >= 0 else ():
        if flags == FLAGS.get(platform.machine(), flags):
            found.setdefault(soname, path)
    return found


def _entries(data: bytes) -> Iterator[Tuple[str, str, int]]:
    """Soname, path and flags of every entry of a cache."""
    (count,) = struct.unpack_from("=I", data, len(MAGIC))
    for number in range(count):
        flags, key, value = struct.unpack_from("=iII", data, HEADER_BYTES + ENTRY_BYTES * number)
        yield _string(data, key), _string(data, value), flags


def _string(data: bytes, place: int) -> str:
    return data[place : data.find(b"\0", place)].decode("utf-8", "surrogateescape")


def _directories() -> List[str]:
    """Where libraries lie, Debian's directories of one architecture too."""
    machine = platform.machine()
    return [f"{base}/{machine}-linux-gnu" for base in ("/lib", "/usr/lib")] + list(DIRECTORIES)


def known_names() -> List[str]:
    """Names that a target may have, for a hint: libraries of the cache without their versions."""
    return sorted({soname.partition(".so")[0] for soname in _cached()})
