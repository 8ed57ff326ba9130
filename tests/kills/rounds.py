"""Kills ktap with SIGKILL in the phase that is wanted, and tells what remains of it.

    with Rounds(directory, seed) as rounds:
        command, measured = rounds.drawn("bpf")
        killed = rounds.kill(command, measured, ATTACH)

The moment is drawn within the phase as a whole run of the same command line has shown it to last. Which phase it really
hit is told from outside: what ktap held just before (see listing.held), what it had said by its end, whether it had
been told to end, and how it ended. A round that hit another phase is repeated.
"""

from __future__ import annotations

import os
import pty
import random
import shutil
import signal
import subprocess
import sys
import termios
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, Optional, Sequence

from tests.kills.commands import Command, draw, program
from tests.kills.listing import Family, Target, address_in, held, listing

START, ATTACH, RUN, DETACH = PHASES = ("start", "attach", "run", "detach")
"""Until it holds something in the kernel; until it says that it traces; until it is told to end; until it has ended."""
SAYS = b"Tracing..."
STAYS = " stays in the VM: "
"""What ktap says of a handler that `--tier kernel` does not allow."""
LOOK_S = 0.0005
RUNS_S = 0.3
"""So long a run may last before it is killed or told to end."""
MOST_TRIES = 30
SHRINKS = 0.85
"""A round that came too late is repeated with a shorter time, for what the machine does besides may have ended."""
LATE_S = 120.0
"""How long what remains may take to go. The kernel lets go of BPF objects and probes behind grace periods of RCU, in work
that it puts off, some 0.1 s; the process that ktap's definitions have behind it closes their perf events one by one
and then tries for up to 20 s to remove what is still in use (ktap.own_group); an emulated machine is far slower."""
FRESH = 0.4
"""So many rounds find nothing in ktap's cache: more of ktap is loaded, and LLVM runs in a process of its own."""
BY_NAME = 0.3
"""So many rounds kill all that is called ktap, as `pkill -9 -f ktap` does, what compiles beside it, too."""
CALLED = b"-m\0ktap\0"
LONGEST_START_S = 120.0
ENDINGS = (signal.SIGINT, signal.SIGTERM)
CACHED = (".kpc", ".code", ".early")
"""How the names of finished files in ktap's cache end."""
ROOT = Path(__file__).resolve().parents[2]


class Times(NamedTuple):
    """How long a whole run took, in seconds: until it held something, from then until it traced, and to end."""

    start_s: float
    attach_s: float
    detach_s: float


class Measured(NamedTuple):
    """With nothing in ktap's cache, and once it has run."""

    fresh: Times
    again: Times


class Killed(NamedTuple):
    """One round."""

    command: Command
    phase: str
    fresh: bool
    """Whether nothing of it was in ktap's cache."""
    tries: int
    letting_go: bool
    """Whether it held less than it once did."""
    left: frozenset[str]
    """What has remained."""
    waited_s: float
    """Until nothing more remained, or LATE_S."""
    late: frozenset[str]
    """What was last to go."""


class Refused(Exception):
    """A drawn command line does not do what it is meant to do."""


class NotInTheKernel(Refused):
    """It has `--tier kernel`, and a handler that has to stay in the VM."""


class Run:
    """ktap, started and watched."""

    def __init__(self, words: Sequence[str], directory: Path, environment: dict[str, str], terminal: int) -> None:
        self.said = directory / "said"
        self.began_s = time.monotonic()
        with open(self.said, "wb") as said:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "ktap", *words],
                cwd=directory,
                env=environment,
                stdin=terminal,
                stdout=subprocess.DEVNULL,
                stderr=said,
            )

    def holds(self) -> int:
        return held(self.process.pid)

    def traces(self) -> bool:
        return SAYS in self.said.read_bytes()

    def has_ended(self) -> bool:
        return self.process.poll() is not None

    def wait_until(self, wanted: str, most_s: float = LONGEST_START_S) -> None:
        """Until it holds something (ATTACH) or traces (RUN), has ended, or a time has passed."""
        look = self.holds if wanted == ATTACH else self.traces
        end = time.monotonic() + most_s
        while not look() and not self.has_ended() and time.monotonic() < end:
            time.sleep(LOOK_S)


