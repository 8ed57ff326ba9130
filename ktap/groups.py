"""Events that one program serves: places in a file that are captured alike, system calls."""

from __future__ import annotations

from typing import Dict, List, Sequence, Tuple

from ktap.capture import Case
from ktap.plan import Captured

MOST_CASES = 200
"""Kinds of records of one program."""


def user_groups(events: Sequence[Tuple[int, Captured]]) -> List[List[Tuple[int, Captured]]]:
    """Places in files, put together where one program and one link serve them all."""
    found: Dict[Tuple[str, str, int], List[Tuple[int, Captured]]] = {}
    cases: List[Case] = []
    for number, event in events:
        if event.wanted.spot is not None:
            if event.case not in cases:
                cases.append(event.case)
            key = (event.wanted.context, event.wanted.spot.path, cases.index(event.case))
            found.setdefault(key, []).append((number, event))
    return list(found.values())


def layers(events: Sequence[Tuple[int, Captured]]) -> List[List[Tuple[int, Captured]]]:
    """Events of system calls, split so that no number is twice in a layer and none has too many cases."""
    found: List[List[Tuple[int, Captured]]] = []
    for number, event in events:
        for layer in found:
            others = [other for _, other in layer]
            cases = [other.case for other in others]
            full = event.case not in cases and len(cases) >= MOST_CASES
            if not full and all(other.wanted.number != event.wanted.number for other in others):
                layer.append((number, event))
                break
        else:
            found.append([(number, event)])
    return found
