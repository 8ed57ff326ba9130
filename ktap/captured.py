"""Event objects over captured records: every captured value under the name scripts know.

One class is made for each kind of point, with a property a name; the object is pointed at a record
(`event.record = values`) and reads nothing but that tuple, so live events and replayed ones are alike.
"""

from __future__ import annotations

from operator import itemgetter
from struct import Struct
from typing import Callable, Dict, List, Mapping, Optional, Sequence, Tuple

from ktap import demand
from ktap.event_format import INTEGER, POINTER, RETVAL, EventFormat, Field, reader
from ktap.layout import Layout, Values
from ktap.members import Member
from vm.event import VARIABLES
from vm.fault import Fault
from vm.named_tuple import NamedTuple
from vm.values import Cdata, Stack, wrap

RECORD, ARGUMENTS = "record", "arguments"
"""Slots: the raw record as the `format` file lays it out; the arguments of a raw tracepoint, 8 bytes each."""
KERNEL_STACK, USER_STACK = "kernel_stack", "user_stack"
"""Slots of return addresses, 8 bytes each, innermost first."""
READ, MEMBER = "read:", "member:"
"""Prefixes of slots: a memory read by its number, a member by its path."""
CALLER, KERNEL_CALLER = "caller", "kernel_caller"
"""Slots: where a function of a process, or of the kernel, returns to, which its stack does not tell before it has made a
frame."""
TASK, IN_INTERRUPT = "task", "in_interrupt"
"""Slots: the address of the running task, and bits of which one is set in an interrupt."""
PARENT = "curtask.real_parent.tgid"
"""What ppid is."""

WORD = Struct("=q").unpack_from

PLUMBING = (
    "bpf_prog_",
    "bpf_trace_run",
    "__bpf_trace_",
    "__traceiter_",
    "bpf_get_stack",
    "trace_call_bpf",
    "bpf_trampoline_",
)
"""How the symbols of frames between a raw tracepoint and its program begin."""
PLUMBING_FRAMES = 6
"""As many of them there are at most."""
TRAMPOLINES = ("kretprobe_trampoline", "__kretprobe_trampoline", "arch_rethook_trampoline", "return_to_handler")
"""What functions return to whose returns are probed, in place of their callers."""

BOOLEANS = (IN_INTERRUPT, "in_iowait")

SymbolOf = Callable[[int], str]
"""The symbol of a kernel address, as vm.host.Host.kernel_symbol gives it."""


class Kind(NamedTuple):
    """What a point's records hold, and how they are shown."""

    name: str
    """As probename gives it: `sched_switch`, `profile-99hz`."""
    layout: Layout
    format: Optional[EventFormat] = None
    reads: Tuple[demand.Read, ...] = ()
    """The read in slot `read:N`, by N."""
    arguments: Tuple[str, ...] = ()
    """Names of a raw tracepoint's arguments, empty strings where BTF knows none."""
    symbols: Mapping[str, int] = {}
    """Addresses of the kernel symbols in the reads."""
    plumbing: bool = False
    """The kernel stack begins with the frames that led to the capture program."""
    members: Tuple[Member, ...] = ()


class Plumbing(Dict[int, bool]):
    """Tells frames that lead from a traced place to its program, by the names of their functions."""

    def __init__(self, symbol_of: SymbolOf) -> None:
        self._symbol_of = symbol_of

    def __missing__(self, frame: int) -> bool:
        """Whether a frame is one."""
        found = self[frame] = self._symbol_of(frame & 0xFFFFFFFFFFFFFFFF).startswith(PLUMBING)
        return found

    def count(self, frames: Tuple[int, ...]) -> int:
        """How many of them a kernel stack begins with."""
        for count, frame in enumerate(frames[:PLUMBING_FRAMES]):
            if not self[frame]:
                return count
        return min(len(frames), PLUMBING_FRAMES)

    def with_caller(self, frames: Tuple[int, ...], caller: int) -> Tuple[int, ...]:
        """See with_caller; the same frames where a probe has already put itself in the caller's place."""
        if caller and self._symbol_of(caller & 0xFFFFFFFFFFFFFFFF).startswith(TRAMPOLINES):
            return frames
        return with_caller(frames, caller)


