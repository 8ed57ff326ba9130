"""Attaching: the programs of captured events are compiled, loaded and put where they fire.

Everything is held by file descriptors of this process. Detaching a perf tracepoint event takes the
kernel about 73 ms, one after the other, also when the process is killed; raw tracepoints take next to
nothing. So perf tracepoint events are used only where the raw record is needed.
"""

from __future__ import annotations

import errno
import os
import struct
from typing import TYPE_CHECKING, Callable, Dict, List, Optional, Sequence, Set, Tuple

from compiler import backend
from compiler.bpf import Code, KernelVariable, MapFd, link
from ktap import claiming, kernel, libbcc
from ktap.assemble import Made, assemble, in_place
from ktap.capture import (
    COUNTER,
    PROFILE,
    RAW,
    RETURN,
    SYSCALL_ENTER,
    SYSCALL_EXIT,
    TRACEPOINT,
    USER_CONTEXTS,
    USER_RETURN,
    Case,
    needs_record,
    scratch_bytes,
    wanted_entry,
)
from ktap.code_cache import compiled
from ktap.deferred import UNREAD_BYTES
from ktap.filling import PREEMPT_COUNT, PREEMPT_OFFSET
from ktap.glob import TEXT_VALUE_BYTES
from ktap.groups import layers, user_groups
from ktap.objects import Objects, Value
from ktap.plan import Captured, raw_context
from ktap.predicate import needs_text
from ktap.sending import RING
from ktap.transport import Buffer
from ktap.verifier import check
from ktap.waiting import SLEEPABLE, can_wait, waits
from vm.named_tuple import NamedTuple

if TYPE_CHECKING:
    from ktap.keeper import Keeper
    from ktap.lowered import Lowering

MOST_UNREAD = 16_384
"""Threads in system calls whose entry could not read something."""
SYSCALL_NUMBERS = 1024
"""Above every system call's number."""
DETACH_NS = 73_000_000
"""What closing one perf tracepoint event takes."""
SLOW_DETACH = 20
"""So many of them are worth a word."""
ALWAYS_ALLOWED = 512
"""So many files any process may have open."""

REFUSALS = (errno.ENOENT, errno.EINVAL, errno.ENODEV, errno.EOPNOTSUPP, errno.EEXIST)
"""What the kernel says of one event that it does not trace; anything else is about all of them."""

Values = Dict[str, Value]


class Program(NamedTuple):
    """A loaded program: what it is for, its file descriptor, and what it was made of."""

    label: str
    fd: int
    made: Made
    events: int = 1
    """How many it serves, of which `label` is the first."""

    @property
    def what(self) -> str:
        """All that it serves, in a few words."""
        return self.label if self.events == 1 else f"{self.label} and {self.events - 1} more"


class Options(NamedTuple):
    """What all programs have in common."""

    bits: int
    own_process: int
    followed: Optional[int]
    """The map of processes to trace, None for all."""
    cpu: Optional[int]
    machine: str
    event_id: Callable[[str], int]
    """The id of a tracepoint (`sched:sched_switch`)."""
    preempt_count: Callable[[], Optional[Tuple[int, int]]]
    """The per-CPU variable that has the kernel's preemption count: its id in BTF, and the offset in it."""
    lowering: Optional[Lowering] = None
    """Handlers that run in the kernel."""
    late_base: int = 0
    """What is added to an event's number for what its system call's return sends."""
    attaching: bool = True
    """Programs are attached, not only loaded."""


class Skipped(NamedTuple):
    """An event that the kernel did not take."""

    event: Captured
    error: OSError


