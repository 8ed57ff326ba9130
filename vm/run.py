"""One run of a script: main chunk, trace_begin, events and ticks in order of time, trace_end.

    run = Run(machine, source, RunOptions(duration_ns=5_000_000_000), report)
    signal.signal(signal.SIGINT, lambda *_: run.stop())
    outcome = run.execute()

Handlers run one at a time, in order of time across processors; a tick that is due at T runs after all
events up to T. Tracing ends by exit(), `stop`, the end of the duration, of the command or of a recording,
or by a fault; then trace_end runs, once. What was in the buffers when tracing was stopped is delivered first,
but not after exit() or a fault. Where that takes too long, and the sooner after a signal, the rest is counted as lost.
"""

from __future__ import annotations

import time
from bisect import bisect_right
from typing import Callable, Dict, List, Mapping, Optional, Sequence, Tuple, Union

from vm.diagnostic import Diagnostic, Refusal
from vm.event import Action, Batch, Event, Loss, Probe, Source
from vm.fault import Exit, Fault
from vm.host import Host
from vm.machine import Bound, Machine
from vm.named_tuple import NamedTuple
from vm.program import Program
from vm.table_names import name_of
from vm.timers import Schedule, period_ns

POLL_NS = 100_000_000
"""The longest wait for events: output is let out and stop() noticed at least this often."""
SHORTEST_POLL_NS = 1_000_000
PATIENCE_NS = 10_000_000_000
"""How long after the end handlers may take for what fired before it."""
SIGNAL_PATIENCE_NS = 2_000_000_000
"""The same after stop(), and how long a source may take to hand over what is then only counted."""
PIECE_RECORDS = 64
PIECE_NS = 10_000_000
"""So many records are delivered between two looks at the clock at the least; more where they take less than this."""
MAX_CALLERS = 20
"""How many callers a fault names."""

TABLE_FULL = "table full"
"""`Loss.what` of new keys that did not fit: its `events` counts keys."""
TOO_LATE = "not handled in time after the end"
"""`Loss.what` of events that were still to be handled when patience was over."""
IN_THE_KERNEL = "output of handlers in the kernel"
"""`Loss.where` of records that no handler of the VM was to be run for."""


class RunOptions(NamedTuple):
    """How a script is run."""

    duration_ns: Optional[int] = None
    """Tracing ends after this much of the source's time."""
    live: bool = True
    """False in a replay: its time is the recording's, and no tick is ever too late."""
    start: Optional[Callable[[], None]] = None
    """Starts the command that is traced; called when the probes are live."""
    finished: Optional[Callable[[], bool]] = None
    """True once that command has ended."""
    live_ns: Callable[[], Optional[int]] = lambda: None
    """When events began to count, where the source knows of a time before it had attached."""


class Outcome(NamedTuple):
    """The exit status (0, 1 after a fault, or what exit() was given) and what was lost."""

    status: int
    losses: Tuple[Loss, ...]


class Clock:
    """The source of a script that has ticks only: time passes, nothing happens."""

    points: Sequence[Tuple[Event, Sequence[Union[int, Action]]]] = ()

    def __init__(self, host: Host) -> None:
        self.host = host

    def attach(self, probes: Sequence[Probe]) -> None:
        """There is nothing to attach."""

    def now_ns(self) -> int:
        """CLOCK_MONOTONIC."""
        return self.host.monotonic_ns()

    def poll(self, timeout_ns: int) -> Batch:
        """Wait."""
        time.sleep(timeout_ns / 1e9)
        return Batch((), self.now_ns(), False)

    def quiet(self) -> None:
        """Nothing fires."""

    def settle(self, last: bool = False) -> None:
        """Nothing is counted elsewhere."""

    def unread(self, end_ns: int) -> Mapping[str, int]:
        """Everything is polled."""
        return {}

    def losses(self) -> Sequence[Loss]:
        """Nothing is lost."""
        return ()

    def close(self) -> None:
        """There is nothing to detach."""


