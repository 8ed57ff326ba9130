"""Keeps what happens while a script traces live: answers of the machine, and the records of all events.

A host, names and types that note what they answer stand before the live ones; a source that writes what
it delivers stands before the live source.
"""

from __future__ import annotations

import json
import os
import sys
from struct import Struct
from typing import Callable, Dict, List, Mapping, Optional, Protocol, Sequence, Set, Tuple, Union

from ktap.captured import KERNEL_STACK, RECORD, USER_STACK
from ktap.chunks import MOST_BYTES, ChunkWriter
from ktap.event_format import EventFormat
from ktap.layout import KNOWN, Layout, Values
from ktap.plain import to_plain
from ktap.plan import MOST_FILTERS, Captured
from ktap.pointer_format import KernelNames
from ktap.print_format import event_text
from ktap.recording import (
    ADDRESS_MASK,
    END,
    EVENTS,
    HEADER,
    MOST_ANSWERS,
    NAMES,
    RECORDS,
    TYPES,
    VERSION,
    End,
    Events,
    Header,
    Names,
    RecordedEvent,
    Types,
)
from vm import c_types
from vm.diagnostic import Diagnostic, Refusal
from vm.event import Action, Batch, Event, Loss, Probe, Source
from vm.host import Host
from vm.values import caller_symbol

CHUNK_BYTES = 1 << 18
"""Records of one chunk."""
FLUSH_NS = 500_000_000
"""A run that is killed loses at most this much of its end."""
UNWRITTEN = "recording could not be written"
"""`Loss.what` of records that the file did not take."""


class Answers:
    """Answers given so far, by kind: `put` keeps what is new for the file."""

    def __init__(self) -> None:
        self._known: Dict[str, Set[str]] = {}
        self._new: Dict[str, Dict[str, Optional[str]]] = {}

    def knows(self, kind: str, question: str) -> bool:
        """Whether the question is answered."""
        return question in self._known.get(kind, ())

    def put(self, kind: str, question: str, answer: Optional[str]) -> None:
        """Keep an answer that is not known yet."""
        known = self._known.setdefault(kind, set())
        if question in known:
            return
        if len(known) >= MOST_ANSWERS:
            known.clear()
        known.add(question)
        self._new.setdefault(kind, {})[question] = answer

    def take(self) -> Dict[str, Dict[str, Optional[str]]]:
        """What is new since the last time."""
        new, self._new = self._new, {}
        return new


class RecordingHost:
    """A host whose answers about symbols are kept. See vm.host.Host."""

    def __init__(self, host: Host, recorder: Recorder) -> None:
        self.live = self._host = host
        self.recorder = recorder

    def monotonic_ns(self) -> int:
        """CLOCK_MONOTONIC now, in ns."""
        return self._host.monotonic_ns()

    def realtime_offset_ns(self) -> int:
        """What to add to a monotonic time to have the time since 1970, in ns."""
        return self._host.realtime_offset_ns()

    def cpus(self) -> int:
        """Number of processors that are online."""
        return self._host.cpus()

    def architecture(self) -> str:
        """`x86_64`, `aarch64`, …"""
        return self._host.architecture()

    def kernel_release(self) -> str:
        """As uname -r prints it."""
        return self._host.kernel_release()

    def kernel_address(self, symbol: str) -> Optional[int]:
        """The address of a kernel symbol."""
        address = self._host.kernel_address(symbol)
        self.recorder.answers.put("address", symbol, None if address is None else str(address))
        return address

    def kernel_symbol(self, address: int) -> str:
        """The symbol of a kernel address."""
        name = self._host.kernel_symbol(address)
        self.recorder.answers.put("kernel", str(address & ADDRESS_MASK), name)
        return name

    def user_symbol(self, pid: int, address: int) -> str:
        """The symbol of an address of a process."""
        name = self._host.user_symbol(pid, address)
        self.recorder.answers.put("user", f"{pid}:{address & ADDRESS_MASK}", name)
        return name

    def run(self, command: str) -> int:
        """system()."""
        return self._host.run(command)

    def send_signal(self, pid: int, number: int) -> None:
        """signal()."""
        self._host.send_signal(pid, number)


