"""Every case of the corpus that has events, recorded and replayed: the replay gives what the run gave."""

from __future__ import annotations

from pathlib import Path
from typing import Optional, Sequence

import pytest
import test_cases as cases
from corpus import Case
from recorded import record, replay

from vm.diagnostic import Refusal

REFUSED = "a case that is refused has nothing to record"


def recordable() -> list[Case]:
    return [case for case in cases.CASES if case.events]


def recorded(case: Case, path: Path) -> cases.Result:
    """The case's own result, it being recorded."""
    try:
        result = record(case, path)
    except Refusal:
        pytest.skip(REFUSED)
    if not Path(path).stat().st_size > 100:
        pytest.skip(REFUSED)
    return result


@pytest.mark.parametrize("case", recordable(), ids=lambda case: case.id)
def test_a_replay_gives_what_the_run_gave(case: Case, tmp_path: Path) -> None:
    path = tmp_path / "recording"
    result = recorded(case, path)
    assert cases.lines(result.output) == list(case.output) or case.unordered
    assert replay(case, path) == result
    assert replay(case, path) == result


@pytest.mark.parametrize("case", [case for case in recordable() if "/" in case.source], ids=lambda case: case.id)
def test_filters_are_decided_as_they_were_in_the_kernel(case: Case, tmp_path: Path) -> None:
    path = tmp_path / "recording"
    result = recorded(case, path)
    found = replay(case, path, lambda event: event._replace(filters=(), everything=True))
    refused: Optional[Sequence[str]] = [text for _, text in found.diagnostics if "was not recorded" in text]
    assert found == result or (refused and "pointer" in refused[0])
