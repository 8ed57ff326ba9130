"""The builtins of the language, one module a family; each is imported when one of its builtins is asked for."""

from __future__ import annotations

from importlib import import_module
from typing import Dict, Iterator, Sequence, Tuple

from vm.library.builtin import TABLE, Builtin, Machine

FAMILIES: Tuple[str, ...] = (
    "printing",
    "basics",
    "aggregations",
    "tables",
    "strings",
    "clock",
    "stacks",
    "reads",
    "tasks",
    "terminal",
    "probes",
    "foreign",
    "addresses",
    "unsafe",
)
"""The modules of this package that hold rows; those that most scripts need come first."""


def load(families: Iterator[str]) -> bool:
    """Import the next family; False when there is none left."""
    for family in families:
        import_module(f"{__name__}.{family}")
        return True
    return False


def rows() -> Sequence[Builtin]:
    """Every builtin, by family."""
    families = iter(FAMILIES)
    while load(families):
        pass
    return tuple(TABLE.values())


def known(name: str) -> bool:
    """Whether a builtin has this full name."""
    families = iter(FAMILIES)
    while name not in TABLE:
        if not load(families):
            return False
    return True


class Library(Dict[str, object]):
    """The builtins of one machine by name, each made when it is first asked for.

    `library[name]` is how to ask; it raises KeyError for a name that no builtin has.
    """

    def __init__(self, machine: Machine) -> None:
        self.machine = machine

    def __missing__(self, name: str) -> object:
        """Make the builtin. Raises KeyError for a name that no builtin has."""
        if not known(name):
            raise KeyError(name)
        made = self[name] = TABLE[name].make(self.machine)
        return made


def install(machine: Machine) -> Library:
    """The builtins for a machine."""
    return Library(machine)