class Run:
    """A machine, a source and what happens between them."""

    def __init__(
        self,
        machine: Machine,
        source: Optional[Source],
        options: RunOptions = RunOptions(),  # noqa: B008
        report: Callable[[str], None] = print,
    ) -> None:
        """`source` may be None where there are no live events. `report` is given each run-time error as text."""
        self.machine = machine
        self.source = source
        self.options = options
        self.report = report
        self.status = 0
        self.going = True
        """False after exit() or a fault."""
        self.stopping = False
        self.ended_ns: Optional[int] = None
        """When tracing was ended or will be; None where it goes on until it ends by itself."""
        self.give_up_ns: Optional[int] = None
        """When what is still to be handled is given up; None while tracing goes on."""
        self.hurried = False
        """True once stop() was seen to."""
        self.unhandled: Dict[int, int] = {}
        """How many records were given up, by point."""
        self.unread: Mapping[str, int] = {}
        """How many events were given up before they were records, by event."""
        self.bound: List[Bound] = []
        self.probes: List[Probe] = []
        """Those that were given to the source: its points name them by their place here."""

    def stop(self) -> None:
        """End tracing soon. May be called by a signal handler."""
        self.stopping = True
        self.machine.interrupt()

    def execute(self) -> Outcome:
        """The whole run. Raises Refusal for probes that cannot be set, and what the source raises."""
        machine = self.machine
        losses: List[Loss] = []
        self.attempt(machine.run_main)
        self.probes = [probe for probe in machine.probes if not is_own(probe)]
        ticks = self.named("tick-")
        self.check_timers()
        self.run_all(self.named("trace_begin"))
        source = self.choose_source(ticks) if self.going and not self.stopping else None
        try:
            if source is not None:
                self.trace(source, ticks)
                self.attempt(lambda: source.settle(last=True))
                losses.extend(source.losses())
                losses.extend(self.given_up(source))
            self.going = True
            self.run_all(self.named("trace_end"))
        finally:
            if source is not None:
                source.close()
        losses.extend(dropped_keys(machine))
        return Outcome(self.status, tuple(losses))

    # -- parts of a run -----------------------------------------------------------------------

    def named(self, prefix: str) -> List[Probe]:
        """The probes of the run loop's own events: `trace_begin`, `trace_end`, `tick-`."""
        return [probe for probe in self.machine.probes if is_own(probe) and probe.event.startswith(prefix)]

    def check_timers(self) -> None:
        """Raises Refusal for all timers that are none."""
        program = self.machine.program
        wrong = []
        for probe in self.machine.probes:
            if probe.event.startswith(("tick-", "profile-")):
                try:
                    period_ns(probe.event)
                except ValueError as error:
                    wrong.append(Diagnostic(program.source_name, probe.span, str(error)))
        if wrong:
            raise Refusal(wrong, program.source)

    def choose_source(self, ticks: Sequence[Probe]) -> Optional[Source]:
        """Where events and time come from, None for a script that needs neither."""
        if self.probes and self.source is None:
            program = self.machine.program
            message = "this runner has no live events; the ktap command traces them"
            raise Refusal([Diagnostic(program.source_name, self.probes[0].span, message)], program.source, 3)
        if self.probes or (ticks and not self.options.live):
            return self.source
        return Clock(self.machine.host) if ticks else None

    def attempt(self, action: Callable[[], None]) -> None:
        """Run code of the script; a fault is reported and, as exit() does, ends tracing."""
        try:
            action()
        except Fault as fault:
            self.report(fault_text(self.machine.program, fault))
            self.status = 1
            self.going = False
        except Exit as leaving:
            self.status = self.status or leaving.status
            self.going = False

    def run_all(self, probes: Sequence[Probe]) -> None:
        """Run handlers of the run loop's own events until one ends the run."""
        for probe in probes:
            if self.going:
                self.attempt(lambda probe=probe: self.machine.run_handler(probe.handler, probe.event))  # type: ignore[misc]

    def trace(self, source: Source, ticks: Sequence[Probe]) -> None:
        """From attaching to the end of tracing."""
        source.attach(self.probes)
        begin_ns = self.options.live_ns() or source.now_ns()
        schedule = Schedule(ticks, begin_ns)
        deadline_ns = None if self.options.duration_ns is None else begin_ns + self.options.duration_ns
        self.ended_ns = deadline_ns
        self.give_up_ns = None if deadline_ns is None else deadline_ns + PATIENCE_NS
        self.attempt(self.machine.output.flush)
        if self.options.start is not None and self.going:
            self.options.start()
        while self.going:
            over = self.is_over()
            now_ns = source.now_ns()  # behind all that a command did that has ended
            if over and (deadline_ns is None or now_ns < deadline_ns):
                if not self.options.live:
                    break
                self.ended_ns = deadline_ns = now_ns
                self.be_patient_until(now_ns + PATIENCE_NS)
            self.see_end(source, now_ns)
            if self.is_late(now_ns - SIGNAL_PATIENCE_NS):
                self.unread = source.unread(self.ended_ns or now_ns)
                break
            batch = source.poll(wait_ns(now_ns, schedule.next_ns(), deadline_ns))
            for point in source.points[len(self.bound) :]:
                self.bound += self.machine.bind([point], self.probes)
            self.attempt(lambda: self.handle(batch, source, schedule, deadline_ns))  # noqa: B023
            self.attempt(lambda: self.machine.output.tick(self.machine.host.monotonic_ns()))
            if batch.ended or (deadline_ns is not None and batch.horizon_ns >= deadline_ns):
                break

    def is_over(self) -> bool:
        """True once stop() was called or the command has ended."""
        return self.stopping or (self.options.finished is not None and self.options.finished())

    def see_end(self, source: Source, now_ns: int) -> None:
        """After the end nothing more is to fire; after stop() there is less patience with what has fired."""
        if self.stopping and not self.hurried:
            self.hurried = True
            self.be_patient_until(now_ns + SIGNAL_PATIENCE_NS)
        if self.stopping or (self.ended_ns is not None and now_ns >= self.ended_ns):
            source.quiet()

    def be_patient_until(self, end_ns: int) -> None:
        """Give up what is still to be handled then, if not before."""
        self.give_up_ns = end_ns if self.give_up_ns is None else min(end_ns, self.give_up_ns)

    def is_late(self, now_ns: int) -> bool:
        """True once events that fired before the end are given up. In a replay nothing is late."""
        return self.options.live and self.give_up_ns is not None and now_ns > self.give_up_ns

    def handle(self, batch: Batch, source: Source, schedule: Schedule, deadline_ns: Optional[int]) -> None:
        """Run the handlers of a batch's events and of the ticks among them. Raises Fault and Exit."""
        records, live = batch.records, self.options.live
        horizon_ns = batch.horizon_ns if deadline_ns is None else min(batch.horizon_ns, deadline_ns)
        done = 0
        due_ns = schedule.next_ns()
        while due_ns is not None and due_ns <= horizon_ns:
            done = self.deliver_until(records, done, due_ns, source)
            self.machine.idle.time_ns = None if live else due_ns
            source.settle()
            tick = schedule.take(source.now_ns() if live else None)
            self.machine.run_handler(tick.handler, tick.event)
            due_ns = schedule.next_ns()
        self.machine.idle.time_ns = None if live else horizon_ns
        if deadline_ns is not None:
            self.deliver_until(records, done, deadline_ns, source)
        else:
            self.deliver(records, done, len(records), source)

    def deliver_until(self, records: Sequence[Tuple[object, ...]], done: int, end_ns: int, source: Source) -> int:
        """Deliver the records from number `done` up to a time; the number of the first that is later."""
        end = bisect_right(records, (end_ns, float("inf")), done)
        self.deliver(records, done, end, source)
        return end

    def deliver(self, records: Sequence[Tuple[object, ...]], begin: int, end: int, source: Source) -> None:
        """Deliver records in pieces, and count the rest once they are given up. Raises Fault and Exit."""
        if not self.options.live:
            self.machine.deliver(records[begin:end], self.bound)
            return
        piece, now_ns = PIECE_RECORDS, source.now_ns()
        self.see_end(source, now_ns)
        while begin < end and not self.is_late(now_ns):
            last = min(begin + piece, end)
            self.machine.deliver(records[begin:last], self.bound)
            begin, before_ns = last, now_ns
            now_ns = source.now_ns()
            self.see_end(source, now_ns)
            piece = 2 * piece if now_ns - before_ns < PIECE_NS else PIECE_RECORDS
        for record in records[begin:end]:
            point: int = record[1]  # type: ignore[assignment]  # as the interface has it
            self.unhandled[point] = self.unhandled.get(point, 0) + 1

    def given_up(self, source: Source) -> List[Loss]:
        """The events that were given up, by what was to be run for them."""
        found: Dict[str, int] = dict(self.unread)
        for point, events in self.unhandled.items():
            names = [self.probes[probe].event for probe in source.points[point][1] if isinstance(probe, int)]
            where = ", ".join(dict.fromkeys(names)) or IN_THE_KERNEL
            found[where] = found.get(where, 0) + events
        return [Loss(TOO_LATE, where, events) for where, events in sorted(found.items())]


