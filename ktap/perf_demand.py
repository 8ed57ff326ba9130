"""What a source without BPF can give handlers, and what is said where it cannot.

Memory can only be read when an event fires, by the kernel; where nothing but a sample comes of an event, a script
that reads memory is refused at the place where it does.
"""

from __future__ import annotations

from typing import Callable, Dict, List, Mapping, Optional, Sequence, Set

from ktap.calls import CALL_CONTEXTS
from ktap.capture import COUNTER, RAW, SYSCALL_ENTER, SYSCALL_EXIT, TRACEPOINT, USER_CONTEXTS
from ktap.captured import IN_INTERRUPT
from ktap.demand import USER, Demand, Read, inputs
from ktap.event_format import EventFormat
from ktap.kernel_filter import is_decided
from ktap.perf_values import PARENT
from ktap.plan import Captured, Wanted, field_of
from ktap.predicate import looks_to
from ktap.resolve import Kernel
from ktap.tracefs import TracepointName
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


WITHOUT = "pid, tid, ppid and execname are known without it"


def check(
    program: Program, probes: Sequence[Probe], demands: Mapping[int, Demand], places: Mapping[str, Span]
) -> Checked:
    """Look at what handlers ask for."""
    found = Checked({}, [], [])
    unknown: Set[str] = set()
    for index, wanted in demands.items():
        unknown |= wanted.variables & UNKNOWN.keys()
        for name in sorted(wanted.variables):
            if name == "curtask" or name.startswith("curtask."):
                message = f"`{name}` {NEEDS_BPF}: a structure of the kernel can only be read when the event fires"
                found.problems.append(Diagnostic(program.source_name, places.get(name), message, WITHOUT))
        for state in sorted(wanted.states - {IN_INTERRUPT}):
            message = f"`{state}` of the running task {NEEDS_BPF}"
            found.problems.append(Diagnostic(program.source_name, places.get(f"curtask.{state}"), message, WITHOUT))
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


def also(event: str, wanted: Demand) -> Demand:
    """What a recording wants of an event beside, without what takes BPF: the text of a watchpoint has the value there."""
    return wanted._replace(variables=wanted.variables - {"argstr"}) if event.startswith("watch:") else wanted


class Here(NamedTuple):
    """What this kernel can do."""

    kernel: Kernel
    format_of: Callable[[TracepointName], EventFormat]
    event_probes: Callable[[], bool]


def unfit(
    program: Program, probes: Sequence[Probe], event: Captured, here: Here, places: Mapping[str, Span]
) -> List[Diagnostic]:
    """What is wrong with one event."""
    wanted, name = event.wanted, program.source_name
    found: List[Diagnostic] = []
    span = probes[wanted.probes[0]].span

    def problem(what: str, at: Optional[Span] = None, hint: Optional[str] = None) -> None:
        found.append(Diagnostic(name, at or span, f"{what} {NEEDS_BPF}", hint))

    for condition in wanted.filters:
        why = is_decided(condition)
        if why is not None:
            problem(f"a filter of `{wanted.label}` that looks at {why}")
    if wanted.context == RAW:
        problem(f"`{wanted.label}`", None, "the tracepoint of that name does not: see ktap list")
    if wanted.context in (*USER_CONTEXTS, *CALL_CONTEXTS):
        from ktap.perf_probes import why_inexpressible

        lacking = why_inexpressible(event, here.kernel.machine)
        if lacking is not None:
            problem(f"`{wanted.label}` reads {lacking}, which")
        elif not here.kernel.unsafe:
            from ktap.perf_dangers import danger_of

            danger = danger_of(event, here.kernel.machine, here.kernel.types)
            if danger is not None:
                hint = "--unsafe fetches them all the same; with BPF there is no danger"
                found.append(Diagnostic(name, span, f"`{wanted.label}` fetches strings, {danger}", hint))
        return found
    for member in wanted.members:
        problem(f"`{member.path}`", places.get(member.path))
    for read in event.kind.reads if not _fetched(event, here) else ():
        at = next((places[one] for one in inputs(read.address) if one in places), None)
        what = f"reading memory of the {'process' if read.space == USER else 'kernel'} at `{wanted.label}`"
        problem(what, at, _hint(event, here))
    if wanted.context == COUNTER and wanted.recipe is not None:
        unread = any(isinstance(part.what, Read) for part in wanted.recipe.parts)
        asked = wanted.demand.variables & {"argstr", "args.value", "arg2"}
        value = field_of(wanted.format, "args.value") if wanted.format is not None else None
        filtered = value is not None and any(looks_to(condition) > value.offset for condition in wanted.filters)
        if unread and (asked or filtered):
            problem(f"`{min(asked, default='args.value')}` of `{wanted.label}`", places.get(min(asked, default="")))
    return found


def _fetched(event: Captured, here: Here) -> bool:
    """Whether an event probe can fetch the memory that handlers read."""
    if not event.case.reads or event.wanted.context not in (SYSCALL_ENTER, SYSCALL_EXIT, TRACEPOINT):
        return False
    from ktap.perf_eprobes import why_unread

    return why_unread(event, here.format_of) is None and here.event_probes()


def _hint(event: Captured, here: Here) -> Optional[str]:
    if event.wanted.context not in (SYSCALL_ENTER, SYSCALL_EXIT, TRACEPOINT):
        return None
    from ktap.perf_eprobes import why_unread

    lacking = why_unread(event, here.format_of)
    if lacking is not None:
        return f"an event probe cannot fetch {lacking}"
    return "this kernel has no event probes, which could fetch it (CONFIG_EPROBE_EVENTS, Linux 5.15)"
