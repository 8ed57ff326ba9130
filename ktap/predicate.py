"""Filters for one event: names resolved to places in its record, and the predicate lowered to code.

A comparison means what it means in the kernel's own filter (kernel/trace/trace_events_filter.c): the
number is cut to the field's size and compared with its sign, a string is compared up to its NUL. A
name is the event's field first, then one of CONTEXT.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Iterator, Optional, Sequence, Tuple, Union

from ktap.event_format import DATA_LOC, INLINE, INTEGER, POINTER, REL_LOC, RETVAL, TEXT, EventFormat, Field
from ktap.glob import MOST_TEXT_BYTES, TEXT_VALUE_BYTES, Text, equal, glob_match, name_length, parse_glob
from vm.named_tuple import NamedTuple

if TYPE_CHECKING:
    from compiler import filter as syntax
    from ktap.capture import Frame

LONGEST_WORD = 255
UNDECIDED_OFFSET = TEXT_VALUE_BYTES - 16
"""In a value of the map `text`: whether a filter could not be decided."""
USER, KERNEL = "user", "kernel"

CONTEXT = {"pid": 4, "tid": 4, "uid": 4, "cpu": 4, "execname": 16}
"""What a filter may name besides the event's fields, and its size in bytes."""
ALIASES = {"comm": "execname", "COMM": "execname", "CPU": "cpu", "common_pid": "tid"}
"""Names that the kernel's filters have for them."""

COMPARISONS = {
    "==": ("eq", "eq"),
    "!=": ("ne", "ne"),
    "<": ("slt", "ult"),
    "<=": ("sle", "ule"),
    ">": ("sgt", "ugt"),
    ">=": ("sge", "uge"),
}
"""Operators, as LLVM compares signed and unsigned integers."""


class IntegerAt(NamedTuple):
    """An integer in the record (or among a raw tracepoint's arguments)."""

    offset: int
    size_bytes: int
    signed: bool


class TextAt(NamedTuple):
    """A string: in the record, behind a `__data_loc` or `__rel_loc` word, or behind a pointer (`space` says whose)."""

    offset: int
    size_bytes: int
    place: str
    space: str = ""


class Running(NamedTuple):
    """A row of CONTEXT."""

    name: str


class Test(NamedTuple):
    """One comparison."""

    subject: Union[IntegerAt, TextAt, Running]
    operator: str
    value: Union[int, bytes]


class Negated(NamedTuple):
    """Not."""

    inner: Predicate


class All(NamedTuple):
    """All of several."""

    parts: Tuple[Predicate, ...]
    sign: str = "&&"


class Some(NamedTuple):
    """At least one of several."""

    parts: Tuple[Predicate, ...]
    sign: str = "||"


Predicate = Union[Test, Negated, All, Some]


class Unfit(Exception):
    """A filter that does not fit an event; `about_event`: another event of a glob may take it."""

    def __init__(self, message: str, hint: Optional[str] = None, about_event: bool = False) -> None:
        super().__init__(message)
        self.hint = hint
        self.about_event = about_event


class Subject(NamedTuple):
    """The event a filter is for."""

    label: str
    format: Optional[EventFormat]
    arguments: Sequence[str] = ()
    """Names of a raw tracepoint's arguments."""


def predicate(tree: syntax.Predicate, event: Subject) -> Predicate:
    """The filter for one event. Raises Unfit."""
    from compiler import filter as syntax

    if isinstance(tree, syntax.Not):
        return Negated(predicate(tree.inner, event))
    if isinstance(tree, syntax.And):
        return All(tuple(predicate(part, event) for part in tree.parts))
    if isinstance(tree, syntax.Or):
        return Some(tuple(predicate(part, event) for part in tree.parts))
    return _test(tree, event)


def _test(tree: syntax.Compare, event: Subject) -> Test:
    name, _, suffix = tree.field.partition(".ustring")
    subject = _subject(name, event, tree, bool(tree.field.endswith(".ustring")) and not suffix)
    value: Union[int, bytes] = tree.value
    numeric = isinstance(subject, IntegerAt) or (isinstance(subject, Running) and subject.name != "execname")
    if numeric and isinstance(value, bytes):
        shown = value.decode("utf-8", "replace")
        raise Unfit(f"`{name}` of `{event.label}` is a number and cannot be compared with `{shown}`", about_event=True)
    if not numeric:
        if isinstance(value, int):
            value = b"%d" % value
        if tree.op not in ("==", "!=", "~"):
            raise Unfit(f"`{name}` of `{event.label}` is a string: only ==, != and ~ compare it", about_event=True)
        if len(value) > LONGEST_WORD:
            raise Unfit(f"a string of more than {LONGEST_WORD} bytes in a filter")
    return Test(subject, tree.op, value)


