"""Returns that the kernel leaves out of deep recursions, of which only its log tells."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from c_program import compiled
from tracing import EVENTS, trace

from ktap.kernel_log import TOO_DEEP

RATE_LIMIT_S = 5.0
"""The log takes a few of these lines in so many seconds, of all processes."""
DEEP = r"""
#include <stdlib.h>
__attribute__((noipa)) int deep(int n) { return n ? deep(n - 1) + 1 : 0; }
int main(int argc, char **argv) { return deep(atoi(argv[1])) < 0; }
"""


@pytest.mark.live
@pytest.mark.parametrize("tier", ["vm", EVENTS])
def test_returns_of_calls_that_are_nested_too_deep_are_told(tmp_path: Path, tier: str) -> None:
    program = compiled(tmp_path / "program", DEEP)
    script = f"""
    var calls = 0 var returns = 0
    trace probe:{program}:deep {{ calls += 1 }}
    trace probe:{program}:deep%return {{ returns += 1 }}
    trace_end {{ print(calls, returns) }}
    """
    whole = trace(script, [str(program), "63"], tier=tier)
    assert (whole.lines, list(whole.losses)) == (["64\t64"], [])
    time.sleep(RATE_LIMIT_S + 0.5)
    cut = trace(script, [str(program), "99"], tier=tier)
    assert cut.lines == ["100\t64"]
    (loss,) = cut.losses
    assert (loss.what, loss.where) == (TOO_DEEP, f"probe:{program}:deep%return")
    assert 1 <= loss.events <= 36
