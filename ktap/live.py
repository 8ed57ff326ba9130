"""The live source: this machine's own events, through capture programs and an event buffer.

    source = LiveSource(program, Options(), symbol_of, say)
    source.attach(probes)
    batch = source.poll(timeout_ns)     # records in order of time
    source.close()

ktap's own process is left out (but for `profile-N`, and for events that tell of others, see ktap.bystanders):
what it does to read and print events would make more of them without end.
"""

from __future__ import annotations

import errno
import os
import struct
import time
from typing import TYPE_CHECKING, Callable, Dict, List, Mapping, Optional, Sequence, Tuple, Union

from compiler import backend
from compiler.lower.flat import Refused
from ktap import attach, claiming, deferred, kernel
from ktap.attach import Program as Loaded
from ktap.captured import IN_INTERRUPT, READ, TextOf, make_event
from ktap.demand import USER, Demand
from ktap.follow import Follower
from ktap.kernel_log import KernelLog
from ktap.late import Late, Places
from ktap.layout import Layout
from ktap.needs import Needs, needs
from ktap.objects import Keep, Objects, Stale
from ktap.plan import Captured, Wanted, captured, probes_of
from ktap.resolve import Kernel, Resolver
from ktap.returned import with_function
from ktap.settings import UNMADE, UNNAMED, Helpers, Options, Say, buffer_bytes, missed_text, power_of_two, refusal
from ktap.tracefs import TracepointName
from ktap.transport import Buffer, OnDemand, Order
from vm.diagnostic import Diagnostic, Refusal
from vm.event import Action, Batch, Event, Loss, Probe
from vm.program import Program

if TYPE_CHECKING:
    from ktap.lowered import Lowering

SHORTEST_SLEEP_NS = 500_000
LONGEST_SLEEP_NS = 8_000_000
"""Between two looks at the buffer: short while events come, long while none do."""
BUSY_RECORDS = 2_000
"""So many at once: look again without sleeping."""

MOST_CAPTURED_BYTES = 60_000
"""Of one event: a perf record's size is a 16-bit number."""


