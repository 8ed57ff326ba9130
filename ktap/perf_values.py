"""Records of events made of perf samples: the same tuples that capture programs send, so all behind them is the same.

A value that a sample does not tell is None. Filters are decided here, on the tuple, as in a replay.
"""

from __future__ import annotations

import struct
from typing import Callable, Dict, List, Optional

from ktap.captured import IN_INTERRUPT, KERNEL_STACK, RECORD, USER_STACK
from ktap.demand import Demand
from ktap.layout import Layout, Slot, Values
from ktap.perf_event import CALLCHAIN, CGROUP, Sample, frames_of
from ktap.plan import Captured, Wanted
from ktap.predicate import All, Negated, Predicate, Running, Some
from ktap.recorded_filter import decider
from ktap.tasks import GONE, Tasks
from vm.named_tuple import NamedTuple

COMMON_PID = struct.Struct("=I").unpack_from
FLAGS_OFFSET, INTERRUPT_FLAGS = 2, 0x08 | 0x10 | 0x40 | 0x80
"""common_flags, and those set in an interrupt or with softirqs off (linux/trace_events.h: TRACE_FLAG_*)."""
PARENT = "ppid"
"""The slot of it: this source knows it by itself."""
DOUBLED_CALLERS = frozenset(("aarch64",))
"""Machines where stacks at tracepoints begin with the caller, and have it again where the tracepoint's own frame says
where it returns to (perf_arch_fetch_caller_regs in asm/perf_event.h)."""


class Who(NamedTuple):
    """The running task; None for what is not known."""

    pid: Optional[int]
    tid: Optional[int]


Fill = Callable[[Sample, Who, Tasks], object]
Record = Callable[[Sample], bytes]
"""Gives the raw record, as the event's format lays it out."""


def seen_by(wanted: Wanted) -> Demand:
    """What handlers ask of an event, and what its filters look at."""
    names = set(wanted.demand.variables)
    for condition in wanted.filters:
        names |= looked_at(condition)
    return wanted.demand._replace(variables=frozenset(names))


def looked_at(condition: Predicate) -> frozenset[str]:
    """The event variables that a filter looks at; `arg0` stands for the record."""
    if isinstance(condition, Negated):
        return looked_at(condition.inner)
    if isinstance(condition, (All, Some)):
        return frozenset().union(*(looked_at(part) for part in condition.parts))
    return frozenset({condition.subject.name if isinstance(condition.subject, Running) else "arg0"})


def who_of(sample: Sample, tasks: Tasks, by_record: bool) -> Who:
    """Who was running. The record of an event has the thread even when it is ending and has no number any more."""
    tid: Optional[int] = sample.tid
    if by_record:
        (tid,) = COMMON_PID(sample.raw, 4)
    elif tid == GONE:
        return Who(None, None)
    assert tid is not None
    return Who(sample.pid if sample.pid != GONE else tasks.process(tid), tid)


class Maker:
    """Makes the records of one event of a script."""

    def __init__(self, number: int, event: Captured, bits: int, fills: Dict[str, Fill]) -> None:
        """`fills` says how slots are filled that depend on the kind of event: the record, reads."""
        wanted = event.wanted
        self.event = event
        self._first_point = number << bits
        self._fills = [_fill(slot, fills) for slot in event.kind.layout.slots]
        self._deciders = [decider(condition, event.kind.layout) for condition in wanted.filters]
        self._always = None in wanted.filter_of

    def make(self, sample: Sample, who: Who, tasks: Tasks) -> Optional[Values]:
        """The record, None where no probe's filter passes it."""
        values: List[object] = [sample.time_ns, self._first_point, sample.cpu]
        values += [fill(sample, who, tasks) for fill in self._fills]
        if self._deciders:
            mask = 0
            for bit, decide in enumerate(self._deciders):
                if decide(tuple(values)):
                    mask |= 1 << bit
            if not mask and not self._always:
                return None
            values[1] = self._first_point + mask
        return tuple(values)


def layout_of(event: Captured, wanted: Demand) -> Layout:
    """The event's layout without what samples cannot tell, and with what only this source knows."""
    slots = [slot for slot in event.kind.layout.slots if slot.name not in ("uid_gid",)]
    if PARENT in wanted.variables:
        slots.append(Slot(PARENT, "Q", 8))
    return Layout(tuple(slots))


def samples_of(layout: Layout) -> int:
    """What samples must have for a layout, beside the record."""
    names = {slot.name for slot in layout.slots}
    chain = CALLCHAIN if names & {KERNEL_STACK, USER_STACK} else 0
    return chain | (CGROUP if "cgroup" in names else 0)


def raw_record(slot: Slot) -> Record:
    """The record of a tracepoint, as it is; a system call's may have fewer arguments than there is room for."""
    size = slot.size_bytes
    if slot.varies:
        return lambda sample: sample.raw[:size]
    return lambda sample: sample.raw[:size].ljust(size, b"\0")


def tracepoint_fills(event: Captured, machine: str = "") -> Dict[str, Fill]:
    """How the values of tracepoints are made; `machine` is this one where stacks are those of tracepoints themselves."""
    fills: Dict[str, Fill] = {}
    for slot in event.kind.layout.slots:
        if slot.name == RECORD:
            record = raw_record(slot)
            fills[RECORD] = lambda sample, who, tasks: record(sample)  # noqa: B023  # there is one
        elif slot.name == IN_INTERRUPT:
            fills[IN_INTERRUPT] = lambda sample, who, tasks: sample.raw[FLAGS_OFFSET] & INTERRUPT_FLAGS
        elif slot.name == KERNEL_STACK and machine in DOUBLED_CALLERS:
            fills[KERNEL_STACK] = _stack(slot, doubled=True)
    return fills


def _fill(slot: Slot, fills: Dict[str, Fill]) -> Fill:
    known = fills.get(slot.name) or FILLS.get(slot.name)
    if known is not None:
        return known
    if slot.name in (KERNEL_STACK, USER_STACK):
        return _stack(slot)
    return lambda sample, who, tasks: None


def _stack(slot: Slot, doubled: bool = False) -> Fill:
    """`doubled`: see DOUBLED_CALLERS."""
    which = 0 if slot.name == KERNEL_STACK else 1
    most = slot.size_bytes // 8

    def fill(sample: Sample, who: Who, tasks: Tasks) -> object:
        frames = frames_of(sample.chain)[which]
        first = 1 if doubled and frames[:1] == frames[1:2] else 0
        frames = frames[first : first + most]
        return struct.pack(f"={len(frames)}q", *frames)

    return fill


def _pair(sample: Sample, who: Who, tasks: Tasks) -> object:
    return None if who.pid is None or who.tid is None else who.pid << 32 | who.tid


def _name(sample: Sample, who: Who, tasks: Tasks) -> object:
    return None if who.tid is None else tasks.name(who.tid, sample.cpu)


def _parent(sample: Sample, who: Who, tasks: Tasks) -> object:
    return None if who.pid is None else tasks.parent(who.pid)


def _cgroup(sample: Sample, who: Who, tasks: Tasks) -> object:
    return sample.cgroup


FILLS: Dict[str, Fill] = {"pid_tgid": _pair, "comm": _name, PARENT: _parent, "cgroup": _cgroup}
"""Of slots that all events have alike."""
