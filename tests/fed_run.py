"""Runs whose source gives out batches that a test has made."""

from __future__ import annotations

from typing import Callable, List, Mapping, Optional, Sequence, Tuple

from made_machine import Event, made, printed

from vm.event import Batch, Loss, Probe
from vm.limits import Limits
from vm.run import Outcome, Run, RunOptions

SECOND_NS = 1_000_000_000
REPLAY = RunOptions(live=False)


class Recorded:
    """A source that gives out batches it was made with: (records, horizon). One point for each probe."""

    def __init__(self, batches: Sequence[Tuple[List[Tuple[object, ...]], int]], begin_ns: int = 0) -> None:
        self.batches = list(batches)
        self.time_ns = begin_ns
        self.attached: Sequence[Probe] = ()
        self.points: List[Tuple[Event, Sequence[int]]] = []
        self.timeouts: List[int] = []
        self.closed = 0
        self.settled: List[int] = []
        self.lost: Sequence[Loss] = ()
        self.left: Mapping[str, int] = {}
        self.on_poll: Callable[[int], None] = lambda number: None

    def attach(self, probes: Sequence[Probe]) -> None:
        self.attached = probes
        self.points = [(Event(probe.event.encode()), [place]) for place, probe in enumerate(probes)]

    def now_ns(self) -> int:
        return self.time_ns

    def poll(self, timeout_ns: int) -> Batch:
        self.timeouts.append(timeout_ns)
        self.on_poll(len(self.timeouts))
        records, self.time_ns = self.batches.pop(0)
        return Batch(records, self.time_ns, not self.batches)

    def quiet(self) -> None:
        pass

    def settle(self, last: bool = False) -> None:
        self.settled.append(self.time_ns)

    def unread(self, end_ns: int) -> Mapping[str, int]:
        return self.left

    def losses(self) -> Sequence[Loss]:
        return self.lost

    def close(self) -> None:
        self.closed += 1


def at(*times_ns: int, point: int = 0) -> List[Tuple[object, ...]]:
    return [(time_ns, point, {}) for time_ns in times_ns]


def executed(
    script: str, source: Optional[Recorded], options: RunOptions = REPLAY, limits: Optional[Limits] = None
) -> Tuple[str, Outcome, List[str]]:
    """What a run prints, its outcome and the errors it reported."""
    machine = made(script, limits or Limits())
    reports: List[str] = []
    outcome = Run(machine, source, options, reports.append).execute()
    if source is not None:
        assert source.closed == bool(source.attached)
    return printed(machine), outcome, reports
