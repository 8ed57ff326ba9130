"""What is kept between runs, below `$XDG_CACHE_HOME/ktap` (`~/.cache/ktap`).

That is compiled scripts, as `.kpc` images, and instructions (ktap.code_cache). A script's file name is
a checksum of the script's text and name; whether it is the one that is looked for is decided by
comparing: the image carries the text, the name and, in an optional section, what compiled it. What an entry holds is verified as any other image is, and thrown away when it is damaged.
The directory and its files are used only where they belong to the user who runs ktap and no other can
write them. Nothing that goes wrong here is an error: the script is then compiled again.
"""

from __future__ import annotations

import os
from binascii import crc32
from contextlib import suppress
from stat import S_ISREG
from time import time
from typing import Iterator, Optional

from ktap import __version__
from vm.diagnostic import Refusal
from vm.image import MAX_IMAGE_BYTES, assemble, dump, load, sections
from vm.program import Program
from vm.verify import verify

MAX_ENTRIES = 500
MAX_CACHE_BYTES = 16 << 20
"""What all entries may take; past one of the two the longest unused ones go, until three quarters are left."""
TOUCH_S = 24 * 3600
"""An entry that is used counts as new again when its time is older than this."""
STALE_S = 3600
"""A temporary file older than this was left behind by a ktap that was killed."""
MADE_BY = b"made"
"""The section that tells what compiled the script."""
SUFFIX, CODE_SUFFIX = ".kpc", ".code"
SUFFIXES = (SUFFIX, CODE_SUFFIX)
"""How the names of entries end: of compiled scripts, of instructions."""
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
COMPILED_BY = ("compiler", "vm")
"""The packages below ROOT that decide what a script compiles to."""


def find(name: str, text: str) -> Optional[Program]:
    """The program that the script `text` of the file `name` was compiled to before, verified; None when there is none."""
    with suppress(OSError, Refusal):
        image = fetch(_entry(name, text))
        program = load(image)
        if (program.source_name, program.source) == (name, text) and sections(image).get(MADE_BY) == _made_by():
            verify(program)
            return program
    return None


def keep(name: str, text: str, program: Program) -> None:
    """Keep what the script `text` of the file `name` compiles to. The program has been verified.

    One that was compiled with warnings is best not kept: found again, it would say nothing.
    """
    with suppress(OSError, Refusal):
        parts = sections(dump(program._replace(source_name=name, source=text)))
        image = assemble([*parts.items(), (MADE_BY, _made_by())])
        store(_entry(name, text), image)


def fetch(entry: str) -> bytes:
    """The bytes of an entry. Raises OSError when there is none or it is not ours alone."""
    directory = _open_directory(make=False)
    try:
        return _read(directory, entry)
    finally:
        os.close(directory)


def store(entry: str, data: bytes) -> None:
    """Write an entry, whose name ends in one of SUFFIXES, and make room for it; nothing too large. Raises OSError."""
    if len(data) > MAX_CACHE_BYTES // 4:
        return
    directory = _open_directory(make=True)
    try:
        _prune(directory, len(data))
        _write(directory, entry, data)
    finally:
        os.close(directory)


def _entry(name: str, text: str) -> str:
    """The name of the file for a script: two scripts that share one take turns in it."""
    encoded = text.encode("utf-8", "surrogateescape")
    place = name.encode("utf-8", "surrogateescape")
    return f"{crc32(encoded):08x}{crc32(place, len(encoded) & 0xFFFFFFFF):08x}{SUFFIX}"


def _made_by() -> bytes:
    """What decides how a script is compiled: the version, and the size and time of every source file, as for .pyc files.

    Where the files lie is no part of it: entries would grow with the length of that path.
    """
    facts = [__version__]
    try:
        for package in COMPILED_BY:
            facts.extend(sorted(_files(os.path.join(ROOT, package))))
    except NotADirectoryError:  # run from an archive
        status = os.stat(ROOT)
        facts.append(f"{status.st_size} {status.st_mtime_ns}")
    return "\n".join(facts).encode("utf-8", "surrogateescape")


