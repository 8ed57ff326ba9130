"""Strings in BPF code: equality, and globs as the kernel's filters have them (`* ? [a-z] [!a-z]`).

A glob is cut at its stars into segments of known length: the first is tried at the start, the last at
the end, and the ones between are looked for in order, each at the first place where it fits, which is
right for globs. Source of the syntax: lib/glob.c.
"""

from __future__ import annotations

from typing import List, Optional, Tuple, Union

from compiler.ir import Writer
from vm.named_tuple import NamedTuple

MOST_TEXT_BYTES = 4096
"""Of a string that is compared."""
TEXT_VALUE_BYTES = 3 * MOST_TEXT_BYTES
"""Of a value of the map `text`: a string, and room for a segment to be tried behind its end."""
MOST_STEPS = 700_000
"""Instructions that the verifier may have to walk for all searches of a program (it takes a million)."""
MOST_ROUNDS = 7_500
"""Rounds of all searches of a program: each leaves the verifier a way to come back to (BPF_COMPLEXITY_LIMIT_JMP_SEQ)."""


class Text(NamedTuple):
    """A string at an offset of a pointer; so many bytes of it may be read."""

    base: str
    offset: int
    size_bytes: int


class Any(NamedTuple):
    """`?`: any byte but NUL."""


class OneOf(NamedTuple):
    """`[a-z]`: a byte in one of the ranges, or (negated) in none."""

    ranges: Tuple[Tuple[int, int], ...]
    negated: bool


Item = Union[int, Any, OneOf]
Segment = Tuple[Item, ...]


class Glob(NamedTuple):
    """Segments between stars: one segment is a glob without a star."""

    segments: Tuple[Segment, ...]

    @property
    def searches(self) -> int:
        """How many segments have to be looked for."""
        return sum(1 for segment in self.segments[1:-1] if segment)

    @property
    def is_plain(self) -> bool:
        """Whether it matches one word only."""
        return len(self.segments) == 1 and all(isinstance(item, int) for item in self.segments[0])

    @property
    def plain(self) -> bytes:
        """That word."""
        return bytes(item for item in self.segments[0] if isinstance(item, int))


def parse_glob(pattern: bytes) -> Glob:
    """Cut a pattern into segments. A `[` without its `]` stands for itself, as does a byte behind a backslash."""
    segments: List[Segment] = []
    current: List[Item] = []
    at = 0
    while at < len(pattern):
        byte = pattern[at : at + 1]
        at += 1
        if byte == b"*":
            segments.append(tuple(current))
            current = []
        elif byte == b"?":
            current.append(Any())
        elif byte == b"[":
            found = _one_of(pattern, at)
            if found is None:
                current.append(byte[0])
            else:
                current.append(found[0])
                at = found[1]
        else:
            if byte == b"\\" and at < len(pattern):
                byte = pattern[at : at + 1]
                at += 1
            current.append(byte[0])
    segments.append(tuple(current))
    return Glob(tuple(segments))


def _one_of(pattern: bytes, at: int) -> Optional[Tuple[OneOf, int]]:
    """The class that starts behind a `[`, and where it ends."""
    negated = pattern[at : at + 1] == b"!"
    at += negated
    end = pattern.find(b"]", at + 1)
    if end < 0:
        return None
    ranges: List[Tuple[int, int]] = []
    while at < end:
        if at + 2 < end and pattern[at + 1 : at + 2] == b"-":
            ranges.append((pattern[at], pattern[at + 2]))
            at += 3
        else:
            ranges.append((pattern[at], pattern[at]))
            at += 1
    return OneOf(tuple(ranges), negated), end + 1


# -- code -----------------------------------------------------------------------------------------


def equal(w: Writer, text: Text, word: bytes) -> str:
    """Whether the string is the word, as an i1: compared in pieces as wide as the place allows."""
    if len(word) > text.size_bytes:
        return "false"
    wanted = word + b"\0" if len(word) < text.size_bytes else word
    difference = ""
    at = 0
    while at < len(wanted):
        size = next(n for n in (8, 4, 2, 1) if (text.offset + at) % n == 0 and n <= len(wanted) - at)
        piece = w.load_wide(size, False, text.base, text.offset + at)
        other = w.value(f"xor i64 {piece}, {int.from_bytes(wanted[at : at + size], 'little')}")
        difference = w.value(f"or i64 {difference}, {other}") if difference else other
        at += size
    return w.value(f"icmp eq i64 {difference}, 0") if difference else "true"


