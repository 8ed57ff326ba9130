"""What a handler in the kernel sees: the types of event values, where they lie, and the code that gets them."""

from __future__ import annotations

from typing import Callable, Dict, List, Optional, Protocol, Sequence, Tuple

from compiler.ir import Writer
from compiler.lower.flat import FlatHandler, NotLowered
from compiler.lower.texts import Texts
from compiler.lower.types import INTEGER, MAX_STRING_BYTES, NIL, PROBENAME, Type, argstr, join, string
from compiler.lower.values import Site, Value, integer, of_constant
from ktap import demand
from ktap.bodies import Access, Body
from ktap.capture import RAW, Frame
from ktap.captured import IN_INTERRUPT, PARENT
from ktap.event_format import INLINE, POINTER, REL_LOC, RETVAL, TEXT
from ktap.event_format import INTEGER as INTEGER_FIELD
from ktap.filling import caller, fill_shown, interrupt_bits
from ktap.layout import Layout
from ktap.members import Member
from ktap.plan import Wanted, field_of, has_plumbing, record_slot, value_places
from ktap.sending import send
from ktap.sites import COMM_BYTES, site_layout, site_slots
from vm.program import Span

CONTEXT = frozenset({"cpu", "pid", "tid", "uid", "gid", "cgroup", "nsecs"})
"""Integers that helpers give."""
MISSING = ""

EventType = Callable[[str, Span], Type]


# -- types and places -------------------------------------------------------------------------


def is_field(name: str) -> bool:
    """Whether an event variable is a field of the record, or a member of a structure."""
    return name in ("retval", "ppid") or name.startswith(("args.", "curtask.")) or is_numbered(name)


def is_numbered(name: str) -> bool:
    """`arg0` and so on."""
    return name.startswith("arg") and name[3:].isdigit()


def event_types(events: Sequence[Wanted]) -> EventType:
    """The type of a variable over all events of a probe."""

    def type_of(name: str, span: Span) -> Type:
        if name in CONTEXT:
            return INTEGER
        if name == "execname":
            return string(COMM_BYTES)
        if name == "probename":
            return PROBENAME
        if name == "argstr":
            return argstr(max(shown_bytes(event, span) for event in events))
        if name == IN_INTERRUPT:
            return INTEGER if all(IN_INTERRUPT in event.demand.states for event in events) else NIL
        if not is_field(name):
            raise NotLowered(span, f"reads {name}, which only the VM has")
        found = [field_type(event, name, span) for event in events]
        kind = found[0]
        for other in found[1:]:
            kind = join(kind, other)
        return kind

    return type_of


def shown_bytes(event: Wanted, span: Span) -> int:
    """Size of the raw record that gives the text of an event. Raises NotLowered where it is made of something else."""
    if event.format is None or event.recipe is not None:
        raise NotLowered(span, "reads argstr of an event that has no record, which only the VM has")
    return record_slot(event.context, event.format).size_bytes


def field_type(event: Wanted, name: str, span: Span) -> Type:
    """The type of a field or a member."""
    member = member_of(event, name)
    if member is not None:
        return join(NIL, string(member.read.most_bytes) if member.text else INTEGER)
    where = access(event, name)
    if where.kind == MISSING:
        return NIL
    if where.kind in (INTEGER_FIELD, POINTER):
        return INTEGER
    if where.kind == TEXT:
        return string(where.size_bytes if where.place == INLINE else MAX_STRING_BYTES)
    raise NotLowered(span, f"reads {name}, an array")


def member_of(event: Wanted, name: str) -> Optional[Member]:
    """The member of a structure that a path names."""
    path = PARENT if name == "ppid" else name
    return next((member for member in event.members if member.path == path), None)


def access(event: Wanted, name: str) -> Access:
    """Where an event has a field."""
    if event.context == RAW:
        place = argument_number(event, name)
        return Access(name) if place is None else Access(name, INTEGER_FIELD, 8 * place, 8, True, INLINE)
    field = field_of(event.format, name) if event.format is not None else None
    if field is None or (name == "retval" and field.name != RETVAL and not event.name.startswith("sys_exit_")):
        return Access(name)
    return Access(name, field.kind, field.offset, field.size, field.signed, field.place)


def argument_number(event: Wanted, name: str) -> Optional[int]:
    """The number of a raw tracepoint's argument."""
    if name.startswith("args."):
        return event.arguments.index(name[5:]) if name[5:] in event.arguments else None
    return int(name[3:]) if is_numbered(name) and int(name[3:]) < len(event.arguments) else None


# -- code -------------------------------------------------------------------------------------


