"""Replay: a recording as the source of events, and as the machine a script asks about itself.

    recording = Recording(path)                    # Refusal where it is none
    machine = Machine(…, ReplayHost(recording), …)
    source = ReplaySource(machine, recording, None, say)

Nothing is asked of the machine at hand, so the output is the same every time and everywhere.
"""

from __future__ import annotations

import json
import sys
from struct import Struct
from typing import Callable, Dict, Iterator, List, Mapping, NoReturn, Optional, Sequence, Tuple, Type, TypeVar

from ktap import recording as file
from ktap.capture import RAW
from ktap.captured import ARGUMENTS, MEMBER, READ, RECORD, Kind, make_event
from ktap.chunks import ChunkReader, NoRecording
from ktap.demand import Demand
from ktap.event_format import EventFormat, parse_format
from ktap.layout import KNOWN, LENGTH, Decoder, Layout, Values, decoder
from ktap.plain import Malformed, from_plain
from ktap.print_format import event_text
from vm import c_types
from vm.diagnostic import Diagnostic, Refusal
from vm.event import Batch, Event, Loss, Probe
from vm.local_host import LocalHost
from vm.named_tuple import NamedTuple

T = TypeVar("T")
MOST_SLOTS = 1000
MOST_SLOT_BYTES = 1 << 16


class Track(NamedTuple):
    """How the records of one event are read."""

    event: file.RecordedEvent
    kind: Kind
    decode: Decoder
    fixed_bytes: int
    lengths: Tuple[int, ...]
    """Where in the fixed part the lengths of what varies are."""
    signed: Tuple[int, ...]
    """Where 8-byte integers are that scripts see as they are: the time, the cgroup."""
    record: Optional[int]
    """Where the raw record is, and the least it must have."""
    record_bytes: int


class Recording:
    """An opened recording, read chunk by chunk; what has been read of names and types is kept."""

    def __init__(self, path: str) -> None:
        """Reads the beginning and looks for the end. Raises Refusal (status 2) for what is no recording."""
        self.path = path
        self.answers: Dict[str, Dict[str, Optional[str]]] = {}
        self.types: Dict[str, Optional[c_types.Type]] = {}
        self.end: Optional[file.End] = None
        try:
            self._file = open(path, "rb")  # noqa: SIM115  # read on as the replay goes
            self._chunks = ChunkReader(self._file)
            self.header = self._first(file.HEADER, file.Header)
            self._check_header()
            events = self._first(file.EVENTS, file.Events)
            if not 0 <= events.bits <= 16:
                raise Malformed("more filters than there can be")
            self.bits = events.bits
            last = self._chunks.last()
            if last is not None and last[0] == file.END:
                self.end = _decoded(file.End, last[1])
            self.tracks = tuple(_track(event) for event in events.events)
        except OSError as error:
            self._refuse(f"cannot read {path}: {error.strerror}")
        except NoRecording:
            self._refuse(f"{path} is no recording of ktap", "ktap --record FILE makes one")
        except (Malformed, ValueError, RecursionError) as error:
            self._refuse(f"{path} cannot be replayed: {error}")

    def _refuse(self, message: str, hint: Optional[str] = None) -> NoReturn:
        raise Refusal([Diagnostic("ktap", None, message, hint)], status=2)

    def _check_header(self) -> None:
        header = self.header
        if header.version != file.VERSION:
            self._refuse(f"{self.path} was made by another version of ktap (its format is {header.version})")
        if header.byte_order != sys.byteorder:
            self._refuse(f"{self.path} was made on a machine of another byte order ({header.byte_order}-endian)")

    def _first(self, kind: bytes, of: Type[T]) -> T:
        """The next chunk, names and types being taken in before it."""
        for found, data in self.chunks():
            if found == kind:
                return _decoded(of, data)
        raise Malformed(self._chunks.damage or "nothing was recorded in it")

    def chunks(self) -> Iterator[Tuple[bytes, bytes]]:
        """The chunks that follow. Names and types are taken in. Raises Malformed."""
        while True:
            chunk = self._chunks.read()
            if chunk is None:
                return
            kind, data = chunk
            if kind == file.NAMES:
                self._take_names(_decoded(file.Names, data))
            elif kind == file.TYPES:
                self.types.update(_decoded(file.Types, data).types)
            yield kind, data

    def _take_names(self, names: file.Names) -> None:
        for kind, new in names.answers.items():
            known = self.answers.setdefault(kind, {})
            for question, answer in new.items():
                if len(known) >= file.MOST_ANSWERS and question not in known:
                    known.clear()
                known[question] = answer

    @property
    def damage(self) -> Optional[str]:
        """Why the file could not be read to its end, None where it could so far."""
        return self._chunks.damage

    def answer(self, kind: str, question: str) -> Optional[str]:
        """What the machine answered, None where it had no answer or was not asked."""
        return self.answers.get(kind, {}).get(question)

    def number(self, kind: str, question: str) -> Optional[int]:
        """The same for numbers."""
        answer = self.answer(kind, question)
        return int(answer) if answer is not None and answer.lstrip("-").isdecimal() else None

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _decoded(kind: Type[T], data: bytes) -> T:
    try:
        return from_plain(kind, json.loads(data))
    except ValueError as error:
        raise Malformed(f"no {kind.__name__}") from error


