"""BCC's library: the only place that imports bcc, and that opens what it consists of.

Debian has it in two parts. `libbcc_bpf.so.0` opens in a millisecond and loads the programs of a run. The
Python module opens `libbcc.so.0`, which costs about 30 ms and 60 MB (it holds clang): only `ktap doctor` does.
Maps, attaching and what the library has no call for (kinds that are loaded for one way to attach) are bpf(2)
in ktap.kernel, which also loads programs where the library is not installed.
"""

from __future__ import annotations

import ctypes
import errno
import os
from contextlib import contextmanager
from functools import cache
from typing import Iterator, Optional

from ktap import kernel

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