class Rounds:
    """A place to run in, a program that is probed, and what was there before."""

    def __init__(self, directory: Path, seed: int) -> None:
        self.random = random.Random(seed)
        self.directory = directory
        self.program = program(directory)
        self.family = Family("KTAP_KILLED", f"{os.getpid()}.{time.monotonic_ns()}")
        self.home = directory / "home"
        self.temporary = directory / "temporary"
        for path in (self.home, self.temporary):
            path.mkdir()
        self._terminal, self._theirs = pty.openpty()
        self._modes = termios.tcgetattr(self._theirs)
        self._probed = self._target()
        self._before: Optional[frozenset[str]] = None
        self.half_written = 0
        """Files in ktap's cache that were still being written: it removes them itself, an hour later."""

    def __enter__(self) -> Rounds:
        return self

    def __exit__(self, *_: object) -> None:
        self._probed.kill()
        self._probed.wait()
        os.close(self._terminal)
        os.close(self._theirs)

    def _target(self) -> subprocess.Popen[bytes]:
        """Start the program, outside of the family."""
        return subprocess.Popen([self.program], stdout=subprocess.DEVNULL, env={"HOME": "/home", "PATH": "/bin"})

    def draw(self, backend: str) -> Command:
        return draw(self.random, self.program, self._probed.pid, backend)

    def drawn(self, backend: str) -> tuple[Command, Measured]:
        """A command line that this machine takes, and how long it took. Raises Refused."""
        while True:
            command = self.draw(backend)
            with suppress(NotInTheKernel):
                return command, self.measure(command)

    def environment(self) -> dict[str, str]:
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(self.home),
            "XDG_CACHE_HOME": str(self.home / "cache"),
            "TMPDIR": str(self.temporary),
            "PYTHONPATH": str(ROOT),
            "NO_COLOR": "1",
            "LC_ALL": "C.UTF-8",
            **self.family.variable,
        }

    def run(self, command: Command) -> Run:
        return Run(command.words, self.directory, self.environment(), self._theirs)

    # -- what there is -----------------------------------------------------------------------------

    def listing(self) -> frozenset[str]:
        """What there is, with what a process shows that was probed, and one that has just started."""
        new = self._target()
        try:
            time.sleep(LOOK_S)
            semaphore = address_in(self.program, "watchers")
            targets = [Target(process.pid, self.program, semaphore) for process in (self._probed, new)]
            return listing(self.family, targets) | frozenset(self._beside())
        finally:
            new.kill()
            new.wait()

    def _beside(self) -> list[str]:
        """What is not the kernel's."""
        found = [f"file {path}" for path in self.temporary.rglob("*")]
        for path in self.home.rglob("*"):
            if path.is_file() and path.suffix not in CACHED:
                if path.parent == self.home / "cache" / "ktap" and any(f"{suffix}." in path.name for suffix in CACHED):
                    self.half_written += 1
                    path.unlink()
                else:
                    found.append(f"file {path}")
        if termios.tcgetattr(self._theirs) != self._modes:
            found.append("the terminal is in another mode")
        return found

    def before(self) -> frozenset[str]:
        """What there is before a round, which is what there was after the last."""
        if self._before is None:
            self._before = self.listing()
        return self._before

    def left(self, before: frozenset[str]) -> tuple[frozenset[str], float, frozenset[str]]:
        """What remains in the end, how long it took until that was all, and what was last to go."""
        began_s = time.monotonic()
        after = self.listing()
        left = late = after - before
        while left and time.monotonic() < began_s + LATE_S:
            time.sleep(0.05)
            after = self.listing()
            late = left
            left &= after  # what others are just making or letting go of is nobody's for a moment
        self._before = after
        return left, time.monotonic() - began_s, late

    # -- runs ---------------------------------------------------------------------------------------

    def forget(self) -> None:
        """Empty ktap's cache."""
        shutil.rmtree(self.home / "cache", ignore_errors=True)

    def measure(self, command: Command) -> Measured:
        """Whole runs, with nothing of them in the cache and with all. Raises Refused."""
        self.forget()
        return Measured(self._times(command), self._times(command))

    def _times(self, command: Command) -> Times:
        run = self.run(command)
        run.wait_until(ATTACH)
        holds_s = time.monotonic()
        run.wait_until(RUN)
        traces_s = time.monotonic()
        time.sleep(self.random.uniform(0, RUNS_S))
        told_s = time.monotonic()
        if not run.has_ended():
            run.process.send_signal(signal.SIGINT)
        status = run.process.wait(LONGEST_START_S)
        if status or not run.traces():
            said = run.said.read_text()
            kind = NotInTheKernel if command.tier == "kernel" and STAYS in said else Refused
            raise kind(f"{command}\nstatus {status}: {said}\n{command.words}")
        return Times(holds_s - run.began_s, traces_s - holds_s, time.monotonic() - told_s)

    def kill(self, command: Command, measured: Measured, phase: str) -> Killed:
        """Kill it in a phase, so often as it takes. Raises Refused."""
        fresh = self.random.random() < FRESH
        times = measured.fresh if fresh else measured.again
        for tries in range(1, MOST_TRIES + 1):
            before = self.before()
            if fresh:
                self.forget()
            hit, letting_go = self._hit(self.run(command), times, phase)
            left, waited_s, late = self.left(before)
            if hit == phase or left:
                return Killed(command, hit or "ended", fresh, tries, letting_go, left, waited_s, late)
            if hit is None or PHASES.index(hit) > PHASES.index(phase):
                times = Times(*(SHRINKS * time_s for time_s in times))
        raise Refused(f"{command}\nwas not hit in the phase {phase} in {MOST_TRIES} tries: {measured}")

    def _hit(self, run: Run, times: Times, phase: str) -> tuple[Optional[str], bool]:
        """Kill a run; the phase that it was in, None where it had ended, and whether it was letting go."""
        told = False
        most = 0
        if phase == START:
            time.sleep(self.random.uniform(0, times.start_s))
        elif phase == ATTACH:
            run.wait_until(ATTACH)
            time.sleep(self.random.uniform(0, times.attach_s))
        else:
            run.wait_until(RUN)
            most = run.holds()
            time.sleep(self.random.uniform(0, RUNS_S))
            if phase == DETACH:
                run.process.send_signal(self.random.choice(ENDINGS))
                told = True
                time.sleep(self.random.uniform(0, times.detach_s))
        by_name = self.family.called(CALLED) if self.random.random() < BY_NAME else []
        held_last = run.holds()
        for pid in by_name:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        run.process.kill()
        status = run.process.wait(LONGEST_START_S)
        letting_go = told and held_last < most
        if status != -signal.SIGKILL:
            return None, False
        if told:
            return (DETACH if held_last else None), letting_go
        if run.traces():
            return RUN, False
        return (ATTACH if held_last else START), False