def stack_of(frames: Tuple[int, ...], space: str, pid: int) -> Stack:
    """A stack without the zeros behind its frames; an empty one is the same whatever process it is of."""
    while frames and frames[-1] == 0:
        frames = frames[:-1]
    return Stack(frames, space, pid if frames else 0)


class CapturedEvent:
    """The event a handler sees (see vm.event.Event): what every kind of point has in common."""

    __slots__ = ("record",)
    record: Values
    getters: Dict[str, Callable[[CapturedEvent], object]] = {}  # noqa: RUF012  # each class has its own, never changed
    kind: Kind
    reads: Tuple[Tuple[demand.Read, int], ...] = ()
    """Each read with the place of its value in the record."""
    places: Dict[str, int] = {}  # noqa: RUF012  # likewise
    plumbing: Plumbing

    def __init__(self) -> None:
        self.record = ()

    def field(self, path: str) -> object:
        """`args.PATH`; None for what this event does not have."""
        getter = self.getters.get("args." + path)
        return None if getter is None else getter(self)

    def task(self, path: str) -> object:
        """`curtask.PATH`; None where it could not be read."""
        getter = self.getters.get("curtask." + path)
        return None if getter is None else getter(self)

    def memory(self, space: str, kind: str, address: int, size: int) -> Optional[bytes]:
        """See vm.event.Event.memory."""
        found = False
        texts: List[Tuple[int, object]] = []
        for read, place in self.reads:
            if read.space != space or read.kind != kind:
                continue
            start = self._number(read.address)
            if start is None:
                continue
            data = self.record[place]
            behind = wrap(address - start)
            if kind == demand.STRING:
                if behind == 0:
                    texts.append((read.most_bytes, data))
            elif 0 <= behind < max(1, read.most_bytes):
                found = True
                if isinstance(data, bytes) and behind + size <= max(len(data), read.most_bytes):
                    return data[behind : behind + size]
        if texts:  # the shortest that has as many bytes: a longer one may have met memory that cannot be read
            enough = [text for text in texts if text[0] > size]
            _, data = min(enough, key=itemgetter(0)) if enough else max(texts, key=itemgetter(0))
            return data[:size] if isinstance(data, bytes) else None
        if found:
            return None
        raise LookupError(f"{space} memory at {address & 0xFFFFFFFFFFFFFFFF:#x} was not captured when the event fired")

    def _number(self, expression: demand.Expression) -> Optional[int]:
        """The value of an expression in this record, None where it has none."""
        return demand.evaluate(expression, self._known)

    def _known(self, expression: demand.Expression) -> Optional[int]:
        if isinstance(expression, demand.Value):
            value = self.value(expression.name)
            if isinstance(value, Cdata):
                return value.address
            return wrap(value) if isinstance(value, int) else None
        if isinstance(expression, demand.Symbol):
            return self.kind.symbols.get(expression.name)
        for read, place in self.reads:
            data = self.record[place]
            if read == expression and isinstance(data, bytes):
                return wrap(int.from_bytes(data, "little"))
        return None

    def value(self, name: str) -> object:
        """A variable by the name the EVENT opcode has for it."""
        getter = self.getters.get(name)
        return None if getter is None else getter(self)

    def stack(self, space: str, depth: int, skip: int) -> object:
        """The stack, `depth` frames behind the first `skip`; None where it could not be taken."""
        place = self.places.get(KERNEL_STACK if space == demand.KERNEL else USER_STACK)
        if place is None:
            raise Fault("event", f"the {space} stack was not captured with this event")
        data = self.record[place]
        if not isinstance(data, bytes):
            return Stack((), space)
        frames = Struct(f"={len(data) // 8}q").unpack(data)
        if self.kind.plumbing and space == demand.KERNEL:
            skip += self.plumbing.count(frames)
        caller = self.places.get(KERNEL_CALLER if space == demand.KERNEL else CALLER)
        if caller is not None:
            add = self.plumbing.with_caller if space == demand.KERNEL else with_caller
            frames = add(frames, wrap(self.record[caller]))  # type: ignore[arg-type]  # the layout says Q
        pid = self.value("pid") if space == demand.USER else 0
        return stack_of(frames[skip : skip + depth], space, pid if isinstance(pid, int) else 0)

    def state(self, name: str) -> object:
        """`in_interrupt`, `in_iowait` as booleans, any other name as a member of the task; None where it is not known."""
        place = self.places.get(IN_INTERRUPT) if name == IN_INTERRUPT else None
        value = self.record[place] if place is not None else self.value(f"curtask.{name}")
        return bool(value) if name in BOOLEANS and value is not None else value


