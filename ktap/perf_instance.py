"""Streams that come through an instance of tracefs instead of perf events: see ktap.perf_streams and ktap.own_instance."""

from __future__ import annotations

import os
from typing import Callable, Dict, FrozenSet, Iterable, List, Optional, Sequence, Tuple

from ktap import function_tracer
from ktap.own_group import OwnGroup
from ktap.own_instance import OwnInstance
from ktap.perf_event import Sample
from ktap.perf_streams import Stream
from ktap.tasks import GONE
from vm.event import Loss

PAGES_AT_A_TIME = 64
"""So many of each processor are read at a time, so that the end of a run is seen in a flood."""
TRACE_FULL = "tracefs buffer full"
"""A loss."""


class PerfInstance:
    """An instance of a source; it is made when the first stream takes it."""

    name = ""
    """What is behind the name of its group."""

    def __init__(self, root: str, group: Callable[[], OwnGroup], cpus: Sequence[int], size_bytes: int) -> None:
        """Rings of `size_bytes` for each of `cpus`; `group` gives the group whose guard removes it."""
        self._root = root
        self._group = group
        self._cpus = cpus
        self._size = size_bytes
        self._instance: Optional[OwnInstance] = None
        self._types: Dict[int, Stream] = {}
        """Streams by the number that their records have."""

    def takes(self, stream: Stream) -> bool:
        """Whether a stream comes through it."""
        return bool(stream.tracer) or (stream.traced is not None and stream.origin is None)

    def tracers(self) -> FrozenSet[str]:
        """The tracers of functions that it can be given, none where there can be no instance."""
        try:
            return function_tracer.usable(self._root, self._made().path)
        except OSError:
            return frozenset()

    def _made(self) -> OwnInstance:
        if self._instance is None:
            group = self._group()
            group.guard()
            self._instance = OwnInstance(self._root, group.name + self.name, self._cpus, self._size)
        return self._instance

    def open(
        self, wanted: Sequence[Stream], narrowed: bool, skip: Callable[[str, OSError], None]
    ) -> Tuple[List[Stream], List[Stream]]:
        """Have streams come through it, without what ktap itself does where they are `narrowed`.

        The streams that do, and those that have to come as perf events. Raises OSError.
        """
        by_tracer = [stream for stream in wanted if stream.tracer]
        events = [stream for stream in wanted if stream.traced is not None]
        if not by_tracer and not events:
            self.close()  # it was made to ask what it can do
            return [], []
        try:
            instance = self._made()
        except OSError:
            if any(stream.plain is None for stream in events):
                raise
            return [], [*by_tracer, *events]  # slower to let go of, but the same
        for stream in events:
            assert stream.traced is not None
            try:
                instance.enable(*stream.traced, stream.filter or "")
            except OSError as error:
                skip(stream.label, error)
                continue
            self._types[stream.attribute.config] = stream
        try:
            if by_tracer:
                lines = {line for stream in by_tracer for line in stream.lines}
                instance.trace(by_tracer[0].tracer, sorted(lines), os.getpid() if narrowed else None)
            self._types.update({stream.attribute.config: stream for stream in by_tracer})
        except OSError:
            if any(stream.parts is None for stream in by_tracer):
                raise
            return list(self._types.values()), by_tracer
        return list(self._types.values()), []

    def start(self) -> None:
        """Let events come."""
        if self._instance is not None:
            self._instance.start()

    def stop(self) -> None:
        """Let no more come."""
        if self._instance is not None:
            self._instance.stop()

    def samples(self, until_ns: int, most_pages: Optional[int] = PAGES_AT_A_TIME) -> Tuple[List[Sample], int]:
        """What has come, and the time up to which that is all; the number of an event is its type's, below zero."""
        types = self._types
        if self._instance is None:
            return [], until_ns
        records, all_until_ns = self._instance.take(until_ns, most_pages)
        samples = [
            Sample(one.time_ns, -one.type, GONE, GONE, one.cpu, 0, 0, 0, b"", one.data, 0, b"", None)
            for one in records
            if one.type in types
        ]
        return samples, all_until_ns

    def losses(self) -> List[Loss]:
        """Events that found no room, by processor."""
        return trace_full(self.overruns())

    def overruns(self) -> List[Tuple[int, int]]:
        """How many events the ring of each processor had no room for."""
        return [] if self._instance is None else self._instance.losses()

    def close(self) -> None:
        """Remove it. Safe to call twice."""
        if self._instance is not None:
            self._instance.close()
            self._instance = None


def trace_full(lost: Iterable[Tuple[int, int]]) -> List[Loss]:
    """Events that found no room, by processor."""
    return [Loss(TRACE_FULL, f"processor {cpu}", count) for cpu, count in lost if count]
