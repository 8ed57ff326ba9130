"""BCC's library: the only place that imports bcc, and that opens what it consists of.

Debian has it in two parts. `libbcc_bpf.so.0` opens in a millisecond and loads the programs of a run. Symbols
of processes come from `libbcc.so.0` through the Python module, whose import costs about 30 ms and 60 MB (it
holds clang), so it is imported when the first address of a process is to be named. Maps, attaching and what
the library has no call for (kinds that are loaded for one way to attach) are bpf(2) in ktap.kernel, which
also loads programs where the library is not installed.
"""

from __future__ import annotations

import ctypes
import errno
import os
from contextlib import contextmanager
from functools import cache
from typing import Iterator, NamedTuple, Optional

from ktap import kernel


class Place(NamedTuple):
    """What lies at an address of a process: the symbol (None where only the file is known), its file, the offset."""

    symbol: Optional[str]
    module: str
    offset: int


class _Symbol(ctypes.Structure):
    """struct bcc_symbol of bcc_syms.h."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("demangled", ctypes.c_char_p),
        ("module", ctypes.c_char_p),
        ("offset", ctypes.c_uint64),
    )


GPL = b"GPL"
"""The licence that programs declare to the kernel: the tracing helpers ask for it."""


@cache
def _loader() -> Optional[ctypes.CDLL]:
    """libbcc_bpf, None where BCC is not installed."""
    try:
        library = ctypes.CDLL("libbcc_bpf.so.0", use_errno=True)
    except OSError:
        return None
    text, number = ctypes.c_char_p, ctypes.c_int
    library.bcc_prog_load.argtypes = [number, text, text, number, text, ctypes.c_uint, number, text, ctypes.c_uint]
    return library


def load_program(kind: int, name: str, instructions: bytes) -> int:
    """A loaded program's file descriptor, by bpf(2) where BCC is not installed. Raises OSError."""
    library = _loader()
    if library is None:
        return kernel.load(kind, instructions, name=name)
    short = name.encode()[: kernel.NAME_BYTES]
    with _quiet():
        fd: int = library.bcc_prog_load(kind, short, instructions, len(instructions), GPL, 0, 0, None, 0)
    if fd < 0:
        raise OSError(-fd, os.strerror(-fd), "program load")
    return fd


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep standard error from libbcc, which writes the verifier's whole log to it."""
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


class UserSymbols:
    """The symbols of a running process, read when first asked for and kept; a file mapped later is found too."""

    def __init__(self, pid: int) -> None:
        """Raises ImportError and OSError as `library`, and OSError where there is no such process."""
        shared = _shared()
        pointer = ctypes.c_void_p
        self._resolve = shared.bcc_symcache_resolve
        self._resolve.argtypes = [pointer, ctypes.c_uint64, pointer]
        self._free_name = shared.bcc_symbol_free_demangle_name
        self._free_name.argtypes = [pointer]
        self._free_cache = shared.bcc_free_symcache
        self._free_cache.argtypes = [pointer, ctypes.c_int]
        create = shared.bcc_symcache_new
        create.argtypes, create.restype = [ctypes.c_int, pointer], pointer
        self._pid = pid
        self._cache: Optional[int] = create(pid, None)
        if self._cache is None:
            raise OSError(errno.ESRCH, os.strerror(errno.ESRCH), f"process {pid}")

    def at(self, address: int) -> Optional[Place]:
        """What lies at an address, None where nothing is known."""
        symbol = _Symbol()
        found = self._resolve(self._cache, address & 0xFFFFFFFFFFFFFFFF, ctypes.byref(symbol)) >= 0
        module = symbol.module.decode("utf-8", "surrogateescape") if symbol.module else ""
        if not found:
            return Place(None, module, symbol.offset) if module else None
        name = (symbol.demangled or symbol.name or b"").decode("utf-8", "surrogateescape")
        self._free_name(ctypes.byref(symbol))
        return Place(name, module, symbol.offset)

    def close(self) -> None:
        """Free the cache. Safe to call twice."""
        if self._cache is not None:
            self._free_cache(self._cache, self._pid)
            self._cache = None


def _shared() -> ctypes.CDLL:
    """libbcc. Raises ImportError or OSError where BCC is not installed (Debian: python3-bpfcc)."""
    from bcc import libbcc  # type: ignore[import-untyped]

    found: ctypes.CDLL = libbcc.lib
    return found


def missing() -> Optional[str]:
    """Why libbcc cannot be used, None when it can."""
    try:
        _shared()
    except (ImportError, OSError, AttributeError) as error:
        return str(error) or errno.errorcode.get(errno.ENOENT, "")
    return None
