"""Reading aggregations: count, sum, avg, min, max; drawing them: hist, lhist. A table of stats means all its rows."""

from __future__ import annotations

from typing import Iterator, Optional, Union

from vm.aggregate import Shape, Stats
from vm.fault import Fault
from vm.histogram import draw_powers, draw_steps
from vm.library.builtin import NOTHING, Machine, builtin
from vm.values import Table, describe, order, tostring, wrap

Samples = Union[Stats, Table, None]
FEW = "x?: stats|table"


def each(name: str, machine: Machine, x: Samples) -> Iterator[tuple[Optional[bytes], Stats]]:
    """The stats of x in order of their keys, each with its key as text (None for x itself)."""
    if isinstance(x, Stats):
        yield None, x
    elif x is not None:
        for key, value in sorted(x.entries(), key=lambda entry: order(entry[0])):
            label = tostring(key, machine.host)
            if not isinstance(value, Stats):
                text = label.decode("utf-8", "replace")
                raise Fault("argument", f"{name}: the value of {text} is {describe(value)}, expected stats")
            yield label, value


@builtin("count", FEW, "integer")
def count(machine: Machine, depth: int, x: Samples = None) -> int:
    """how many samples x has, 0 for nil"""
    return sum(stats.count for _, stats in each("count", machine, x))


@builtin("sum", FEW, "integer")
def sum_of(machine: Machine, depth: int, x: Samples = None) -> int:
    """the sum of the samples of x, 0 for nil"""
    return wrap(sum(stats.sum for _, stats in each("sum", machine, x)))


@builtin("avg", FEW, "integer")
def average(machine: Machine, depth: int, x: Samples = None) -> Optional[int]:
    """the sum by the count, truncated; nil where there is no sample"""
    all_stats = [stats for _, stats in each("avg", machine, x)]
    samples = sum(stats.count for stats in all_stats)
    total = wrap(sum(stats.sum for stats in all_stats))
    if not samples:
        return None
    return total // samples if total >= 0 else -(-total // samples)


@builtin("min", FEW, "integer")
def smallest(machine: Machine, depth: int, x: Samples = None) -> Optional[int]:
    """the smallest sample of x; nil where there is none"""
    return min((stats.smallest for _, stats in each("min", machine, x)), default=None)


@builtin("max", FEW, "integer")
def largest(machine: Machine, depth: int, x: Samples = None) -> Optional[int]:
    """the largest sample of x; nil where there is none"""
    return max((stats.largest for _, stats in each("max", machine, x)), default=None)


def write_drawing(machine: Machine, label: Optional[bytes], drawing: bytes) -> None:
    """Print a drawing, under the key it belongs to when it is one of a table."""
    machine.output.write(drawing if label is None else b"%b:\n%b\n" % (label, drawing))


@builtin("hist", FEW, "", faults=("output",))
def hist(machine: Machine, depth: int, x: Samples = None) -> object:
    """draw the samples of x in powers of two"""
    for label, stats in each("hist", machine, x):
        write_drawing(machine, label, draw_powers(stats.powers))
    return NOTHING


@builtin(
    "lhist",
    "x: stats|table|nil, low: integer, high: integer, step: integer",
    "",
    faults=("output",),
)
def lhist(machine: Machine, depth: int, x: Samples, low: int, high: int, step: int) -> object:
    """draw the samples of x in equal steps from low to high, which are written as constants"""
    shape = Shape(low, high, step)
    shape.check()
    for label, stats in each("lhist", machine, x):
        if shape not in stats.linear:
            raise Fault(
                "argument",
                f"lhist: samples were not kept in steps of {step} from {low} to {high}",
                "write low, high and step as constants in the call, so that they are known before the first sample",
            )
        write_drawing(machine, label, draw_steps(stats.linear[shape], low, high, step))
    return NOTHING
