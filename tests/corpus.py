"""The corpus: small scripts that state their own output, run on every tier that takes them.

A case is a `.kp` file below tests/cases. What it must print stands in its comments, in order:

=================  ==========================================================================
comment            meaning
=================  ==========================================================================
`#> text`          a line of standard output (`#>` alone: an empty line)
`#! text`          a diagnostic for this line of the file that contains `text`
`#@ event f=v …`   an event that fires, in file order: see tests/synthetic.py
`#: option`        `status N`, `argument WORD`, `unordered`, `limit NAME=N`, `lost N WHAT`,
                   `vm only: why`
=================  ==========================================================================

All that is printed, diagnosed and lost must be stated, but callers of a fault need not be: `#! called
from f` may stand at the line of a call. Without `#: status` the exit status is 0, or 1 when there is a
`#!` that is no warning.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path

CASES = Path(__file__).parent / "cases"
MARK = re.compile(r"#([>!@:])(?: (.*))?$")


@dataclass(frozen=True)
class Fired:
    """An event of a case: its name and what `#@` gives it (`pid=3 a=1 text=hello`), values as text."""

    name: str
    values: dict[str, str]
    after_ns: int = 1000
    """Time since the event before it (`+5000`)."""


@dataclass(frozen=True)
class Case:
    """One case: the script and what is expected of it."""

    path: Path
    source: str
    output: tuple[str, ...]
    diagnostics: tuple[tuple[int, str], ...]
    events: tuple[Fired, ...]
    status: int
    arguments: tuple[str, ...] = ()
    limits: dict[str, int] = field(default_factory=dict)
    unordered: bool = False
    lost: tuple[tuple[int, str], ...] = ()
    vm_only: str = ""

    @property
    def id(self) -> str:
        """`values/add_wraps`, the name pytest shows."""
        return str(self.path.relative_to(CASES).with_suffix(""))


def read_case(path: Path) -> Case:
    """The case in a file. Raises ValueError for an option that does not exist or nothing expected."""
    source = path.read_text(encoding="utf-8", errors="surrogateescape")
    output: list[str] = []
    diagnostics: list[tuple[int, str]] = []
    events: list[Fired] = []
    options: list[str] = []
    for number, line in enumerate(source.split("\n"), 1):
        mark = MARK.search(line)
        if mark is None or (number == 1 and line.startswith("#!/")):
            continue
        kind, text = mark[1], mark[2] or ""
        if kind == ">":
            output.append(text)
        elif kind == "!":
            diagnostics.append((number, text))
        elif kind == "@":
            events.append(fired(text))
        else:
            options.append(text)
    if not output and not diagnostics:
        raise ValueError(f"{path}: nothing is expected of it")
    return _with_options(path, source, options, output, diagnostics, events)


def fired(text: str) -> Fired:
    """`test:event +500 pid=3 text='a b'`."""
    name, *words = shlex.split(text)
    gaps = [int(word) for word in words if word.startswith("+")]
    values = dict(word.split("=", 1) for word in words if not word.startswith("+"))
    return Fired(name, values, *gaps)


def _with_options(
    path: Path,
    source: str,
    options: list[str],
    output: list[str],
    diagnostics: list[tuple[int, str]],
    events: list[Fired],
) -> Case:
    status, unordered, vm_only = int(any(not text.startswith("warning: ") for _, text in diagnostics)), False, ""
    arguments: list[str] = []
    lost: list[tuple[int, str]] = []
    limits: dict[str, int] = {}
    for option in options:
        word, _, rest = option.partition(" ")
        if word == "status":
            status = int(rest)
        elif word == "argument":
            arguments.append(rest)
        elif word == "unordered":
            unordered = True
        elif word == "limit":
            name, _, value = rest.partition("=")
            limits[name] = int(value)
        elif word == "lost":
            number, _, what = rest.partition(" ")
            lost.append((int(number), what))
        elif option.startswith("vm only: "):
            vm_only = option[len("vm only: ") :]
        else:
            raise ValueError(f"{path}: no option {option!r}")
    return Case(
        path,
        source,
        tuple(output),
        tuple(diagnostics),
        tuple(events),
        status,
        tuple(arguments),
        limits,
        unordered,
        tuple(lost),
        vm_only,
    )


def all_cases() -> list[Case]:
    """Every case, in order of name."""
    return [read_case(path) for path in sorted(CASES.rglob("*.kp"))]
