"""Scripts that probe programs: what a trace without losses and faults gave, and why one is refused."""

from __future__ import annotations

import pytest
from tracing import Traced, trace

from vm.diagnostic import Refusal


def run(script: str, *command: object, tier: str = "vm", buffer: str = "auto") -> Traced:
    traced = trace(script, [str(word) for word in command], tier=tier, buffer=buffer)
    assert not traced.losses
    assert not traced.faults
    return traced


def message(script: str) -> str:
    with pytest.raises(Refusal) as caught:
        trace(script, duration_s=0.1)
    diagnostic = caught.value.diagnostics[0]
    return f"{diagnostic.message}; {diagnostic.hint or ''}"
