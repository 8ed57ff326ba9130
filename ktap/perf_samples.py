"""Samples out of the rings of processors: a part at a time, so that the end of a run is seen in a flood of them."""

from __future__ import annotations

from time import monotonic_ns
from typing import Dict, List, Mapping, Optional, Sequence, Union

from ktap.perf_buffer import LOST, LOST_COUNT, SAMPLE, TAIL_INDEX
from ktap.perf_event import WORD_AT, Read, Sample
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


def take_samples(
    rings: Sequence[Ring], opened: Mapping[int, Opened], held: Held, lost: Dict[int, int]
) -> Optional[int]:
    """Take what is in the rings, or the first of it; then the time before which nothing is left in them, else None.

    `lost` counts by processor what PERF_RECORD_LOST tells.
    """
    begin_ns, all_before_ns = monotonic_ns(), None
    for number, ring in enumerate(rings, 1):
        before_ns = _take_until(begin_ns + TAKING_NS * number // len(rings), ring, opened, held, lost)
        if before_ns is not None:
            all_before_ns = before_ns if all_before_ns is None else min(all_before_ns, before_ns)
    return all_before_ns


def _take_until(
    end_ns: int, ring: Ring, opened: Mapping[int, Opened], held: Held, lost: Dict[int, int]
) -> Optional[int]:
    before_ns, left = 0, waiting_bytes(ring)
    while left > 0:
        begin = ring.positions[TAIL_INDEX]
        for kind, data, at in taken(ring, MOST_RECORD_BYTES):
            if kind == SAMPLE:
                sample = opened[WORD_AT(data, at + 8)[0]].read(data, at)
                before_ns = sample.time_ns - SLACK_NS
                held.append(sample)
            elif kind == LOST:
                lost[ring.cpu] = lost.get(ring.cpu, 0) + LOST_COUNT(data, at + 16)[0]
        left -= ring.positions[TAIL_INDEX] - begin
        if left > 0 and monotonic_ns() > end_ns:
            return before_ns
    return None


def unread_samples(rings: Sequence[Ring], opened: Mapping[int, Opened], held: Held, end_ns: int) -> Dict[str, int]:
    """How many samples of up to a time are in the rings, or were taken and are held, by event."""
    found: Dict[str, int] = {}
    samples = [one for one in held if isinstance(one, Sample)]
    for ring in rings:
        read = ((data, at) for kind, data, at in taken(ring) if kind == SAMPLE)
        samples += (opened[WORD_AT(data, at + 8)[0]].read(data, at) for data, at in read)
    for one in samples:
        if one.time_ns <= end_ns:
            label = opened[one.event].stream.label
            found[label] = found.get(label, 0) + 1
    return found
