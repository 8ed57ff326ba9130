"""`make fuzz`: many drawn scripts on both tiers, on all processors, until so many different ones were compared.

    python -m tests.fuzz.longer [--programs 20000] [--seed 1] [--workers N]

It tells how far it is every half minute, prints each difference as a case with what the kernel told beside it, and
ends with a line of sums. The exit status is 1 where there was a difference, or where too few handlers were in the
kernel for the run to mean anything.
"""

from __future__ import annotations

import argparse
import gc
import os
import subprocess
import sys
import time
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from typing import NamedTuple

from tests.fuzz.search import LEAST_LOWERED_PERCENT, Tally, sweep

PROGRAMS_A_SEARCH = 50
MOST_DIFFERENCES = 20
PROGRESS_S = 30


class Options(NamedTuple):
    """What is asked for."""

    programs: int
    seed: int
    workers: int


class Found(NamedTuple):
    """What a search gave."""

    tally: Tally
    differences: list[str]


def options() -> Options:
    parser = argparse.ArgumentParser(prog="fuzz", description="Compare drawn scripts in the VM and in the kernel.")
    parser.add_argument("--programs", type=int, default=20_000, help="how many different ones (20000)")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="draw those of an earlier run again")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)), help="processes")
    given = parser.parse_args()
    return Options(given.programs, given.seed, given.workers)


def one_search(number: int) -> Found:
    """In a process of the pool."""
    gc.set_threshold(50_000, 20, 20)  # a program leaves little behind, and there is much to look through
    tally = Tally()
    return Found(tally, list(sweep(number, PROGRAMS_A_SEARCH, tally)))


def main() -> int:
    asked = options()
    doctor = subprocess.run([sys.executable, "-m", "ktap", "doctor", "--quiet"], capture_output=True, text=True)
    if doctor.returncode:
        print(f"cannot trace here:\n{doctor.stdout.strip()}", file=sys.stderr)
        return 3
    print(f"comparing {asked.programs} programs from seed {asked.seed} on in {asked.workers} processes", flush=True)
    total, differences, started, told = Tally(), 0, time.monotonic(), time.monotonic()
    with ProcessPoolExecutor(asked.workers, max_tasks_per_child=None) as pool:
        numbers = iter(range(asked.seed << 20, (asked.seed + 1) << 20))
        running: set[Future[Found]] = {pool.submit(one_search, next(numbers)) for _ in range(asked.workers)}
        while total.programs < asked.programs and differences < MOST_DIFFERENCES:
            done, running = wait(running, PROGRESS_S, FIRST_COMPLETED)
            for future in done:
                found = future.result()
                total.merge(found.tally)
                for difference in found.differences:
                    differences += 1
                    print(f"difference {differences}:\n{difference}\n", flush=True)
                running.add(pool.submit(one_search, next(numbers)))
            if time.monotonic() - told >= PROGRESS_S:
                told = time.monotonic()
                print(f"{total.programs} programs, {differences} differences, {told - started:.0f} s", flush=True)
        for future in running:
            future.cancel()
        pool.shutdown(wait=False, cancel_futures=True)
    return the_end(total, differences, time.monotonic() - started)


def the_end(total: Tally, differences: int, took_s: float) -> int:
    """Print the sums; the exit status."""
    print("handlers stayed in the VM because it")
    print("".join(f"{count:6} {reason}\n" for reason, count in total.reasons.most_common(12)), end="")
    for shown in total.unrepeated:
        print(f"a difference that was none when the program was compared again:\n{shown}\n")
    print(
        f"{total.programs} programs in {took_s:.0f} s: {total.summary()}; {differences} differences, {len(total.unrepeated)} that did not come again"
    )
    if total.lowered_percent < LEAST_LOWERED_PERCENT:
        print(f"fewer than {LEAST_LOWERED_PERCENT}% had handlers in the kernel, which proves too little")
    return int(differences > 0 or total.lowered_percent < LEAST_LOWERED_PERCENT)


if __name__ == "__main__":
    sys.exit(main())