def _track(event: file.RecordedEvent) -> Track:
    """How an event's records are read. Raises Malformed for layouts that cannot be."""
    _check_layout(event.layout)
    event_format = parse_format(event.group, event.format) if event.format else None
    layout = event.layout
    kind = Kind(
        event.name,
        layout,
        event_format,
        event.reads,
        event.arguments,
        event.symbols,
        event.plumbing,
        event.members,
    )
    lengths = tuple(layout.offset(index) for index, slot in enumerate(layout.slots) if slot.varies)
    cgroup = layout.item("cgroup")
    signed = (0,) if cgroup is None else (0, cgroup)
    record, least = layout.item(RECORD), _record_bytes(event_format)
    arguments = layout.item(ARGUMENTS)
    if arguments is not None and layout.slots[arguments - 3].size_bytes != 8 * len(event.arguments):
        raise Malformed(f"the arguments of {event.label}")
    if "%" in "".join(event.arguments) or (event.context == RAW and "%" in event.name):
        raise Malformed(f"the names of {event.label}")  # they become part of a template
    for number in range(len(event.reads)):
        if layout.item(f"{READ}{number}") is None:
            raise Malformed(f"the reads of {event.label}")
    for member in event.members:
        placed = layout.item(f"{MEMBER}{member.path}") is not None
        if not placed or not 0 <= member.shift < 64 or not 0 <= member.bits <= 64:
            raise Malformed(f"the members of {event.label}")
    return Track(event, kind, decoder(layout), layout.fixed_bytes, lengths, signed, record, least)


LENGTH_AT = Struct("=" + LENGTH).unpack_from
SIZES = {"Q": 8, "q": 8, "I": 4, "i": 4}


def _check_layout(layout: Layout) -> None:
    if len(layout.slots) > MOST_SLOTS:
        raise Malformed("a record of too many values")
    for slot in layout.slots:
        known = slot.letters in SIZES and SIZES[slot.letters] == slot.size_bytes and not slot.varies
        fixed = slot.letters == f"{slot.size_bytes}s" and not slot.varies
        varying = slot.letters == LENGTH and slot.varies
        known = known and (slot.name != KNOWN or slot.letters == "Q")
        if not (known or fixed or varying) or not 0 <= slot.size_bytes <= MOST_SLOT_BYTES:
            raise Malformed(f"the layout of {slot.name}")


def _record_bytes(event: Optional[EventFormat]) -> int:
    """The least a raw record must have so that every field can be read."""
    fields = () if event is None else event.common + event.fields
    return max((field.offset + field.size for field in fields), default=0)