class RecordingNames:
    """Names for the text of events, kept. See ktap.pointer_format.KernelNames."""

    def __init__(self, names: KernelNames, answers: Answers) -> None:
        self._names = names
        self._answers = answers

    def symbol(self, address: int) -> bytes:
        """`%pS`."""
        return self._keep("symbol", address, self._names.symbol)

    def symbol_name(self, address: int) -> bytes:
        """`%ps`."""
        return self._keep("symbol_name", address, self._names.symbol_name)

    def string(self, address: int) -> bytes:
        """`%s` of a pointer."""
        return self._keep("string", address, self._names.string)

    def pointer(self, address: int) -> bytes:
        """`%p`."""
        return self._keep("pointer", address, self._names.pointer)

    def constant(self, name: str) -> Optional[int]:
        """A constant of the kernel."""
        value = self._names.constant(name)
        self._answers.put("constant", name, None if value is None else str(value))
        return value

    def _keep(self, kind: str, address: int, ask: Callable[[int], bytes]) -> bytes:
        answer = ask(address)
        self._answers.put(kind, str(address), answer.decode("latin-1"))
        return answer


class RecordingTypes:
    """The kernel's C types, those that are asked for kept. See vm.c_types.Types."""

    def __init__(self, types: c_types.Types) -> None:
        self._types = types
        self.new: Dict[str, Optional[c_types.Type]] = {}

    def find(self, name: str) -> Optional[c_types.Type]:
        """The type of a name."""
        found = self.new[name] = self._types.find(name)
        return found


# -- records --------------------------------------------------------------------------------------


def encoder(layout: Layout) -> Callable[[Values], bytes]:
    """A function that gives the bytes of a record, KNOWN made here: the inverse of ktap.layout.decoder."""
    encode, lacking = _whole_encoder(layout), layout.lacking
    if layout.item(KNOWN) is None:
        return encode
    blanks = [b"" if layout.slots[place - 3].letters.endswith("s") else 0 for place in lacking]

    def encode_known(values: Values) -> bytes:
        items, known = list(values), 0
        for bit, (place, blank) in enumerate(zip(lacking, blanks)):
            if items[place] is None:
                items[place] = blank
            else:
                known |= 1 << bit
        return encode((*items, known))

    return encode_known


def _whole_encoder(layout: Layout) -> Callable[[Values], bytes]:
    pack = Struct("=" + layout.letters).pack
    places = [3 + index for index, slot in enumerate(layout.slots) if slot.varies]
    if not places:
        return lambda values: pack(*values)

    def encode(values: Values) -> bytes:
        items = list(values)
        parts = [b""]
        for place in places:
            data = items[place]
            if isinstance(data, bytes):
                items[place] = len(data)
                parts.append(data)
            else:
                items[place] = -1
        parts[0] = pack(*items)
        return b"".join(parts)

    return encode


class Track:
    """How the records of one event are written, and what has to be asked about each."""

    def __init__(
        self, captured: Captured, layout: Layout, recorder: Recorder, show: Optional[Callable[[bytes], bytes]]
    ) -> None:
        """`layout` is the recorded one; `show` is given where the event's text asks for names."""
        self.encode = encoder(layout)
        item = captured.kind.layout.item
        self._kernel, self._user, self._pair = item(KERNEL_STACK), item(USER_STACK), item("pid_tgid")
        self._record = item(RECORD)
        self._show = show
        self._recorder = recorder
        self.asks = self._kernel is not None or self._user is not None or show is not None

    def ask(self, values: Values, host: Host) -> None:
        """Have all answered that a script may ask about a record."""
        answers = self._recorder.answers
        for frame in _frames(values, self._kernel):
            if not answers.knows("kernel", str(frame)):
                host.kernel_symbol(frame)
                caller_symbol(host.kernel_symbol, frame)
        if self._user is not None and self._pair is not None and values[self._pair] is not None:
            pid = int(values[self._pair]) >> 32  # type: ignore[call-overload]  # the layout says Q
            for frame in _frames(values, self._user):
                if not answers.knows("user", f"{pid}:{frame}"):
                    host.user_symbol(pid, frame)
                    caller_symbol(lambda address: host.user_symbol(pid, address), frame)
        if self._show is not None and self._record is not None:
            raw = values[self._record]
            if isinstance(raw, bytes):
                self._show(raw)