def dropped_keys(machine: Machine) -> List[Loss]:
    """The new keys that tables did not take: for each table that has a name, in order, and for all others together."""
    limit = f"limit of {machine.limits.table_entries} entries"
    found: Dict[str, int] = {}
    for table, keys in machine.account.drops.values():
        name = name_of(machine, table)
        where = limit if name is None else f"{name}, {limit}"
        found[where] = found.get(where, 0) + keys
    return [Loss(TABLE_FULL, where, keys) for where, keys in sorted(found.items())]


def is_own(probe: Probe) -> bool:
    """True for what the run loop itself knows: trace_begin, trace_end, ticks."""
    return probe.event in ("trace_begin", "trace_end") or probe.event.startswith("tick-")


def wait_ns(now_ns: int, due_ns: Optional[int], deadline_ns: Optional[int]) -> int:
    """How long to wait for events at most."""
    ends = [end_ns - now_ns for end_ns in (due_ns, deadline_ns) if end_ns is not None]
    return max(SHORTEST_POLL_NS, min([POLL_NS, *ends]))


def fault_text(program: Program, fault: Fault) -> str:
    """A fault as its diagnostic, followed by a line for each caller."""
    name = program.source_name
    span = fault.frames[0].span if fault.frames else None
    lines = [Diagnostic(name, span, fault.message, fault.hint).render(program.source)]
    callers = fault.frames[1:]
    for frame in callers[:MAX_CALLERS]:
        lines.append(f"    called from {frame.function} at {name}:{frame.span.line}:{frame.span.column}")
    if len(callers) > MAX_CALLERS:
        lines.append(f"    and {len(callers) - MAX_CALLERS} more")
    return "\n".join(lines)