class ReplayHost:
    """The machine a recording was made on. See vm.host.Host."""

    def __init__(self, recording: Recording) -> None:
        self.recording = recording
        self.time_ns = recording.header.begin_ns
        """The replay's time; its source moves it on."""

    def monotonic_ns(self) -> int:
        """The replay's time."""
        return self.time_ns

    def realtime_offset_ns(self) -> int:
        """As it was."""
        return self.recording.header.realtime_offset_ns

    def cpus(self) -> int:
        """As many as there were."""
        return self.recording.header.cpus

    def architecture(self) -> str:
        """As it was."""
        return self.recording.header.architecture

    def kernel_release(self) -> str:
        """As it was."""
        return self.recording.header.release

    def kernel_address(self, symbol: str) -> Optional[int]:
        """As it was answered; None for what was not asked."""
        return self.recording.number("address", symbol)

    def kernel_symbol(self, address: int) -> str:
        """As it was answered, hexadecimal for what was not asked."""
        address &= file.ADDRESS_MASK
        return self.recording.answer("kernel", str(address)) or f"{address:#x}"

    def user_symbol(self, pid: int, address: int) -> str:
        """As it was answered, hexadecimal for what was not asked."""
        address &= file.ADDRESS_MASK
        return self.recording.answer("user", f"{pid}:{address}") or f"{address:#x}"

    def run(self, command: str) -> int:
        """A command runs on the machine at hand."""
        return LocalHost().run(command)

    def send_signal(self, pid: int, number: int) -> None:
        """The process was there when the recording was made. Raises OSError."""
        raise ProcessLookupError(3, "a recording's processes cannot be sent signals")


class ReplayNames:
    """Names for the text of recorded events. See ktap.pointer_format.KernelNames."""

    def __init__(self, recording: Recording) -> None:
        self._recording = recording

    def symbol(self, address: int) -> bytes:
        """`%pS`."""
        return self._bytes("symbol", address) or b"0x%x" % address

    def symbol_name(self, address: int) -> bytes:
        """`%ps`."""
        return self._bytes("symbol_name", address) or b"0x%x" % address

    def string(self, address: int) -> bytes:
        """`%s` of a pointer."""
        text = self._bytes("string", address)
        return b"(0x%x)" % address if text is None else text

    def pointer(self, address: int) -> bytes:
        """`%p`."""
        return self._bytes("pointer", address) or b"%016x" % address

    def constant(self, name: str) -> Optional[int]:
        """A constant of the kernel."""
        return self._recording.number("constant", name)

    def _bytes(self, kind: str, address: int) -> Optional[bytes]:
        text = self._recording.answer(kind, str(address))
        return None if text is None else text.encode("latin-1", "replace")


class ReplayTypes:
    """The C types that the recorded script asked for. See vm.c_types.Types."""

    def __init__(self, recording: Recording) -> None:
        self._types: Mapping[str, Optional[c_types.Type]] = recording.types

    def find(self, name: str) -> Optional[c_types.Type]:
        """The type of a name."""
        return self._types.get(name)


class Found(NamedTuple):
    """An event that probes want: its number in the recording, and its filters."""

    number: int
    demand: Demand
    deciders: Tuple[Callable[[Values, int], bool], ...]
    probes_of: Callable[[int], Tuple[int, ...]]


Resolve = Callable[[Sequence[Probe]], Sequence[Found]]


class Choice(NamedTuple):
    """An event of the script's probes: which records are its, and the point of each combination of its filters."""

    first_point: int
    deciders: Tuple[Callable[[Values, int], bool], ...]
    wanted: Tuple[bool, ...]
    """For each combination, whether any probe takes it."""


