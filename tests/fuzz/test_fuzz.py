"""Drawn scripts tell the same in the VM and in the kernel, byte for byte; and where they did not, it would be found.

`make fuzz` is the same for hours (tests/fuzz/longer.py).
"""

from __future__ import annotations

from typing import Callable, ContextManager, NamedTuple
from unittest.mock import patch

import pytest

from compiler.lower import emit
from compiler.lower.emit import Emitter
from compiler.lower.stores import Stores
from compiler.lower.texts import Texts
from tests.fuzz.search import LEAST_LOWERED_PERCENT, Tally, differences, sweep

pytestmark = pytest.mark.live

PROGRAMS = 100
MOST_PROGRAMS = 1000
"""Until what was planted is found: most take a few dozen."""


class Planted(NamedTuple):
    """A mistake in lowering."""

    name: str
    plant: Callable[[], ContextManager[object]]


def joined_wrong(self: Texts, left: object, right: object) -> object:
    return JOINED(self, right, left)  # type: ignore[arg-type]


def nearly_equal(self: Texts, pairs: list[tuple[str, str]]) -> str:
    return NO_DIFFERENCE(self, pairs[:1])


def shifted_wrong(self: Emitter, op: str, a: str, b: str) -> str:
    count = self.w.value(f"and i64 {b}, 31")
    return self.w.value(f"{op.lower().replace('shr', 'lshr')} i64 {a}, {count}")


JOINED, NO_DIFFERENCE = Texts.joined, Texts._no_difference

PLANTED = (
    Planted("subtracting adds", lambda: patch.dict(emit.BINARY, SUB="add")),
    Planted("at most is less", lambda: patch.dict(emit.COMPARE, LE="slt")),
    Planted(
        "nothing is taken away from sums", lambda: patch.object(Stores, "_signed", lambda self, op, number: number)
    ),
    Planted("strings are joined the wrong way round", lambda: patch.object(Texts, "joined", joined_wrong)),
    Planted(
        "strings are compared up to their first bytes", lambda: patch.object(Texts, "_no_difference", nearly_equal)
    ),
    Planted("the smallest and the largest are not kept", lambda: patch.object(Stores, "_extreme", lambda *_: None)),
    Planted("shifts go by 31 at most", lambda: patch.object(Emitter, "_shift", shifted_wrong)),
)


def test_both_tiers_tell_the_same() -> None:
    tally = Tally()
    assert list(sweep(1, PROGRAMS, tally)) == []
    assert tally.programs == PROGRAMS
    assert tally.lowered_percent >= LEAST_LOWERED_PERCENT, tally.summary()


@pytest.mark.parametrize("planted", PLANTED, ids=lambda planted: planted.name)
def test_a_wrong_lowering_is_found(planted: Planted) -> None:
    with planted.plant():
        assert next(differences(1, MOST_PROGRAMS, Tally()), None) is not None
