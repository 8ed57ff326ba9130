"""What a source without BPF can give handlers, and what is said where it cannot.

Memory can only be read when an event fires, by the kernel; where nothing but a sample comes of an event, a script
that reads memory is refused at the place where it does.
"""

from __future__ import annotations

from typing import Dict, List, Mapping, Optional, Sequence, Set

from ktap.capture import RAW
from ktap.captured import IN_INTERRUPT
from ktap.demand import Demand, Read, inputs
from ktap.kernel_filter import is_decided
from ktap.perf_values import PARENT
from ktap.plan import Wanted, reads_record
from vm.diagnostic import Diagnostic
from vm.event import Probe
from vm.named_tuple import NamedTuple
from vm.program import Program, Span

NEEDS_BPF = "takes BPF, which this run does without"
UNKNOWN = {
    "uid": "the kernel does not say in perf events whose the running task is",
    "gid": "the kernel does not say in perf events whose the running task is",
}
"""Variables that are nil, and why."""


class Checked(NamedTuple):
    """What is asked of events, by probe, without what is not theirs to give; what is wrong; what is to be said."""

    demands: Dict[int, Demand]
    problems: List[Diagnostic]
    notices: List[str]


def check(
    program: Program, probes: Sequence[Probe], demands: Mapping[int, Demand], places: Mapping[str, Span]
) -> Checked:
    """Look at what handlers ask for."""
    found = Checked({}, [], [])
    unknown: Set[str] = set()
    for index, wanted in demands.items():
        unknown |= wanted.variables & UNKNOWN.keys()
        for name in sorted(wanted.variables):
            if name == "curtask" or name.startswith("curtask.") or name.count(".") > 1:
                message = f"`{name}` {NEEDS_BPF}: a structure of the kernel can only be read when the event fires"
                found.problems.append(Diagnostic(program.source_name, places.get(name), message))
        for state in sorted(wanted.states - {IN_INTERRUPT}):
            message = f"`{state}` of the running task {NEEDS_BPF}"
            found.problems.append(Diagnostic(program.source_name, probes[index].span, message))
        found.demands[index] = wanted._replace(variables=wanted.variables - {PARENT})
    for reason in dict.fromkeys(UNKNOWN.values()):
        names = [name for name in sorted(unknown) if UNKNOWN[name] == reason]
        if names:
            found.notices.append(f"{' and '.join(names)} {'is' if len(names) == 1 else 'are'} nil: {reason}")
    return found


def with_parent(wanted: Wanted, demands: Mapping[int, Demand]) -> Wanted:
    """The same with `ppid` again where one of its probes reads it."""
    if not any(PARENT in demands[probe].variables for probe in wanted.probes):
        return wanted
    joined = wanted.demand._replace(variables=wanted.demand.variables | {PARENT})
    return wanted._replace(demand=joined)


def unfit(program: Program, probes: Sequence[Probe], wanted: Wanted, places: Mapping[str, Span]) -> List[Diagnostic]:
    """What is wrong with one event."""
    name, found = program.source_name, []
    span = probes[wanted.probes[0]].span
    for condition in wanted.filters:
        why = is_decided(condition)
        if why is not None:
            message = f"a filter of `{wanted.label}` that looks at {why} {NEEDS_BPF}"
            found.append(Diagnostic(name, span, message))
    if wanted.context == RAW and (reads_record(wanted.demand) or wanted.filters):
        message = f"the arguments of `{wanted.label}` {NEEDS_BPF}"
        found.append(Diagnostic(name, span, message, "the tracepoint of that name has fields: see ktap list -v"))
    for read in sorted(wanted.demand.reads, key=repr):
        found.append(unread(name, wanted, read, places, span))
    return found


def unread(name: str, wanted: Wanted, read: Read, places: Mapping[str, Span], span: Span) -> Diagnostic:
    """That memory cannot be read, at the place of what its address is made of."""
    at: Optional[Span] = next((places[one] for one in inputs(read.address) if one in places), span)
    message = f"reading memory of the {'process' if read.space == 'user' else 'kernel'} at `{wanted.label}` {NEEDS_BPF}"
    return Diagnostic(name, at, message)
