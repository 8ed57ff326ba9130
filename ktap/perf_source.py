"""The live source without BPF: perf events, the kernel's own filters, and the VM for everything else.

    source = PerfSource(program, Options(), helpers, where, say)
    source.attach(probes)
    batch = source.poll(timeout_ns)     # records in order of time
    source.close()

All events of a processor share a ring; what the kernel says of tasks comes through a second one, so that a full
ring loses no name. Everything is held by file descriptors and gone with them.
"""

from __future__ import annotations

import os
import sys
import time
from typing import Callable, Dict, List, Mapping, Optional, Sequence, Set, Tuple, Union

from ktap import kernel
from ktap.captured import make_event
from ktap.counted_instance import Instances
from ktap.event_format import EventFormat
from ktap.kernel_log import KernelLog
from ktap.layout import Values
from ktap.needs import Needs, needs, symbols_of
from ktap.open_files import allow_files
from ktap.own_group import OwnGroup
from ktap.perf_buffer import LOST, SAMPLE
from ktap.perf_counts import TOO_LONG, Processors, begin, dropped, end, open_events, uncounted
from ktap.perf_demand import Here, also, check, unfit, with_parent
from ktap.perf_event import (
    COMM_RECORDS,
    DUMMY,
    RAW,
    SOFTWARE,
    TASK_RECORDS,
    TRACEPOINT,
    Attribute,
    Sample,
    has_programs,
    lost_samples,
    number_of,
    open_event,
    reader,
    set_filter,
    share_ring,
)
from ktap.perf_probes import REFUSED
from ktap.perf_rings import Ring, map_largest, online, settled_ns, taken, unmap
from ktap.perf_samples import Looks, Opened, is_mixed, take_samples, unread_samples
from ktap.perf_streams import SLOW_NS, Stream, Tools, detach_ns, streams
from ktap.perf_values import PARENT, layout_of, seen_by, who_of
from ktap.plan import Captured, Wanted, captured, probes_of
from ktap.resolve import Kernel, Resolver
from ktap.settings import UNNAMED, Helpers, Options, buffer_bytes, missed_text, power_of_two, refusal
from ktap.tasks import Change, NewTask, Tasks, read_change
from ktap.tracefs import TracepointName
from ktap.transport import TIME
from vm.diagnostic import Refusal
from vm.event import Action, Batch, Event, Loss, Probe
from vm.program import Program

TASK_RING_BYTES = 1 << 19
LEAST_RING_BYTES = 1 << 15
LONGEST_SLEEP_NS = 8_000_000
NEW_TASK = TracepointName("task", "task_newtask")
"""Tells which new processes have their maker's parent."""
CLONE_PARENT = 0x8000

Say = Callable[[str], None]


