"""The builtins of the language, one module a family; each is imported when one of its builtins is asked for."""

from __future__ import annotations

from importlib import import_module
from typing import Dict, Mapping, Sequence, Tuple

from vm.library.builtin import TABLE, Builtin, Machine

STRING_READS = ("kernel_string", "user_buf", "user_string")
FAMILIES: Mapping[str, Tuple[str, ...]] = {
    "printing": ("print", "print_hist", "printf", "sprintf"),
    "basics": ("delete", "exit", "len", "pairs", "sort_pairs", "stringof", "tonumber", "tostring"),
    "aggregations": ("avg", "count", "hist", "lhist", "max", "min", "sum"),
    "tables": ("table",),
    "strings": ("string",),
    "clock": (*(f"gettimeofday_{unit}" for unit in ("ms", "ns", "s", "us")), "print_trace_clock", "strftime"),
    "stacks": ("ipof", "ksym", "print_backtrace", "print_folded", "stack", "ustack", "usym"),
    "reads": (*(f"{space}_u{bits}" for space in ("kernel", "user") for bits in (8, 16, 32, 64)), *STRING_READS),
    "tasks": ("arch", "curr_taskinfo", "in_interrupt", "in_iowait", "kernel_v", "num_cpus"),
    "terminal": ("ansi",),
    "probes": ("kdebug", "timer"),
    "foreign": ("ffi",),
    "addresses": ("net",),
    "unsafe": ("signal", "system"),
}
"""The modules of this package that hold rows, and the names of the builtins in each: of `string.len` the first word."""
FAMILY_OF = {name: family for family, names in FAMILIES.items() for name in names}


def rows() -> Sequence[Builtin]:
    """Every builtin, by family."""
    for family in FAMILIES:
        import_module(f"{__name__}.{family}")
    return tuple(TABLE.values())


def named(word: str) -> Sequence[str]:
    """The full names of the builtins that begin with a word: `print`; `string.len` and others; none."""
    family = FAMILY_OF.get(word)
    if family is None:
        return ()
    import_module(f"{__name__}.{family}")
    return tuple(name for name in TABLE if name.partition(".")[0] == word)


def known(name: str) -> bool:
    """Whether a builtin has this full name."""
    return name in TABLE or name in named(name.partition(".")[0])


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
