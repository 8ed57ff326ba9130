"""The tracefs instance of event probes, which counts what the kernel drops for want of room and does not count.

An event probe whose record would not go into a page of its ring is dropped (kernel/trace/ring_buffer.c, max_data_size).
So beside each stands a histogram (hist trigger) of its tracepoint in the same instance, by processor: what it counts
and does not come is lost. The kernel serves both in one go, which nothing of that processor's tasks can come
between. So a time at which the histogram is the same before and after, read on that very processor, parts what has
been counted from the records of later: such a time begins the counting of a processor, and another ends it.

Source: Documentation/trace/histogram.rst.
"""

from __future__ import annotations

import os
import re
from time import monotonic_ns
from typing import Callable, Dict, FrozenSet, List, Optional, Sequence, Tuple

from ktap import kernel
from ktap.own_group import COUNTED, OwnGroup
from ktap.perf_counts import TOO_LONG, Processors, Say, uncounted
from ktap.perf_event import Sample
from ktap.perf_instance import PAGES_AT_A_TIME, PerfInstance, trace_full
from ktap.perf_streams import Stream
from ktap.tracefs import TracepointName
from vm.event import Loss
from vm.named_tuple import NamedTuple

HISTOGRAM = "hist:keys=common_cpu:size={size}"
LEAST_SIZE = 128
ROW = re.compile(rb"common_cpu: +(\d+) \} hitcount: +(\d+)")
MOST_BYTES = 1 << 20
"""Of a histogram's text."""
TRIES = 200
"""So often a moment is looked for at which nothing is counted."""
END_NS = 1 << 63


class Mark(NamedTuple):
    """A moment of a processor at which nothing was counted, and how much was by then."""

    time_ns: int
    counted: int


class CountedInstance(PerfInstance):
    """An instance for event probes alone, whose events are counted beside."""

    name = COUNTED

    def __init__(
        self,
        root: str,
        group: Callable[[], OwnGroup],
        cpus: Sequence[int],
        size_bytes: int,
        say: Say,
        processors: Processors,
    ) -> None:
        super().__init__(root, group, cpus, size_bytes)
        self._say = say
        self._processors = processors
        self._files: Dict[int, int] = {}
        """Histograms, by the number that samples have."""
        self._begun: Dict[Tuple[int, int], Mark] = {}
        """By number and processor."""
        self._ended: Dict[Tuple[int, int], Mark] = {}
        self._came: Dict[Tuple[int, int], int] = {}

    def takes(self, stream: Stream) -> bool:
        """See PerfInstance."""
        return stream.origin is not None

    def open(
        self, wanted: Sequence[Stream], narrowed: bool, skip: Callable[[str, OSError], None]
    ) -> Tuple[List[Stream], List[Stream]]:
        """See PerfInstance."""
        traced, others = super().open(wanted, narrowed, skip)
        try:
            for stream in traced:
                assert stream.origin is not None
                self._files[-stream.attribute.config] = self._histogram(stream.origin, stream.filter)
        except OSError as error:
            self._close_files()
            self._say(f"{uncounted(traced[0])} ({error.strerror}; CONFIG_HIST_TRIGGERS)")
        return traced, others

    def _histogram(self, name: TracepointName, narrowing: Optional[str]) -> int:
        """A histogram of a tracepoint, to be read again and again. Raises OSError."""
        directory = os.path.join(self._made().path, "events", *name)
        size = LEAST_SIZE
        while size < 2 * kernel.possible_cpus():
            size *= 2
        with open(os.path.join(directory, "trigger"), "w") as file:
            file.write(HISTOGRAM.format(size=size) + (f" if {narrowing}" if narrowing else ""))
        return os.open(os.path.join(directory, "hist"), os.O_RDONLY | os.O_CLOEXEC)

    def start(self) -> None:
        """See PerfInstance; counting begins."""
        super().start()
        self._begun = self._marks()

    def stop(self) -> None:
        """See PerfInstance; counting ends."""
        self._ended = self._marks()
        super().stop()

    def _marks(self) -> Dict[Tuple[int, int], Mark]:
        found: Dict[Tuple[int, int], Mark] = {}
        for cpu in self._cpus if self._files else ():
            with self._processors.on(cpu):
                for number, file in self._files.items():
                    found[number, cpu] = self._mark(file, cpu)
        return found

    def _mark(self, file: int, cpu: int) -> Mark:
        for _ in range(TRIES):
            before, time_ns, after = _counted(file, cpu), monotonic_ns(), _counted(file, cpu)
            if before == after:
                break
        else:
            self._processors.doubt(cpu, "it was too busy")
        return Mark(time_ns, after)

    def samples(self, until_ns: int, most_pages: Optional[int] = PAGES_AT_A_TIME) -> Tuple[List[Sample], int]:
        """See PerfInstance: those of while it was counted."""
        samples, all_until_ns = super().samples(until_ns, most_pages)
        return [one for one in samples if self._is_counted(one)] if self._files else samples, all_until_ns

    def _is_counted(self, sample: Sample) -> bool:
        key = sample.event, sample.cpu
        if sample.time_ns <= self._begun[key].time_ns:
            return False
        ended = self._ended.get(key)
        if ended is not None and sample.time_ns > ended.time_ns:
            return False
        self._came[key] = self._came.get(key, 0) + 1
        return True

    def losses(self) -> List[Loss]:
        """See PerfInstance, after the end.

        What the rings had no room for may be of ktap itself, for the kernel takes the room before it looks at
        the filter; so that is no more than what did not come, and what it does not explain was too long.
        """
        if not self._files:
            return super().losses()
        self.samples(END_NS, None)  # what nobody wants any more has come, too
        full: Dict[int, int] = {}
        long: Dict[str, int] = {}
        labels = {number: self._types[-number].label for number in self._files}
        together = next(iter(labels.values())) + (f" and {len(labels) - 1} more" if len(labels) > 1 else "")
        for cpu, overrun in self.overruns():
            lost = {number: self._lost(number, cpu) for number in self._files}
            full[cpu] = min(overrun, sum(lost.values()))
            parts = (
                [(together, sum(lost.values()) - full[cpu])]
                if full[cpu]
                else [(labels[number], count) for number, count in lost.items()]
            )
            for label, count in parts:
                long[label] = long.get(label, 0) + count
        found = [Loss(TOO_LONG, label, count) for label, count in long.items() if count]
        return [*trace_full(full.items()), *found]

    def _lost(self, number: int, cpu: int) -> int:
        """What was counted on a processor and did not come."""
        key = number, cpu
        return max(0, self._ended[key].counted - self._begun[key].counted - self._came.get(key, 0))

    def close(self) -> None:
        """See PerfInstance."""
        self._close_files()
        super().close()

    def _close_files(self) -> None:
        for file in self._files.values():
            os.close(file)
        self._files = {}


