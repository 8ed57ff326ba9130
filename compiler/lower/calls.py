"""Builtins in emitted code: one emitter for each row of `compiler.lower.signature`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Callable, Dict, List

from compiler.lower.flat import Constant, NotLowered, Operation
from compiler.lower.formats import faults_at_nil
from compiler.lower.signature import SIGNATURES, stack_frames, state_name
from compiler.lower.types import INTEGER, STACK_HEAD_BYTES, Type
from compiler.lower.values import Site, Value, of_constant

if TYPE_CHECKING:
    from compiler.lower.emit import Emitter

SENT_KINDS = ("nil", "probename", "argstr", "boolean", "integer", "string", "stack", "user stack", "address")
USER_STACK_FLAG = 256
"""BPF_F_USER_STACK of linux/bpf.h."""
UNITS = {"ns": 1, "us": 1_000, "ms": 1_000_000, "s": 1_000_000_000}

Emit = Callable[["Emitter", Operation, List[Value], Type], Value]


def call(emitter: Emitter, operation: Operation, values: List[Value], result: Type) -> Value:
    """The result of a builtin."""
    return EMITTERS[operation.name](emitter, operation, values, result)


def _send(emitter: Emitter, operation: Operation, values: List[Value], result: Type) -> Value:
    """print, printf, exit: a record with the arguments that are not constants."""
    constants = [(n, a.value) for n, a in enumerate(operation.arguments) if isinstance(a, Constant)]
    sent = [v for v, a in zip(values, operation.arguments) if not isinstance(a, Constant)]
    for number, value in constants:
        if not isinstance(value, (bytes, int)) and value is not None:
            raise NotLowered(
                operation.span, f"gives {operation.name} a value that only the VM has (argument {number + 1})"
            )
    for value in sent:
        several = len(value.type.without("nil").kinds) > 1 and not value.type.is_either
        if several or not value.type.is_only(*SENT_KINDS):
            raise NotLowered(operation.span, f"gives {operation.name} what may be {value.type}")
    types = tuple(value.type for value in sent)
    site = Site(operation.name, operation.place.frames(operation.span), types, tuple(constants))
    if operation.name == "exit":
        emitter.stop(site, sent)
        emitter.w.label(emitter.w.fresh("unreached"))
    else:
        emitter.environment.send(site, sent, emitter.texts)
    if operation.name == "printf":
        _stop_at_nil(emitter, operation, values)
    return of_constant(None)


def _stop_at_nil(emitter: Emitter, operation: Operation, values: List[Value]) -> None:
    """The VM will fault at a record with nil in place of an integer: no handler runs behind it any more."""
    w = emitter.w
    for place in faults_at_nil(operation, [value.type for value in values], emitter.facts.built_bytes):
        wrong, right = w.fresh("fault"), w.fresh("l")
        w.branch(values[place].isnil, wrong, right)
        w.label(wrong)
        w.store(8, 1, w.lookup("stopped", w.index(0), emitter.end))
        w.goto(emitter.end)
        w.label(right)


def _delete(emitter: Emitter, operation: Operation, values: List[Value], result: Type) -> Value:
    return emitter.stores.delete(operation, values)


def _length(emitter: Emitter, operation: Operation, values: List[Value], result: Type) -> Value:
    return Value(INTEGER, emitter.texts.measured(values[0]))


def _address(emitter: Emitter, value: Value) -> str:
    """The address to read; nil reads nothing (0)."""
    if value.type.can_be("nil"):
        return emitter.w.value(f"select i1 {value.isnil}, i64 0, i64 {value.number}")
    return value.number


def _string_read(helper: str) -> Emit:
    def emit(emitter: Emitter, operation: Operation, values: List[Value], result: Type) -> Value:
        size = result.size_bytes + 1  # a NUL comes behind
        pointer = emitter.texts.room(size)
        length = emitter.w.text_bytes(emitter.w.call(helper, pointer, size, _address(emitter, values[0])))
        failed = emitter.w.value(f"icmp slt i64 {length}, 0")
        size_read = emitter.w.value(f"select i1 {failed}, i64 0, i64 {emitter.w.value(f'sub i64 {length}, 1')}")
        return Value(result, "0", failed, pointer, size_read)

    return emit


def _number_read(helper: str, size: int) -> Emit:
    def emit(emitter: Emitter, operation: Operation, values: List[Value], result: Type) -> Value:
        room = emitter.w.local(8, "word")
        emitter.w.store(8, 0, room)
        failed = emitter.w.call(helper, room, size, _address(emitter, values[0]))
        return Value(result, emitter.w.load(8, room), emitter.w.value(f"icmp ne i64 {failed}, 0"))

    return emit


def _kernel_stack(emitter: Emitter, operation: Operation, values: List[Value], result: Type) -> Value:
    environment = emitter.environment
    return _stack(emitter, operation, result, str(int(environment.plumbing)), environment.caller("kernel"), 0)


def _user_stack(emitter: Emitter, operation: Operation, values: List[Value], result: Type) -> Value:
    environment = emitter.environment
    pid, caller = environment.event("pid", emitter.texts).number, environment.caller("user")
    return _stack(emitter, operation, result, pid, caller, USER_STACK_FLAG)


def _stack(emitter: Emitter, operation: Operation, result: Type, owner: str, caller: str, flags: int) -> Value:
    """All frames behind their head (see `compiler.lower.layouts`), the rest zeros."""
    w = emitter.w
    depth, skip = stack_frames(operation)
    pointer = emitter.texts.room(result.size_bytes)
    emitter.texts.clear(pointer, result.size_bytes)
    w.store(8, w.value(f"or i64 {owner}, {depth << 32 | skip << 48}"), pointer)
    w.store(8, caller, pointer, 8)
    frames = w.at(pointer, STACK_HEAD_BYTES)
    w.call("get_stack", "%ctx", frames, result.size_bytes - STACK_HEAD_BYTES, flags)
    return Value(result, pointer=pointer)


def _time(unit: int) -> Emit:
    def emit(emitter: Emitter, operation: Operation, values: List[Value], result: Type) -> Value:
        now = emitter.environment.event("nsecs", emitter.texts).number
        time = emitter.w.value(f"add i64 {now}, {emitter.environment.number('realtime_offset')}")
        return Value(INTEGER, time if unit == 1 else emitter.w.value(f"udiv i64 {time}, {unit}"))

    return emit


def _symbol(emitter: Emitter, operation: Operation, values: List[Value], result: Type) -> Value:
    """An integer that prints as its symbol."""
    return Value(result, values[0].number, values[0].isnil if result.can_be("nil") else "false")


def _state(emitter: Emitter, operation: Operation, values: List[Value], result: Type) -> Value:
    if result.is_only("nil"):
        return of_constant(None)
    value = emitter.environment.event(state_name(operation), emitter.texts)
    if not result.can_be("boolean"):
        return value
    return value._replace(type=result, number=emitter.boolean(emitter.w.value(f"icmp ne i64 {value.number}, 0")).number)


EMITTERS: Dict[str, Emit] = {
    "print": _send,
    "printf": _send,
    "exit": _send,
    "delete": _delete,
    "len": _length,
    "string.len": _length,
    "user_string": _string_read("probe_read_user_str"),
    "kernel_string": _string_read("probe_read_kernel_str"),
    **{
        f"{space}_u{bits}": _number_read(f"probe_read_{space}", bits // 8)
        for space in ("user", "kernel")
        for bits in (8, 16, 32, 64)
    },
    "stack": _kernel_stack,
    "ustack": _user_stack,
    **{f"gettimeofday_{unit}": _time(size) for unit, size in UNITS.items()},
    "ksym": _symbol,
    "ipof": _symbol,
    "in_iowait": _state,
    "in_interrupt": _state,
    "curr_taskinfo": _state,
}
assert set(EMITTERS) == set(SIGNATURES)
