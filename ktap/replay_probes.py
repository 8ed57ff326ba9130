"""Which events of a recording a script's probes mean, with the diagnostics that a live run has."""

from __future__ import annotations

from typing import Callable, Dict, List, Mapping, NoReturn, Sequence, Tuple

from ktap.btf import Argument
from ktap.capture import PROFILE, RAW
from ktap.demand import Demand
from ktap.layout import Values
from ktap.members import Member
from ktap.needs import needs
from ktap.plan import Wanted, field_of, probes_of
from ktap.predicate import Predicate
from ktap.recorded_filter import NotRecorded, decider
from ktap.replay import Found, Recording, Track
from ktap.resolve import Kernel, Key, Resolver, Target
from ktap.tracefs import Tracefs, TracepointName, match_names, split_pattern
from ktap.user_functions import is_user, means
from ktap.walk import Types
from vm.c_types import Void
from vm.diagnostic import Diagnostic, Refusal
from vm.event import Probe
from vm.program import Program, Span

MOST_LABELS = 8
"""So many events of a recording are named to somebody who asked for another one."""


class ReplayProbes:
    """Finds the events of probes. See ktap.replay.Resolve."""

    def __init__(
        self, program: Program, recording: Recording, string_bytes: int, types: Types, say: Callable[[str], None]
    ) -> None:
        self._program = program
        self._recording = recording
        self._string_bytes = string_bytes
        self._types = types
        self._say = say
        self._numbers = {track.event.label: number for number, track in enumerate(recording.tracks)}

    def __call__(self, probes: Sequence[Probe]) -> Sequence[Found]:
        """The events that probes want. Raises Refusal for what was not recorded."""
        handlers = [(probe.function, probe.takes_event) for probe in probes]
        wanted = needs(self._program, handlers, self._string_bytes, self._types)
        if wanted.diagnostics:
            raise Refusal(wanted.diagnostics, self._program.source)
        demands = {index: wanted.of_function[probe.function] for index, probe in enumerate(probes)}
        resolver = _Resolver(self._program, self._recording)
        for index, probe in enumerate(probes):
            resolver.add(index, probe, demands[index])
        events = resolver.wanted(demands, wanted.places)
        for notice in resolver.notices:
            self._say(notice)
        return [self._found(event, probes) for event in events]

    def _found(self, wanted: Wanted, probes: Sequence[Probe]) -> Found:
        number = self._numbers[wanted.label]
        track = self._recording.tracks[number]
        if (not track.event.everything and not set(wanted.filters) <= set(track.event.filters)) or (
            not track.event.everything and None in wanted.filter_of
        ):
            self._say(f"{wanted.label} was recorded through a filter: what that held back is not in the recording")
        deciders = []
        for index, condition in enumerate(wanted.filters):
            try:
                deciders.append(_decider(condition, track))
            except NotRecorded as missing:
                asking = next(probe for probe, of in zip(wanted.probes, wanted.filter_of) if of == index)
                self._refuse(probes[asking].span, f"the filter looks at {missing}, which was not recorded")
        return Found(number, wanted.demand, tuple(deciders), lambda mask: probes_of(wanted, mask))

    def _refuse(self, span: Span, message: str) -> NoReturn:
        hint = "record it again with this filter"
        raise Refusal([Diagnostic(self._program.source_name, span, message, hint)], self._program.source)


def _decider(condition: Predicate, track: Track) -> Callable[[Values, int], bool]:
    """Decides a filter: as the kernel did where it had the same one, else by looking at the record."""
    if condition in track.event.filters:
        bit = track.event.filters.index(condition)
        return lambda values, point: bool(point >> bit & 1)
    decide = decider(condition, track.kind.layout)
    return lambda values, point: decide(values)


class _Resolver(Resolver):
    """Looks for events in the recording, and for members among those that were recorded."""

    def __init__(self, program: Program, recording: Recording) -> None:
        super().__init__(program, Kernel(_no_kernel, recording.header.architecture, lambda: None))
        self._recording = recording
        self._tracks: Dict[str, Track] = {track.event.label: track for track in recording.tracks}

    def _targets_of(self, text: str, probe: Probe, wanted: Demand) -> List[Key]:
        found = [track for track in self._recording.tracks if _matches(track, text)]
        if not found:
            labels = [track.event.label for track in self._recording.tracks]
            more = f" and {len(labels) - MOST_LABELS} more" if len(labels) > MOST_LABELS else ""
            hint = f"it has {', '.join(labels[:MOST_LABELS])}{more}" if labels else "it has no events"
            self._problem(probe.span, f"`{text}` is not in the recording", hint)
        return [self._one(_target(track)) for track in found]

    def _members_of(self, target: Target, wanted: Demand, places: Mapping[str, Span]) -> Tuple[Member, ...]:
        members = self._tracks[target.label].event.members
        known = {member.path for member in members}
        for path in sorted(name for name in wanted.variables if _is_member(name) and name not in known):
            longer = any(other.startswith(path + ".") for other in wanted.variables)
            if not longer and (path.startswith("curtask.") or _has_root(target, path)):
                self._problem(places.get(path), f"`{path}` is not in the recording", "record it again with this script")
        return members


def _no_kernel() -> Tracefs:
    raise AssertionError("a replay asks nothing of the kernel at hand")


def _target(track: Track) -> Target:
    event = track.event
    arguments = tuple(Argument(name, Void()) for name in event.arguments)
    return Target(event.context, event.label, event.name, track.kind.format, event.number, arguments=arguments)


def _matches(track: Track, text: str) -> bool:
    """Whether a script's event means a recorded one."""
    event = track.event
    if event.context == PROFILE or event.label == text:
        return event.label == text
    kind, _, rest = text.partition(":")
    if is_user(kind, rest):
        return event.label.startswith(f"{kind}:") and means(text, event.label)
    group, name = split_pattern(text)
    if group == "id":
        return track.kind.format is not None and name == str(track.kind.format.id)
    own = event.label.partition(":")
    if (event.context == RAW) != (group == "raw"):
        return False
    return bool(match_names([TracepointName(own[0], own[2])], group, name))


def _is_member(name: str) -> bool:
    """Whether an event variable goes through a structure: `curtask.pid`, `args.file.f_inode`."""
    return name.count(".") > (0 if name.startswith("curtask.") else 1)


def _has_root(target: Target, path: str) -> bool:
    root: str = path.split(".")[1]
    if target.format is not None:
        return field_of(target.format, f"args.{root}") is not None
    return root in target.argument_names
