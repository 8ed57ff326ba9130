"""BCC's library, through its Python module: the only place that imports bcc.

Used of it: its symbol caches of processes. `from bcc import libbcc` costs about 30 ms and 60 MB (libbcc.so.0
holds clang), so it is imported when the first address of a process is to be named. What libbcc only wraps
(maps, programs, attaching, perf_event_open) is done in ktap.kernel without it, because it writes its
failures to standard error, the verifier's log among them.
"""

from __future__ import annotations

import ctypes
import errno
import os
from typing import NamedTuple, Optional


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
