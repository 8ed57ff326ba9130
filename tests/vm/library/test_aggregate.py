"""Stats: against a list of samples; what is kept; what is found in a program's code."""

from __future__ import annotations

from typing import List

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_machine import MadeUpHost

from vm.aggregate import BUCKET_BYTES, Keeping, Shape, Stats, keeping
from vm.fault import Fault
from vm.program import Constant, Function, Instruction, Program, Span
from vm.values import Address, type_name

INT64 = st.integers(-(1 << 63), (1 << 63) - 1)
SHAPE = Shape(0, 100, 7)
ALL = Keeping(True, (SHAPE,))


def stats_of(samples: List[int], kept: Keeping = ALL) -> Stats:
    stats = Stats(kept)
    for sample in samples:
        stats.add(sample)
    return stats


@given(st.lists(st.one_of(INT64, st.integers(-20, 150)), min_size=1, max_size=40))
def test_stats_against_a_list_of_its_samples(samples: List[int]) -> None:
    stats = stats_of(samples)
    assert (stats.count, stats.smallest, stats.largest) == (len(samples), min(samples), max(samples))
    total = sum(samples)
    assert (stats.sum - total) % (1 << 64) == 0
    assert -(1 << 63) <= stats.sum < 1 << 63
    assert abs(stats.average) == abs(stats.sum) // len(samples)
    for bucket, count in stats.powers.items():
        low, high = (-(1 << 63), 0) if bucket < 0 else ((1 << bucket) // 2, 1 << bucket)
        assert count == sum(low <= sample < high for sample in samples)
    assert sum(stats.powers.values()) == sum(stats.linear[SHAPE].values()) == len(samples)
    for bucket, count in stats.linear[SHAPE].items():
        low = -(1 << 63) if bucket < 0 else 100 if bucket == 15 else bucket * 7
        high = 0 if bucket < 0 else 1 << 63 if bucket == 15 else min(100, low + 7)
        assert count == sum(low <= sample < high for sample in samples)


def test_only_what_is_read_is_kept() -> None:
    stats = stats_of([1, 2, 3], Keeping(False, ()))
    assert (stats.powers, stats.linear, stats.sum) == ({}, {}, 6)


def test_an_address_is_a_sample_and_other_values_are_none() -> None:
    assert type(stats_of([Address(7)]).largest) is int
    for value in (None, True, b"7"):
        with pytest.raises(Fault, match="`<<<` adds integers"):
            Stats(Keeping(False, ())).add(value)


def test_every_new_bucket_is_charged() -> None:
    charges: List[int] = []
    stats = stats_of([1, 1, 2, 200], Keeping(True, (SHAPE,), charges.append))
    assert charges == [BUCKET_BYTES] * 5
    assert stats.size_bytes() > 5 * BUCKET_BYTES


def test_text() -> None:
    stats = stats_of([-3, 4, 10])
    assert stats.text(MadeUpHost()) == b"count 3, sum 11, avg 3, min -3, max 10"
    assert type_name(stats) == "stats"


@pytest.mark.parametrize(
    "shape", [Shape(0, 10, 0), Shape(0, 10, -1), Shape(5, 5, 1), Shape(6, 5, 1), Shape(0, 1 << 62, 1)]
)
def test_shapes_that_are_none(shape: Shape) -> None:
    with pytest.raises(Fault) as caught:
        shape.check()
    assert caught.value.kind == "argument"


CONSTANTS = (b"lhist", 0, 100, 10, b"print", -5, True)


def program_of(*code: Instruction, constants: tuple[Constant, ...] = CONSTANTS) -> Program:
    spans = (Span(1, 1, 1, 2),) * len(code)
    return Program("t.kp", constants, (Function("main", 0, True, 20, (), code, spans),))


def call_of(*arguments: int, op: str = "CALL") -> List[Instruction]:
    """`lhist(nil, …)` with constants (below 0) or registers as arguments."""
    moves = [Instruction("MOVE", 2 + place, argument) for place, argument in enumerate(arguments)]
    return [Instruction("BUILTIN", 0, 0), Instruction("NEWTABLE", 1), *moves, Instruction(op, 0, 1 + len(arguments), 0)]


def test_shapes_are_found_in_code() -> None:
    assert keeping(program_of(*call_of(~1, ~2, ~3))).shapes == (Shape(0, 100, 10),)
    assert keeping(program_of(*call_of(~1, ~2, ~3, op="TAILCALL"))).shapes == (Shape(0, 100, 10),)
    through_a_register = [Instruction("MOVE", 9, ~2), *call_of(~5, 9, ~3)]
    assert keeping(program_of(*through_a_register)).shapes == (Shape(-5, 100, 10),)


@pytest.mark.parametrize(
    "code",
    [
        call_of(~1, ~2, 9),
        call_of(~1, ~2, ~4),
        call_of(~1, ~2, ~6),
        call_of(~1, ~2, ~99),
        call_of(~2, ~1, ~3),
        call_of(~1, ~2, ~1),
        call_of(~1, ~2),
        [Instruction("BUILTIN", 0, 4), *call_of(~1, ~2, ~3)[1:]],
        [Instruction("BUILTIN", 0, 99), *call_of(~1, ~2, ~3)[1:]],
        call_of(~1, ~2, ~3)[1:],
        [*call_of(~1, ~2, ~3)[:-1], Instruction("MOVE", 0, ~0), Instruction("CALL", 0, 4, 0)],
    ],
)
def test_calls_that_say_no_shape(code: List[Instruction]) -> None:
    assert keeping(program_of(*code)).shapes == ()


def test_powers_are_kept_where_hist_is_named() -> None:
    assert not keeping(program_of()).powers
    assert keeping(program_of(constants=(b"hist",))).powers
