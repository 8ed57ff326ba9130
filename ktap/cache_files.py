"""The files that are kept between runs, below `$XDG_CACHE_HOME/ktap` (`~/.cache/ktap`).

They are compiled scripts (ktap.cache), instructions (ktap.code_cache) and lists of what runs have attached
(ktap.early). The directory and its files are used only where they belong to the user who runs ktap and no
other can write them; a file is written beside and put in its place whole. As for ktap.bpf, what is imported
here loads quickly.
"""

from __future__ import annotations

import os
import stat
from time import time

MAX_ENTRIES = 500
MAX_CACHE_BYTES = 16 << 20
"""What all entries may take; past one of the two the longest unused ones go, until three quarters are left."""
MAX_ENTRY_BYTES = 1 << 24
TOUCH_S = 24 * 3600
"""An entry that is used counts as new again when its time is older than this."""
STALE_S = 3600
"""A temporary file older than this was left behind by a ktap that was killed."""
SCRIPT_SUFFIX, CODE_SUFFIX, EARLY_SUFFIX, TABLES_SUFFIX = ".kpc", ".code", ".early", ".json"
SUFFIXES = (SCRIPT_SUFFIX, CODE_SUFFIX, EARLY_SUFFIX, TABLES_SUFFIX)
"""How the names of entries end: of compiled scripts, instructions, what is attached early, the parser's tables."""


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
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:  # another ktap was faster
        return


def _is_ours(status: os.stat_result) -> bool:
    return status.st_uid == os.geteuid() and not status.st_mode & 0o022


# -- its entries ------------------------------------------------------------------------------


def _read(directory: int, entry: str) -> bytes:
    """The bytes of an entry. Raises OSError when there is none or someone else could have written it."""
    descriptor = os.open(entry, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
    with open(descriptor, "rb", buffering=0) as file:
        status = os.fstat(descriptor)
        if not (stat.S_ISREG(status.st_mode) and _is_ours(status) and status.st_size <= MAX_ENTRY_BYTES):
            raise PermissionError(entry)
        if time() - status.st_mtime > TOUCH_S:
            _touch(descriptor)
        return file.read()


def _touch(descriptor: int) -> None:
    try:
        os.utime(descriptor)
    except OSError:  # where nothing can be written; the entry can be read all the same
        return


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
    try:
        os.unlink(name, dir_fd=directory)
    except OSError:  # another ktap was faster
        return
