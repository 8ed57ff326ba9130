"""Named tuples are those of typing, made quickly."""

from __future__ import annotations

import copy
import pickle
import typing
from typing import Callable, Optional

import pytest

from vm import named_tuple


class Quick(named_tuple.NamedTuple):
    """Two of one form."""

    first: int
    second: Optional[str] = None
    """What is said of it."""
    third: tuple[int, ...] = ()

    @property
    def double(self) -> int:
        return 2 * self.first

    def plus(self, number: int) -> Quick:
        return self._replace(first=self.first + number)


class Usual(typing.NamedTuple):
    first: int
    second: Optional[str] = None
    third: tuple[int, ...] = ()


class Empty(named_tuple.NamedTuple):
    pass


@pytest.mark.parametrize(
    "use",
    [
        lambda make: tuple(make(1)),
        lambda make: tuple(make(1, "a", (2,))),
        lambda make: tuple(make(third=(3,), first=4)),
        lambda make: make(1) == make(1, None),
        lambda make: hash(make(1)) == hash((1, None, ())),
        lambda make: make(1) < make(2),
        lambda make: make(1, "x").second,
        lambda make: make(1, "x")[1:],
        lambda make: make(1)._replace(third=(9,)).third,
        lambda make: make(1)._asdict(),
        lambda make: make._make([1, 2, 3])[2],
        lambda make: (make._fields, make._field_defaults, make.__match_args__, make.__slots__),
        lambda make: repr(make(1, "x")).partition("(")[2],
        lambda make: make.__annotations__.keys(),
        lambda make: make.__mro__[1:],
        lambda make: copy.deepcopy(make(1, "a"))._fields,
    ],
)
def test_it_is_what_typing_makes(use: Callable[[type], object]) -> None:
    assert use(Quick) == use(Usual)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda make: make(),
        lambda make: make(1, 2, 3, 4),
        lambda make: make(1, fourth=2),
        lambda make: make(1, first=1),
        lambda make: make(1)._replace(fourth=2),
        lambda make: make._make([1]),
        lambda make: setattr(make(1), "first", 2),
        lambda make: setattr(make(1), "fourth", 2),
    ],
)
def test_it_refuses_what_typing_refuses(wrong: Callable[[type], object]) -> None:
    raised = []
    for make in (Quick, Usual):
        with pytest.raises((TypeError, ValueError, AttributeError)) as error:
            wrong(make)
        raised.append(error.type)
    assert raised[0] is raised[1]


def test_methods_and_names() -> None:
    assert (Quick(2).double, Quick(2).plus(3).first) == (4, 5)
    assert (Quick.__name__, Quick.__qualname__, Quick.__module__) == ("Quick", "Quick", __name__)
    assert Quick.__doc__ == "Two of one form."
    assert pickle.loads(pickle.dumps(Quick(1, "a"))) == Quick(1, "a")
    assert type(pickle.loads(pickle.dumps(Quick(1)))) is Quick
    assert Empty() == () and Empty._fields == ()


def test_a_field_without_a_default_behind_one_that_has_one() -> None:
    with pytest.raises(TypeError, match="field second of Wrong has no default"):

        class Wrong(named_tuple.NamedTuple):
            first: int = 1
            second: int  # type: ignore[misc]
