"""Which events of this kernel a script's probes mean.

A glob takes what it can: events that lack a field of the filter are left out and said once. What is
named outright must be there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Callable, Dict, List, Mapping, Optional, Sequence, Tuple

from ktap import syscalls
from ktap.capture import COUNTER, PROFILE, RAW, SYSCALL_ENTER, SYSCALL_EXIT, TRACEPOINT
from ktap.captured import IN_INTERRUPT, PARENT
from ktap.demand import Demand, Value, join
from ktap.event_format import RETVAL, EventFormat
from ktap.functions import KernelFunctions, kernel_functions
from ktap.members import TASK, Member, Unreachable, follow
from ktap.plan import MOST_FILTERS, Timer, Wanted, field_of, reads_record
from ktap.predicate import Predicate, Subject, Unfit, predicate
from ktap.tracefs import Tracefs, TracepointName, is_glob, match_names
from vm.c_types import Named, Pointer, Scope, Type
from vm.diagnostic import Diagnostic, Refusal
from vm.event import Probe
from vm.limits import Limits
from vm.named_tuple import NamedTuple
from vm.program import Program, Span
from vm.timers import period_ns

if TYPE_CHECKING:
    from ktap.btf import Argument, Btf
    from ktap.calls import Called
    from ktap.fetched import Recipe
    from ktap.kernel import Counter
    from ktap.user_functions import Spot

SYSCALLS = "syscalls"
FTRACE = "ftrace"
PLACES = ("probe", FTRACE, "sdt")
"""Kinds of events that are places in code. What only they, counters or filters need is imported for them alone."""
ELSEWHERE = ("trace_begin", "trace_end", "tick-")
"""Probes that the run loop serves itself."""
COUNTERS = ("perf", "watch")


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
    arguments: Tuple[Argument, ...] = ()
    spot: Optional[Spot] = None
    recipe: Optional[Recipe] = None
    counter: Optional[Counter] = None
    called: Optional[Called] = None

    @property
    def argument_names(self) -> Tuple[str, ...]:
        """Names of a raw tracepoint's arguments."""
        return tuple(argument.name for argument in self.arguments)


Key = Tuple[str, str]
"""Context and label of a target."""


class Base(NamedTuple):
    """Where a path of members begins: an address, its type, and the names that follow."""

    address: Value
    type: Type
    names: List[str]


