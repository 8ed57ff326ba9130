"""`make kills`: kills ktap at random moments while it attaches, runs and detaches, and compares all that is in the kernel.

    python -m tests.kills.longer [--rounds 200] [--seed 1]

It tells what remains of each round, if anything does, and ends with a table of sums. Rounds are counted that hit the
phase they were meant for, those at the start of ktap beside. The exit status is 1 where something remained.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple, Sequence

from tests.kills.commands import BACKENDS
from tests.kills.rounds import ATTACH, DETACH, PHASES, RUN, Killed, Rounds

COUNTED = (ATTACH, RUN, DETACH)
PROGRESS_S = 30
LONG_S = 10
"""What goes so late is told."""


class Options(NamedTuple):
    """What is asked for."""

    rounds: int
    seed: int


def options() -> Options:
    parser = argparse.ArgumentParser(prog="kills", description="Kill ktap and see what remains of it.")
    parser.add_argument("--rounds", type=int, default=200, help="how many are to be counted (200)")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="draw those of an earlier run again")
    given = parser.parse_args()
    return Options(given.rounds, given.seed)


def main() -> int:
    asked = options()
    doctor = subprocess.run([sys.executable, "-m", "ktap", "doctor", "--quiet"], capture_output=True, text=True)
    if doctor.returncode:
        print(f"cannot trace here:\n{doctor.stdout.strip()}", file=sys.stderr)
        return 3
    print(f"killing ktap {asked.rounds} times, from seed {asked.seed} on", flush=True)
    began_s = told_s = time.monotonic()
    found: list[Killed] = []
    with tempfile.TemporaryDirectory(prefix="ktap-kills-") as directory, Rounds(Path(directory), asked.seed) as rounds:
        while counted(found) < asked.rounds:
            command, measured = rounds.drawn(BACKENDS[len(found) // len(PHASES) % len(BACKENDS)])
            for phase in PHASES:
                if counted(found) < asked.rounds:
                    found.append(rounds.kill(command, measured, phase))
                    tell(found[-1])
                if time.monotonic() - told_s >= PROGRESS_S:
                    told_s = time.monotonic()
                    print(f"{counted(found)} rounds, {told_s - began_s:.0f} s", flush=True)
        half_written = rounds.half_written
    print(f"{counted(found)} rounds and {len(found) - counted(found)} at the start, {time.monotonic() - began_s:.0f} s")
    print("\n".join(table(found)))
    print(f"{half_written} files of the cache were half written, which ktap removes an hour later")
    bad = sum(bool(killed.left) for killed in found)
    print(f"of {bad} rounds something remained" if bad else "nothing remained")
    return int(bad > 0)


def counted(found: Sequence[Killed]) -> int:
    return sum(killed.phase in COUNTED for killed in found)


def tell(killed: Killed) -> None:
    if killed.waited_s > LONG_S and not killed.left:
        print(f"it took {killed.waited_s:.0f} s until these had gone ({killed.phase}, {killed.command}):")
        print("".join(f"    {line}\n" for line in sorted(killed.late)), end="", flush=True)
    if killed.left:
        print(
            f"after {killed.waited_s:.0f} s there remained of one that was killed in {killed.phase}: {killed.command}"
        )
        print("".join(f"    {line}\n" for line in sorted(killed.left)), end="")
        print(f"    its command line: {' '.join(killed.command.words)}", flush=True)


def table(found: Sequence[Killed]) -> list[str]:
    """The sums."""
    by = Counter((killed.phase, killed.command.backend) for killed in found)
    rows = [f"{'killed in':12}" + "".join(f"{backend:>8}" for backend in BACKENDS)]
    rows += [f"{phase:12}" + "".join(f"{by[phase, backend]:8}" for backend in BACKENDS) for phase in PHASES]
    letting_go = sum(killed.letting_go for killed in found)
    tiers = Counter(killed.command.tier for killed in found)
    whom = Counter(killed.command.whom for killed in found)
    kinds = Counter(name for killed in found for name in killed.command.blocks)
    for counts in (tiers, whom, kinds):
        rows.append(", ".join(f"{name} {count}" for name, count in sorted(counts.items())))
    rows.append(f"{sum(killed.fresh for killed in found)} found nothing in ktap's cache")
    rows.append(f"{letting_go} of those in detach held less than they once did")
    rows.append(f"{sum(killed.tries - 1 for killed in found)} rounds had hit another phase and were repeated")
    rows.append(f"the longest that the kernel took to let go: {max(killed.waited_s for killed in found):.1f} s")
    return rows


if __name__ == "__main__":
    sys.exit(main())
