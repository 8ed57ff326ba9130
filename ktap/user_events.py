"""Events at places in files: `probe:` on functions of programs and libraries, with what is fetched there."""

from __future__ import annotations

from typing import Collection, List, Optional

from ktap.capture import USER_ENTRY, USER_RETURN
from ktap.demand import USER, Binary, Expression, Number
from ktap.fetch import Argument, Context, call_arguments, instruction, instruction_of, parse_fetch, result
from ktap.fetched import FUNCTION, Record, address_argument, record_of, return_arguments
from ktap.markers import find_markers, marker_arguments
from ktap.registers import MACHINES, Machine
from ktap.user_functions import (
    MARKERS,
    WORD_BYTES,
    Found,
    NoEvent,
    Spot,
    Written,
    find_functions,
    open_target,
    take_apart,
)
from vm.named_tuple import NamedTuple

REGISTER_ARGUMENTS = 6
MOST_ARGUMENTS = 9
ARGUMENTS = frozenset(f"arg{number}" for number in range(1, MOST_ARGUMENTS + 1))
"""`arg9` is the last that scripts can name."""


class UserEvent(NamedTuple):
    """One place and what is captured there."""

    context: str
    label: str
    name: str
    spot: Spot
    record: Record


class Settings(NamedTuple):
    """What the command line says about it."""

    machine: str
    unsafe: bool
    most_probes: int


def find_events(text: str, settings: Settings, names: Collection[str]) -> List[UserEvent]:
    """The events that `probe:TARGET:SYMBOL…` means; `names` are the variables that are read of them.

    Raises NoEvent, and FetchError for what is wrong with the fetch arguments.
    """
    written = take_apart(text)
    machine = MACHINES.get(settings.machine)
    if machine is None:
        raise NoEvent(f"the registers of {settings.machine} are not known, so functions cannot be probed")
    if text.startswith(f"{MARKERS}:"):
        return _marker_events(text, written, machine, settings, names)
    found = find_functions(written, settings.unsafe)
    _check_count(text, len(found), "functions", settings)
    _check_arguments(written, names)
    shared = _record(written, machine, None, names) if "@+" not in written.fetch else None
    labels: dict[str, int] = {}
    events = []
    for one in found:
        record = shared or _record(written, machine, one.spot, names)
        label = f"probe:{written.target}:{one.name}{'%return' if written.returns else ''}"
        labels[label] = labels.get(label, 0) + 1
        if labels[label] > 1:
            label += f" ({one.spot.offset:#x})"
        events.append(_event(written, one, label, record))
    return events


def _check_arguments(written: Written, names: Collection[str]) -> None:
    """Raises NoEvent for arguments of 32-bit programs, which are not where those of others are."""
    read = sorted(name for name in names if name in ARGUMENTS or name.startswith("args.arg"))
    if not written.fetch and not written.returns and read and open_target(written.target).word_bytes != WORD_BYTES:
        hint = "fetch them from the stack, as kprobe_events does: first=+4(%sp):u32"
        raise NoEvent(f"`{read[0]}` of a 32-bit program is not known: its calls have other rules", hint)


def _check_count(text: str, count: int, what: str, settings: Settings) -> None:
    if count > settings.most_probes:
        raise NoEvent(
            f"`{text}` matches {count} {what}, more than {settings.most_probes}",
            f"--max-probes {count} probes them all",
        )


def _marker_events(
    text: str, written: Written, machine: Machine, settings: Settings, names: Collection[str]
) -> List[UserEvent]:
    """The places of markers; their own arguments are captured where no others are written."""
    found = find_markers(written)
    _check_count(text, len(found), "markers", settings)
    binary = open_target(written.target)
    events = []
    labels: dict[str, int] = {}
    for marker in found:
        label = f"sdt:{written.target}:{marker.provider}:{marker.name}"
        labels[label] = labels.get(label, 0) + 1
        if labels[label] > 1:
            label += f" ({marker.spot.offset:#x})"
        one = Found(marker.name, marker.spot)
        if written.fetch:
            record = _record(written, machine, marker.spot, names)
        else:
            arguments = marker_arguments(marker, binary, machine)
            for argument, readable in arguments:
                if not readable and f"{argument.name}" in names:
                    operands = marker.arguments
                    raise NoEvent(f"`{argument.name}` of {label} is where it cannot be read: {operands}")
            address = address_argument(instruction_of(machine), False)
            record = record_of("", [argument for argument, _ in arguments], address, (), True)
        events.append(_event(written, one, label, record))
    return events


def _event(written: Written, one: Found, label: str, record: Record) -> UserEvent:
    context = USER_RETURN if written.returns else USER_ENTRY
    if written.fetch:
        label += f" {written.fetch}"
    named = record._replace(format=record.format._replace(name=one.name))
    return UserEvent(context, label, one.name, one.spot, named)


def _record(written: Written, machine: Machine, spot: Optional[Spot], names: Collection[str]) -> Record:
    """What is captured: the fetch arguments, or the arguments of the call."""
    near = None
    if spot is not None and not written.returns:

        def near(offset: int) -> Expression:
            return Binary("ADD", instruction(context), Number(offset - spot.offset))

    context = Context(machine, USER, written.returns, near=near)
    if written.returns:
        arguments = parse_fetch(written.fetch, context)
        hidden = return_arguments(instruction(context), result(context))
        return record_of("", arguments, address_argument(FUNCTION, True), hidden, True)
    shown = bool(written.fetch)
    fetched: List[Argument] = list(parse_fetch(written.fetch, context))
    if not shown:
        further = any(f"arg{n}" in name for name in names for n in range(REGISTER_ARGUMENTS + 1, MOST_ARGUMENTS + 1))
        fetched = list(call_arguments(context, MOST_ARGUMENTS if further else REGISTER_ARGUMENTS))
    return record_of("", fetched, address_argument(instruction(context), False), (), shown)
