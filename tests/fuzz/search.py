"""Looks for a drawn script that tells something else in the kernel than in the VM, and makes it small."""

from __future__ import annotations

import difflib
import re
import warnings
from collections import Counter
from typing import Iterator, NamedTuple, Optional, Sequence

from hypothesis import HealthCheck, Phase, Verbosity, given, settings

from tests.fuzz.compare import Compared, case_of, compare
from tests.fuzz.draws import Dice, Known
from tests.fuzz.scripts import Drawn, Script, scripts

OUR_MISTAKES = re.compile(r"LLVM IR parsing error|has no lowering|Instruction does not dominate")
"""A handler may stay in the VM, but not for one of these reasons."""
MOST_LINES = 60
LEAST_LOWERED_PERCENT = 75
"""Of programs with a handler in the kernel: fewer would prove little."""


class Differs(AssertionError):
    """The two tiers do not tell the same."""


class Row(NamedTuple):
    """What became of one program."""

    handlers: int
    lowered: int
    """Handlers in the kernel."""
    is_whole: bool
    """Whether that is all of them."""
    faulted: bool
    lost: bool


class Tally:
    """The programs that were compared, by identity, and why handlers stayed in the VM."""

    def __init__(self) -> None:
        self.rows: dict[int, Row] = {}
        self.reasons: Counter[str] = Counter()
        self.unrepeated: list[str] = []
        """Differences that were none when the program was compared again, as text."""

    def add(self, compared: Compared) -> None:
        drawn, lowered = compared.drawn, compared.lowered
        whole = lowered > 0 and not compared.reasons
        row = Row(drawn.handlers, lowered, whole, bool(compared.vm.reports), bool(compared.vm.lost))
        self.rows[drawn.identity] = row
        self.reasons.update(re.sub(r"`[^`]*`|\d+", "…", reason.split("\n")[0])[:100] for reason in compared.reasons)

    def merge(self, other: Tally) -> None:
        """Add what another search compared."""
        self.rows.update(other.rows)
        self.reasons.update(other.reasons)
        self.unrepeated += other.unrepeated

    @property
    def programs(self) -> int:
        return len(self.rows)

    @property
    def lowered_percent(self) -> int:
        """Programs with a handler in the kernel, of a hundred."""
        return self.percent([row.lowered > 0 for row in self.rows.values()])

    @property
    def whole_percent(self) -> int:
        return self.percent([row.is_whole for row in self.rows.values()])

    def percent(self, found: Sequence[bool]) -> int:
        return 100 * sum(found) // max(1, len(found))

    def summary(self) -> str:
        """One line without an end."""
        rows = self.rows.values()
        return (
            f"{self.lowered_percent}% with handlers in the kernel, {self.whole_percent}% with all of theirs; "
            f"{sum(row.lowered for row in rows)} of {sum(row.handlers for row in rows)} handlers; "
            f"{sum(row.faulted for row in rows)} with faults, {sum(row.lost for row in rows)} with losses"
        )


def sweep(number: int, programs: int, tally: Tally) -> Iterator[str]:
    """Every difference among so many programs, drawn from a number; hypothesis makes them small."""
    for thrown, shown in differences(number, programs, tally):
        known = settings(SETTINGS, database=Known(thrown), phases=(Phase.reuse, Phase.shrink))
        yield smallest(known) or shown


def differences(number: int, programs: int, tally: Tally) -> Iterator[tuple[Sequence[int], str]]:
    """What the dice threw for the programs that differ, and those as text."""
    for place in range(programs):
        dice = Dice(f"{number}/{place}")
        shown: list[str] = []
        try:
            check(Script(dice).write(), tally, shown)
        except Exception as error:
            yield dice.thrown, f"{shown[-1]}\n{error!r}"


SETTINGS = settings(
    deadline=None,
    database=None,
    derandomize=False,
    report_multiple_bugs=False,
    suppress_health_check=list(HealthCheck),
    print_blob=False,
    verbosity=Verbosity.quiet,
)


def smallest(how: settings) -> Optional[str]:
    """Let hypothesis make smaller what its database has; what it ends with, as text, or None."""
    tally = Tally()
    shown: list[str] = []

    @how
    @given(scripts())
    def same(drawn: Drawn) -> None:
        if drawn.identity not in tally.rows:
            check(drawn, tally, shown)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the compiler raises the recursion limit while it compiles
        try:
            same()
        except Exception as error:
            return shown[-1] if isinstance(error, Differs) else f"{shown[-1]}\n{type(error).__name__}: {error}"
    return None


def check(drawn: Drawn, tally: Tally, shown: list[str]) -> None:
    """Compare one program. Raises Differs, and what a broken tier raises; the last text in `shown` is about it."""
    shown.append(f"{drawn.source}{drawn.events}\n{drawn.limits}")
    compared = compare(drawn)
    mistakes = [reason for reason in compared.reasons if OUR_MISTAKES.search(reason)]
    if not compared.is_same or mistakes:
        shown.append("\n".join([case_of(compared), *mistakes, *difference(compared)]))
        if mistakes or not compare(drawn).is_same:
            raise Differs
        tally.unrepeated.append(shown[-1])
    tally.add(compared)


def difference(compared: Compared) -> list[str]:
    """Lines that differ."""
    told = [
        [*run.output.decode("utf-8", "backslashreplace").split("\n"), *run.reports.split("\n"), f"status {run.status}"]
        + [f"lost {events} {what}" for events, what in run.lost]
        for run in (compared.vm, compared.kernel)
    ]
    return list(difflib.unified_diff(*told, "in the VM", "in the kernel", "", "", 1, ""))[:MOST_LINES]