def glob_match(w: Writer, text: Text, length: str, glob: Glob, searches: int, yes: str, no: str) -> None:
    """End the block with a jump: does the string, `length` bytes (an i64) in a value of the map `text`, match?

    `searches` is how many there are in the whole program, which share what the verifier takes.
    """
    first, last = glob.segments[0], glob.segments[-1]
    if len(glob.segments) == 1:
        w.only_if(w.value(f"icmp eq i64 {length}, {len(first)}"), no)
        w.branch(_fits(w, text.base, first), yes, no)
        return
    least = sum(len(segment) for segment in glob.segments)
    w.only_if(w.value(f"icmp uge i64 {length}, {least}"), no)
    w.only_if(w.value(f"icmp ule i64 {length}, {text.size_bytes}"), no)
    if first:
        w.only_if(_fits(w, text.base, first), no)
    end = w.value(f"sub i64 {length}, {len(last)}")
    if last:
        w.only_if(_fits(w, w.at(text.base, end), last), no)
    position = str(len(first))
    for segment in glob.segments[1:-1]:
        if segment:
            position = _search(w, text, position, end, segment, searches, no)
    w.goto(yes)


def name_length(w: Writer, area: str) -> str:
    """The length of a task's name (16 bytes, NUL and all) as an i64, without a loop: the place of its first NUL."""
    length = "16"
    for at in range(15, -1, -1):
        byte = w.load(1, area, at)
        ends = w.value(f"icmp eq i8 {byte}, 0")
        length = w.value(f"select i1 {ends}, i64 {at}, i64 {length}")
    return length


def _fits(w: Writer, base: str, segment: Segment) -> str:
    """Whether a segment fits at a place, as an i1."""
    return w.value(f"icmp eq i64 {_misfit(w, base, segment)}, 0")


def _misfit(w: Writer, base: str, segment: Segment) -> str:
    """0 where a segment fits at a place, else more, as an i64: computed without branches."""
    result = ""
    for at, item in enumerate(segment):
        if isinstance(item, Any):
            continue
        byte = w.load_wide(1, False, base, at)
        one = w.value(f"xor i64 {byte}, {item}") if isinstance(item, int) else _outside(w, byte, item)
        result = w.value(f"or i64 {result}, {one}") if result else one
    return result or "0"


def _outside(w: Writer, byte: str, item: OneOf) -> str:
    """0 where a byte is one of a class, else 1."""
    inside = ""
    for low, high in item.ranges:
        behind = w.value(f"and i64 {w.value(f'sub i64 {byte}, {low}')}, 255")
        less = w.value(f"sub i64 {behind}, {max(high - low, 0) + 1}")
        one = w.value(f"lshr i64 {less}, 63")
        inside = w.value(f"or i64 {inside}, {one}") if inside else one
    return inside if item.negated else w.value(f"xor i64 {inside}, 1")


def _search(w: Writer, text: Text, start: str, end: str, segment: Segment, searches: int, no: str) -> str:
    """The position behind the first place from `start` on where a segment fits before `end`; goes to `no` for none.

    Each round has one branch that the verifier cannot decide. The position goes through the map's
    value, so that the verifier walks what follows once and not for each place.
    """
    most = min(text.size_bytes, MOST_ROUNDS // searches, MOST_STEPS // searches // (4 * len(segment) + 40))
    before, head, following, found = (w.fresh(name) for name in ("before", "search", "next", "found"))
    count, further = f"%{w.fresh('count')}", f"%{w.fresh('further')}"
    w.only_if(w.value(f"icmp ule i64 {start}, {MOST_TEXT_BYTES}"), no)
    w.goto(before)
    w.label(before)
    w.goto(head)
    w.label(head)
    w.do(f"{count} = phi i64 [ 0, %{before} ], [ {further}, %{following} ]")
    w.only_if(w.value(f"icmp ult i64 {count}, {most}"), no)
    position = w.value(f"add i64 {start}, {count}")
    misfit = _misfit(w, w.at(text.base, position), segment)
    behind = w.value(f"add i64 {position}, {len(segment)}")
    past = w.value(f"lshr i64 {w.value(f'sub i64 {end}, {behind}')}, 63")
    missed = w.value(f"lshr i64 {w.value(f'sub i64 0, {misfit}')}, 63")
    goes_on = w.value(f"and i64 {missed}, {w.value(f'xor i64 {past}, 1')}")
    w.branch(w.value(f"icmp eq i64 {goes_on}, 0"), found, following)
    w.label(following)
    w.do(f"{further} = add i64 {count}, 1")
    w.goto(head)
    w.label(found)
    w.only_if(w.value(f"icmp eq i64 {past}, 0"), no)
    w.only_if(w.value(f"icmp eq i64 {misfit}, 0"), no)
    w.store(8, behind, text.base, TEXT_VALUE_BYTES - 8)
    again = w.value(f"load volatile i64, ptr {w.at(text.base, TEXT_VALUE_BYTES - 8)}, align 8")
    return w.value(
        f"and i64 {again}, {2 * MOST_TEXT_BYTES - 1}"
    )  # Linux 6.1 knows of no bounds that come after a spill