class PerfSource:
    """See vm.event.Source."""

    lowering = None
    """No handler runs in the kernel."""
    knows_all = False
    """See ktap.recorder.Live."""

    def __init__(self, program: Program, options: Options, helpers: Helpers, where: Kernel, say: Say) -> None:
        self._program = program
        self._options = options
        self._helpers = helpers
        self._kernel = where
        self._say = say
        self._points: List[Tuple[Event, Tuple[Union[int, Action], ...]]] = []
        self.events: List[Captured] = []
        """What is attached, by number."""
        self.bits = 0
        """How many low bits of a point tell of filters."""
        self.streams: List[Stream] = []
        """What is opened."""
        self._tasks = Tasks(options.pids)
        self._opened: Dict[int, Opened] = {}
        """By the number that samples have."""
        self._is_quiet = False
        self._streams: List[Opened] = []
        self._rings: List[Ring] = []
        self._alone: List[Ring] = []
        """Those of events that cannot share one a processor."""
        self._ring_bytes = 0
        self._task_rings: List[Ring] = []
        self._owners: List[int] = []
        self._held: List[Union[Sample, Change]] = []
        self._looks = Looks()
        self._warned: Set[str] = set()
        self._group: Optional[OwnGroup] = None
        self._instance: Optional[Instances] = None
        self._missed: Dict[str, int] = {}
        """By definition, before tracing began."""
        self._has_event_probes: Optional[bool] = None
        self._skipped: List[Tuple[str, OSError]] = []
        """Places that the kernel does not take."""
        self._new_task: Optional[NewTask] = None
        self._made_tasks: Optional[Opened] = None
        self._log: Optional[KernelLog] = None
        self._processors = Processors(say)
        self._own = os.getpid()
        self._initial = os.readlink("/proc/self/ns/pid") == kernel.INITIAL_PID_NAMESPACE
        """Records have the numbers of this namespace."""

    # -- attaching --------------------------------------------------------------------------------

    def attach(self, probes: Sequence[Probe]) -> None:
        """See vm.event.Source.attach. Raises Refusal."""
        asked = self._needs(probes)
        demands = {
            index: asked.of_function[probe.function].joined(also(probe.event, self._options.also))
            for index, probe in enumerate(probes)
        }
        checked = check(self._program, probes, demands, asked.places)
        problems = [*asked.diagnostics, *checked.problems]
        if problems:
            raise Refusal(problems, self._program.source)
        resolver = Resolver(self._program, self._kernel)
        for index, probe in enumerate(probes):
            resolver.add(index, probe, checked.demands[index])
        found = [with_parent(one, demands) for one in resolver.wanted(checked.demands, asked.places)]
        for notice in (*resolver.notices, *checked.notices):
            self._say(notice)
        events = [self._captured(one) for one in found]
        here = Here(self._kernel, self._format, self._event_probes)
        problems = [one for event in events for one in unfit(self._program, probes, event, here, asked.places)]
        if problems:
            self.close()
            raise Refusal(problems, self._program.source, 3)
        if events:
            try:
                self._go_live(events)
            except OSError as error:
                self.close()
                raise refusal(error) from error
            except BaseException:
                self.close()
                raise

    def _needs(self, probes: Sequence[Probe]) -> Needs:
        handlers = [(probe.function, probe.takes_event) for probe in probes]
        return needs(self._program, handlers, self._options.event_string_bytes, self._helpers.types)

    def _captured(self, wanted: Wanted) -> Captured:
        seen = seen_by(wanted)
        addresses = {name: self._helpers.symbol(name) for name in symbols_of([seen])}
        symbols = {name: address for name, address in addresses.items() if address is not None}
        event = captured(wanted._replace(demand=seen), symbols)
        layout = layout_of(event, seen)
        return event._replace(
            wanted=wanted,
            kind=event.kind._replace(layout=layout),
            case=event.case._replace(layout=layout, late=False, late_filters=False),
        )

    def _format(self, name: TracepointName) -> EventFormat:
        return self._kernel.tracefs().format(name)

    def _go_live(self, events: Sequence[Captured]) -> None:
        self.events = list(events)
        self.bits = max(len(event.wanted.filters) for event in events)
        self._set_points()
        narrowing = f"common_pid != {self._own}" if self._initial else ""
        cpus = online(self._options.cpu)
        size = power_of_two(self._options.buffer_bytes or buffer_bytes(len(cpus)))
        root = self._kernel.tracefs().root
        instance = self._instance = Instances(root, self._own_group, cpus, size, self._say, self._processors)
        tools = Tools(
            self.bits,
            self._format,
            narrowing,
            self._kernel.machine,
            root,
            self._own_group,
            self._skip,
            instance.tracers,
            self._options.attaching,
        )
        wanted = self.streams = streams(events, tools)
        if not self._options.attaching:
            return
        beside = sum(len(stream.beside) for stream in wanted)
        allow_files((len(wanted) + beside + 4) * (len(cpus) + 1))
        if self._helpers.spaces is not None:
            self._helpers.spaces.watch(self._options.pids)
        self._open_rings(cpus)
        self._tasks.snapshot(time.monotonic_ns())
        self._log = KernelLog(events)
        traced, others = instance.open(wanted, bool(narrowing), self._skip)
        for stream in traced:
            self._streams.append(Opened(stream, [], reader(RAW, 0), []))
            self._opened[-stream.attribute.config] = self._streams[-1]
        for stream in (*others, *(one for one in wanted if one.traced is None and not one.tracer)):
            self._open(stream)
        if self._skipped and not self._streams:
            raise self._skipped[0][1]
        if self._skipped:
            label, error = self._skipped[0]
            self._say(f"{len(self._skipped)} events cannot be traced and are left out ({label}: {error.strerror})")
        slow_ns = detach_ns(opened.stream for opened in self._streams if opened.fds)
        if slow_ns >= SLOW_NS:
            self._say(f"the kernel will take about {round(slow_ns / 1e9)} s to let go of these events")
        self._look_for_programs()
        self._missed = self._missed_by_probes()
        self._looks.since_ns = time.monotonic_ns()
        for opened in self._streams:
            begin(opened, cpus, self._processors)
        instance.start()

    def _skip(self, label: str, error: OSError) -> None:
        self._skipped.append((label, error))

    def _event_probes(self) -> bool:
        if self._has_event_probes is None:
            from ktap.perf_eprobes import has_event_probes

            self._has_event_probes = has_event_probes(self._own_group())
        return self._has_event_probes

    def _own_group(self) -> OwnGroup:
        if self._group is None:
            self._group = OwnGroup(self._kernel.tracefs().root)
        return self._group

    def _set_points(self) -> None:
        for event in self.events:
            shown = None
            if event.kind.format is not None and "argstr" in event.wanted.demand.variables:
                shown = self._helpers.format_text(event.kind.format)
            made = make_event(event.kind, shown, self._helpers.table, self._helpers.symbol_of)
            for mask in range(1 << self.bits):
                self._points.append((made, probes_of(event.wanted, mask)))

    def _open_rings(self, cpus: Sequence[int]) -> None:
        """The rings of events on the traced processors, and those of what is said of tasks on all."""
        size = power_of_two(self._options.buffer_bytes or buffer_bytes(len(cpus)))
        least = size if self._options.buffer_bytes else LEAST_RING_BYTES
        nothing = Attribute(SOFTWARE, DUMMY)
        for cpu in cpus:
            self._owners.append(open_event(nothing, cpu, -1, "perf buffer"))
            ring, size = map_largest(cpu, self._owners[-1], size, least)
            self._rings.append(ring)
        self._ring_bytes = size
        said = Attribute(SOFTWARE, DUMMY, flags=COMM_RECORDS | TASK_RECORDS)
        for cpu in kernel.online_cpus():
            self._owners.append(open_event(said, cpu, -1, "perf buffer"))
            ring, _ = map_largest(cpu, self._owners[-1], TASK_RING_BYTES, LEAST_RING_BYTES)
            self._task_rings.append(ring)
        for owner in self._owners:
            kernel.enable(owner)
        if any(PARENT in event.wanted.demand.variables for event in self.events):
            self._open_new_task()

    def _open_new_task(self) -> None:
        event = self._format(NEW_TASK)
        fields = {field.name: field for field in event.fields}
        self._new_task = NewTask(fields["pid"].offset, fields["clone_flags"].offset, fields["clone_flags"].size)
        attribute = Attribute(TRACEPOINT, event.id, 1, RAW)
        read = reader(RAW, 0)
        opened = self._made_tasks = Opened(Stream(str(NEW_TASK), attribute, lambda sample: ()), [], read, [])
        self._streams.append(opened)
        for ring in self._task_rings:
            fd = open_event(attribute, ring.cpu, -1, str(NEW_TASK))
            opened.fds.append(fd)
            self._opened[number_of(fd)] = opened
            share_ring(fd, ring.owner)
            kernel.enable(fd)

    def _open(self, stream: Stream) -> None:
        """A perf event on every processor, of all processes: one that is bound to a task and its children ends with
        the program of a setuid file, and before the task does (fs/exec.c, kernel/exit.c: perf_event_exit_task)."""
        if stream.tracer:
            assert stream.parts is not None
            for part in stream.parts():
                self._open(part)
            return
        attribute = stream.attribute
        opened = Opened(stream, [], reader(attribute.sample, bin(attribute.registers).count("1")), [])
        self._streams.append(opened)
        for ring in self._rings:
            try:
                fd = self._event(opened, ring.cpu)
            except OSError as error:
                if stream.event_id is not None or opened.fds or error.errno not in REFUSED:
                    raise
                self._streams.remove(opened)
                if stream.parts is None:
                    self._skip(stream.label, error)
                for part in stream.parts() if stream.parts is not None else ():
                    self._open(part)
                return
            opened.fds.append(fd)
            number = number_of(fd)
            self._opened[number] = opened
            if is_mixed(attribute):
                alone, _ = map_largest(ring.cpu, fd, self._ring_bytes, LEAST_RING_BYTES)
                self._alone.append(alone._replace(number=number))
            else:
                share_ring(fd, ring.owner)
            if stream.filter:
                set_filter(fd, stream.filter)
        if not stream.fits and not stream.beside:
            self._say(uncounted(stream))

    def _event(self, opened: Opened, cpu: int) -> int:
        stream = opened.stream
        if stream.in_code:
            return open_events(self._own_group(), opened, cpu)
        return open_event(stream.attribute, cpu, -1, stream.label)

    # -- reading ----------------------------------------------------------------------------------

    @property
    def points(self) -> Sequence[Tuple[Event, Sequence[Union[int, Action]]]]:
        """See vm.event.Source.points."""
        return self._points

    def now_ns(self) -> int:
        """CLOCK_MONOTONIC, which is what events are stamped with."""
        return time.monotonic_ns()

    def poll(self, timeout_ns: int) -> Batch:
        """See vm.event.Source.poll. Returns after one sleep at the latest, so that signals are seen."""
        if not self._held and timeout_ns > 0:
            time.sleep(min(timeout_ns, LONGEST_SLEEP_NS) / 1e9)
        if not self._rings:
            return Batch((), time.monotonic_ns(), False)
        horizon_ns = settled_ns()
        held = self._held
        for ring in self._task_rings:
            self._take_changes(ring)
        before_ns = take_samples([*self._rings, *self._alone], self._opened, held, self._looks)
        horizon_ns = self._looks.since_ns = horizon_ns if before_ns is None else min(horizon_ns, before_ns)
        if self._instance is not None:
            traced, horizon_ns = self._instance.samples(horizon_ns)
            held += traced
        held.sort(key=TIME)
        end = len(held)
        while end and held[end - 1][0] > horizon_ns:
            end -= 1
        self._held = held[end:]
        if self._helpers.spaces is not None:
            self._helpers.spaces.update()  # now it has all that came before these records
        return Batch(self._records(held[:end]), horizon_ns, False)

    def _take_changes(self, ring: Ring) -> None:
        for kind, data, at in taken(ring):
            if kind == LOST:
                self._tasks.forget()
                self._say(
                    "the kernel could not say all of what tasks did: their names and parents are nil until they change"
                )
            elif kind == SAMPLE:
                self._held.append(reader(RAW, 0)(data, at))
            else:
                change = read_change(kind, data, at)
                if change is not None:
                    self._held.append(change)

    def unread(self, end_ns: int) -> Mapping[str, int]:
        """See vm.event.Source.unread. Of processes that are not traced as well."""
        traced = self._instance.samples(end_ns, None)[0] if self._instance is not None else []
        rings = [*self._rings, *self._alone]
        return unread_samples(rings, self._opened, [*self._held, *traced], self._looks, end_ns)

    def _records(self, found: Sequence[Union[Sample, Change]]) -> List[Values]:
        """The records of samples in order of time, each with what was known of tasks by then."""
        tasks, initial = self._tasks, self._initial
        own = (self._own, None if self._group is None else self._group.keeper)
        records: List[Values] = []
        for one in found:
            if isinstance(one, Change):
                tasks.apply(one)
                continue
            opened = self._opened[one.event]
            if opened is self._made_tasks:
                self._see_new_task(one)
                continue
            stream = opened.stream
            who = who_of(one, tasks, stream.by_record and initial)
            if who.pid in own and stream.leaves_out_ktap:
                continue
            if tasks.followed is not None and who.pid not in tasks.followed:
                continue
            for maker in stream.route(one):
                made = maker.make(one, who, tasks)
                if made is not None:
                    records.append(made)
        return records

    def _see_new_task(self, sample: Sample) -> None:
        """A process may have its maker's parent."""
        where = self._new_task
        assert where is not None
        flags = int.from_bytes(sample.raw[where.flags : where.flags + where.size], sys.byteorder)
        pid = int.from_bytes(sample.raw[where.pid : where.pid + 4], sys.byteorder)
        if flags & CLONE_PARENT and self._tasks.process(pid) == pid:
            self._tasks.made_beside(pid, sample.pid)

    def quiet(self) -> None:
        """See vm.event.Source.quiet."""
        if not self._is_quiet:
            for opened in self._streams:
                end(opened, [ring.cpu for ring in self._rings], self._processors)
            if self._instance is not None:
                self._instance.stop()
        self._is_quiet = True

    def settle(self, last: bool = False) -> None:
        """See vm.event.Source.settle: nothing is counted elsewhere, but for losses, and those not before the end."""
        if last:
            self.quiet()
        if self._helpers.spaces is not None:
            self._helpers.spaces.update()

    def losses(self) -> Sequence[Loss]:
        """See vm.event.Source.losses: by event, or by processor where the kernel does not count them by event."""
        found: List[Loss] = []
        counted = True
        for opened in self._streams:
            lost = [lost_samples(fd) for fd in opened.fds]
            counted = counted and None not in lost
            total = sum(one or 0 for one in lost)
            if total:
                found.append(Loss(FULL, opened.stream.label, total))
        if not counted:
            found += [Loss(FULL, f"processor {cpu}", count) for cpu, count in sorted(self._looks.lost.items())]
        missed = {name: count - self._missed.get(name, 0) for name, count in self._missed_by_probes().items()}
        for opened in (opened for opened in self._streams if opened.stream.functions):
            label = opened.stream.label
            counts = (
                (missed_text(label), missed.get(opened.stream.defined, 0)),
                (TOO_LONG, dropped(opened, missed, self._say)),
            )
            found += [Loss(what, label, count) for what, count in counts if count]
        if self._instance is not None:
            found += self._instance.losses()
        self._look_for_programs()
        for label in self._looks.mistimed:
            self._say(
                f"{label}: it is counted by others, too, and the kernel gave some of its events times of another clock"
            )
        if found and self._options.pids:
            self._say("what was lost may be of other processes, too: without BPF they are told apart behind the buffer")
        if self._helpers.spaces is not None and self._helpers.spaces.lost:
            found.append(Loss(UNNAMED, "stacks of processes", self._helpers.spaces.lost))
        return found + (self._log.losses() if self._log is not None else [])

    def _missed_by_probes(self) -> Dict[str, int]:
        """Calls that the kernel did not show, by definition."""
        return {} if self._group is None else self._group.missed()

    def _look_for_programs(self) -> None:
        """Say where BPF programs of others may keep events to themselves: the kernel samples none for which one returns 0."""
        for opened in self._streams:
            label = opened.stream.label
            known = opened.stream.event_id is None or label in self._warned
            if not known and opened.fds and has_programs(opened.fds[0]):
                self._warned.add(label)
                self._say(f"{label}: BPF programs of another tracer are on it and may keep its events from this one")

    def close(self) -> None:
        """See vm.event.Source.close."""
        if self._helpers.spaces is not None:
            self._helpers.spaces.stop()
        for fd in (fd for opened in self._streams for fds in (opened.fds, *opened.beside) for fd in fds):
            os.close(fd)
        for ring in (*self._rings, *self._alone, *self._task_rings):
            unmap(ring)
        for owner in self._owners:
            os.close(owner)
        self._streams, self._owners, self._rings, self._alone, self._task_rings = [], [], [], [], []
        if self._instance is not None:
            self._instance.close()
            self._instance = None
        for held in (self._group, self._log):
            if held is not None:
                held.close()


FULL = "perf buffer full"
