"""Strings in emitted code: where their bytes lie, how they are copied, padded and compared.

All of them are free of NULs (events give C strings, and a constant with a NUL keeps its handler in the
VM), so a string that is padded with zeros needs no length.
"""

from __future__ import annotations

from typing import Iterator, List, Sequence, Tuple

from compiler.ir import BITS, Writer
from compiler.lower.flat import NotLowered
from compiler.lower.layouts import rounded
from compiler.lower.types import string
from compiler.lower.values import Value
from vm.values import MAX_INTEGER

MOST_STACK_BYTES = 208
"""How much of a program's 512 bytes of stack a handler may take; what is more lies in the map `room`."""
MOST_STACKED_BYTES = 64
"""Larger pieces lie in the map at once."""
PIECE_BYTES = 64
"""So much of long strings is compared at once."""
MOST_DIGITS, DIGITS_ROOM = 19, 32
"""Digits of an integer, and room for them and a sign: a power of two."""
ONES, HIGH_BITS = 0x0101010101010101, -0x7F7F7F7F7F7F7F80
"""The lowest and the highest bit of every byte of a word."""
MOST_STORED_BYTES = 256
"""Up to here bytes are copied and compared by instructions, above by a helper."""


class Texts:
    """Room for bytes, and what is done with strings."""

    def __init__(self, writer: Writer, prefix: str, on_stack: bool) -> None:
        """`on_stack`: the stack may be used. (What it holds the verifier follows from round to round of a loop.)"""
        self.w = writer
        self.on_stack = on_stack
        self.base = f"%{prefix}room"
        self.room_bytes = 0
        self._stack_bytes = 0

    # -- room ---------------------------------------------------------------------------------

    def room(self, size_bytes: int) -> str:
        """A pointer to so many bytes, a multiple of 8, that are this handler's own until it ends."""
        size = rounded(size_bytes)
        if self.on_stack and size <= MOST_STACKED_BYTES and self._stack_bytes + size <= MOST_STACK_BYTES:
            offset, self._stack_bytes = self._stack_bytes, self._stack_bytes + size
            return self.w.at(self.w.local(MOST_STACK_BYTES, "frame"), offset)
        offset, self.room_bytes = self.room_bytes, self.room_bytes + size
        return self.w.value(f"getelementptr i8, ptr {self.base}, i64 {offset}")

    def open_room(self, mark: int, otherwise: str) -> None:
        """Look the room up at an earlier place, if any was asked for."""
        if not self.room_bytes:
            return

        def emit() -> None:
            found = self.w.lookup("room", self.w.index(0), otherwise)
            self.w.do(f"{self.base} = getelementptr i8, ptr {found}, i64 0")

        self.w.splice(mark, emit)

    # -- bytes --------------------------------------------------------------------------------

    def clear(self, target: str, size_bytes: int) -> None:
        """Write zeros; `size_bytes` is a multiple of 8."""
        if size_bytes <= MOST_STORED_BYTES:
            for offset in range(0, size_bytes, 8):
                self.w.store(8, 0, target, offset)
            return
        zeros = self.w.value(f"ptrtoint ptr {self.w.lookup('zeros', self.w.index(0))} to i64")
        self.w.call("probe_read_kernel", target, size_bytes, zeros)

    def move(self, target: str, source: str, size_bytes: int) -> None:
        """Copy bytes whose number is known."""
        if size_bytes <= MOST_STORED_BYTES:
            for offset, size in chunks(size_bytes):
                self.w.store(size, self.w.load(size, source, offset), target, offset)
            return
        self.w.call("probe_read_kernel", target, size_bytes, self.w.value(f"ptrtoint ptr {source} to i64"))

    def bounded(self, length: str, most_bytes: int) -> str:
        """A length as an i32 that the verifier can see is at most `most_bytes`."""
        over = self.w.value(f"icmp ugt i64 {length}, {most_bytes}")
        return self.w.value(f"trunc i64 {self.w.value(f'select i1 {over}, i64 {most_bytes}, i64 {length}')} to i32")

    # -- strings ------------------------------------------------------------------------------

    def place(self, value: Value, target: str, size_bytes: int) -> None:
        """Write a string to `target`, padded with zeros to `size_bytes` (a multiple of 8)."""
        if value.constant is not None:
            padded = checked(value.constant).ljust(size_bytes, b"\0")
            for offset in range(0, size_bytes, 8):
                self.w.store(8, int.from_bytes(padded[offset : offset + 8], "little", signed=True), target, offset)
            return
        if value.is_padded:
            most = min(rounded(value.type.size_bytes), size_bytes)
            self.move(target, value.pointer, most)
            self.clear_from(target, most, size_bytes)
            return
        self.clear(target, size_bytes)
        size = self.bounded(str(value.length), min(value.type.size_bytes, size_bytes))
        self.w.call("probe_read_kernel", target, size, self.w.value(f"ptrtoint ptr {value.pointer} to i64"))

    def clear_from(self, target: str, start: int, end: int) -> None:
        """Write zeros between two offsets."""
        if end > start:
            self.clear(self.w.at(target, start), end - start)

    def copy(self, value: Value, target: str, size_bytes: int) -> str:
        """Copy a string without padding, or a stack with it; its length as an i64."""
        if value.constant is not None:
            self.place(value, target, rounded(len(value.constant)))
            return str(len(value.constant))
        if not value.type.can_be("string"):
            self.place(value, target, rounded(size_bytes))
            return str(size_bytes)
        if value.length is None:
            self.move(target, value.pointer, min(rounded(value.type.size_bytes), rounded(size_bytes)))
            return self.measured(value)
        size = self.bounded(str(value.length), min(value.type.size_bytes, size_bytes))
        self.w.call("probe_read_kernel", target, size, self.w.value(f"ptrtoint ptr {value.pointer} to i64"))
        return str(value.length)

    def measured(self, value: Value) -> str:
        """The length of a string as an i64: behind its first NUL are only more of them, so each word has its share."""
        if value.constant is not None:
            return str(len(value.constant))
        if value.length is not None:
            return value.length
        length = "0"
        for offset in range(0, rounded(value.type.size_bytes), 8):
            length = self.w.value(f"add i64 {length}, {self._bytes_before_nul(self.w.load(8, value.pointer, offset))}")
        return length

    def _bytes_before_nul(self, word: str) -> str:
        """How many bytes of a word come before the first NUL, 8 where there is none. Without branches: the verifier
        would follow every way through them.
        """
        w = self.w
        less = w.value(f"sub i64 {word}, {ONES}")
        high = w.value(f"and i64 {less}, {w.value(f'xor i64 {word}, -1')}")
        high = w.value(f"and i64 {high}, {HIGH_BITS}")
        first = w.value(f"and i64 {high}, {w.value(f'sub i64 0, {high}')}")
        lowest = w.value(f"lshr i64 {first}, 7")
        before = w.value(f"and i64 {w.value(f'sub i64 {lowest}, 1')}, {ONES}")
        return w.value(f"lshr i64 {w.value(f'mul i64 {before}, {ONES}')}, 56")

    def decimal(self, number: str) -> Value:
        """An integer as text."""
        w = self.w
        room = self.room(DIGITS_ROOM)
        negative = w.value(f"icmp slt i64 {number}, 0")
        rest = w.value(f"select i1 {negative}, i64 {w.value(f'sub i64 0, {number}')}, i64 {number}")
        held, count = w.local(8, "rest"), w.local(8, "digits")
        w.store(8, rest, held)
        w.store(8, 1, count)
        for place in range(MOST_DIGITS):
            # volatile: the back end would compute all digits side by side, and has no registers for that
            rest = w.value(f"load volatile i64, ptr {held}, align 8")
            shorter = w.value(f"udiv i64 {rest}, 10")
            digit = w.value(f"sub i64 {rest}, {w.value(f'mul i64 {shorter}, 10')}")
            w.store(1, w.narrowed(w.value(f"add i64 {digit}, 48"), 1), room, MOST_DIGITS - place)
            if place:  # without branches: the verifier would follow each way through all the digits
                more = w.value(f"lshr i64 {w.value(f'add i64 {rest}, {MAX_INTEGER}')}, 63")
                w.store(8, w.value(f"add i64 {w.load(8, count)}, {more}"), count)
            w.do(f"store volatile i64 {shorter}, ptr {held}, align 8")
        length = w.load(8, count)
        sign = w.value(f"sub i64 {MOST_DIGITS}, {length}")
        inside, behind = w.value(f"and i64 {sign}, {DIGITS_ROOM - 1}"), w.value(f"zext i1 {negative} to i64")
        character = w.value(f"select i1 {negative}, i8 45, i8 0")
        w.store(1, character, w.at(room, inside))
        start = w.value(f"add i64 {inside}, {w.value(f'sub i64 1, {behind}')}")
        begin = w.at(room, w.value(f"and i64 {start}, {DIGITS_ROOM - 1}"))
        return Value(string(MOST_DIGITS + 1), pointer=begin, length=w.value(f"add i64 {length}, {behind}"))

    def joined(self, left: Value, right: Value) -> Value:
        """One string behind the other."""
        w = self.w
        sizes = [value.type.size_bytes for value in (left, right)]
        room = self.room(sum(sizes) + 8)
        lengths: List[str] = []
        position = room
        for value, most in zip((left, right), sizes):
            if value.constant is not None:
                self.write(value.constant, position)
                lengths.append(str(len(value.constant)))
            else:
                length = w.value(f"zext i32 {self.bounded(self.measured(value), most)} to i64")
                source = w.value(f"ptrtoint ptr {value.pointer} to i64")
                w.call("probe_read_kernel", position, self.bounded(length, most), source)
                lengths.append(length)
            position = w.at(room, lengths[0])
        return Value(string(sum(sizes)), pointer=room, length=w.value(f"add i64 {lengths[0]}, {lengths[1]}"))

    def write(self, constant: bytes, target: str) -> None:
        """Write the bytes of a constant."""
        for offset, size in chunks(len(checked(constant))):
            number = int.from_bytes(constant[offset : offset + size], "little", signed=True)
            self.w.do(f"store {BITS[size]} {number}, ptr {self.w.at(target, offset)}, align 1")

    def equal(self, left: Value, right: Value) -> str:
        """Whether two strings are equal, as an i1."""
        if left.constant is not None and right.constant is not None:
            return "true" if left.constant == right.constant else "false"
        if left.constant is not None:
            left, right = right, left
        if right.constant is not None:
            return self._equals_constant(left, checked(right.constant))
        size = self._common(left, right)
        if size > MOST_STORED_BYTES:
            return self._long_equal(left, right, size)
        left, right = self.padded(left, size), self.padded(right, size)
        return self._no_difference(
            [(self._word(left, offset, size), self._word(right, offset, size)) for offset in range(0, size, 8)]
        )

    def _no_difference(self, pairs: Sequence[Tuple[str, str]]) -> str:
        """Whether all pairs of i64 are equal, as an i1. There is one branch, so that the verifier has two ways to follow."""
        difference = "0"
        for one, other in pairs:
            difference = self.w.value(f"or i64 {difference}, {self.w.value(f'xor i64 {one}, {other}')}")
        return self.w.value(f"icmp eq i64 {difference}, 0")

    def _equals_constant(self, value: Value, constant: bytes) -> str:
        size = len(constant)
        if size > value.type.size_bytes:
            return "false"
        if size > MOST_STORED_BYTES:
            return self._long_equal(value, self.placed(constant), self._common(value, Value(string(size))))
        pairs: List[Tuple[str, str]] = []
        if value.length is not None:
            pairs.append((value.length, str(size)))
        elif size < value.type.size_bytes:
            pairs.append((self.w.load_wide(1, False, value.pointer, size), "0"))
        for offset, width in chunks(size):
            number = int.from_bytes(constant[offset : offset + width], "little")
            pairs.append((self.w.load_wide(width, False, value.pointer, offset), str(signed(number))))
        return self._no_difference(pairs)

    def before(self, left: Value, right: Value, or_equal: bool) -> str:
        """Whether a string comes before another bytewise (or is equal), as an i1."""
        size = self._common(left, right)
        if size > MOST_STORED_BYTES:
            return self._long_before(left, right, size, or_equal)
        left, right = self.padded(left, size), self.padded(right, size)
        borrow = str(int(or_equal))
        for offset in range(size - 8, -8, -8):
            a, b = (self._swapped(self._word(value, offset, size)) for value in (left, right))
            borrow = self._borrow(a, b, borrow)
        return self.w.value(f"icmp ne i64 {borrow}, 0")

    def _borrow(self, a: str, b: str, borrow: str) -> str:
        """What the subtraction of one word of two long numbers borrows of the next: 1 or 0, without branches."""
        w = self.w
        rest = w.value(f"sub i64 {w.value(f'sub i64 {a}, {b}')}, {borrow}")
        below = w.value(f"and i64 {w.value(f'xor i64 {a}, -1')}, {b}")
        same = w.value(f"xor i64 {w.value(f'xor i64 {a}, {b}')}, -1")
        over = w.value(f"and i64 {same}, {rest}")
        return w.value(f"lshr i64 {w.value(f'or i64 {below}, {over}')}, 63")

    def _swapped(self, word: str) -> str:
        return self.w.value(f"call i64 @llvm.bswap.i64(i64 {word})")

    def _common(self, left: Value, right: Value) -> int:
        return rounded(max(left.type.size_bytes, right.type.size_bytes, 1))

    def placed(self, constant: bytes) -> Value:
        """A constant with its bytes in memory: a word of zeros where it has none, since a string's type has room for one."""
        kind = string(len(constant))
        room = self.room(kind.size_bytes)
        self.place(Value(kind, constant=constant), room, rounded(kind.size_bytes))
        return Value(kind, pointer=room, length=str(len(constant)), zeros=True)

    def _long_equal(self, left: Value, right: Value, size: int) -> str:
        """The same a piece after the other, up to the length that both must have."""
        w = self.w
        length, result = self.measured(left), w.local(8, "word")
        same, done = w.fresh("same"), w.fresh("done")
        left, right = self._long(left, size), self._long(right, size)
        w.store(8, 0, result)
        w.only_if(w.value(f"icmp eq i64 {length}, {self.measured(right)}"), done)
        for start in range(0, size, PIECE_BYTES):
            w.only_if(w.value(f"icmp ugt i64 {length}, {start}"), same)
            offsets = range(start, min(start + PIECE_BYTES, size), 8)
            pairs = [(self._word(left, offset, size), self._word(right, offset, size)) for offset in offsets]
            w.only_if(self._no_difference(pairs), done)
        w.goto(same)
        w.label(same)
        w.store(8, 1, result)
        w.goto(done)
        w.label(done)
        return w.value(f"icmp ne i64 {w.load(8, result)}, 0")

    def _long_before(self, left: Value, right: Value, size: int, or_equal: bool) -> str:
        """The first words that differ decide."""
        w = self.w
        lengths = [self.measured(value) for value in (left, right)]
        longer = w.value(f"icmp ugt i64 {lengths[0]}, {lengths[1]}")
        most = w.value(f"select i1 {longer}, i64 {lengths[0]}, i64 {lengths[1]}")
        result, words = w.local(8, "word"), [w.local(8, name) for name in ("left", "right")]
        differ, done = w.fresh("differ"), w.fresh("done")
        left, right = self._long(left, size), self._long(right, size)
        w.store(8, int(or_equal), result)
        for offset in range(0, size, 8):
            w.only_if(w.value(f"icmp ugt i64 {most}, {offset}"), done)
            pair = [self._word(value, offset, size) for value in (left, right)]
            for word, room in zip(pair, words):
                w.store(8, word, room)
            w.only_if(w.value(f"icmp eq i64 {pair[0]}, {pair[1]}"), differ)
        w.goto(done)
        w.label(differ)
        a, b = (self._swapped(w.load(8, room)) for room in words)
        w.store(8, w.value(f"zext i1 {w.value(f'icmp ult i64 {a}, {b}')} to i64"), result)
        w.goto(done)
        w.label(done)
        return w.value(f"icmp ne i64 {w.load(8, result)}, 0")

    def _long(self, value: Value, size: int) -> Value:
        """Padded, and with its bytes in memory."""
        return self.padded(value if value.constant is None else self.placed(value.constant), size)

    def _word(self, value: Value, offset: int, size: int) -> str:
        """Eight bytes of a string that is padded to `size`."""
        if value.constant is not None:
            word = checked(value.constant).ljust(size, b"\0")[offset : offset + 8]
            return str(int.from_bytes(word, "little", signed=True))
        return self.w.load(8, value.pointer, offset) if offset < rounded(value.type.size_bytes) else "0"

    def padded(self, value: Value, size: int) -> Value:
        """The same string with zeros behind it, where its words are to be looked at."""
        if value.constant is not None or value.is_padded:
            return value
        target = self.room(size)
        self.place(value, target, size)
        return value._replace(type=value.type._replace(size_bytes=size), pointer=target, zeros=True)


def checked(constant: bytes) -> bytes:
    """A constant that the kernel can hold. Raises NotLowered for one with a NUL in it."""
    if b"\0" in constant:
        raise NotLowered(None, "uses a string with a NUL in it")
    return constant


def signed(number: int) -> int:
    """64 bits as a number with a sign."""
    return number - (1 << 64) if number >> 63 else number


def chunks(size_bytes: int) -> Iterator[Tuple[int, int]]:
    """Offsets and sizes of the loads that cover so many bytes."""
    offset = 0
    for size in (8, 4, 2, 1):
        while offset + size <= size_bytes:
            yield offset, size
            offset += size
