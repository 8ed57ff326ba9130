"""How losses are told: exactly, the largest first, many of one kind in few lines."""

from __future__ import annotations

import pytest

from ktap.session import MOST_LOSSES, tell_losses
from vm.event import Loss
from vm.run import TABLE_FULL


def test_losses(capfd: pytest.CaptureFixture[str]) -> None:
    tell_losses(
        [
            Loss("ring buffer full", "a:b", 1),
            Loss("ring buffer full", "a:c", 20),
            Loss(TABLE_FULL, "limit of 10 entries", 3),
        ]
    )
    assert capfd.readouterr().err == (
        "ktap: lost 20 events: ring buffer full (a:c)\n"
        "ktap: lost 1 event: ring buffer full (a:b)\n"
        "ktap: a larger --buffer-bytes, a filter or less output loses less\n"
        "ktap: lost 3 new keys: table full (limit of 10 entries); raise --max-entries\n"
    )


def test_no_losses(capfd: pytest.CaptureFixture[str]) -> None:
    tell_losses([])
    assert capfd.readouterr().err == ""


def test_many_losses_add_up(capfd: pytest.CaptureFixture[str]) -> None:
    tell_losses([Loss("missed", f"a:{number}", number) for number in range(1, 101)])
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == MOST_LOSSES
    assert sum(int(line.split()[2]) for line in lines) == 5050
    assert lines[0] == "ktap: lost 100 events: missed (a:100)"
    assert lines[-1] == f"ktap: lost {sum(range(1, 94))} events: missed (93 others)"
