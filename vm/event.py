"""What a handler may ask of an event, and what delivers events: the interface every source keeps.

A *source* (live, recorded) delivers *records*: tuples whose first item is the event's monotonic time
in ns and whose second is the number of its *point* (an attached event). Each point has one `Event`
object, which is pointed at a record (`event.record = record`) while its handlers run.
"""

from __future__ import annotations

from typing import Callable, Mapping, Optional, Protocol, Sequence, Union

from vm.named_tuple import NamedTuple
from vm.program import Span


class Variable(NamedTuple):
    """One row: a name handlers can read, its type and what it is."""

    name: str
    type: str
    help: str


VARIABLES: tuple[Variable, ...] = (
    Variable("cpu", "integer", "processor the event fired on"),
    Variable("pid", "integer", "process (thread group) of the running task"),
    Variable("tid", "integer", "thread of the running task"),
    Variable("ppid", "integer", "process of the running task's parent"),
    Variable("uid", "integer", "user of the running task"),
    Variable("gid", "integer", "group of the running task"),
    Variable("execname", "string", "name of the running task (comm)"),
    Variable("cgroup", "integer", "cgroup id of the running task"),
    Variable("probename", "string", "the event's name without its group"),
    Variable("argstr", "string", "the event as text, as the tracefs trace file shows it"),
    Variable("nsecs", "integer", "monotonic time of the event in ns"),
    Variable("retval", "integer", "what the function returned, in a return probe"),
    Variable("curtask", "cdata", "the running task, typed by BTF"),
    *(Variable(f"arg{n}", "any", f"argument {n} of the event") for n in range(10)),
)
"""Also readable: `args.NAME…` and `curtask.MEMBER…`, which carry their path in the name."""

OLDER_NAMES = {"argevent": "argstr", "argname": "probename"}
"""Spellings of ktap 0.1 to 0.3, as the compiler maps them."""


class Event(Protocol):
    """The event a handler sees. Attributes are values of the language; what is not there is None.

    Every name of `VARIABLES` is an attribute (the translator emits `E.pid`, `E.arg3`); the rest are
    methods. Values are those of the moment the event fired.
    """

    record: tuple[object, ...]

    def field(self, path: str) -> object:
        """`args.PATH`: a field, fetch argument or BTF parameter by name, members behind dots."""

    def task(self, path: str) -> object:
        """`curtask.PATH`: a member of the running task."""

    def memory(self, space: str, kind: str, address: int, size: int) -> Optional[bytes]:
        """Bytes that were captured at `address` of `space` (`user`, `kernel`) as `kind` (`string`,
        `bytes`) when the event fired, at most `size`; None where they could not be read.

        Raises LookupError when the address was not captured.
        """

    def stack(self, space: str, depth: int, skip: int) -> object:
        """The `kernel` or `user` stack as a Stack value."""

    def state(self, name: str) -> object:
        """`in_interrupt`, `in_iowait` (booleans), and what curr_taskinfo(name) asks for."""


class Probe(NamedTuple):
    """A probe the main chunk has set: the event and filter as written, its handler, its place."""

    event: str
    filter: Optional[str]
    handler: int
    """Index into Machine.handlers."""
    function: int
    """Index of the handler's function in Program.functions."""
    span: Span
    takes_event: bool = False
    """The older spelling, `function (e) { }`: the handler is given the event."""


class Loss(NamedTuple):
    """Something that could not be delivered: what, where, and exactly how many."""

    what: str
    where: str
    events: int


Action = Callable[[int, Event], object]
"""Does for a record what a handler would: it is given the call depth and the event, and may raise Fault and Exit."""


class Bulk:
    """An action that can also be done for many records of its point at once."""

    __slots__ = ("many", "one")

    def __init__(self, one: Action, many: Callable[[Sequence[tuple[object, ...]]], None]) -> None:
        """`many` does for records, in order, what `one` does for each."""
        self.one = one
        self.many = many

    def __call__(self, depth: int, event: Event) -> object:
        """The action for one record."""
        return self.one(depth, event)


class Batch(NamedTuple):
    """Records in order of time, and the time up to which no earlier one can still come."""

    records: Sequence[tuple[object, ...]]
    horizon_ns: int
    ended: bool
    """The source has nothing more to give (a recording at its end)."""


class Source(Protocol):
    """Where events come from. `points[record[1]]` tells the event object and the probes it belongs to."""

    def attach(self, probes: Sequence[Probe]) -> None:
        """Make the probes live. Raises diagnostics for what the kernel or the recording lacks."""

    @property
    def points(self) -> Sequence[tuple[Event, Sequence[Union[int, Action]]]]:
        """For every point: its event object and the indexes of the probes that want it, or what else is to be done."""

    def now_ns(self) -> int:
        """The source's clock: CLOCK_MONOTONIC live, the recording's time in a replay."""

    def poll(self, timeout_ns: int) -> Batch:
        """Wait at most `timeout_ns` and return what came."""

    def quiet(self) -> None:
        """Let nothing more fire, where that is quickly done; what has fired is still to be polled. Safe to call twice."""

    def settle(self, last: bool = False) -> None:
        """Bring what handlers elsewhere (in the kernel) have counted into the script's tables, for a tick or trace_end.

        `last`: they count nothing from here on, so that all tables and variables know of the same events.
        """

    def unread(self, end_ns: int) -> Mapping[str, int]:
        """How many events fired by a time and were not polled, by event; nothing is polled after this."""

    def losses(self) -> Sequence[Loss]:
        """What was lost so far."""

    def close(self) -> None:
        """Detach everything. Safe to call twice."""
