"""The builtins that handlers in the kernel can call: one row each, with the type of the result.

Every other builtin keeps its handler in the VM. `emit.py` has an emitter for each row.
"""

from __future__ import annotations

from typing import Callable, Dict, Sequence, Set, Tuple

from compiler.lower.flat import Constant, FlatHandler, NotLowered, Operand, Operation
from compiler.lower.types import INTEGER, MAX_STRING_BYTES, NIL, STACK_HEAD_BYTES, Type, join, string
from vm.named_tuple import NamedTuple

MAX_FRAMES = 127
"""Frames of a stack (PERF_MAX_STACK_DEPTH of linux/perf_event.h)."""
PLUMBING_FRAMES = 6
"""So many frames of a kernel stack may lead to the program itself; the reader takes them off."""
SHOWING = ("print", "printf")
"""Builtins that show a value, of whatever type it is."""
STATES = ("in_iowait", "in_interrupt", "curr_taskinfo")
"""Builtins that read the running task: their type is that of a variable of the event (`state_name`)."""

Result = Callable[[Operation, Sequence[Type]], Type]
"""Takes a BUILTIN operation and the types of its arguments, gives the type of its result. Raises NotLowered."""


class Signature(NamedTuple):
    """One row: the type of the result; `reads`: it is a string from memory, of which only so much is read."""

    result: Result
    reads: bool = False


def _always(result: Type) -> Result:
    return lambda operation, arguments: result


def _bytes_read(operation: Operation, arguments: Sequence[Type]) -> Type:
    _address(operation, arguments)
    return join(NIL, string(_constant_count(operation, 1, MAX_STRING_BYTES)))


def _number_read(operation: Operation, arguments: Sequence[Type]) -> Type:
    _address(operation, arguments)
    return join(NIL, INTEGER)


def _address(operation: Operation, arguments: Sequence[Type]) -> None:
    if not arguments or not arguments[0].is_only("integer", "address", "nil"):
        raise NotLowered(operation.span, f"calls {operation.name} with a value that may be no address")


def _constant_count(operation: Operation, position: int, most: int) -> int:
    if len(operation.arguments) <= position:
        return most
    count: Operand = operation.arguments[position]
    if isinstance(count, Constant) and count.value is None:
        return most
    if not isinstance(count, Constant) or type(count.value) is not int or count.value <= 0:
        raise NotLowered(operation.span, f"calls {operation.name} with a size that is not a constant", "write a number")
    return min(count.value, most)


def _stack(operation: Operation, arguments: Sequence[Type]) -> Type:
    frames = sum(stack_frames(operation))
    if operation.name == "ustack":
        return Type(frozenset({"user stack"}), STACK_HEAD_BYTES + 8 * min(frames, MAX_FRAMES))
    return Type(frozenset({"stack"}), STACK_HEAD_BYTES + 8 * (min(frames, MAX_FRAMES) + PLUMBING_FRAMES))


def stack_frames(operation: Operation) -> Tuple[int, int]:
    """How many frames a stack has at most, and how many are left out before them. Raises NotLowered."""
    depth = _constant_count(operation, 0, MAX_FRAMES)
    skip = operation.arguments[1] if len(operation.arguments) > 1 else Constant(None)
    if isinstance(skip, Constant) and skip.value is None:
        return depth, 0
    if not isinstance(skip, Constant) or type(skip.value) is not int or not 0 <= skip.value <= MAX_FRAMES:
        raise NotLowered(
            operation.span, f"calls {operation.name} with a number of frames to skip that is not a constant"
        )
    return depth, skip.value


def _as_address(operation: Operation, arguments: Sequence[Type]) -> Type:
    _address(operation, arguments)
    address = Type(frozenset({"address"}))
    return NIL if arguments[0] == NIL else join(NIL, address) if arguments[0].can_be("nil") else address


def _length(operation: Operation, arguments: Sequence[Type]) -> Type:
    if not arguments or not arguments[0].is_only("string"):
        raise NotLowered(operation.span, "takes the length of what may be no string")
    return INTEGER


def state_name(operation: Operation) -> str:
    """The variable that a builtin for the running task's state reads. Raises NotLowered."""
    if operation.name == "in_interrupt":
        return operation.name
    if operation.name != "curr_taskinfo":
        return f"curtask.{operation.name}"
    name = operation.arguments[0] if operation.arguments else None
    if not isinstance(name, Constant) or not isinstance(name.value, bytes) or name.value == b"in_interrupt":
        raise NotLowered(operation.span, "calls curr_taskinfo with a name that is not a constant")
    return f"curtask.{name.value.decode('latin-1')}"


def event_names(flat: FlatHandler) -> Set[str]:
    """The event variables that a handler reads."""
    operations = [operation for block in flat.blocks for operation in block.operations]
    names = {o.name for o in operations if o.op == "EVENT"}
    return names | {state_name(o) for o in operations if o.op == "BUILTIN" and o.name in STATES}


SIGNATURES: Dict[str, Signature] = {
    "print": Signature(_always(NIL)),
    "printf": Signature(_always(NIL)),
    "exit": Signature(_always(NIL)),
    "delete": Signature(_always(NIL)),
    "len": Signature(_length),
    "string.len": Signature(_length),
    "user_string": Signature(_bytes_read, reads=True),
    "kernel_string": Signature(_bytes_read, reads=True),
    **{f"{space}_u{bits}": Signature(_number_read) for space in ("user", "kernel") for bits in (8, 16, 32, 64)},
    "stack": Signature(_stack),
    "ustack": Signature(_stack),
    **{f"gettimeofday_{unit}": Signature(_always(INTEGER)) for unit in ("ns", "us", "ms", "s")},
    "ksym": Signature(_as_address),
    "ipof": Signature(_as_address),
    **{name: Signature(_always(NIL)) for name in STATES},
}
