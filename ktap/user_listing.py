"""`ktap list` of functions (`probe:/lib/x.so:mall*`), static markers (`sdt:/path:*`) and counters (`perf:*`)."""

from __future__ import annotations

import os
from typing import Iterable, List

from ktap.counters import available
from ktap.demangle import demangle
from ktap.libraries import find_file
from ktap.markers import find_markers, marker_arguments
from ktap.registers import MACHINES
from ktap.user_functions import (
    MARKERS,
    Found,
    NoEvent,
    Written,
    find_functions,
    is_glob,
    is_user,
    open_target,
    take_apart,
)
from vm.diagnostic import Diagnostic, Refusal

COUNTERS = "perf"
KINDS = ("probe", MARKERS, COUNTERS)
OF_COUNTERS = (
    "each has\n",
    "    arg0  args.ip      integer  where the program was\n",
    "    arg1  args.period  integer  how many were counted since the last one\n",
    "    arg2  args.addr    integer  the memory it is about, 0 where there is none\n",
)
OF_FUNCTIONS = (
    "each has, where no fetch arguments are written\n",
    "    arg0    integer  its address\n",
    "    arg1 …  integer  the call's arguments, by the calling convention\n",
    "    retval  integer  what it returns (with %return)\n",
)
"""What all of a kind have, behind their list."""


def lists(pattern: str) -> bool:
    """Whether a pattern is one of this module's."""
    kind, _, rest = pattern.partition(":")
    return kind == COUNTERS or (kind in KINDS and (is_user(kind, rest) or _is_file(rest)))


def _is_file(name: str) -> bool:
    """Whether a name means a program or library: as a path it does, else where no function of the kernel has it."""
    if "/" in name:
        return True
    from ktap.functions import kernel_functions

    return bool(name) and not is_glob(name) and find_file(name) is not None and not kernel_functions().addresses([name])


def list_places(pattern: str, verbose: bool) -> str:
    """One a line; `verbose` adds where each is. Raises Refusal."""
    kind, _, rest = pattern.partition(":")
    try:
        if kind == COUNTERS:
            return "".join([*_matching_counters(rest or "*"), *(OF_COUNTERS if verbose else ())])
        written = take_apart(pattern if ":" in rest else f"{pattern}:*")
        if kind == MARKERS and not rest:
            raise NoEvent("markers are found by their program or library", "as in ktap list sdt:libc or ktap -lm FILE")
        lines = _markers(written, verbose) if kind == MARKERS else _functions(written, verbose)
        return "".join([*(f"{line}\n" for line in lines), *(OF_FUNCTIONS if verbose and kind != MARKERS else ())])
    except NoEvent as error:
        raise Refusal([Diagnostic("ktap", None, str(error), error.hint)], status=1) from error


def _matching_counters(pattern: str) -> Iterable[str]:
    from fnmatch import filter as matching

    found = matching(available(), pattern)
    if not found:
        raise NoEvent(f"no counter of this machine matches `{pattern}`", "ktap list 'perf:*' shows them")
    return (f"perf:{name}\n" for name in found)


def _functions(written: Written, verbose: bool) -> List[str]:
    binary = open_target(written.target)
    found = find_functions(written, unsafe=False)
    symbols = {function.offset: function.name for function in binary.functions}
    return [_function(written.target, one, symbols.get(one.spot.offset, ""), verbose) for one in sorted(found)]


def _function(target: str, found: Found, symbol: str, verbose: bool) -> str:
    line = f"probe:{target}:{found.name}"
    if not verbose:
        return line
    mangled = f"  {symbol}" if demangle(symbol) == found.name != symbol else ""
    return f"{line}  {found.spot.offset:#x}{mangled}"


def _markers(written: Written, verbose: bool) -> List[str]:
    binary, machine = open_target(written.target), MACHINES.get(os.uname().machine)
    lines = []
    for marker in find_markers(written):
        arguments = marker_arguments(marker, binary, machine) if machine is not None else []
        names = " ".join(argument.name for argument, readable in arguments if readable)
        lines.append(f"sdt:{written.target}:{marker.provider}:{marker.name} {names}".rstrip())
        if verbose:
            place = f"    at {marker.spot.offset:#x}" + (" with a semaphore" if marker.spot.semaphore else "")
            lines.append(f"{place}: {marker.arguments}" if marker.arguments else place)
            for argument, readable in arguments:
                what = f"{'signed' if argument.shape.letter == 's' else 'unsigned'}, {argument.shape.size_bytes} bytes"
                lines.append(f"    {argument.name}  {f'integer, {what}' if readable else 'cannot be read'}")
    return lines
