"""Which events of this kernel a script's probes mean.

A glob takes what it can: events that lack a field of the filter are left out and said once. What is
named outright must be there.
"""

from __future__ import annotations

from typing import Callable, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple

from compiler.filter import FilterError, parse_filter
from ktap import syscalls
from ktap.capture import PROFILE, RAW, SYSCALL_ENTER, SYSCALL_EXIT, TRACEPOINT
from ktap.demand import Demand, join
from ktap.event_format import EventFormat
from ktap.plan import MOST_FILTERS, Timer, Wanted, field_of, reads_record
from ktap.predicate import Predicate, Subject, Unfit, predicate
from ktap.tracefs import Tracefs, TracepointName, is_glob, match_names
from vm.diagnostic import Diagnostic, Refusal
from vm.event import Probe
from vm.program import Program, Span
from vm.timers import period_ns

SYSCALLS = "syscalls"
ELSEWHERE = ("trace_begin", "trace_end", "tick-")
"""Probes that the run loop serves itself."""
LATER = {
    "probe": "functions",
    "sdt": "static markers",
    "ftrace": "functions by filter",
    "watch": "hardware watchpoints",
    "perf": "hardware and software counters",
}
"""Kinds of events that this version does not attach, and what they are."""
RawArguments = Callable[[str], Optional[Tuple[str, ...]]]
"""Names of a raw tracepoint's arguments; None where there is no such tracepoint."""


class Request(NamedTuple):
    """A probe that wants an event."""

    probe: int
    filter: Optional[Predicate]


class Target(NamedTuple):
    """An event that a probe means."""

    context: str
    label: str
    name: str
    format: Optional[EventFormat] = None
    number: int = -1
    timer: Optional[Timer] = None
    arguments: Tuple[str, ...] = ()


Key = Tuple[str, str]
"""Context and label of a target."""


class Kernel(NamedTuple):
    """Where the kernel's events are looked up."""

    tracefs: Callable[[], Tracefs]
    machine: str
    raw_arguments: RawArguments
    raw_names: Callable[[], Sequence[str]]


