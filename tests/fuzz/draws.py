"""Decisions: whole numbers, of which the first of a list is the simplest.

Hypothesis draws them, and makes those of a failure small. To draw takes it longer than the comparison of what is
drawn, so a long run has them from `Dice`, and gives hypothesis those that failed.
"""

from __future__ import annotations

from functools import cache
from random import Random
from typing import Callable, Iterable, Sequence, TypeVar

from hypothesis import strategies as st
from hypothesis.database import ExampleDatabase, choices_to_bytes

Item = TypeVar("Item")


@cache
def up_to(most: int) -> st.SearchStrategy[int]:
    """From 0 to `most`; strategies are made once, since that costs more than to draw."""
    return st.integers(0, most)


Choose = Callable[[int], int]
"""Gives a number from 0 to another."""


def from_hypothesis(draw: st.DrawFn) -> Choose:
    """Decisions of an example."""
    return lambda most: draw(up_to(most))


class Dice:
    """Decisions at random, which it remembers in the order in which hypothesis would have drawn them."""

    def __init__(self, number: str) -> None:
        self.random = Random(number)
        self.thrown: list[int] = []

    def __call__(self, most: int) -> int:
        self.thrown.append(self.random.randint(0, most))
        return self.thrown[-1]


class Known(ExampleDatabase):
    """A database with one example, whatever it is asked for."""

    def __init__(self, thrown: Sequence[int]) -> None:
        self.example = choices_to_bytes(thrown)

    def fetch(self, key: bytes) -> Iterable[bytes]:
        yield self.example

    def save(self, key: bytes, value: bytes) -> None:
        """Nothing is kept."""

    def delete(self, key: bytes, value: bytes) -> None:
        """Nothing is kept."""


class Draws:
    """What a writer asks."""

    def __init__(self, choose: Choose) -> None:
        self.choose = choose
        self.numbers: list[int] = [0]
        self.words: list[str] = [""]
        """Values that script and events have in common, so that what is compared is often equal."""

    def below(self, count: int) -> int:
        """A number from 0 to count - 1."""
        return self.choose(count - 1) if count > 1 else 0

    def pick(self, choices: Sequence[Item]) -> Item:
        """One of several; put simple ones first."""
        return choices[self.below(len(choices))]

    def chance(self, percent: int) -> bool:
        """True in so many cases of a hundred; False is the simpler one."""
        return self.below(100) >= 100 - percent

    def number(self, least: int, most: int) -> int:
        """A number between two, the least one simplest."""
        return least + self.below(most - least + 1)
