"""Did you mean …?"""

from __future__ import annotations

from typing import Union

import pytest

from compiler.spell import suggest


@pytest.mark.parametrize(
    ("word", "candidates", "best"),
    [
        ("pritnf", ["print", "printf", "sprintf", "pairs"], "printf"),
        ("execnme", ["execname", "exit"], "execname"),
        ("sched_swich", ["sched_switch", "sched_stick", "sched_wakeup"], "sched_switch"),
        ("Print", ["print"], "print"),
        ("foo", ["bar", "baz"], None),
        ("x", ["y"], None),
        ("print", ["print"], None),
        ("", ["a"], None),
        ("a", [], None),
    ],
)
def test_suggestions(word: str, candidates: list[str], best: Union[str, None]) -> None:
    assert suggest(word, candidates) == best
    assert suggest(word, reversed(candidates)) == best
