"""Did you mean …? The name that was most likely meant."""

from __future__ import annotations

from typing import Iterable, Optional

LIKENESS = 0.65
"""How alike two words must be, 0 to 1, for one to be offered for the other."""


def suggest(word: str, candidates: Iterable[str]) -> Optional[str]:
    """The candidate most like `word`, None where none is like it.

    Letter case is no difference; of candidates about equally alike the one that begins the same wins,
    then the first by name, so that the answer does not depend on their order.
    """
    from difflib import SequenceMatcher  # only when something is already wrong

    wanted = word.lower()
    matcher = SequenceMatcher(autojunk=False)
    matcher.set_seq2(wanted)
    best: tuple[float, str] = (0.0, "")
    for candidate in sorted(set(candidates)):
        lowered = candidate.lower()
        matcher.set_seq1(lowered)
        if candidate == word or matcher.real_quick_ratio() < LIKENESS or matcher.quick_ratio() < LIKENESS:
            continue
        ratio = matcher.ratio()
        score = ratio + 0.1 * _same_start(lowered, wanted) / len(wanted)
        if ratio >= LIKENESS and score > best[0]:
            best = (score, candidate)
    return best[1] or None


def _same_start(one: str, other: str) -> int:
    """How many characters two words begin with alike."""
    alike = 0
    for a, b in zip(one, other):
        if a != b:
            break
        alike += 1
    return alike