def _subject(name: str, event: Subject, tree: syntax.Compare, user: bool) -> Union[IntegerAt, TextAt, Running]:
    plain = name[5:] if name.startswith("args.") else name
    if plain == "retval" and event.format is not None and event.format.field(RETVAL) is not None:
        plain = RETVAL
    field = next((f for f in event.format.fields if f.name == plain), None) if event.format is not None else None
    if field is not None:
        return _field_subject(field, event, tree, user)
    if plain in event.arguments:
        return IntegerAt(8 * list(event.arguments).index(plain), 8, True)
    context = ALIASES.get(plain, plain)
    if context in CONTEXT:
        return Running(context)
    from compiler.spell import suggest

    known = [f.name for f in event.format.fields] if event.format is not None else list(event.arguments)
    near = suggest(plain, [*known, *CONTEXT])
    hint = f"did you mean `{near}`?" if near else "it can name " + ", ".join([*filter(None, known), *CONTEXT])
    raise Unfit(f"`{event.label}` has no field `{plain}`", hint, about_event=True)


def _field_subject(field: Field, event: Subject, tree: syntax.Compare, user: bool) -> Union[IntegerAt, TextAt]:
    if field.kind == POINTER and isinstance(tree.value, bytes):
        if field.type.replace("const ", "").strip() not in ("char *", "char*"):
            raise Unfit(f"`{field.name}` of `{event.label}` is a pointer, but not to a string", about_event=True)
        space = USER if user or (event.format is not None and event.format.is_syscall) else KERNEL
        return TextAt(field.offset, field.size, POINTER, space)
    if field.kind in (INTEGER, POINTER):
        return IntegerAt(field.offset, field.size, field.signed)
    if field.kind == TEXT:
        return TextAt(field.offset, field.size, field.place)
    raise Unfit(f"`{field.name}` of `{event.label}` is an array and cannot be compared", about_event=True)


# -- lowering -------------------------------------------------------------------------------------


def looks_to(condition: Predicate) -> float:
    """How far into the record a condition looks, in bytes."""
    if isinstance(condition, Test):
        subject = condition.subject
        if isinstance(subject, Running):
            return 0
        return subject.offset + subject.size_bytes if isinstance(subject, IntegerAt) else inf
    if isinstance(condition, Negated):
        return looks_to(condition.inner)
    return max(looks_to(part) for part in condition.parts)


def looked_at(condition: Predicate) -> Iterator[Tuple[int, int]]:
    """Where in the record a condition looks: offset and size."""
    if isinstance(condition, Negated):
        yield from looked_at(condition.inner)
    elif isinstance(condition, (All, Some)):
        for part in condition.parts:
            yield from looked_at(part)
    elif not isinstance(condition.subject, Running):
        yield condition.subject.offset, condition.subject.size_bytes


def needs_text(what: Predicate) -> bool:
    """Whether it reads strings into the map `text`."""
    if isinstance(what, Negated):
        return needs_text(what.inner)
    if isinstance(what, (All, Some)):
        return any(needs_text(part) for part in what.parts)
    return what.operator == "~" or (isinstance(what.subject, TextAt) and what.subject.place != INLINE)


def reads_process(what: Predicate) -> bool:
    """Whether it looks at memory of the process, which may not be in RAM when a system call is entered."""
    if isinstance(what, Negated):
        return reads_process(what.inner)
    if isinstance(what, (All, Some)):
        return any(reads_process(part) for part in what.parts)
    return isinstance(what.subject, TextAt) and what.subject.space == USER


def searches(what: Predicate) -> int:
    """How many searches for a segment of a glob are in it."""
    if isinstance(what, Negated):
        return searches(what.inner)
    if isinstance(what, (All, Some)):
        return sum(searches(part) for part in what.parts)
    return parse_glob(what.value).searches if what.operator == "~" and isinstance(what.value, bytes) else 0


def lower(frame: Frame, what: Predicate, yes: str, no: str) -> None:
    """End the block with a jump to one of two labels."""
    w = frame.w
    if isinstance(what, Negated):
        lower(frame, what.inner, no, yes)
    elif isinstance(what, (All, Some)):
        for part in what.parts[:-1]:
            following = w.fresh("test")
            if isinstance(what, All):
                lower(frame, part, following, no)
            else:
                lower(frame, part, yes, following)
            w.label(following)
        lower(frame, what.parts[-1], yes, no)
    elif isinstance(what.value, bytes):
        _lower_text(frame, what, what.value, yes, no)
    else:
        w.branch(_compare(frame, what, what.value), yes, no)