class Kernel(NamedTuple):
    """Where the kernel's events are looked up."""

    tracefs: Callable[[], Tracefs]
    machine: str
    types: Callable[[], Optional[Btf]]
    """The kernel's types, None where it has no BTF."""
    functions: Callable[[], KernelFunctions] = kernel_functions
    most_probes: int = Limits().probes
    """So many functions a glob may mean."""
    unsafe: bool = False
    """Places may be probed that are not known to be an instruction's first byte."""


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
        if probe.filter is not None and not text.startswith(FTRACE):  # it says which functions are meant
            from compiler.filter import FilterError, parse_filter

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
                    condition = predicate(tree, Subject(target.label, target.format, target.argument_names))
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
            target = self._targets[key]
            members = self._members_of(target, join(demands[request.probe] for request in requests), places)
            for group in _groups(requests):
                found.append(_wanted(target, group, demands)._replace(members=members))
        if self._problems:
            raise Refusal(self._problems, self._program.source, self._status)
        return found

    # -- events -----------------------------------------------------------------------------------

    def _targets_of(self, text: str, probe: Probe, wanted: Demand) -> List[Key]:
        kind, colon, rest = text.partition(":")
        if colon and kind in PLACES:
            from ktap.user_functions import is_user

            found = self._user if is_user(kind, rest) else self._calls
            return found(text, probe, wanted)
        if colon and kind in COUNTERS:
            return self._counter(text, probe)
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
        if known is None or known.format is None or _more(target, known):
            self._targets[key] = target
        return key

    def _raw(self, pattern: str, span: Span) -> List[Key]:
        types = self._kernel.types()
        if types is None:
            names = [name.name for name in self._kernel.tracefs().names() if name.group != SYSCALLS]
        else:
            names = types.raw_tracepoints()
        if is_glob(pattern):
            matched = match_names([TracepointName("raw", name) for name in names], "raw", pattern)
        else:
            matched = [TracepointName("raw", pattern)] if pattern in names else []
        if not matched:
            from compiler.spell import suggest

            near = suggest(pattern, names)
            hint = f"did you mean `raw:{near}`?" if near else None
            self._problem(span, f"unknown raw tracepoint `raw:{pattern}`", hint)
        keys = []
        for name in matched:
            arguments = types.raw_tracepoint(name.name) if types is not None else ()
            keys.append(self._one(Target(RAW, f"raw:{name.name}", name.name, arguments=arguments or ())))
        return keys

    def _counter(self, text: str, probe: Probe) -> List[Key]:
        """A counter, or a watchpoint."""
        from ktap.counters import NoCounter, find_counter

        try:
            found = find_counter(text, self._kernel.machine)
        except NoCounter as error:
            self._status = max(self._status, error.status)
            self._problem(probe.span, str(error), error.hint)
            return []
        record = found.record
        target = Target(COUNTER, found.label, found.name, record.format, recipe=record.recipe, counter=found.counter)
        return [self._one(target)]

    def _user(self, text: str, probe: Probe, wanted: Demand) -> List[Key]:
        """Functions of programs and libraries."""
        from ktap.fetch import FetchError
        from ktap.user_events import Settings, find_events
        from ktap.user_functions import NoEvent, take_apart

        settings = Settings(self._kernel.machine, self._kernel.unsafe, self._kernel.most_probes)
        try:
            found = find_events(text, settings, [*wanted.variables, probe.filter or ""])
        except NoEvent as error:
            self._problem(probe.span, str(error), error.hint)
            return []
        except FetchError as error:
            self._problem(fetch_span(probe.span, take_apart(text).fetch_at + error.position), str(error), error.hint)
            return []
        targets = [
            Target(
                event.context, event.label, event.name, event.record.format, spot=event.spot, recipe=event.record.recipe
            )
            for event in found
        ]
        self._say_of_returns(text, targets, wanted)
        return [self._one(target) for target in targets]

    def _calls(self, text: str, probe: Probe, wanted: Demand) -> List[Key]:
        """Functions of the kernel."""
        from ktap.call_events import NoCall, Where, find_calls
        from ktap.fetch import FetchError

        kernel = self._kernel
        where = Where(kernel.functions, kernel.types, kernel.machine, kernel.most_probes, kernel.unsafe)
        try:
            found = find_calls(text, probe.filter, wanted, where)
        except NoCall as error:
            self._status = max(self._status, error.status)
            self._problem(probe.span, str(error), error.hint)
            return []
        except FetchError as error:
            self._problem(fetch_span(probe.span, text.find(" ") + 1 + error.position), str(error), error.hint)
            return []
        targets = [
            Target(call.context, call.label, call.name, call.record.format)._replace(
                recipe=call.record.recipe, called=call.called
            )
            for call in found
        ]
        self._say_of_returns(text, targets, wanted)
        return [self._one(target) for target in targets]

    def _say_of_returns(self, text: str, targets: Sequence[Target], wanted: Demand) -> None:
        """Say that arguments are nil where a function returns and none are known."""
        from ktap.fetch import KEEP

        formats = [target.format for target in targets if target.format is not None]
        unknown = [one for one in formats if one.field(RETVAL) is not None and len(one.numbered) == 1]
        asked = sorted(name for name in wanted.variables if name[:3] == "arg" and name[3:].isdigit() and name != "arg0")
        if unknown and asked:
            self.notices.append(f"{', '.join(asked)} of `{text}`: nil, known at the entry only; {KEEP}")

    def _profile(self, text: str, span: Span) -> List[Key]:
        try:
            period = period_ns(text)
        except ValueError as error:
            self._problem(span, str(error))
            return []
        return [self._one(Target(PROFILE, text, text, timer=Timer(period)))]

    # -- members of structures --------------------------------------------------------------------

    def _members_of(self, target: Target, wanted: Demand, places: Mapping[str, Span]) -> Tuple[Member, ...]:
        """How to reach the members of structures that handlers of an event read."""
        paths = {name for name in wanted.variables if name.count(".") > (0 if name.startswith("curtask.") else 1)}
        paths |= {f"curtask.{state}" for state in wanted.states if state != IN_INTERRUPT}
        if "ppid" in wanted.variables:
            paths.add(PARENT)
        found: List[Member] = []
        for path in sorted(paths):
            base = self._base(target, path)
            types = self._kernel.types() if base is not None else None
            if base is None:
                continue
            if types is None:
                self._status = 3
                self._problem(places.get(path), f"`{path}` needs the kernel's types", "this kernel has no BTF")
                return ()
            try:
                found.append(follow(Scope(types), path, base.address, base.type, base.names))
            except Unreachable as error:
                if not any(other.startswith(path + ".") for other in paths):
                    near = suggestion(error.name, error.known)
                    usual = "it has pid, tgid, comm, prio and many more" if "real_parent" in error.known else None
                    message = str(error).replace(f"args.{RETVAL}", "retval")
                    self._problem(places.get(path), message, f"did you mean `{near}`?" if near else usual)
        return tuple(found)

    def _base(self, target: Target, path: str) -> Optional[Base]:
        """Where a path begins; None where this event has no such argument."""
        root, *names = path.split(".")
        if root == "curtask":
            return Base(Value("curtask"), TASK, names)
        for number, argument in enumerate(target.arguments):
            if argument.name == names[0]:
                return Base(Value(f"arg{number}"), argument.type, names[1:])
        field = field_of(target.format, f"args.{names[0]}") if target.format is not None else None
        if field is None:
            return None
        kind = field.type.replace("const ", "").rstrip("* ").strip()
        return Base(Value(f"args.{field.name}"), Pointer(Named(kind)), names[1:])

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
                self._unknown_field(name[5:].partition(".")[0], targets, places.get(name))

    def _unknown_field(self, name: str, targets: Sequence[Target], span: Optional[Span]) -> None:
        from compiler.spell import suggest

        known = sorted({field for target in targets for field in _fields(target)})
        near = suggest(name, known)
        hint = f"did you mean `args.{near}`?" if near else None
        if hint is None and 0 < len(known) < MANY:
            hint = "it has " + ", ".join(known)
        if name == RETVAL:
            self._problem(span, f"`{targets[0].label}` returns no pointer to a structure")
            return
        where = f"`{targets[0].label}` has no" if len(targets) == 1 else f"none of {len(targets)} events has a"
        self._problem(span, f"{where} field `{name}`", hint)


MANY = 20
"""So many fields are no help any more."""


def suggestion(name: str, known: Sequence[str]) -> Optional[str]:
    """The known name that was most likely meant, None where none is like it."""
    from compiler.spell import suggest

    return suggest(name, known) if name else None


def _fields(target: Target) -> List[str]:
    if target.format is not None:
        return [field.name for field in target.format.fields if not field.name.startswith("__probe_")]
    return [name for name in target.argument_names if name]


def _has(target: Target, name: str) -> bool:
    root = name[5:].partition(".")[0]
    if target.format is not None:
        return field_of(target.format, f"args.{root}") is not None
    return root in target.argument_names


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
        target.argument_names,
        target.spot,
        target.recipe,
        target.counter,
        target.called,
    )


def _more(target: Target, other: Target) -> bool:
    """Whether more is captured of the same event."""
    return (
        target.recipe is not None and other.recipe is not None and target.recipe.fixed_bytes > other.recipe.fixed_bytes
    )


def fetch_span(span: Span, position: int) -> Span:
    """The place of something in an event, counted from the event's start."""
    if span.line != span.end_line:
        return span
    return span._replace(column=min(span.column + position, span.end_column - 1))
