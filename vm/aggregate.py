"""Aggregations: the stats values that `<<<` adds samples to, and what a script makes them keep.

Count, sum, smallest and largest are always kept. Buckets are kept only for what the script reads:
powers of two where it names `hist`, equal steps for each `lhist(x, low, high, step)` that is written
with constants.
"""

from __future__ import annotations

from typing import Callable, Iterator, Optional

from vm.fault import Fault
from vm.histogram import steps
from vm.host import Host
from vm.named_tuple import NamedTuple
from vm.opcodes import BY_NAME
from vm.program import Function, Program
from vm.values import MAX_INTEGER, MIN_INTEGER, describe

BUCKET_BYTES = 100
"""What one bucket is charged: a dictionary slot and its count."""
MOST_STEPS = 1000
"""The most buckets an lhist may have between low and high."""


class Shape(NamedTuple):
    """The buckets of one lhist."""

    low: int
    high: int
    step: int

    def bucket(self, value: int) -> int:
        """The number of the bucket of a sample: -1 below low, `steps` at high and above."""
        if value < self.low:
            return -1
        if value >= self.high:
            return steps(self.low, self.high, self.step)
        return (value - self.low) // self.step

    def check(self) -> None:
        """Raise Fault argument where these are no buckets."""
        if self.step <= 0:
            raise Fault("argument", f"lhist: the step is {self.step}, it must be above 0")
        if self.high <= self.low:
            raise Fault("argument", f"lhist: high ({self.high}) must be above low ({self.low})")
        if steps(self.low, self.high, self.step) > MOST_STEPS:
            raise Fault("argument", f"lhist: more than {MOST_STEPS} steps", "make the step larger")


class Keeping(NamedTuple):
    """What the stats of a run keep besides count, sum, min and max."""

    powers: bool
    shapes: tuple[Shape, ...]
    charge: Optional[Callable[[int], object]] = None
    """Called with the bytes of each new bucket (the machine's account)."""


class Stats:
    """One aggregation. It exists from its first sample on, so `count` is never 0 when a script sees it."""

    __slots__ = ("count", "keeping", "largest", "linear", "powers", "smallest", "total")
    type_name = "stats"

    def __init__(self, keeping: Keeping) -> None:
        self.keeping = keeping
        self.count = 0
        self.total = 0
        """The sum as a Python integer; `sum` wraps it."""
        self.smallest = MAX_INTEGER
        self.largest = MIN_INTEGER
        self.powers: dict[int, int] = {}
        """Samples by bit length (0 is zero, -1 all below zero)."""
        self.linear: dict[Shape, dict[int, int]] = {shape: {} for shape in keeping.shapes}

    def add(self, value: object) -> None:
        """Add a sample. Raises Fault type for anything but an integer."""
        if not isinstance(value, int) or isinstance(value, bool):
            raise Fault("type", f"`<<<` adds integers to an aggregation, not {describe(value)}")
        self.count += 1
        self.total += value
        if value < self.smallest:
            self.smallest = int(value)
        if value > self.largest:
            self.largest = int(value)
        if self.keeping.powers:
            self.tally(self.powers, value.bit_length() if value >= 0 else -1)
        for shape, buckets in self.linear.items():
            self.tally(buckets, shape.bucket(value))

    def tally(self, buckets: dict[int, int], bucket: int) -> None:
        """Count one sample in a bucket; a new bucket is charged."""
        if bucket in buckets:
            buckets[bucket] += 1
            return
        if self.keeping.charge is not None:
            self.keeping.charge(BUCKET_BYTES)
        buckets[bucket] = 1

    @property
    def sum(self) -> int:
        """The sum of the samples, wrapped to signed 64 bits."""
        return (self.total + (1 << 63)) % (1 << 64) - (1 << 63)

    @property
    def average(self) -> int:
        """The wrapped sum by the count, truncated toward zero."""
        quotient = abs(self.sum) // self.count
        return quotient if self.sum >= 0 else -quotient

    def text(self, host: Host) -> bytes:
        """The numbers in a line."""
        numbers = (self.count, self.sum, self.average, self.smallest, self.largest)
        return b"count %d, sum %d, avg %d, min %d, max %d" % numbers

    def size_bytes(self) -> int:
        """What this stats is accounted for."""
        return 200 + BUCKET_BYTES * (len(self.powers) + sum(map(len, self.linear.values())))


def keeping(program: Program, charge: Optional[Callable[[int], object]] = None) -> Keeping:
    """What a program's stats must keep: found in its code before it runs."""
    shapes = {shape for function in program.functions for shape in lhist_shapes(function, program)}
    return Keeping(b"hist" in program.constants, tuple(sorted(shapes)), charge)


def lhist_shapes(function: Function, program: Program) -> Iterator[Shape]:
    """The shapes of the lhist calls of a function whose low, high and step are constants."""
    for place, instruction in enumerate(function.code):
        if instruction.op not in ("CALL", "TAILCALL") or instruction.b < 4:
            continue
        callee = writer(function, instruction.a, place)
        if callee is None or function.code[callee].op not in ("BUILTIN", "GETGLOBAL"):
            continue
        if constant(program, function.code[callee].b) != b"lhist":
            continue
        found = [written_constant(program, function, instruction.a + n, place) for n in (2, 3, 4)]
        numbers = [value for value in found if isinstance(value, int) and not isinstance(value, bool)]
        if len(numbers) == 3 and numbers[2] > 0 and 0 < steps(*numbers) <= MOST_STEPS:
            yield Shape(*numbers)


def writer(function: Function, register: int, before: int) -> Optional[int]:
    """The last instruction in front of `before` that names `register` as the one it writes."""
    for place in range(before - 1, -1, -1):
        instruction = function.code[place]
        kinds = BY_NAME[instruction.op].operands
        if any(kind == "w" and operand == register for kind, operand in zip(kinds, instruction[1:])):
            return place
    return None


def written_constant(program: Program, function: Function, register: int, before: int) -> object:
    """The constant a register holds in front of an instruction, None where it is not one."""
    place = writer(function, register, before)
    while place is not None and function.code[place].op == "MOVE":
        value = function.code[place].b
        if value < 0:
            return constant(program, ~value)
        place = writer(function, value, place)
    return None


def constant(program: Program, index: int) -> object:
    """A constant of the program, None for an index it does not have."""
    return program.constants[index] if 0 <= index < len(program.constants) else None
