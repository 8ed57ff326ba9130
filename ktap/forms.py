"""Events that the user makes by writing them, so that there is no list of them: timers, watchpoints, places in programs."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from typing import List, Sequence, Tuple

from vm.named_tuple import NamedTuple


class Form(NamedTuple):
    """One kind: how it is written, what it means, and the values that only it has."""

    written: str
    meaning: str
    fields: Tuple[Tuple[str, str, str], ...] = ()
    """Name by number, name, and what it is."""


UNITS = "(s sec ms msec us usec ns hz; none means seconds)"
FORMS = (
    Form("tick-N", f"every N {UNITS}, on one processor"),
    Form("profile-N", f"every N {UNITS}, on every processor, with what it runs just then"),
    Form(
        "watch:ADDRESS:BYTES:MODE",
        "memory is used: 1, 2, 4 or 8 BYTES (8); MODE is w (written), r or rw (read or written), x (run)",
        (
            ("arg0", "args.addr", "integer, the address that is watched"),
            ("arg1", "args.ip", "address of the instruction behind the one that used it"),
            ("arg2", "args.value", "integer, what it holds now"),
        ),
    ),
    Form("trace_begin", "once, before all other events"),
    Form("trace_end", "once, after all other events"),
)
"""A row a kind."""
OTHER_NAMES = {"timer-*": ("tick-N", "profile-N"), "timers": ("tick-N", "profile-N")}


def forms_like(pattern: str) -> Sequence[Form]:
    """The kinds that a pattern means: `tick`, `tick-*`, `watch:`, `watch:0x601040:8`."""
    names = OTHER_NAMES.get(pattern)
    if names is not None:
        return [form for form in FORMS if form.written in names]
    return [form for form in FORMS if _means(pattern, form.written)]


def _means(pattern: str, written: str) -> bool:
    if pattern == "*":
        return False
    kind = re.split("[:-]", written)[0]
    sign = written[len(kind) : len(kind) + 1]
    return pattern == kind or (sign != "" and pattern.startswith(kind + sign)) or fnmatchcase(written, pattern)


def show_forms(forms: Sequence[Form], verbose: bool) -> str:
    """A line a kind; `verbose` adds the values."""
    lines: List[str] = []
    width = max(len(form.written) for form in forms)
    for form in forms:
        lines.append(f"{form.written.ljust(width)}  {form.meaning}")
        if verbose:
            lines += [f"    {number}  {name.ljust(12)}{what}" for number, name, what in form.fields]
    return "".join(f"{line}\n" for line in lines)
