"""Drawn programs print the same on the machine, folded and unfolded, as in a plain interpreter of their trees."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, Phase, assume, given, settings

from compiler.parse import parse
from tests.compiler.interpreter import Interpreter, TooLong
from tests.compiler.programs import programs
from tests.compiler.running import run

STEPS = 20_000


pytestmark = pytest.mark.filterwarnings("ignore:The recursion limit will not be reset")

PHASES = (Phase.explicit, Phase.reuse, Phase.generate, Phase.target, Phase.shrink)


@settings(deadline=None, max_examples=60, suppress_health_check=list(HealthCheck), phases=PHASES)
@given(programs())
def test_programs_print_what_they_mean(text: str) -> None:
    try:
        expected = Interpreter(STEPS).run(parse(text, "test.kp").script)
    except (TooLong, RecursionError):
        assume(False)
    for folding in (True, False):
        told = run(text, folding=folding)
        assert told.split("FAULT")[0] == expected.split("FAULT")[0]
        assert ("FAULT" in told) is ("FAULT" in expected)