def _compare(frame: Frame, test: Test, value: int) -> str:
    """A comparison of integers, as an i1."""
    w, subject = frame.w, test.subject
    if isinstance(subject, IntegerAt):
        size, signed = subject.size_bytes, subject.signed
        number = w.load(size, frame.base, subject.offset)
    else:
        assert isinstance(subject, Running)
        size, signed = 4, False
        number = _running(frame, subject.name)
    value &= (1 << 8 * size) - 1
    if test.operator == "&":
        both = w.value(f"and i{8 * size} {number}, {value}")
        return w.value(f"icmp ne i{8 * size} {both}, 0")
    return w.value(f"icmp {COMPARISONS[test.operator][0 if signed else 1]} i{8 * size} {number}, {value}")


def _running(frame: Frame, name: str) -> str:
    """A number of CONTEXT as an i32."""
    w = frame.w
    if name == "cpu":
        return frame.task.event_cpu or frame.task.cpu
    if name == "uid":
        return w.value(f"trunc i64 {w.call('get_current_uid_gid')} to i32")
    pair = frame.task.pair
    if name == "pid":
        pair = w.value(f"lshr i64 {pair}, 32")
    return w.value(f"trunc i64 {pair} to i32")


def _lower_text(frame: Frame, test: Test, value: bytes, yes: str, no: str) -> None:
    """A comparison of strings."""
    w, subject = frame.w, test.subject
    if test.operator == "!=":
        yes, no = no, yes
    pattern = parse_glob(value) if test.operator == "~" else None
    if pattern is not None and pattern.is_plain:
        value, pattern = pattern.plain, None
    if isinstance(subject, Running) and pattern is None:
        room = w.local(16, "name")
        frame.write_name(room)
        w.branch(equal(w, Text(room, 0, 16), value), yes, no)
        return
    if isinstance(subject, Running):
        area = text_area(frame)
        frame.write_name(area)
        length = name_length(w, area)
        assert pattern is not None
        glob_match(w, Text(area, 0, 16), length, pattern, frame.searches, yes, no)
        return
    assert isinstance(subject, TextAt)
    if subject.place == INLINE and pattern is None:
        w.branch(equal(w, Text(frame.base, subject.offset, subject.size_bytes), value), yes, no)
        return
    most = MOST_TEXT_BYTES if pattern is not None else len(value) + 2
    if subject.place == INLINE:
        most = min(most, subject.size_bytes)
    area, length = _read_text(frame, subject, most, no)
    text = Text(area, 0, most)
    if pattern is not None:
        glob_match(w, text, length, pattern, frame.searches, yes, no)
        return
    w.only_if(w.value(f"icmp eq i64 {length}, {len(value)}"), no)
    w.branch(equal(w, text, value), yes, no)


def _read_text(frame: Frame, subject: TextAt, most: int, otherwise: str) -> Tuple[str, str]:
    """A string copied to the map `text`: where it is, and its length as an i64."""
    w = frame.w
    space = subject.space or KERNEL
    if subject.place == POINTER:
        address = w.load(8, frame.base, subject.offset)
    else:
        start = str(subject.offset)
        if subject.place in (DATA_LOC, REL_LOC):
            word = w.load_wide(4, False, frame.base, subject.offset)
            start = w.value(f"and i64 {word}, 65535")
            if subject.place == REL_LOC:
                start = w.value(f"add i64 {start}, {subject.offset + 4}")
        address = w.value(f"add i64 {w.value(f'ptrtoint ptr {frame.base} to i64')}, {start}")
    area = text_area(frame)
    result = w.text_bytes(w.call(f"probe_read_{space}_str", area, most, address))
    unread = otherwise
    if space == USER and frame.tentative:
        unread = w.fresh("unread")
        frame.undecided.append((unread, otherwise))
    w.only_if(w.value(f"icmp sgt i64 {result}, 0"), unread)
    return area, w.value(f"sub i64 {result}, 1")


def text_area(frame: Frame) -> str:
    """This processor's value of the map `text`."""
    key = frame.w.local(4, "key")
    frame.w.store(4, frame.task.cpu, key)
    return frame.w.lookup("text", key)