def with_caller(frames: Tuple[int, ...], caller: int) -> Tuple[int, ...]:
    """A stack taken at a function's first instruction, with the caller, which is known, behind the function."""
    if caller == 0 or not frames or caller in frames[1:2]:
        return frames
    return (frames[0], caller, *frames[1:])


class Names(Dict[bytes, bytes]):
    """Task names by their 16 bytes, so that a name seen before costs one lookup."""

    MOST = 1 << 16

    def __missing__(self, raw: bytes) -> bytes:
        """The name up to its NUL."""
        if len(self) >= self.MOST:
            self.clear()
        name = self[raw] = raw.split(b"\0", 1)[0]
        return name


NAMES = Names()

Getter = Callable[[CapturedEvent], object]
TextOf = Callable[[bytes], bytes]
TableOf = Callable[[Sequence[object]], object]


def make_event(kind: Kind, text: Optional[TextOf], table: TableOf, symbol_of: SymbolOf) -> CapturedEvent:
    """The event object of a kind of point.

    `text` gives argstr of a raw record (None: the event has none), `table` makes a table of a field
    that is an array of integers, `symbol_of` names kernel addresses.
    """
    places = {slot.name: 3 + index for index, slot in enumerate(kind.layout.slots)}
    getters = _context(kind, places)
    if kind.format is not None and RECORD in places:
        getters.update(_fields(kind.format, places[RECORD], table))
        if text is not None:
            getters["argstr"] = _text(text, places[RECORD])
    elif ARGUMENTS in places:
        getters.update(_arguments(kind, places[ARGUMENTS]))
    getters.update({member.path: _member(member, places[MEMBER + member.path]) for member in kind.members})
    if PARENT in getters:
        getters["ppid"] = getters[PARENT]
    if TASK in places:
        getters["curtask"] = _task(places[TASK], getters)
    namespace: Dict[str, object] = {row.name: property(getters.get(row.name, _absent)) for row in VARIABLES}
    namespace["__slots__"] = ()
    namespace["getters"] = getters
    namespace["kind"] = kind
    namespace["places"] = places
    namespace["plumbing"] = Plumbing(symbol_of)
    namespace["reads"] = tuple((read, places[f"{READ}{number}"]) for number, read in enumerate(kind.reads))
    event: CapturedEvent = type("Event", (CapturedEvent,), namespace)()
    return event


def _absent(event: CapturedEvent) -> object:
    return None


def _context(kind: Kind, places: Mapping[str, int]) -> Dict[str, Getter]:
    name = kind.name.encode()
    getters: Dict[str, Getter] = {
        "nsecs": lambda event: event.record[0],
        "cpu": lambda event: event.record[2],
        "probename": lambda event: name,
    }
    pair = places.get("pid_tgid")
    if pair is not None:
        getters["pid"] = _high(pair)
        getters["tid"] = _low(pair)
    pair = places.get("uid_gid")
    if pair is not None:
        getters["uid"] = _low(pair)
        getters["gid"] = _high(pair)
    if "comm" in places:
        getters["execname"] = _name(places["comm"])
    if "ppid" in places:
        getters["ppid"] = _item(places["ppid"])
    if "cgroup" in places:
        getters["cgroup"] = _item(places["cgroup"])
    return getters


def _high(place: int) -> Getter:
    def get(event: CapturedEvent) -> object:
        number: Optional[int] = event.record[place]  # type: ignore[assignment]  # the layout says Q
        return None if number is None else number >> 32

    return get


def _low(place: int) -> Getter:
    def get(event: CapturedEvent) -> object:
        number: Optional[int] = event.record[place]  # type: ignore[assignment]  # the layout says Q
        return None if number is None else number & 0xFFFFFFFF

    return get


