"""Samples out of the rings of processors: a part at a time, so that the end of a run is seen in a flood of them.

Of software events that the kernel counts at one place (page faults, say) it makes one sample for all who count them, and
since Linux 6.3 fills it for the first: the others, of other processes too, get the number of that event and a time of
its clock (kernel/events/core.c: do_perf_sw_event and perf_prepare_sample). So such an event has a ring alone, and times
that cannot be are taken for the earliest that can.
"""

from __future__ import annotations

from time import monotonic_ns
from typing import Dict, Iterator, List, Mapping, Optional, Sequence, Set, Union

from ktap.bpf import CPU_CLOCK
from ktap.perf_buffer import LOST, LOST_COUNT, SAMPLE, TAIL_INDEX
from ktap.perf_event import SOFTWARE, TASK_CLOCK, WORD_AT, Attribute, Read, Sample
from ktap.perf_rings import MOST_RECORD_BYTES, SLACK_NS, Ring, taken, waiting_bytes
from ktap.perf_streams import Stream
from ktap.tasks import Change
from vm.named_tuple import NamedTuple

TAKING_NS = 100_000_000
"""So long samples are taken of all rings at a time; in a flood little else may come to run."""


class Opened(NamedTuple):
    """A stream's perf events, and how their samples are read."""

    stream: Stream
    fds: List[int]
    read: Read
    beside: List[List[int]]
    """What counts beside each of them, in its group (ktap.perf_counts): the leader is the first."""


Held = List[Union[Sample, Change]]


class Looks:
    """What is known of looks at rings: what was lost, and which times were none."""

    def __init__(self) -> None:
        self.lost: Dict[int, int] = {}
        """What PERF_RECORD_LOST told, by processor."""
        self.since_ns = 0
        """All samples of up to this time have been taken."""
        self.mistimed: Set[str] = set()
        """Events whose samples had the time of another clock."""


def is_mixed(attribute: Attribute) -> bool:
    """Whether the samples of an event may have the number and the time of another."""
    return attribute.type == SOFTWARE and attribute.config not in (CPU_CLOCK, TASK_CLOCK)


def take_samples(rings: Sequence[Ring], opened: Mapping[int, Opened], held: Held, looks: Looks) -> Optional[int]:
    """Take what is in the rings, or the first of it; then the time before which nothing is left in them, else None."""
    begin_ns, all_before_ns = monotonic_ns(), None
    for number, ring in enumerate(rings, 1):
        before_ns = _take_until(begin_ns + TAKING_NS * number // len(rings), ring, opened, held, looks)
        if before_ns is not None:
            all_before_ns = before_ns if all_before_ns is None else min(all_before_ns, before_ns)
    return all_before_ns


def _take_until(end_ns: int, ring: Ring, opened: Mapping[int, Opened], held: Held, looks: Looks) -> Optional[int]:
    before_ns, left = 0, waiting_bytes(ring)
    while left > 0:
        begin = ring.positions[TAIL_INDEX]
        for sample in _samples(ring, opened, looks, MOST_RECORD_BYTES):
            before_ns = sample.time_ns - SLACK_NS
            held.append(sample)
        left -= ring.positions[TAIL_INDEX] - begin
        if left > 0 and monotonic_ns() > end_ns:
            return before_ns
    return None


def _samples(
    ring: Ring, opened: Mapping[int, Opened], looks: Looks, most_bytes: Optional[int] = None
) -> Iterator[Sample]:
    """The samples in a ring, or the first of them, taken out of it."""
    alone = opened.get(ring.number)
    for kind, data, at in taken(ring, most_bytes):
        if kind == SAMPLE:
            if alone is None:
                yield opened[WORD_AT(data, at + 8)[0]].read(data, at)
            else:
                yield _own(alone.read(data, at), ring.number, alone.stream.label, looks)
        elif kind == LOST:
            looks.lost[ring.cpu] = looks.lost.get(ring.cpu, 0) + LOST_COUNT(data, at + 16)[0]


def _own(sample: Sample, number: int, label: str, looks: Looks) -> Sample:
    """The sample of an event that has a ring alone, whatever it says of whose it is."""
    if sample.event == number:
        return sample
    time_ns = sample.time_ns
    if not looks.since_ns <= time_ns <= monotonic_ns():
        looks.mistimed.add(label)
        time_ns = looks.since_ns
    return sample._replace(event=number, time_ns=time_ns)


def unread_samples(
    rings: Sequence[Ring], opened: Mapping[int, Opened], held: Held, looks: Looks, end_ns: int
) -> Dict[str, int]:
    """How many samples of up to a time are in the rings, or were taken and are held, by event."""
    found: Dict[str, int] = {}
    samples = [one for one in held if isinstance(one, Sample)]
    for ring in rings:
        samples += _samples(ring, opened, looks)
    for one in samples:
        if one.time_ns <= end_ns:
            label = opened[one.event].stream.label
            found[label] = found.get(label, 0) + 1
    return found
