"""Samples out of the rings of processors: a part at a time, so that the end of a run is seen in a flood of them."""

from __future__ import annotations

from typing import Dict, List, Mapping, Optional, Sequence, Union

from ktap.perf_buffer import LOST, LOST_COUNT, SAMPLE
from ktap.perf_event import WORD_AT, Read, Sample
from ktap.perf_rings import MOST_RECORD_BYTES, SLACK_NS, Ring, taken, waiting_bytes
from ktap.perf_streams import Stream
from ktap.tasks import Change
from vm.named_tuple import NamedTuple

TAKEN_BYTES = 4 << 20
"""So much is taken of all rings at a time."""


class Opened(NamedTuple):
    """A stream's perf events, and how their samples are read."""

    stream: Stream
    fds: List[int]
    read: Read


Held = List[Union[Sample, Change]]


def share_of(rings: Sequence[Ring]) -> int:
    """How much is taken of each ring at a time."""
    return max(MOST_RECORD_BYTES, TAKEN_BYTES // len(rings))


def take_samples(
    ring: Ring, most_bytes: int, opened: Mapping[int, Opened], held: Held, lost: Dict[int, int]
) -> Optional[int]:
    """Take what is in a ring, or the first of it; then the time before which nothing is left there, else None.

    `lost` counts by processor what PERF_RECORD_LOST tells.
    """
    is_part, before_ns = waiting_bytes(ring) > most_bytes, 0
    for kind, data, at in taken(ring, most_bytes):
        if kind == SAMPLE:
            sample = opened[WORD_AT(data, at + 8)[0]].read(data, at)
            before_ns = sample.time_ns - SLACK_NS
            held.append(sample)
        elif kind == LOST:
            lost[ring.cpu] = lost.get(ring.cpu, 0) + LOST_COUNT(data, at + 16)[0]
    return before_ns if is_part else None


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