class Resolver:
    """Collects the events of all probes; what is wrong with some is told for all at once."""

    def __init__(self, program: Program, kernel: Kernel) -> None:
        self._program = program
        self._kernel = kernel
        self._requests: Dict[Key, List[Request]] = {}
        self._targets: Dict[Key, Target] = {}
        self._formats: Dict[TracepointName, EventFormat] = {}
        self._problems: List[Diagnostic] = []
        self._status = 1
        self.notices: List[str] = []
        """What is worth saying, but no error."""

    def add(self, index: int, probe: Probe, wanted: Demand) -> None:
        """Resolve one probe, the `index`th."""
        text = probe.event.strip()
        if text.startswith(ELSEWHERE):
            return
        targets = self._targets_of(text, probe, wanted)
        left_out: List[str] = []
        tree = None
        if probe.filter is not None:
            try:
                tree = parse_filter(probe.filter, probe.span)
            except FilterError as error:
                self._problem(probe.span, error.message, error.hint)
                return
        for key in targets:
            target = self._targets[key]
            condition: Optional[Predicate] = None
            if tree is not None:
                try:
                    condition = predicate(tree, Subject(target.label, target.format, target.arguments))
                except Unfit as error:
                    if len(targets) == 1 or not error.about_event:
                        self._problem(probe.span, str(error), error.hint)
                        return
                    left_out.append(target.label)
                    continue
            self._requests.setdefault(key, []).append(Request(index, condition))
        if left_out and len(left_out) == len(targets):
            self._problem(probe.span, f"no event of `{text}` has the fields of the filter")
        elif left_out:
            self.notices.append(
                f"{len(left_out)} events of `{text}` lack a field of the filter and are left out ({left_out[0]} …)"
            )

    def wanted(self, demands: Mapping[int, Demand], places: Mapping[str, Span]) -> List[Wanted]:
        """The attachments, in the order the events were first asked for; `demands` is by probe,
        `places` says where a variable is read.

        Raises Refusal with all that was wrong.
        """
        self._check_fields(demands, places)
        if self._problems:
            raise Refusal(self._problems, self._program.source, self._status)
        found: List[Wanted] = []
        for key, requests in self._requests.items():
            for group in _groups(requests):
                found.append(_wanted(self._targets[key], group, demands))
        return found

    # -- events -----------------------------------------------------------------------------------

    def _targets_of(self, text: str, probe: Probe, wanted: Demand) -> List[Key]:
        kind, colon, rest = text.partition(":")
        if colon and kind in LATER:
            self._status = 3
            instead = "tracepoints (sched:sched_switch), raw tracepoints (raw:…) and timers can be traced"
            self._problem(probe.span, f"`{kind}:` events ({LATER[kind]}) are not in this version of ktap", instead)
            return []
        if text.startswith("profile-"):
            return self._profile(text, probe.span)
        if colon and kind == "raw":
            return self._raw(rest, probe.span)
        tracefs = self._kernel.tracefs()
        names = tracefs.match(text)
        if not names:
            message, hint = tracefs.unknown(text)
            self._problem(probe.span, message, hint)
        needs_format = probe.filter is not None or reads_record(wanted)
        return [self._tracepoint(name, needs_format) for name in names]

    def _tracepoint(self, name: TracepointName, needs_format: bool) -> Key:
        context, number = TRACEPOINT, -1
        if name.group == SYSCALLS:
            known = syscalls.event_number(self._kernel.machine, name.name)
            if known is not None:
                context = SYSCALL_ENTER if name.name.startswith(syscalls.ENTER) else SYSCALL_EXIT
                number = known
        event_format = None
        if needs_format:
            if name not in self._formats:
                self._formats[name] = self._kernel.tracefs().format(name)
            event_format = self._formats[name]
        return self._one(Target(context, str(name), name.name, event_format, number))

    def _one(self, target: Target) -> Key:
        """Note a target; a format read for one probe serves all."""
        key = (target.context, target.label)
        known = self._targets.get(key)
        if known is None or known.format is None:
            self._targets[key] = target
        return key

    def _raw(self, pattern: str, span: Span) -> List[Key]:
        names = [pattern]
        if is_glob(pattern):
            found = match_names([TracepointName("raw", name) for name in self._kernel.raw_names()], "raw", pattern)
            names = [name.name for name in found]
        targets = []
        for name in names:
            arguments = self._kernel.raw_arguments(name)
            if arguments is not None:
                targets.append(self._one(Target(RAW, f"raw:{name}", name, arguments=arguments)))
        if not targets:
            from compiler.spell import suggest

            near = suggest(pattern, self._kernel.raw_names())
            self._problem(
                span, f"unknown raw tracepoint `raw:{pattern}`", f"did you mean `raw:{near}`?" if near else None
            )
        return targets

    def _profile(self, text: str, span: Span) -> List[Key]:
        try:
            period = period_ns(text)
        except ValueError as error:
            self._problem(span, str(error))
            return []
        return [self._one(Target(PROFILE, text, text, timer=Timer(period)))]

    # -- problems ---------------------------------------------------------------------------------

    def _problem(self, span: Optional[Span], message: str, hint: Optional[str] = None) -> None:
        self._problems.append(Diagnostic(self._program.source_name, span, message, hint))

    def _check_fields(self, demands: Mapping[int, Demand], places: Mapping[str, Span]) -> None:
        """A field that none of the events has whose handlers read it is a slip."""
        asked: Dict[str, List[Target]] = {}
        for key, requests in self._requests.items():
            for name in join(demands[request.probe] for request in requests).variables:
                if name.startswith("args."):
                    asked.setdefault(name, []).append(self._targets[key])
        for name, targets in sorted(asked.items()):
            if not any(_has(target, name) for target in targets):
                self._unknown_field(name[5:], targets, places.get(name))

    def _unknown_field(self, name: str, targets: Sequence[Target], span: Optional[Span]) -> None:
        from compiler.spell import suggest

        known = sorted({field for target in targets for field in _fields(target)})
        near = suggest(name, known)
        hint = f"did you mean `args.{near}`?" if near else None
        if hint is None and 0 < len(known) < MANY:
            hint = "it has " + ", ".join(known)
        where = f"`{targets[0].label}` has no" if len(targets) == 1 else f"none of {len(targets)} events has a"
        self._problem(span, f"{where} field `{name}`", hint)


MANY = 20
"""So many fields are no help any more."""


def _fields(target: Target) -> List[str]:
    if target.format is not None:
        return [field.name for field in target.format.fields]
    return [argument for argument in target.arguments if argument]


def _has(target: Target, name: str) -> bool:
    if target.format is not None:
        return field_of(target.format, name) is not None
    return name[5:].partition(".")[0] in target.arguments


def _groups(requests: Sequence[Request]) -> List[List[Request]]:
    """Requests split so that no group has too many distinct filters."""
    groups: List[List[Request]] = []
    filters: List[Predicate] = []
    for request in requests:
        new = request.filter is not None and request.filter not in filters
        if not groups or (new and len(filters) == MOST_FILTERS):
            groups.append([])
            filters = []
        if request.filter is not None and request.filter not in filters:
            filters.append(request.filter)
        groups[-1].append(request)
    return groups


def _wanted(target: Target, requests: Sequence[Request], demands: Mapping[int, Demand]) -> Wanted:
    filters: List[Predicate] = []
    filter_of: List[Optional[int]] = []
    for request in requests:
        if request.filter is None:
            filter_of.append(None)
            continue
        if request.filter not in filters:
            filters.append(request.filter)
        filter_of.append(filters.index(request.filter))
    probes = tuple(request.probe for request in requests)
    return Wanted(
        target.context,
        target.label,
        target.name,
        target.format,
        probes,
        tuple(filters),
        tuple(filter_of),
        join(demands[probe] for probe in probes),
        target.number,
        target.timer,
        target.arguments,
    )