class Attachment:
    """Programs and what they are attached to. `losses` is a map: number of an event to how many were lost."""

    def __init__(self, buffer: Buffer, options: Options, events: int, objects: Objects) -> None:
        self._objects = objects
        self._buffer = buffer
        self._options = options
        self._maps: List[int] = []
        self._events: List[int] = []
        """What programs hang on: closing one of them detaches."""
        self._keeper: Optional[Keeper] = None
        """What opens probes of places in files."""
        self.perf_events = 0
        self.counting: List[Tuple[str, int]] = []
        """Links of functions of the kernel, which count what they miss."""
        self.unread: List[int] = []
        """Maps of what handlers in the kernel have left to the return of system calls."""
        self.backends: Dict[str, str] = {}
        """How functions are reached, by event."""
        self.programs: List[Program] = []
        self.claims: List[Tuple[str, int]] = []
        """Maps of programs that may be preempted (see ktap.claiming), by what they are for."""
        self._compiled: Dict[str, Code] = {}
        self._made: Dict[str, Made] = {}
        self._verified: Optional[Set[str]] = None
        """While programs are only tried: those that the kernel has taken."""
        self.losses = self._map(kernel.ARRAY, "ktap_losses", 8, max(1, events))

    def attach(self, numbered: Sequence[Tuple[int, Captured]]) -> List[Skipped]:
        """Make events live; each comes with its number. Those the kernel did not take are returned.

        Raises OSError where nothing can be attached at all, and Refused for a lowered handler that the kernel does not
        take; then nothing is attached.
        """
        if 2 * len(numbered) > ALWAYS_ALLOWED:
            self._objects.files(2 * len(numbered))
        self._verify(numbered)
        backend.finish()  # before anything could see what it does
        return self._all(numbered)

    def _verify(self, numbered: Sequence[Tuple[int, Captured]]) -> None:
        """Compile all programs and load those with handlers once, so that what the kernel refuses is known in time."""
        maps, perf_events = len(self._maps), self.perf_events
        self._verified = set()
        try:
            self._all(numbered)
        finally:
            self._verified, self.perf_events = None, perf_events
            for fd in self._maps[maps:]:
                os.close(fd)
            del self._maps[maps:]

    def _all(self, numbered: Sequence[Tuple[int, Captured]]) -> List[Skipped]:
        skipped: List[Skipped] = []
        for places in user_groups(numbered):  # before those that would see what the keeper does
            skipped += self._user(places)
        for context in (SYSCALL_ENTER, SYSCALL_EXIT):
            group = [(number, event) for number, event in numbered if event.wanted.context == context]
            for layer in layers(group):
                self._syscalls(context, layer)
        rest = [pair for pair in numbered if pair[1].wanted.called is not None and not self._typed(*pair)]
        if rest:
            from ktap import links

            for group in links.groups(rest):
                skipped += self._calls(group)
        for number, event in numbered:
            place = PLACES.get(event.wanted.context)
            if place is None:
                continue
            try:
                place(self, number, event)
            except OSError as error:
                if error.errno not in REFUSALS:
                    raise
                skipped.append(Skipped(event, error))
        return skipped

    @property
    def attached(self) -> bool:
        """Whether any program may still start."""
        return bool(self._events)

    def detach(self) -> None:
        """Let no program start any more, and return when those that run have ended."""
        for fd in self._events:
            os.close(fd)
        if self._keeper is not None:
            self._keeper.let_go()
        self._events, self.counting, self.perf_events = [], [], 0
        kernel.wait_for_programs()

    def close(self) -> None:
        """Detach and free everything. Safe to call twice."""
        for fd in (*self._events, *(program.fd for program in self.programs), *self._maps):
            os.close(fd)
        self._events, self.programs, self._maps = [], [], []
        if self._keeper is not None:
            self._keeper.close()
            self._keeper = None

    def _map(self, kind: int, name: str, value_bytes: int, entries: int) -> int:
        make = self._objects.map if self._verified is None else kernel.create_map
        fd = make(kind, name, 4, value_bytes, entries)
        self._maps.append(fd)
        return fd

    def _program(
        self,
        kind: int,
        context: str,
        label: str,
        cases: Tuple[Case, ...],
        values: Values,
        attach_type: int = 0,
        function: int = 0,
    ) -> int:
        """Compile and load."""
        lowering = self._options.lowering
        key, made = self._assembled(context, cases)
        flags = SLEEPABLE if any(case.waits for case in cases) else 0
        values = {**self._values(context, label, cases, made), **values}
        name = "".join(c if c.isalnum() or c in "_." else "_" for c in f"ktap_{label}")
        if self._verified is not None:
            if f"{kind} {key}" not in self._verified and lowering is not None and any(case.bodies for case in cases):
                self._verified.add(f"{kind} {key}")
                if not self._objects.taking:
                    lowering.check(cases, lambda: check(kind, link(made.code, values), attach_type, flags))
            return -1
        if function:
            self._objects.unfit()

        def load(instructions: bytes) -> int:
            if attach_type or made.code.kept:
                return kernel.load(
                    kind, instructions, flags=flags, name=name, attach_type=attach_type, function=function
                )
            return libbcc.load_program(kind, name, instructions)

        fd = self._objects.program(kind, name, made.code, values, attach_type, load)
        self.programs.append(Program(label, fd, made))
        return fd

    def _values(self, context: str, label: str, cases: Tuple[Case, ...], made: Made) -> Values:
        """What programs of all kinds refer to; maps are made of what each has for itself."""
        options, spec = self._options, made.spec
        values: Values = {"losses": MapFd(self.losses), "own_process": options.own_process}
        if spec.emit is not None and options.lowering is not None:
            values.update(options.lowering.values())
        if made.room_bytes:
            values["room"] = MapFd(self._map(kernel.PERCPU_ARRAY, "ktap_room", made.room_bytes, 1))
        names = {reference.name for reference in made.code.references}
        if "buffer" in names:
            values.update((name, MapFd(fd)) for name, fd in self._buffer.maps)
        count = options.preempt_count() if PREEMPT_COUNT in names else None
        if count is not None:
            values[PREEMPT_COUNT], values[PREEMPT_OFFSET] = KernelVariable(count[0]), count[1]
        if context in USER_CONTEXTS:
            values[claiming.CLAIMS] = MapFd(self._claims(label))
            values["keeper"] = 0 if self._keeper is None else self._keeper.number
        if options.followed is not None:
            values["followed"] = MapFd(options.followed)
        cpus, size = kernel.possible_cpus(), scratch_bytes(spec)
        if size:
            values["scratch"] = MapFd(self._map(kernel.ARRAY, "ktap_scratch", size, cpus))
        if any(needs_text(condition) for case in cases for condition in case.filters):
            values["text"] = MapFd(self._map(kernel.ARRAY, "ktap_text", TEXT_VALUE_BYTES, cpus))
        return values

    def _assembled(self, context: str, cases: Tuple[Case, ...]) -> Tuple[str, Made]:
        """A program for cases, which is compiled once, and what tells it from others."""
        key = f"{context} {cases}"
        made = self._made.get(key)
        if made is None:
            made = assemble(context, cases, self._options, self._buffer.name, in_place(), self._code_of)
            self._made[key] = made
        return key, made

    def _code_of(self, ir: str) -> Code:
        code = self._compiled.get(ir)
        if code is None:
            code = self._compiled[ir] = compiled(ir, kernel.instruction_set())
        return code

    def _syscalls(self, context: str, layer: Sequence[Tuple[int, Captured]]) -> None:
        """One program for all system calls of a layer."""
        cases: List[Case] = []
        wanted = self._map(kernel.ARRAY, "ktap_wanted", 8, SYSCALL_NUMBERS)
        for number, event in layer:
            if event.case not in cases:
                cases.append(event.case)
            identity = event.wanted.format.id if event.wanted.format is not None else 0
            entry = wanted_entry(number, cases.index(event.case), identity)
            update = self._objects.update if self._verified is None else kernel.update
            update(wanted, struct.pack("=I", event.wanted.number), struct.pack("=Q", entry))
        values: Values = {"wanted": MapFd(wanted)}
        if any(case.returns for case in cases):
            leaves = any(case.leaves for case in cases)
            kind = kernel.HASH if leaves else kernel.LRU_HASH  # where nothing may be dropped, new ones find no room
            unread = self._map(kind, "ktap_unread", UNREAD_BYTES, MOST_UNREAD)
            if leaves and self._verified is None:
                self.unread.append(unread)
            values["unread"] = MapFd(unread)
            back = self._program(kernel.RAW_TRACEPOINT, RETURN, "sys_exit", tuple(cases), values)
            self._hang(lambda: self._objects.raw_tracepoint(back, "sys_exit"))
        name = "sys_enter" if context == SYSCALL_ENTER else "sys_exit"
        fd = self._program(kernel.RAW_TRACEPOINT, context, name, tuple(cases), values)
        self._hang(lambda: self._objects.raw_tracepoint(fd, name))

    def _raw(self, number: int, event: Captured) -> None:
        self._raw_program(RAW, number, event)

    def _raw_program(self, context: str, number: int, event: Captured) -> None:
        fd = self._program(kernel.RAW_TRACEPOINT, context, event.wanted.name, (event.case,), _numbers(number, event))
        self._hang(lambda: self._objects.raw_tracepoint(fd, event.wanted.name))

    def _tracepoint(self, number: int, event: Captured) -> None:
        """As a raw tracepoint if there is one of that name, where nothing looks at the record or it can be made."""
        context = raw_context(event, self._options.machine)
        if context is not None:
            try:
                self._raw_program(context, number, event)
                return
            except OSError as error:
                if error.errno not in REFUSALS:
                    raise
        identity = self._options.event_id(event.wanted.label)
        values: Values = {"event": number, "event_id": identity}
        fd = self._program(kernel.TRACEPOINT, TRACEPOINT, event.wanted.name, (event.case,), values)
        # its program runs on all processors, and also while the event itself counts nothing
        # (and samples nothing: the kernel lets nobody sample what sampling itself fires, as irq_vectors:irq_work_exit)
        counter = kernel.Counter(kernel.TYPE_TRACEPOINT, identity, 0, flags=kernel.FLAG_DISABLED)
        cpu = kernel.online_cpus()[0]
        self._hang(lambda: self._objects.perf_event(counter, cpu, fd, event.wanted.label, counting=False))
        self.perf_events += 1

    def _user(self, group: Sequence[Tuple[int, Captured]]) -> List[Skipped]:
        """One program for all places of a file that are captured alike; those that the kernel did not take."""
        self._objects.unfit()
        from ktap import uprobes

        if self._keeper is None and self._options.attaching and self._verified is None:
            self._keeper = uprobes.keeper()
        wanted, attach_type = group[0][1].wanted, uprobes.attach_type()
        case = self._waiting(group[0][1].case, attach_type)
        values = self._record_values(case)
        fd = self._program(kernel.KPROBE, wanted.context, wanted.name, (case,), values, attach_type)
        self.backends.update((event.wanted.label, uprobes.NAMES[attach_type]) for _, event in group)
        if not self._options.attaching or self._verified is not None:
            return []
        self._serves(len(group))
        places = [uprobes.Place(event.wanted.spot, number) for number, event in group if event.wanted.spot is not None]
        assert self._keeper is not None
        attached = uprobes.attach(self._keeper, fd, places, wanted.context == USER_RETURN)
        self._events += attached.fds
        events = dict(group)
        return [Skipped(events[place.cookie], error) for place, error in attached.refused]

    def _serves(self, events: int) -> None:
        """Note how many events the program loaded last is for."""
        self.programs[-1] = self.programs[-1]._replace(events=events)

    def _claims(self, label: str) -> int:
        fd = claiming.make()
        self._maps.append(fd)
        if self._verified is None:
            self.claims.append((label, fd))
        return fd

    def _waiting(self, case: Case, attach_type: int) -> Case:
        """The case, as one that waits for memory where it reads some and may wait: a perf buffer is no map for that."""
        if not waits(case) or self._buffer.name != RING or not can_wait(attach_type):
            return case
        return case._replace(waits=True)

    def wait_for_runs(self) -> None:
        """Return when all runs of programs that sleep have ended that are going on now."""
        for _, claims in self.claims:
            claiming.wait(claims)

    def _record_values(self, case: Case) -> Values:
        """What a program needs that makes its record of registers."""
        recipe = case.recipe
        if recipe is None or recipe.on_stack or not needs_record(case):
            return {"event_id": 0}
        size = recipe.most_bytes
        return {"event_id": 0, "fetched": MapFd(self._map(kernel.ARRAY, "ktap_fetched", size, kernel.possible_cpus()))}

    def _typed(self, number: int, event: Captured) -> bool:
        """Whether a function of the kernel could be given a program that knows its arguments."""
        from ktap import links
        from ktap.calls import TYPED, typed_recipe

        called, case = event.wanted.called, event.case
        if called is None or called.type_id is None or case.recipe is None:
            return False
        recipe = typed_recipe(case.recipe, called, self._options.machine)
        if recipe is None or not (self._options.attaching or links.has_typed()):
            return False
        case = case._replace(recipe=recipe, called=called)
        if self._verified is not None:
            self._assembled(TYPED[event.wanted.context], (case,))
            return False  # handlers are tried in the other program that there may be
        values = {**self._record_values(case), "event": number}
        attach_type = links.FEXIT if called.returns else links.FENTRY
        try:
            fd = self._program(
                links.TRACING,
                TYPED[event.wanted.context],
                event.wanted.name,
                (case,),
                values,
                attach_type,
                called.type_id,
            )
            self._hang(lambda: links.attach_typed(fd, event.wanted.label))
        except OSError:  # many functions that have a type cannot take such a program: a probe does
            return False
        self.backends[event.wanted.label] = links.NAMES[attach_type]
        return True

    def _calls(self, group: Sequence[Tuple[int, Captured]]) -> List[Skipped]:
        """One program for functions of the kernel that are captured alike; those that the kernel did not take."""
        self._objects.unfit()
        from ktap import links
        from ktap.calls import CALL_RETURN, FORGOTTEN, remembered

        wanted, case = group[0][1].wanted, group[0][1].case
        if self._verified is None and case.recipe is not None and needs_record(case) and remembered(case.recipe):
            error = OSError(errno.EOPNOTSUPP, FORGOTTEN, wanted.label)
            if wanted.called is not None and not wanted.called.many:
                raise error
            return [Skipped(event, error) for _, event in group]
        places = [
            links.Place(event.wanted.called, number) for number, event in group if event.wanted.called is not None
        ]
        kind = links.KPROBE_MULTI if links.wants_multi(places) else 0
        fd = self._program(kernel.KPROBE, wanted.context, wanted.name, (case,), self._record_values(case), kind)
        self.backends.update((event.wanted.label, links.NAMES[kind]) for _, event in group)
        if not self._options.attaching or self._verified is not None:
            return []
        self._serves(len(group))
        attached = links.attach(fd, places, wanted.context == CALL_RETURN)
        self._events += attached.fds
        self.counting += attached.counting
        self.perf_events += 0 if kind else len(attached.counting)
        events = dict(group)
        return [Skipped(events[place.cookie], error) for place, error in attached.refused]

    def _profile(self, number: int, event: Captured) -> None:
        assert event.wanted.timer is not None
        period_ns = event.wanted.timer.period_ns
        self._everywhere(PROFILE, number, event, kernel.Counter(kernel.TYPE_SOFTWARE, kernel.CPU_CLOCK, period_ns))

    def _counter(self, number: int, event: Captured) -> None:
        assert event.wanted.counter is not None
        self._everywhere(COUNTER, number, event, event.wanted.counter)

    def _everywhere(self, context: str, number: int, event: Captured, counter: kernel.Counter) -> None:
        """A perf event on every processor."""
        fd = self._program(kernel.PERF_EVENT, context, event.wanted.name, (event.case,), _numbers(number, event))
        for cpu in kernel.online_cpus() if self._options.cpu is None else (self._options.cpu,):
            self._hang(lambda cpu=cpu: self._objects.perf_event(counter, cpu, fd, event.wanted.label))  # type: ignore[misc]

    def _hang(self, attach: Callable[[], int]) -> None:
        """Attach the program loaded last; it goes again when that fails."""
        if not self._options.attaching or self._verified is not None:
            return
        try:
            self._events.append(attach())
        except OSError:
            self._objects.unfit()
            os.close(self.programs.pop().fd)
            raise


PLACES: Dict[str, Callable[[Attachment, int, Captured], None]] = {
    RAW: Attachment._raw,
    TRACEPOINT: Attachment._tracepoint,
    PROFILE: Attachment._profile,
    COUNTER: Attachment._counter,
}
"""How events other than system calls are attached."""


def _numbers(number: int, event: Captured) -> Values:
    identity = event.wanted.format.id if event.wanted.format is not None else 0
    return {"event": number, "event_id": identity}
