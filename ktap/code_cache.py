"""Instructions kept between runs, so that a second start of a script does not load LLVM.

The key is the IR itself: all that decides what a program does is in its text (what differs from start
to start, such as maps and the number of ktap's process, is filled in when it is loaded). So a change
of the script, of its main chunk's constants, of the kernel's formats, of an option or of ktap's own code
either changes the text or does not matter. An entry is used when it holds the same text, and was made by
the same back end (`compiler.bpf`); the kernel verifies what is loaded in any case.

Entries lie among those of `ktap.cache_files`, which says how they are kept safe. Layout, little-endian: magic,
CRC-32 of the rest, lengths (I) of what follows: what made it, the IR, the code (compiler.backend.pack).
"""

from __future__ import annotations

import os
import struct
from binascii import crc32
from contextlib import suppress
from typing import Optional

from compiler import backend, bpf
from compiler.bpf import Code
from ktap import __version__
from ktap.cache_files import CODE_SUFFIX, fetch, store

MAGIC = b"ktapcode"
HEAD = struct.Struct("<8sI3I")
CHECKED_FROM = 12
"""The checksum is of everything from here on."""


def compiled(ir: str, cpu: str) -> Code:
    """The instructions of an IR module, compiled or as they were kept. Raises BackendError."""
    text = f"{cpu}\n{ir}".encode()
    code = find(text)
    if code is None:
        code = backend.compiled(ir, cpu)
        keep(text, code)
    return code


def find(text: bytes) -> Optional[Code]:
    """What was kept for a text, None where there is nothing or it is damaged."""
    with suppress(OSError, ValueError, struct.error):
        data = fetch(_entry(text))
        magic, checksum, *lengths = HEAD.unpack_from(data)
        if magic != MAGIC or crc32(data[CHECKED_FROM:]) != checksum or len(data) != HEAD.size + sum(lengths):
            return None
        parts = []
        start = HEAD.size
        for length in lengths:
            parts.append(data[start : start + length])
            start += length
        made_by, kept, code = parts
        if kept == text and made_by == _made_by():
            return backend.unpack(code)._replace(kept=True)
    return None


def keep(text: bytes, code: Code) -> None:
    """Keep the instructions for a text. Nothing that goes wrong here is an error."""
    with suppress(OSError):
        parts = (_made_by(), text, backend.pack(code))
        lengths = struct.pack("<3I", *map(len, parts))
        body = b"".join((lengths, *parts))
        store(_entry(text), MAGIC + struct.pack("<I", crc32(body)) + body)


def _entry(text: bytes) -> str:
    return f"{crc32(text):08x}{len(text):08x}{CODE_SUFFIX}"


def _made_by() -> bytes:
    """The version, and the size and time of the back end's source, as for .pyc files."""
    facts = [__version__]
    with suppress(NotADirectoryError):  # run from an archive
        status = os.stat(bpf.__file__)
        facts.append(f"{status.st_size} {status.st_mtime_ns}")
    return " ".join(facts).encode()
