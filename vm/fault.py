"""Faults: run-time errors of a script, with where they happened."""

from __future__ import annotations

from typing import Optional

from vm.named_tuple import NamedTuple
from vm.program import Span

KINDS: dict[str, str] = {
    "type": "an operation met a value of a wrong type",
    "divide": "division or modulo by zero",
    "step": "the step of a for loop is zero",
    "key": "nil used as a key",
    "loop": "more loop rounds than the limit in one run",
    "depth": "calls nested deeper than the limit",
    "calls": "more calls than the limit in one run",
    "string": "a string longer than the limit",
    "memory": "more memory than the limit",
    "output": "more output than the limit",
    "format": "a format string that does not fit its arguments",
    "argument": "a builtin was given an argument it cannot take",
    "symbol": "no such kernel symbol",
    "probe": "a probe set outside the main chunk",
    "unsafe": "an operation that needs --unsafe",
    "event": "an event value that was not captured or that this event does not have",
}
"""Every kind of fault and what it means."""


class Frame(NamedTuple):
    """A call in progress when a fault happened: the function and the place in it."""

    function: str
    span: Span


class Fault(Exception):
    """A run-time error of the script. `frames` (innermost first) is filled in by the machine."""

    def __init__(self, kind: str, message: str, hint: Optional[str] = None) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.hint = hint
        self.frames: tuple[Frame, ...] = ()


class Exit(BaseException):
    """exit() was called: no error; derived from BaseException so that no handler takes it for one."""

    def __init__(self, status: int = 0) -> None:
        super().__init__(status)
        self.status = status