def _counted(file: int, cpu: int) -> int:
    """What a histogram has counted on a processor."""
    rows = ROW.findall(os.pread(file, MOST_BYTES, 0))
    return next((int(count) for number, count in rows if int(number) == cpu), 0)


class Instances:
    """The instances of a source as one, see PerfInstance: one for what is counted, and one for the rest."""

    def __init__(
        self,
        root: str,
        group: Callable[[], OwnGroup],
        cpus: Sequence[int],
        size_bytes: int,
        say: Say,
        processors: Processors,
    ) -> None:
        self._plain = PerfInstance(root, group, cpus, size_bytes)
        self._all = (self._plain, CountedInstance(root, group, cpus, size_bytes, say, processors))

    def tracers(self) -> FrozenSet[str]:
        """See PerfInstance."""
        return self._plain.tracers()

    def open(
        self, wanted: Sequence[Stream], narrowed: bool, skip: Callable[[str, OSError], None]
    ) -> Tuple[List[Stream], List[Stream]]:
        """See PerfInstance."""
        found = [one.open([stream for stream in wanted if one.takes(stream)], narrowed, skip) for one in self._all]
        return [stream for traced, _ in found for stream in traced], [stream for _, some in found for stream in some]

    def start(self) -> None:
        """See PerfInstance."""
        for one in self._all:
            one.start()

    def stop(self) -> None:
        """See PerfInstance."""
        for one in self._all:
            one.stop()

    def samples(self, until_ns: int, most_pages: Optional[int] = PAGES_AT_A_TIME) -> Tuple[List[Sample], int]:
        """See PerfInstance."""
        found = [one.samples(until_ns, most_pages) for one in self._all]
        return [sample for samples, _ in found for sample in samples], min(all_until_ns for _, all_until_ns in found)

    def losses(self) -> List[Loss]:
        """See PerfInstance."""
        return [loss for one in self._all for loss in one.losses()]

    def close(self) -> None:
        """See PerfInstance."""
        for one in self._all:
            one.close()