def reads_time(flat: FlatHandler) -> bool:
    """Whether a handler looks at the clock."""
    operations = (operation for block in flat.blocks for operation in block.operations)
    return any((o.op == "EVENT" and o.name == "nsecs") or o.name.startswith("gettimeofday_") for o in operations)


class Run(Protocol):
    """What all handlers in the kernel have in common (see ktap.lowered.Lowering)."""

    names: Tuple[bytes, ...]
    """probename by the number of the event."""

    def site(self, site: Site) -> int:
        """The number of a site, as an event's."""


class FrameEnvironment:
    """See compiler.lower.values.Environment: event values out of a capture program's frame."""

    def __init__(self, run: Run, frame: Frame, body: Body, event: str) -> None:
        """`event` is the event's number as an operand."""
        self.run = run
        self.frame = frame
        self.writer: Writer = frame.w
        self.accesses = {place.name: place for place in body.accesses}
        self.members = dict(body.members)
        self.shown_bytes = body.shown_bytes
        self.enters = body.enters
        self.event_number = event
        self.time = ""

    def begin(self, flat: FlatHandler) -> None:
        """Read what must be the same through the whole handler."""
        if reads_time(flat):
            self.time = self.frame.time or self.writer.call("ktime_get_ns")

    def event(self, name: str, texts: Texts) -> Value:
        """See Environment.event."""
        w, task = self.writer, self.frame.task
        if name in self.members:
            return self._member(self.members[name], texts)
        if name in self.accesses:
            return self._field(self.accesses[name], texts)
        if name == "execname":
            room = texts.room(COMM_BYTES)
            self.frame.write_name(room)
            return Value(string(COMM_BYTES), pointer=room)
        if name == "probename":
            return Value(PROBENAME, self.event_number)
        if name == "argstr":
            return Value(argstr(self.shown_bytes), self.event_number)
        if name == "cpu":
            return integer(w.value(f"zext i32 {task.event_cpu or task.cpu} to i64"), INTEGER)
        if name == "nsecs":
            return integer(self.time, INTEGER)
        if name == IN_INTERRUPT:
            return integer(w.value(f"zext i32 {interrupt_bits(self.frame)} to i64"), INTEGER)
        if name == "cgroup":
            return integer(w.call("get_current_cgroup_id"), INTEGER)
        pair = task.pair if name in ("pid", "tid") else w.call("get_current_uid_gid")
        if name in ("pid", "gid"):
            return integer(w.value(f"lshr i64 {pair}, 32"), INTEGER)
        if name in ("tid", "uid"):
            return integer(w.value(f"and i64 {pair}, 4294967295"), INTEGER)
        raise NotLowered(None, f"reads {name}, which only the VM has")

    def _field(self, place: Access, texts: Texts) -> Value:
        w = self.writer
        if place.kind == MISSING:
            return of_constant(None)
        if place.kind in (INTEGER_FIELD, POINTER):
            return integer(w.load_wide(place.size_bytes, place.signed, self.frame.base, place.offset), INTEGER)
        start = w.value(f"ptrtoint ptr {w.at(self.frame.base, place.offset)} to i64")
        if place.place == INLINE:
            room = texts.room(place.size_bytes + 1)
            texts.clear(room, (place.size_bytes + 8) & ~7)
            length = w.call("probe_read_kernel_str", room, place.size_bytes + 1, start)
            return Value(string(place.size_bytes), pointer=room, length=self._text_length(length), zeros=True)
        room = texts.room(MAX_STRING_BYTES + 1)
        word = w.load_wide(4, False, self.frame.base, place.offset)
        start = w.value(f"ptrtoint ptr {self.frame.base} to i64")
        start = w.value(f"add i64 {start}, {w.value(f'and i64 {word}, 65535')}")
        if place.place == REL_LOC:
            start = w.value(f"add i64 {start}, {place.offset + 4}")
        size = texts.bounded(w.value(f"add i64 {w.value(f'lshr i64 {word}, 16')}, 1"), MAX_STRING_BYTES + 1)
        length = w.call("probe_read_kernel_str", room, size, start)
        return Value(string(MAX_STRING_BYTES), pointer=room, length=self._text_length(length))

    def _text_length(self, result: str) -> str:
        """The length of a string from what reading it gave; 0 where it could not be read."""
        w = self.writer
        read = w.value(f"icmp sgt i64 {result}, 0")
        return w.value(f"select i1 {read}, i64 {w.value(f'sub i64 {result}, 1')}, i64 0")

    def _member(self, member: Member, texts: Texts) -> Value:
        """A member of a structure; nil where it cannot be read."""
        w = self.writer
        size = member.read.most_bytes
        address = self.frame.expression(member.read.address)
        if member.text:
            room = texts.room(size + 1)
            texts.clear(room, (size + 8) & ~7)
            length = w.call("probe_read_kernel_str", room, size + 1, address)
            failed = w.value(f"icmp slt i64 {length}, 0")
            return Value(join(NIL, string(size)), "0", failed, room, self._text_length(length), zeros=True)
        room = w.local(8, "member")
        w.store(8, 0, room)
        failed = w.value(f"icmp ne i64 {w.call('probe_read_kernel', room, size, address)}, 0")
        number = w.load(8, room)
        bits = member.bits or 8 * size
        up = 64 - bits - member.shift
        if up:
            number = w.value(f"shl i64 {number}, {up}")
        if bits < 64:
            number = w.value(f"{'ashr' if member.signed else 'lshr'} i64 {number}, {64 - bits}")
        return Value(join(NIL, INTEGER), number, failed)

    def is_named(self, number: str, name: bytes) -> str:
        """See Environment.is_named."""
        test = "false"
        for index, known in enumerate(self.run.names):
            if known == name:
                same = self.writer.value(f"icmp eq i64 {number}, {index}")
                test = same if test == "false" else self.writer.value(f"or i1 {test}, {same}")
        return test

    @property
    def plumbing(self) -> bool:
        """See Environment.plumbing."""
        return has_plumbing(self.frame.spec.context)

    def caller(self, space: str) -> str:
        """See Environment.caller."""
        return caller(self.frame) if self.enters == space else "0"

    def number(self, name: str) -> str:
        """See Environment.number."""
        return self.writer.number(name)

    # -- records --------------------------------------------------------------------------------

    def send(self, site: Site, values: Sequence[Value], texts: Texts) -> None:
        """See Environment.send."""
        layout = site_layout(site)
        then = self.writer.fresh("sent")
        point = str(self.run.site(site) << self.frame.spec.bits)

        def fill(space: str) -> str:
            return self._fill(site_slots(site, values), layout, space, point, texts)

        send(self.frame, layout, self.event_number, fill, then)
        self.writer.label(then)

    def _fill(
        self, slots: Sequence[Tuple[str, Tuple[Value, str]]], layout: Layout, space: str, point: str, texts: Texts
    ) -> str:
        w = self.writer
        w.store(4, point, space, 8)
        w.store(4, self.frame.task.cpu, space, 12)
        found = dict(slots)
        position = str(layout.fixed_bytes)
        for index, slot in enumerate(layout.slots):
            value, part = found[slot.name]
            offset = layout.offset(index)
            if part in ("nil", "text"):
                w.store(1, w.value(f"zext i1 {value.isnil if part == 'nil' else value.istext} to i8"), space, offset)
            elif part == "record":
                length = fill_shown(self.frame, w.at(space, position), self.shown_bytes)
                w.store(4, w.narrowed(length, 4), space, offset)
                position = w.value(f"add i64 {position}, {length}")
            elif slot.varies:
                if value.constant is not None:
                    value = texts.placed(value.constant)
                position = self._varying(value, slot.size_bytes, space, offset, position)
            elif part == "bytes":
                texts.place(value, w.at(space, offset), slot.size_bytes)
            else:
                w.store(8, value.number, space, offset)
        return position

    def _varying(self, value: Value, most_bytes: int, space: str, offset: int, position: str) -> str:
        """Copy bytes behind the fixed part; the new position."""
        w = self.writer
        if not most_bytes:
            w.store(4, 0, space, offset)
            return position
        length = str(value.type.size_bytes) if value.length is None else value.length
        over = w.value(f"icmp ugt i64 {length}, {most_bytes}")
        length = w.value(f"select i1 {over}, i64 {most_bytes}, i64 {length}")
        if value.type.can_be("nil"):
            length = w.value(f"select i1 {value.isnil}, i64 0, i64 {length}")
        source = w.value(f"ptrtoint ptr {value.pointer} to i64")
        w.call("probe_read_kernel", w.at(space, position), w.value(f"trunc i64 {length} to i32"), source)
        w.store(4, w.value(f"trunc i64 {length} to i32"), space, offset)
        return w.value(f"add i64 {position}, {length}")


def reads(event: Wanted, names: Sequence[str]) -> Tuple[Access, ...]:
    """The fields of an event among the variables that a handler reads."""
    fields: List[str] = [name for name in names if is_field(name) and member_of(event, name) is None]
    return tuple(access(event, name) for name in sorted(fields))


def members(event: Wanted, names: Sequence[str]) -> Dict[str, Member]:
    """The members of structures among them."""
    place_of = value_places(event, {})
    found: Dict[str, Member] = {}
    for name in names:
        member = member_of(event, name) if is_field(name) else None
        read = demand.placed(member.read, place_of) if member is not None else None
        if member is not None and isinstance(read, demand.Read):
            found[name] = member._replace(read=read)
    return found