def _files(directory: str) -> Iterator[str]:
    with os.scandir(directory) as entries:
        for entry in entries:
            if entry.name.endswith((".py", ".lark")):
                status = entry.stat()
                yield f"{entry.path[len(ROOT) :]} {status.st_size} {status.st_mtime_ns}"
            elif entry.name[0] not in "_." and entry.is_dir():
                yield from _files(entry.path)


# -- the directory ----------------------------------------------------------------------------


def _directory() -> str:
    base = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(base):  # so it is to be ignored, says the XDG specification
        base = os.path.join(os.path.expanduser("~"), ".cache")
    return os.path.join(base, "ktap")


def _open_directory(make: bool) -> int:
    """The cache's directory, opened. Raises OSError when there is none or it is not ours alone."""
    path = _directory()
    if make and not os.path.isdir(path):
        _make_directory(path)
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    if not _is_ours(os.fstat(directory)):
        os.close(directory)
        raise PermissionError(path)
    return directory


def _make_directory(path: str) -> None:
    """Make a directory, and those above it that are missing, within one that is ours.

    So root with the HOME of someone else leaves nothing there.
    """
    above = os.path.dirname(path)
    if not os.path.isdir(above):
        _make_directory(above)
    if os.stat(above).st_uid != os.geteuid():
        raise PermissionError(above)
    with suppress(FileExistsError):
        os.mkdir(path, 0o700)


def _is_ours(status: os.stat_result) -> bool:
    return status.st_uid == os.geteuid() and not status.st_mode & 0o022


# -- its entries ------------------------------------------------------------------------------


def _read(directory: int, entry: str) -> bytes:
    """The bytes of an entry. Raises OSError when there is none or someone else could have written it."""
    descriptor = os.open(entry, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
    with open(descriptor, "rb", buffering=0) as file:
        status = os.fstat(descriptor)
        if not (S_ISREG(status.st_mode) and _is_ours(status) and status.st_size <= MAX_IMAGE_BYTES):
            raise PermissionError(entry)
        if time() - status.st_mtime > TOUCH_S:
            with suppress(OSError):
                os.utime(descriptor)
        return file.read()


def _write(directory: int, entry: str, image: bytes) -> None:
    """Write an entry so that nobody ever sees a part of it. Raises OSError."""
    temporary = f"{entry}.{os.getpid()}.{int(time() * 1e6):x}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(temporary, flags, 0o600, dir_fd=directory)
    try:
        with open(descriptor, "wb", buffering=0) as file:
            if file.write(image) != len(image):
                raise OSError("disk full")
        os.replace(temporary, entry, src_dir_fd=directory, dst_dir_fd=directory)
    except OSError:
        os.unlink(temporary, dir_fd=directory)
        raise


def _prune(directory: int, room_bytes: int) -> None:
    """Remove what was left behind, and the longest unused entries when there is no room for one more."""
    entries = []
    for name in os.listdir(directory):
        try:
            status = os.stat(name, dir_fd=directory, follow_symlinks=False)
        except FileNotFoundError:  # another ktap has removed it
            continue
        if name.endswith(SUFFIXES):
            entries.append((status.st_mtime, status.st_size, name))
        elif time() - status.st_mtime > STALE_S:
            _remove(directory, name)
    total_bytes = sum(size for _, size, _ in entries) + room_bytes
    if len(entries) < MAX_ENTRIES and total_bytes <= MAX_CACHE_BYTES:
        return
    left = len(entries)
    for _, size_bytes, name in sorted(entries):
        if left < MAX_ENTRIES * 3 // 4 and total_bytes <= MAX_CACHE_BYTES * 3 // 4:
            break
        _remove(directory, name)
        left -= 1
        total_bytes -= size_bytes


def _remove(directory: int, name: str) -> None:
    """Remove a file; another ktap may have been faster."""
    with suppress(OSError):
        os.unlink(name, dir_fd=directory)
