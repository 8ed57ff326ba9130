"""printf in handlers of the kernel: the VM fills the format later, so what it would fault at has to be known here."""

from __future__ import annotations

from typing import List, Sequence

from compiler.lower.flat import Constant, NotLowered, Operation
from compiler.lower.types import Type
from vm.fault import Fault
from vm.printf import formatter
from vm.values import MAX_INTEGER

ANY_NUMBER = MAX_INTEGER
"""Stands for every integer; it is too large to be a width, which is what `*` takes."""


def check_format(operation: Operation, types: Sequence[Type], most_bytes: int) -> None:
    """Raises NotLowered for a printf that may fault for another reason than nil in place of an integer."""
    first = operation.arguments[0] if operation.arguments else None
    if not isinstance(first, Constant) or not isinstance(first.value, bytes):
        raise NotLowered(operation.span, "calls printf with a format that is not a constant")
    try:
        _fill(first.value, _examples(operation, types), most_bytes)
    except Fault as fault:
        raise NotLowered(operation.span, f"prints what may not fit its format ({fault.message})") from fault


def faults_at_nil(operation: Operation, types: Sequence[Type], most_bytes: int) -> List[int]:
    """The arguments that may be nil where the format wants an integer: a run in which one is ends there."""
    format_text = operation.arguments[0]
    assert isinstance(format_text, Constant) and isinstance(format_text.value, bytes)
    examples = _examples(operation, types)
    found: List[int] = []
    for place, kind in enumerate(types[1:]):
        if kind.can_be("nil") and not isinstance(operation.arguments[1 + place], Constant):
            try:
                _fill(format_text.value, [*examples[:place], None, *examples[place + 1 :]], most_bytes)
            except Fault:
                found.append(1 + place)
    return found


def _examples(operation: Operation, types: Sequence[Type]) -> List[object]:
    examples: List[object] = []
    for argument, kind in zip(operation.arguments[1:], types[1:]):
        if isinstance(argument, Constant):
            examples.append(argument.value)
        else:
            integers = kind.is_only("integer", "address", "nil")
            examples.append(ANY_NUMBER if integers else None)
    return examples


def _fill(written: bytes, values: Sequence[object], most_bytes: int) -> None:
    formatter("printf", lambda value: b"", lambda value: "what may be no integer", most_bytes)(written, tuple(values))