class LiveSource:
    """See vm.event.Source."""

    knows_all = True
    """See ktap.recorder.Live."""

    def __init__(
        self,
        program: Program,
        options: Options,
        helpers: Helpers,
        where: Kernel,
        say: Say,
        lowering: Optional[Lowering] = None,
        keep: Optional[Keep] = None,
    ) -> None:
        """`lowering` may choose handlers that run in the kernel; without it all run in the VM. `keep`: see Objects."""
        self._objects = Objects(keep)
        self.lowering = self._lowering = lowering
        """What chose the handlers that run in the kernel; `_lowering` is None again where it chose none."""
        self._missed: List[Loss] = []
        """What was missed by links that are gone."""
        self._program = program
        self._options = options
        self._helpers = helpers
        self._kernel = where
        self._say = say
        self._points: List[Tuple[Event, Tuple[Union[int, Action], ...]]] = []
        self._labels: List[str] = []
        self.events: List[Captured] = []
        """What is attached, by number."""
        self.bits = 0
        """How many low bits of a point tell of filters."""
        self._order = Order()
        self._late: Optional[Late] = None
        self._sleep_ns = SHORTEST_SLEEP_NS
        self._buffer: Optional[Buffer] = None
        self._attachment: Optional[attach.Attachment] = None
        self.backends: Dict[str, str] = {}
        """How functions are reached, by event."""
        self._follower: Optional[Follower] = None
        self._log: Optional[KernelLog] = None

    # -- attaching --------------------------------------------------------------------------------

    def attach(self, probes: Sequence[Probe]) -> None:
        """See vm.event.Source.attach. Raises Refusal."""
        wanted = self._needs(probes)
        demands = {
            index: wanted.of_function[probe.function].joined(self._options.also) for index, probe in enumerate(probes)
        }
        if any(IN_INTERRUPT in demand.states for demand in demands.values()) and self._preempt_count() is None:
            self._say("in_interrupt is nil: this kernel does not tell where it counts (CONFIG_KALLSYMS_ALL, BTF)")
            demands = {index: without_interrupt(demand) for index, demand in demands.items()}
        resolver = Resolver(self._program, self._kernel)
        for index, probe in enumerate(probes):
            resolver.add(index, probe, demands[index])
        found = [with_function(one, self._kernel.types) for one in resolver.wanted(demands, wanted.places)]
        for notice in resolver.notices:
            self._say(notice)
        symbols = self._symbols(demands)
        if self._helpers.spaces is not None and self._options.attaching:
            self._helpers.spaces.watch(self._options.pids)
        try:
            while not self._tried(probes, found, demands, symbols):
                self._objects.restart()
        finally:
            backend.finish()

    def _tried(
        self, probes: Sequence[Probe], found: List[Wanted], demands: Dict[int, Demand], symbols: Dict[str, int]
    ) -> bool:
        """Make events live; False where the kernel did not take a handler, which then stays in the VM, or where what was
        made early is something else.
        """
        if self._lowering is not None:
            found = self._lower(probes, found, demands)
        else:
            self._check(probes)
        try:
            self._capture([captured(event, symbols) for event in found])
        except Refused as refused:
            assert self._lowering is not None
            notice = self._lowering.refuse(refused)
            if notice is not None and self._options.attaching:
                self._say(notice)
            return False
        except Stale:
            return False
        return True

    def _capture(self, events: Sequence[Captured]) -> None:
        """Make events live. Raises Refused for a handler that the kernel does not take; then nothing is live."""
        self._points, self._labels = [], []
        for event in events:
            if event.case.layout.most_bytes > MOST_CAPTURED_BYTES:
                message = (
                    f"`{event.wanted.label}`: its handlers read more than {MOST_CAPTURED_BYTES} bytes of one event"
                )
                hint = "give lengths, as in user_string(arg1, 200)"
                raise Refusal([Diagnostic(self._program.source_name, None, message, hint)], self._program.source)
        if events:
            try:
                self._go_live(events)
            except OSError as error:
                self.close()
                raise refusal(error) from error
            except BaseException:
                self.close()
                raise

    def _check(self, probes: Sequence[Probe]) -> None:
        """Raises Refusal for what handlers outside the kernel cannot be given."""
        problems = self._needs(probes).diagnostics
        if problems:
            raise Refusal(problems, self._program.source)

    def _needs(self, probes: Sequence[Probe]) -> Needs:
        handlers = [(probe.function, probe.takes_event) for probe in probes]
        return needs(self._program, handlers, self._options.event_string_bytes, self._helpers.types)

    def _lower(self, probes: Sequence[Probe], found: List[Wanted], demands: Dict[int, Demand]) -> List[Wanted]:
        """Choose the handlers that go to the kernel and take them out of what is captured."""
        assert self._lowering is not None
        self._lowering.text_of = self._texts(found)
        lowered = self._lowering.choose(probes, found)
        self._check([probe for index, probe in enumerate(probes) if index not in lowered])
        if not lowered:
            self._lowering = None
            return found
        self._lowering.prepare(2 * len(found), self._objects)
        return [self._lowering.divided(event, lowered, demands) for event in found]

    def _texts(self, found: Sequence[Wanted]) -> Callable[[int], TextOf]:
        """What makes argstr of raw records, by the event's number; made when the first is shown."""
        made: Dict[int, TextOf] = {}

        def text_of(number: int) -> TextOf:
            if number not in made:
                event = found[number].format
                assert event is not None, "argstr of an event without a record stays in the VM"
                made[number] = self._helpers.format_text(event) or (lambda raw: b"nil")  # as it is shown
            return made[number]

        return text_of

    def _symbols(self, demands: Dict[int, Demand]) -> Dict[str, int]:
        from ktap.needs import symbols_of

        found = {}
        for name in symbols_of(demands.values()):
            address = self._helpers.symbol(name)
            if address is not None:
                found[name] = address
        return found

    def _go_live(self, events: Sequence[Captured]) -> None:
        bits = max(len(event.wanted.filters) + event.case.late_filters for event in events)
        self.events, self.bits = list(events), bits
        self._buffer = self._open_buffer(events)
        self._buffer.expect(layouts_of(events), bits)
        self._set_points(events, bits)
        if self._options.pids:
            tracefs = self._kernel.tracefs()
            self._follower = Follower(self._options.pids, lambda name: tracefs.format(TracepointName("sched", name)))
        followed = self._follower.map_fd if self._follower else None
        common = attach.Options(
            bits,
            kernel.own_process(),
            followed,
            self._options.cpu,
            os.uname().machine,
            self._event_id,
            self._preempt_count,
            self._lowering,
            len(events),
            self._options.attaching,
        )
        if self._log is None and self._options.attaching:
            self._log = KernelLog(events)
        self._attachment = attach.Attachment(self._buffer, common, 2 * len(events), self._objects)
        self.backends = self._attachment.backends
        skipped = self._attachment.attach(list(enumerate(events)))
        if self._lowering is not None:
            self._add_sites(events, bits)
            if self._lowering.tables is not None:
                self._lowering.tables.wait_for_runs = self._attachment.wait_for_runs
        if len(skipped) == len(events):
            raise skipped[0].error
        if skipped or self._options.pids or not self._options.attaching or self._streams(events):
            self._objects.unfit()
        self._objects.finish()
        if skipped:
            first = skipped[0]
            are = "event cannot be traced and is" if len(skipped) == 1 else "events cannot be traced and are"
            self._say(f"{len(skipped)} {are} left out ({first.event.wanted.label}: {first.error.strerror})")
        if self._attachment.counting:
            from ktap.links import misses

            if misses(self._attachment.counting[0][1]) is None:
                self._say("this kernel does not count the calls that its kprobes miss (Linux 6.7 does)")
        slow = self._attachment.perf_events
        if slow >= attach.SLOW_DETACH:
            self._say(f"{slow} perf events: the kernel will take about {detach_s(slow)} s to let go of them")

    def _event_id(self, label: str) -> int:
        group, _, name = label.partition(":")
        event_format = self._kernel.tracefs().format(TracepointName(group, name))
        if event_format.is_probe:  # its perf event takes programs for functions only, which get no record
            raise OSError(errno.EOPNOTSUPP, "a probe that is defined in tracefs; --backend perf can trace it", label)
        return event_format.id

    def _preempt_count(self) -> Optional[Tuple[int, int]]:
        """The variable that has the kernel's preemption count and the offset in it; None where programs cannot reach it."""
        types = self._kernel.types()
        found = None if types is None else types.preempt_count()
        return found if found is not None and kernel.reaches(found[0]) else None

    def _open_buffer(self, events: Sequence[Captured]) -> Buffer:
        choice = self._options.buffer
        varies = any(layout is not None and layout.varies for layout in layouts_of(events))
        if choice == "ring" and varies and not kernel.has_dynptr():
            raise OSError(
                errno.EOPNOTSUPP, "strings and stacks go through the ring from Linux 5.19 on; use --buffer perf"
            )
        size_bytes = self._options.buffer_bytes
        if choice != "perf" and not (varies and not kernel.has_dynptr()) and (choice == "ring" or kernel.has_ring()):
            return OnDemand("ring", lambda: self._ring(power_of_two(size_bytes or buffer_bytes(1))))
        cpus = len(kernel.online_cpus())
        return OnDemand("perf", lambda: self._perf(power_of_two(size_bytes or buffer_bytes(cpus))))

    def _streams(self, events: Sequence[Captured]) -> bool:
        """Whether records come as long as events do, so that a buffer would fill while nobody reads it yet."""
        sites = self._lowering.sites if self._lowering is not None else ()
        return any(event.case.sends for event in events) or any(site.name in ("print", "printf") for site in sites)

    def _ring(self, size_bytes: int) -> Buffer:
        """One ring. Raises OSError."""
        from ktap.ring_buffer import RingBuffer

        return RingBuffer(size_bytes, self._objects)

    def _perf(self, size_bytes: int) -> Buffer:
        """A ring for each processor. Raises OSError."""
        from ktap.perf_buffer import PerfBuffer

        self._objects.unfit()
        return PerfBuffer(size_bytes)

    def _add_sites(self, events: Sequence[Captured], bits: int) -> None:
        """Make known what handlers in the kernel send."""
        assert self._lowering is not None and self._buffer is not None
        outside = self._lowering.outside()
        layouts = layouts_of(events) + [site.layout for site in outside]
        self._buffer.expect(layouts, bits)
        for site in outside:
            self._points += [(site.event, (site.handle,))] * (1 << bits)

    def quiet(self) -> None:
        """See vm.event.Source.quiet. Many perf events are let go of slowly, so they go on till the run is over."""
        attachment = self._attachment
        if attachment is not None and attachment.attached and attachment.perf_events < attach.SLOW_DETACH:
            self._missed = self._missed_by_links()
            attachment.detach()

    def settle(self, last: bool = False) -> None:
        """See vm.event.Source.settle: what handlers in the kernel have counted comes into the script's tables."""
        if self._helpers.spaces is not None:
            self._helpers.spaces.update()
        if self._lowering is None or self._lowering.tables is None:
            return
        if last:
            self.quiet()
        self._lowering.tables.drain()

    def _set_points(self, events: Sequence[Captured], bits: int) -> None:
        for event in events:
            shown = None
            if event.kind.format is not None and "argstr" in event.wanted.demand.variables:
                shown = self._helpers.format_text(event.kind.format)
            made = make_event(event.kind, shown, self._helpers.table, self._helpers.symbol_of)
            self._labels.append(event.wanted.label)
            for mask in range(1 << bits):
                self._points.append((made, probes_of(event.wanted, mask)))
        self._points += [(point, ()) for point, _ in self._points]
        late = {number: places_of(event, bits) for number, event in enumerate(events) if event.case.late}
        self._late = Late(late, len(events), bits) if late else None

    @property
    def programs(self) -> Sequence[Loaded]:
        """What has been loaded."""
        return () if self._attachment is None else self._attachment.programs

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
        if self._buffer is None:
            time.sleep(min(timeout_ns, LONGEST_SLEEP_NS) / 1e9)
            return Batch((), time.monotonic_ns(), False)
        drained = self._buffer.drain()
        if not drained.records and timeout_ns > 0:
            time.sleep(min(self._sleep_ns, timeout_ns) / 1e9)
            drained = self._buffer.drain()
        count = len(drained.records)
        if count > BUSY_RECORDS:
            self._sleep_ns = 0
        elif count:
            self._sleep_ns = SHORTEST_SLEEP_NS
        else:
            self._sleep_ns = min(max(2 * self._sleep_ns, SHORTEST_SLEEP_NS), LONGEST_SLEEP_NS)
        records = self._order.take(drained)
        horizon_ns = self._order.horizon_ns
        if self._late is not None:
            records, horizon_ns = self._late.complete(records, horizon_ns)
        if self._helpers.spaces is not None:
            self._helpers.spaces.update()  # now it has all that came before these records
        return Batch(records, horizon_ns, False)

    def unread(self, end_ns: int) -> Mapping[str, int]:
        """See vm.event.Source.unread: whatever is there is polled."""
        return {}

    def losses(self) -> Sequence[Loss]:
        """See vm.event.Source.losses: what found no room, by event, and runs that the kernel skipped."""
        found: List[Loss] = []
        if self._attachment is None or self._buffer is None:
            return found
        what = f"{self._buffer.name} buffer full"
        for number, label in enumerate(self._labels):
            value = kernel.lookup(self._attachment.losses, struct.pack("=I", number), 8)
            count = struct.unpack("=Q", value)[0] if value is not None else 0
            if count:
                found.append(Loss(what, label, count))
        if self._helpers.spaces is not None and self._helpers.spaces.lost:
            found.append(Loss(UNNAMED, "stacks of processes", self._helpers.spaces.lost))
        if self._lowering is not None and self._lowering.tables is not None:
            for name, count in self._lowering.tables.unmade():
                found.append(Loss(UNMADE, name, count))
        for fd in self._attachment.unread:
            for number, count in deferred.never_returned(fd).items():
                found.append(Loss(deferred.NEVER_RETURNED, self._labels[number], count))
        for program in self._attachment.programs:
            missed = kernel.program_info(program.fd).misses
            if missed:
                found.append(Loss("fired while the same program ran", program.what, missed))
        for label, claims in self._attachment.claims:
            missed = claiming.missed(claims)
            if missed:
                found.append(Loss("fired while the same program ran", label, missed))
        return found + self._missed_by_links() + (self._log.losses() if self._log is not None else [])

    def _missed_by_links(self) -> List[Loss]:
        """What links to functions of the kernel have missed; they are asked before they are gone."""
        if self._attachment is None or not self._attachment.counting:
            return self._missed
        from ktap.links import misses

        found = []
        for label, link in self._attachment.counting:
            missed = misses(link) or 0
            if missed:
                found.append(Loss(missed_text(label), label, missed))
        return found

    def close(self) -> None:
        """See vm.event.Source.close."""
        if self._attachment is not None:
            slow = self._attachment.perf_events
            if slow >= attach.SLOW_DETACH:
                self._say(f"letting go of {slow} events takes about {detach_s(slow)} s")
            self._attachment.close()
            self._attachment = None
        if self._helpers.spaces is not None:
            self._helpers.spaces.stop()
        if self._follower is not None:
            self._follower.close()
            self._follower = None
        if self._buffer is not None:
            self._buffer.close()
            self._buffer = None
        if self._lowering is not None:
            self._lowering.close()
        if self._log is not None:
            self._log.close()


def without_interrupt(demand: Demand) -> Demand:
    """The same without in_interrupt."""
    return demand._replace(states=demand.states - {IN_INTERRUPT})


def layouts_of(events: Sequence[Captured]) -> List[Optional[Layout]]:
    """The layouts of all events, then of what comes late of each; None for what is never sent."""
    late = [event.case.late_layout if event.case.late else None for event in events]
    return [*(event.case.layout if event.case.sends else None for event in events), *late]


def places_of(event: Captured, bits: int) -> Places:
    """Where records hold the thread and what may come late."""
    layout, late = event.case.layout, event.case.late_layout
    names = [f"{READ}{number}" for number, read in enumerate(event.case.reads) if read.space == USER]
    found = [[one.item(name) or 0 for name in ("pid_tgid", *names)] for one in (layout, late)]
    tentative = 1 << bits - 1 if event.case.late_filters else 0
    return Places(found[0][0], tuple(found[0][1:]), found[1][0], tuple(found[1][1:]), tentative, event.case.always)


def detach_s(events: int) -> int:
    """How long the kernel takes to let go of perf tracepoint events, in seconds."""
    return max(1, round(events * attach.DETACH_NS / 1e9))
