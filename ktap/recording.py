"""Recordings: what is in the file. ktap.recorder writes it, ktap.replay reads it.

A recording is a file of chunks (ktap.chunks):

=========  ==============================================================================
`head`     `Header`, as JSON: the machine, the time tracing began
`evnt`     `Events`: every event that was attached, its format and how its records lie
`name`     `Names`: answers of the kernel and of processes (symbols, constant strings, hashed
           pointers, enumerators), each before the first record that needs it
`type`     `Types`: the kernel's C types that the script asked for
`recs`     records, in order of time, laid out as ktap.layout has them; a record's point is
           the event's index << bits, and the filters that held. Without BPF not all is known
           of every event: ktap.layout.KNOWN
`endo`     `End`: when tracing ended and what was lost; missing where the run was killed
=========  ==============================================================================

Everything is kept as it was captured, so any script can be run on it later: ktap.replay.
"""

from __future__ import annotations

from typing import Mapping, Optional, Tuple

from ktap.demand import Demand, Read
from ktap.layout import Layout
from ktap.members import Member
from ktap.predicate import Predicate
from vm import c_types
from vm.event import Loss
from vm.named_tuple import NamedTuple

VERSION = 1
HEADER, EVENTS, NAMES, TYPES, RECORDS, END = b"head", b"evnt", b"name", b"type", b"recs", b"endo"
MOST_ANSWERS = 1 << 18
"""Answers of one kind that are known at a time; writer and reader forget them all when there are more."""
ADDRESS_MASK = (1 << 64) - 1

CONTEXT = ("pid", "tid", "uid", "gid", "execname", "cgroup", "arg0", "argstr")
"""What is captured of every event whether the script reads it or not; `TYPED` where the kernel has BTF."""
TYPED = ("ppid",)
SAMPLED = ("pid", "tid", "ppid", "execname", "arg0", "argstr")
"""The same where events are perf samples: a cgroup would take a perf event for each."""


class Header(NamedTuple):
    """The machine a recording was made on, and when; times are monotonic, in ns."""

    version: int
    byte_order: str
    architecture: str
    release: str
    cpus: int
    realtime_offset_ns: int
    begin_ns: int


class RecordedEvent(NamedTuple):
    """An event that was attached: what ktap.plan.Wanted and ktap.captured.Kind say of it."""

    context: str
    label: str
    name: str
    number: int
    group: str
    format: str
    """The text of its `format` file, empty for what has none."""
    layout: Layout
    reads: Tuple[Read, ...]
    arguments: Tuple[str, ...]
    symbols: Mapping[str, int]
    members: Tuple[Member, ...]
    plumbing: bool
    filters: Tuple[Predicate, ...]
    everything: bool
    """Whether some probe wanted it without a filter, so that all of it was recorded."""


class Events(NamedTuple):
    """All events; `bits` is how many of a point's low bits tell of filters."""

    bits: int
    events: Tuple[RecordedEvent, ...]


class Names(NamedTuple):
    """Answers by kind and question; what is no text is a decimal number, bytes are latin-1, None is no answer."""

    answers: Mapping[str, Mapping[str, Optional[str]]]


class Types(NamedTuple):
    """C types by name."""

    types: Mapping[str, Optional[c_types.Type]]


class End(NamedTuple):
    """When tracing ended (events after it are no part of the run), and what was lost."""

    end_ns: int
    losses: Tuple[Loss, ...]


def everything(typed: bool) -> Demand:
    """What a recording captures beyond what the script reads; `typed`: the kernel has BTF."""
    if not typed:
        return Demand(variables=frozenset(CONTEXT))
    return Demand(variables=frozenset(CONTEXT + TYPED), states=frozenset({"in_iowait"}))


def sampled() -> Demand:
    """The same of perf samples."""
    return Demand(variables=frozenset(SAMPLED))