def _item(place: int) -> Getter:
    return lambda event: event.record[place]


def _name(place: int) -> Getter:
    names = NAMES

    def get(event: CapturedEvent) -> object:
        raw: Optional[bytes] = event.record[place]  # type: ignore[assignment]  # the layout says bytes
        return None if raw is None else names[raw]

    return get


def _text(text: TextOf, place: int) -> Getter:
    def get(event: CapturedEvent) -> object:
        return text(event.record[place])  # type: ignore[arg-type]  # the layout says bytes

    return get


def _fields(event_format: EventFormat, place: int, table: TableOf) -> Dict[str, Getter]:
    """`args.NAME` for every field, `argN` for the first ten."""
    getters: Dict[str, Getter] = {}
    for field in event_format.fields:
        getters[f"args.{field.name}"] = _integer_field(field, place) or _other_field(field, place, table)
    for number, field in enumerate(event_format.numbered[:10]):
        getters[f"arg{number}"] = getters[f"args.{field.name}"]
    exit_value = getters.get("args.ret")
    if event_format.is_syscall and exit_value is not None and event_format.name.startswith("sys_exit_"):
        getters["retval"] = exit_value
    if f"args.{RETVAL}" in getters:
        getters["retval"] = getters[f"args.{RETVAL}"]
    return getters


LETTERS = {1: "b", 2: "h", 4: "i", 8: "q"}


def _integer_field(field: Field, place: int) -> Optional[Getter]:
    if field.kind not in (INTEGER, POINTER):
        return None
    letter = LETTERS[field.size]
    unpack = Struct("=" + (letter if field.signed or field.size == 8 else letter.upper())).unpack_from
    offset = field.offset

    def get(event: CapturedEvent) -> object:
        return unpack(event.record[place], offset)[0]  # type: ignore[arg-type]  # the layout says bytes

    return get


def _other_field(field: Field, place: int, table: TableOf) -> Getter:
    read = reader(field, table)

    def get(event: CapturedEvent) -> object:
        return read(event.record[place])  # type: ignore[arg-type]  # the layout says bytes

    return get


def _arguments(kind: Kind, place: int) -> Dict[str, Getter]:
    """A raw tracepoint's arguments by number and name, and its text: `name=value` pairs."""
    getters: Dict[str, Getter] = {}
    for number, name in enumerate(kind.arguments):
        getter = _argument(place, number)
        if number < 10:
            getters[f"arg{number}"] = getter
        if name:
            getters[f"args.{name}"] = getter
    labels = [name or f"arg{number}" for number, name in enumerate(kind.arguments)]
    template = (f"{kind.name}: " + " ".join(f"{label}=0x%x" for label in labels)).rstrip().encode()
    words = Struct(f"={len(labels)}Q").unpack_from
    getters["argstr"] = lambda event: template % words(event.record[place])  # type: ignore[arg-type]
    return getters


def _argument(place: int, number: int) -> Getter:
    offset = 8 * number

    def get(event: CapturedEvent) -> object:
        return WORD(event.record[place], offset)[0]  # type: ignore[arg-type]  # the layout says bytes

    return get


def _member(member: Member, place: int) -> Getter:
    def get(event: CapturedEvent) -> object:
        data = event.record[place]
        return member.value(data) if isinstance(data, bytes) else None

    return get


def _task(place: int, getters: Mapping[str, Getter]) -> Getter:
    """The running task as a cdata: its members are those that were captured."""

    def within(event: CapturedEvent, path: str, address: int) -> Cdata:
        def member(key: object) -> object:
            name = key.decode("utf-8", "replace") if isinstance(key, bytes) else "?"
            longer = f"{path}.{name}"
            if any(known.startswith(longer + ".") for known in getters):
                return within(event, longer, 0)
            if longer not in getters:
                raise Fault(
                    "event", f"`{longer}` was not captured with this event", f"write {longer} as it stands here"
                )
            return getters[longer](event)

        return Cdata("struct task_struct *" if path == "curtask" else path, address, member)

    def get(event: CapturedEvent) -> object:
        return within(event, "curtask", wrap(event.record[place]))  # type: ignore[arg-type]  # the layout says Q

    return get
