"""count, sum, avg, min, max, hist, lhist."""

from __future__ import annotations

import pytest
from small_machine import SmallMachine

from vm.aggregate import Keeping, Shape, Stats
from vm.fault import Fault
from vm.values import Table

KEPT = Keeping(True, (Shape(0, 20, 10),))
MACHINE = SmallMachine(keeping=KEPT)


def stats_of(*samples: int) -> Stats:
    stats = Stats(KEPT)
    for sample in samples:
        stats.add(sample)
    return stats


def table_of(**rows: Stats) -> Table:
    table = Table(MACHINE.account)
    for key, stats in rows.items():
        table.put(key.encode(), stats)
    return table


READERS = ("count", "sum", "avg", "min", "max")


@pytest.mark.parametrize(
    ("x", "expected"),
    [
        (stats_of(1, 2, 9), (3, 12, 4, 1, 9)),
        (stats_of(-5, -2), (2, -7, -3, -5, -2)),
        (stats_of((1 << 63) - 1, 1), (2, -(1 << 63), -(1 << 62), 1, (1 << 63) - 1)),
        (table_of(a=stats_of(1, 2), b=stats_of(7)), (3, 10, 3, 1, 7)),
        (table_of(a=stats_of(-1, -2), b=stats_of(-4)), (3, -7, -2, -4, -1)),
        (table_of(), (0, 0, None, None, None)),
        (None, (0, 0, None, None, None)),
    ],
)
def test_readers(x: object, expected: tuple[object, ...]) -> None:
    assert tuple(MACHINE.run(name, x) for name in READERS) == expected


@pytest.mark.parametrize("name", [*READERS, "hist", "lhist"])
def test_only_stats_are_read(name: str) -> None:
    table = Table(MACHINE.account)
    table.put(b"k", 5)
    shape = (0, 20, 10) if name == "lhist" else ()
    with pytest.raises(Fault, match=rf"^{name}: the value of k is an integer, expected stats$"):
        MACHINE.run(name, table, *shape)
    with pytest.raises(Fault, match=rf"^{name}: argument 1 is integer, expected stats or table"):
        MACHINE.run(name, 5, *shape)


def test_hist() -> None:
    one = MACHINE.printed("hist", stats_of(1, 5))
    assert one.split(b"\n")[1].startswith(b"[1, 2) |@".rjust(31 + 3))
    assert one.count(b"\n") == 4
    rows = MACHINE.printed("hist", table_of(b=stats_of(1, 5), a=stats_of(2)))
    assert rows.startswith(b"a:\n")
    assert rows.endswith(b"\n\nb:\n" + one + b"\n")
    assert MACHINE.printed("hist", None) == b""


def test_lhist() -> None:
    one = MACHINE.printed("lhist", stats_of(3, 15, 15, 99), 0, 20, 10).decode()
    assert [line.split("|")[0].strip() for line in one.split("\n")[1:-1]] == ["[0, 10)", "[10, 20)", "[20, ...)"]
    assert [line[33:].split("@")[-1].split()[-1] for line in one.split("\n")[1:-1]] == ["1", "2", "1"]
    assert MACHINE.printed("lhist", None, 0, 20, 10) == b""


def test_lhist_of_steps_that_were_not_kept() -> None:
    with pytest.raises(Fault, match="lhist: samples were not kept in steps of 5 from 0 to 20") as caught:
        MACHINE.run("lhist", stats_of(1), 0, 20, 5)
    assert caught.value.hint is not None
    assert "constants" in caught.value.hint
    with pytest.raises(Fault, match="the step is 0"):
        MACHINE.run("lhist", None, 0, 20, 0)