class ReplaySource:
    """See vm.event.Source."""

    def __init__(
        self,
        recording: Recording,
        host: ReplayHost,
        resolve: Resolve,
        table: Callable[[Sequence[object]], object],
        cpu: Optional[int],
        say: Callable[[str], None],
    ) -> None:
        """`resolve` finds the events of probes; `table` makes tables; only events of `cpu` are given, None for all."""
        self._recording = recording
        self._host = host
        self._resolve = resolve
        self._table = table
        self._cpu = cpu
        self._say = say
        self._points: List[Tuple[Event, Tuple[int, ...]]] = []
        self._choices: Dict[int, List[Choice]] = {}
        self._chunks = recording.chunks()
        self._told = False

    def attach(self, probes: Sequence[Probe]) -> None:
        """See Source. Raises Refusal for events that were not recorded."""
        names = ReplayNames(self._recording)
        release = self._recording.header.release
        for found in self._resolve(probes):
            track = self._recording.tracks[found.number]
            show = None
            if track.kind.format is not None and "argstr" in found.demand.variables:
                show = event_text(track.kind.format, names, release).show
            event = make_event(track.kind, show, self._table, self._host.kernel_symbol)
            combinations = range(1 << len(found.deciders))
            wanted = [found.probes_of(mask) for mask in combinations]
            choice = Choice(len(self._points), found.deciders, tuple(bool(probes) for probes in wanted))
            self._points += [(event, probes) for probes in wanted]
            self._choices.setdefault(found.number, []).append(choice)

    @property
    def points(self) -> Sequence[Tuple[Event, Sequence[int]]]:
        """See Source."""
        return self._points

    def now_ns(self) -> int:
        """The recording's time."""
        return self._host.time_ns

    def poll(self, timeout_ns: int) -> Batch:
        """See Source: the records of the next chunk; no time is waited."""
        try:
            for kind, data in self._chunks:
                if kind == file.RECORDS:
                    records = sorted(self._records(data), key=_time)
                    if records:
                        return self._batch(records)
        except Malformed as error:
            return self._over(f"is damaged: {error}")
        return self._over(self._recording.damage)

    def _batch(self, records: List[Values]) -> Batch:
        end = self._recording.end
        if end is not None and _time(records[-1]) > end.end_ns:  # fired after tracing had ended
            records = [record for record in records if _time(record) <= end.end_ns]
        if records:
            self._host.time_ns = max(self._host.time_ns, _time(records[-1]))
        return Batch(self._chosen(records), self._host.time_ns, False)

    def _over(self, damage: Optional[str]) -> Batch:
        """The last batch; says where the recording is not whole."""
        end = self._recording.end
        if end is not None and damage is None:
            self._host.time_ns = max(self._host.time_ns, end.end_ns)
        elif not self._told:
            self._told = True
            self._say(f"{self._recording.path} {damage or 'has no end'}: it is replayed up to there")
        return Batch((), self._host.time_ns, True)

    def _records(self, data: bytes) -> Iterator[Values]:
        """The records of a chunk. Raises Malformed."""
        view, at, tracks, bits = memoryview(data), 0, self._recording.tracks, self._recording.bits
        while at < len(data):
            if at + 12 > len(data):
                raise Malformed("a record is cut off")
            number = int.from_bytes(data[at + 8 : at + 12], sys.byteorder) >> bits
            if number >= len(tracks):
                raise Malformed("a record of no event")
            track = tracks[number]
            if at + track.fixed_bytes > len(data):
                raise Malformed("a record is cut off")
            following = at + track.fixed_bytes
            for place in track.lengths:
                following += max(0, LENGTH_AT(view, at + place)[0])
            if following > len(data):
                raise Malformed("a record is cut off")
            values = track.decode(view, at)
            if any([(values[place] or 0) >> 63 for place in track.signed]):  # type: ignore[operator]  # integers by the layout
                raise Malformed("a number that no integer holds")
            at = following
            if track.record is not None:
                raw = values[track.record]
                if not isinstance(raw, bytes) or len(raw) < track.record_bytes:
                    raise Malformed("a record is too short for its event")
            yield values

    def _chosen(self, records: Sequence[Values]) -> List[Values]:
        """The records that the script's probes want, with the points of their filters."""
        bits, choices, cpu = self._recording.bits, self._choices, self._cpu
        chosen: List[Values] = []
        for record in records:
            point: int = record[1]  # type: ignore[assignment]  # the layout says I
            if cpu is not None and record[2] != cpu:
                continue
            for choice in choices.get(point >> bits, ()):
                mask = 0
                for bit, decide in enumerate(choice.deciders):
                    if decide(record, point):
                        mask |= 1 << bit
                if choice.wanted[mask]:
                    chosen.append((record[0], choice.first_point + mask, *record[2:]))
        return chosen

    def quiet(self) -> None:
        """See vm.event.Source.quiet: nothing fires."""

    def settle(self, last: bool = False) -> None:
        """See Source: there is nothing to fetch."""

    def unread(self, end_ns: int) -> Mapping[str, int]:
        """See vm.event.Source.unread: a recording is read to its end."""
        return {}

    def losses(self) -> Sequence[Loss]:
        """What was lost when the recording was made, once its end is read."""
        return self._recording.end.losses if self._recording.end is not None else ()

    def close(self) -> None:
        """See Source."""
        self._recording.close()


def _time(record: Values) -> int:
    time_ns: int = record[0]  # type: ignore[assignment]  # the layout says Q
    return time_ns
