"""What the kernel drops for want of room, and does not count: its events are counted beside, at the same places.

A perf event of a definition whose record would have more than PERF_MAX_TRACE_SIZE bytes is dropped
(kernel/trace/trace_event_perf.c, perf_trace_buf_alloc) before it is counted. So beside each that may have such
records stands a definition that fetches nothing, whose perf event counts, samples nothing and has the same filter: what
it counts more was dropped. Both are a group: the kernel lets them begin and end at once, for members are enabled and
their leader is not (perf_event_open(2)). ktap does that on the processor itself, where no probe is half served then.

Of returns the kernel shows those whose calls began when the probe was there already. So one definition that counts
is there before the one that fetches, and one after it: while both count the same, no such call returns.

What is dropped of event probes is counted by ktap.counted_instance.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import Callable, Iterable, Iterator, List, Mapping, Sequence, Set

from ktap import kernel
from ktap.own_group import OwnGroup
from ktap.perf_event import count_of, disable, set_filter
from ktap.perf_samples import Opened
from ktap.perf_streams import Stream

TOO_LONG = "strings longer than the kernel has room for"
"""A loss."""
PROBE_BYTES, FUNCTION_BYTES = 4000, 8000
"""So much room there is for strings: in an instance a page, less the rest, and in perf PERF_MAX_TRACE_SIZE, less it."""

Say = Callable[[str], None]


class Processors:
    """Lets ktap run on a certain processor, and says where what is counted may not be exact."""

    def __init__(self, say: Say) -> None:
        self._say = say
        self._told: Set[int] = set()

    @contextmanager
    def on(self, cpu: int) -> Iterator[None]:
        """What is done within is done there, as far as this process may."""
        allowed = os.sched_getaffinity(0)
        try:
            os.sched_setaffinity(0, {cpu})
        except OSError as error:
            self.doubt(cpu, f"ktap may not run there ({error.strerror})")
        try:
            yield
        finally:
            os.sched_setaffinity(0, allowed)

    def doubt(self, cpu: int, why: str) -> None:
        """Counting may have begun or ended a moment too early or late."""
        if cpu not in self._told:
            self._told.add(cpu)
            self._say(f"of events whose strings are too long a few more or less may be told on processor {cpu}: {why}")


def uncounted(stream: Stream) -> str:
    """What is said where the kernel drops events and nothing counts them."""
    size = FUNCTION_BYTES if stream.origin is None else PROBE_BYTES
    return f"{stream.label}: events whose strings have more than about {size} bytes together are lost and not counted"


def open_events(group: OwnGroup, opened: Opened, cpu: int) -> int:
    """A stream's perf event on a processor; what counts beside it is opened, too. Raises OSError."""
    stream = opened.stream
    attributes = [bare.attribute for bare in stream.beside]
    attributes.insert(1, stream.attribute)
    fds: List[int] = []
    try:
        for attribute in attributes:
            fds.append(group.open(attribute, stream.text, cpu, stream.label, fds[0] if fds else -1))
        own = fds.pop(min(1, len(stream.beside)))
        for fd in fds if stream.filter else ():
            set_filter(fd, stream.filter or "")
    except OSError:
        for fd in fds:
            os.close(fd)
        raise
    opened.beside.append(fds)
    return own


def begin(opened: Opened, cpus: Sequence[int], processors: Processors) -> None:
    """Let a stream's perf events come, and what counts beside them. Raises OSError."""
    _switch(kernel.enable, opened, cpus, processors)


def end(opened: Opened, cpus: Sequence[int], processors: Processors) -> None:
    """Let no more come. Raises OSError."""
    _switch(disable, opened, cpus, processors)


def _switch(how: Callable[[int], None], opened: Opened, cpus: Sequence[int], processors: Processors) -> None:
    if not opened.stream.beside:
        for fd in opened.fds:
            how(fd)
        return
    for cpu, beside in zip(cpus, opened.beside):
        with processors.on(cpu):
            how(beside[0])


def dropped(opened: Opened, missed: Mapping[str, int], say: Say) -> int:
    """How many events of a stream that has ended the kernel had no room for, where they are counted beside.

    `missed` are calls that the kernel did not show, by definition: of returns each misses its own, of calls all the same.
    """
    stream, returns = opened.stream, len(opened.stream.beside) > 1

    def called(fds: Iterable[int], defined: str) -> int:
        return sum(map(count_of, fds)) + (missed.get(defined, 0) if returns else 0)

    if not stream.beside:
        return 0
    counts = [called(fds, bare.defined) for bare, fds in zip(stream.beside, zip(*opened.beside))]
    running = counts[0] - counts[-1]
    found = max(0, counts[0] - called(opened.fds, stream.defined))
    if running and found:
        say(
            f"{stream.label}: up to {running} of the events with long strings are of calls that ran before tracing began"
        )
    return found