def _frames(values: Values, place: Optional[int]) -> Sequence[int]:
    data = values[place] if place is not None else None
    return Struct(f"={len(data) // 8}Q").unpack(data) if isinstance(data, bytes) else ()


class Recorder:
    """Writes a recording. What cannot be written is counted, and tracing goes on without it."""

    def __init__(self, path: str, say: Callable[[str], None]) -> None:
        """Raises OSError when the file cannot be opened."""
        self.path = path
        self.answers = Answers()
        self.types: Optional[RecordingTypes] = None
        self.unwritten = 0
        """Records that could not be written."""
        self._say = say
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        self._writer: Optional[ChunkWriter] = ChunkWriter(os.open(path, flags, 0o600))
        self._tracks: List[Track] = []
        self._bits = 0
        self._rows: List[bytes] = []
        self._size = 0
        self._flushed_ns = 0

    def typed(self, types: c_types.Types) -> RecordingTypes:
        """The same types, those asked for being kept."""
        self.types = RecordingTypes(types)
        return self.types

    def begin(self, header: Header, events: Events, tracks: Sequence[Track]) -> None:
        """Write what comes first."""
        self._tracks, self._bits = list(tracks), events.bits
        self._chunk(HEADER, header)
        self._answers()  # among them what the texts of the events are made with
        self._chunk(EVENTS, events)
        self._flushed_ns = header.begin_ns

    def add(self, batch: Batch, host: Host) -> None:
        """Add the records of a batch."""
        tracks, bits, rows = self._tracks, self._bits, self._rows
        for record in batch.records:
            track = tracks[record[1] >> bits]  # type: ignore[operator]  # the point is an integer
            if track.asks:
                track.ask(record, host)
            row = track.encode(record)
            rows.append(row)
            self._size += len(row)
            if self._size >= CHUNK_BYTES:
                self.flush()
                rows = self._rows
        if rows and batch.horizon_ns - self._flushed_ns >= FLUSH_NS:
            self.flush()
            self._flushed_ns = batch.horizon_ns

    def flush(self) -> None:
        """Write answers, types and records that are waiting."""
        self._answers()
        rows, self._rows, self._size = self._rows, [], 0
        if rows:
            self._put(RECORDS, b"".join(rows), len(rows))

    def _answers(self) -> None:
        new = self.answers.take()
        if new:
            self._chunk(NAMES, Names(new))
        if self.types is not None and self.types.new:
            found, self.types.new = self.types.new, {}
            self._chunk(TYPES, Types(found))

    def finish(self, end: End) -> None:
        """Write the end. Safe to call twice; then nothing more is written."""
        if self._writer is not None:
            self.flush()
            self._chunk(END, end)
        self.close()

    def close(self) -> None:
        """Close the file as it is. Safe to call twice."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _chunk(self, kind: bytes, value: object) -> None:
        self._put(kind, json.dumps(to_plain(value), separators=(",", ":")).encode(), 0)

    def _put(self, kind: bytes, data: bytes, records: int) -> None:
        if self._writer is not None:
            try:
                if len(data) > MOST_BYTES:
                    raise OSError(0, "a chunk is too large")
                self._writer.write(kind, data)
                return
            except OSError as error:
                self._say(f"the recording {self.path} ends here: {error.strerror}")
                self.close()
        self.unwritten += records


# -- the source -----------------------------------------------------------------------------------


class Live(Source, Protocol):
    """A source that tells what it has attached (ktap.live.LiveSource, ktap.perf_source.PerfSource)."""

    @property
    def knows_all(self) -> bool:
        """Whether no value of fixed size in its records is ever None."""

    @property
    def events(self) -> Sequence[Captured]:
        """The events, by number."""

    @property
    def bits(self) -> int:
        """How many low bits of a point tell of filters."""


class RecordingSource:
    """A live source whose records are kept. See vm.event.Source."""

    def __init__(
        self, live: Live, host: RecordingHost, names: KernelNames, format_source: Callable[[EventFormat], str]
    ) -> None:
        """`format_source` gives the text of an event's `format` file."""
        self._live = live
        self._host = host
        self._recorder = host.recorder
        self._names = RecordingNames(names, host.recorder.answers)
        self._format_source = format_source
        self._horizon_ns = 0
        self._begun = False
        self.ended_ns: Callable[[], Optional[int]] = lambda: None
        """When tracing ended, None where it ended with the last event."""

    def attach(self, probes: Sequence[Probe]) -> None:
        """See Source. Raises Refusal."""
        self._live.attach(probes)
        self._horizon_ns = self._live.now_ns()
        host, release = self._host, self._host.kernel_release()
        recorded, tracks = [], []
        self._check()
        for event in self._live.events:
            show = None
            if event.kind.format is not None:
                text = event_text(event.kind.format, self._names, release)
                show = text.show if text.asks_names else None
            layout = event.kind.layout if self._live.knows_all else event.kind.layout.recorded()
            recorded.append(_recorded(event, layout, self._format_source))
            tracks.append(Track(event, layout, self._recorder, show))
        header = Header(
            VERSION,
            sys.byteorder,
            host.architecture(),
            release,
            host.cpus(),
            host.realtime_offset_ns(),
            self._horizon_ns,
        )
        self._recorder.begin(header, Events(self._live.bits, tuple(recorded)), tracks)
        self._begun = True

    def _check(self) -> None:
        """Raises Refusal for an event that is attached more than once, which would be recorded more than once."""
        labels = [event.wanted.label for event in self._live.events]
        twice = (
            next((label for label in labels if labels.count(label) > 1), None)
            if len(set(labels)) < len(labels)
            else None
        )
        if twice is not None:
            message = f"{twice} has more than {MOST_FILTERS} different filters, which a recording cannot tell apart"
            raise Refusal([Diagnostic("ktap", None, message, "record it with fewer, and filter in the replay")])

    @property
    def points(self) -> Sequence[Tuple[Event, Sequence[Union[int, Action]]]]:
        """See Source."""
        return self._live.points

    def now_ns(self) -> int:
        """See Source."""
        return self._live.now_ns()

    def poll(self, timeout_ns: int) -> Batch:
        """See Source."""
        batch = self._live.poll(timeout_ns)
        self._recorder.add(batch, self._host)
        self._horizon_ns = max(self._horizon_ns, batch.horizon_ns)
        return batch

    def quiet(self) -> None:
        """See Source."""
        self._live.quiet()

    def settle(self, last: bool = False) -> None:
        """See Source."""
        self._live.settle(last)

    def unread(self, end_ns: int) -> Mapping[str, int]:
        """See Source."""
        return self._live.unread(end_ns)

    def losses(self) -> Sequence[Loss]:
        """See Source; also the records that could not be written."""
        lost = list(self._live.losses())
        self._lost = tuple(lost)
        if self._recorder.unwritten:
            lost.append(Loss(UNWRITTEN, self._recorder.path, self._recorder.unwritten))
        return lost

    _lost: Tuple[Loss, ...] = ()

    def close(self) -> None:
        """See Source."""
        self._live.close()
        if self._begun:
            ended_ns = self.ended_ns()
            end_ns = self._horizon_ns if ended_ns is None else min(ended_ns, self._horizon_ns)
            self._recorder.finish(End(end_ns, self._lost))
        self._recorder.close()


def _recorded(event: Captured, layout: Layout, format_source: Callable[[EventFormat], str]) -> RecordedEvent:
    wanted, kind = event.wanted, event.kind
    return RecordedEvent(
        wanted.context,
        wanted.label,
        wanted.name,
        wanted.number,
        kind.format.group if kind.format is not None else "",
        format_source(kind.format) if kind.format is not None else "",
        layout,
        kind.reads,
        kind.arguments,
        kind.symbols,
        kind.members,
        kind.plumbing,
        wanted.filters,
        None in wanted.filter_of,
    )
