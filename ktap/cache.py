"""Compiled scripts that are kept between runs, as `.kpc` images among the entries of ktap.cache_files.

A script's file name is a checksum of the script's text and name; whether it is the one that is looked for is
decided by comparing: the image carries the text, the name and, in an optional section, what compiled it. What
an entry holds is verified as any other image is, and thrown away when it is damaged. Nothing that goes wrong
here is an error: the script is then compiled again.
"""

from __future__ import annotations

import os
from binascii import crc32
from contextlib import suppress
from typing import Iterator, Optional

from ktap import __version__
from ktap.cache_files import SCRIPT_SUFFIX, fetch, store
from vm.diagnostic import Refusal
from vm.image import assemble, dump, load, sections
from vm.program import Program
from vm.verify import verify

MADE_BY = b"made"
"""The section that tells what compiled the script."""
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


def _entry(name: str, text: str) -> str:
    """The name of the file for a script: two scripts that share one take turns in it."""
    encoded = text.encode("utf-8", "surrogateescape")
    place = name.encode("utf-8", "surrogateescape")
    return f"{crc32(encoded):08x}{crc32(place, len(encoded) & 0xFFFFFFFF):08x}{SCRIPT_SUFFIX}"


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
