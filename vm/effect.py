"""What each instruction needs of the registers and makes of them, its operands checked on the way.

The state of all registers before an instruction is one integer: a lane of bits for each kind of content,
a bit in it for each register that holds such on every path. So joining two paths is `&`, writing a
register clears its bits in all lanes and sets one, and the way of a whole block is `state & keep | gen`.
"""

from __future__ import annotations

from typing import Callable, Optional, Sequence

from vm.event import VARIABLES
from vm.named_tuple import NamedTuple
from vm.opcodes import BY_NAME, PACK
from vm.program import MAX_REGISTERS, Constant, Function, Instruction, Program

LANE = 256
"""Bits a lane is wide: a register's bit is its number plus this times the number of its lane."""
VALUES, BOXES, PACKS, ITERATORS, LOOPS = range(5)
CONTENTS = ("a value", "a box", "a pack", "an iterator")
EVERY_CONTENT = sum(1 << LANE * lane for lane in range(len(CONTENTS)))
"""Multiplied with a mask of registers: their bits in all lanes but LOOPS, which has the first register of a loop."""
ALL = (1 << LANE * (LOOPS + 1)) - 1

MAX_NAME_BYTES = 1 << 16
"""Of a name, an event or a filter as written."""


class Wrong(Exception):
    """What is wrong, in words, and with which instruction of the function."""

    def __init__(self, text: str, index: Optional[int] = None) -> None:
        super().__init__(text)
        self.index = index


class Capture(NamedTuple):
    """What a function's upvalues need of the function around it."""

    boxes: int
    """The state bits of the registers that hold them."""
    registers: int
    """How many registers it has at least."""
    upvalues: int
    """How many upvalues it has at least."""


class Scope(NamedTuple):
    """What the instructions of one function are checked against."""

    constants: Sequence[Constant]
    ranges: dict[str, range]
    """What an operand can be, by its kind."""
    captures: Sequence[Capture]
    """Of every function of the program."""
    checked: set[tuple[str, int]]
    """Constants already checked, with what they were checked for."""
    registers: int
    upvalues: int
    variadic: bool


class Effect(NamedTuple):
    """What an instruction needs of the state, and makes of it where it goes on and where it jumps."""

    need: int
    keep: int = ALL
    gen: int = 0
    jump_keep: int = ALL
    jump_gen: int = 0


def capture(function: Function) -> Capture:
    """What a closure of `function` needs where it is made; its upvalues' slots are in range."""
    registers = [upvalue.slot for upvalue in function.upvalues if upvalue.from_register]
    upvalues = [upvalue.slot for upvalue in function.upvalues if not upvalue.from_register]
    boxes = 0
    for register in registers:
        boxes |= 1 << BOXES * LANE + register
    return Capture(boxes, max(registers, default=-1) + 1, max(upvalues, default=-1) + 1)


def scope(program: Program, function: Function, captures: Sequence[Capture], checked: set[tuple[str, int]]) -> Scope:
    """What the instructions of `function` are checked against."""
    ranges = {
        "w": range(function.registers),
        "v": range(-len(program.constants), function.registers),
        "k": range(len(program.constants)),
        "n": range(PACK, MAX_REGISTERS + 1),
        "j": range(len(function.code)),
        "u": range(len(function.upvalues)),
        "p": range(1, len(program.functions)),
        "b": range(function.registers),
        "r": range(function.registers + 1),
    }
    counts = (function.registers, len(function.upvalues), function.variadic)
    return Scope(program.constants, ranges, captures, checked, *counts)


def effects(scope: Scope, code: Sequence[Instruction]) -> list[Effect]:
    """The effect of every instruction of a function, its operands checked."""
    known: dict[Instruction, Effect] = {}
    effects = []
    for index, instruction in enumerate(code):
        effect = known.get(instruction)
        if effect is None:
            try:
                effect = known[instruction] = _effect(scope, instruction)
            except Wrong as wrong:
                raise Wrong(str(wrong), index) from None
        effects.append(effect)
    return effects


def _effect(scope: Scope, instruction: Instruction) -> Effect:
    op, *operands = instruction
    row = BY_NAME.get(op)
    if row is None:
        raise Wrong("no such opcode")
    if any(operands[len(row.operands) :]):
        raise Wrong("an operand that it does not have is not 0")
    need, keep, gen = 0, ALL, 0
    for place, (kind, operand) in enumerate(zip(row.operands, operands)):
        if operand not in scope.ranges[kind]:
            raise Wrong(f"operand {place + 1} is out of range: {operand}")
        if kind == "v" and operand >= 0:
            need |= 1 << operand
        elif kind == "b":
            need |= 1 << BOXES * LANE + operand
        elif kind == "w":
            keep, gen = _written(1 << operand, BOXES if op == "BOX" else VALUES)
        elif kind == "k":
            _check_name(scope, NAMES[op][place], operand)
    special = SPECIAL.get(op)
    effect = Effect(need, keep, gen)
    return effect if special is None else special(scope, effect, *operands)


def _run(scope: Scope, first: int, count: int, least: int = 0) -> int:
    """A mask of `count` (at least `least`) registers from `first` on."""
    if count < least:
        raise Wrong(f"a count of {count}, at least {least}")
    if first + count > scope.registers:
        raise Wrong(f"registers {first} to {first + count - 1}, of {scope.registers}")
    return (1 << count) - 1 << first


def _written(mask: int, content: int = VALUES) -> tuple[int, int]:
    """What stays of the state (keep) and what comes to it (gen) when these registers are written."""
    loops = (mask | mask >> 1 | mask >> 2) << LOOPS * LANE
    return ALL ^ (mask * EVERY_CONTENT | loops), mask << content * LANE


def _ending_in_pack(mask: int) -> int:
    """What must be in a run of registers whose last is a pack."""
    last = 1 << mask.bit_length() - 1
    return mask ^ last | last << PACKS * LANE


def _forprep(scope: Scope, effect: Effect, r: int, j: int, _: int) -> Effect:
    checked, counter = _run(scope, r, 3), _run(scope, r + 3, 1)
    keep, gen = _written(checked | counter)
    return Effect(checked, keep, gen | 1 << LOOPS * LANE + r, keep, checked)


def _forloop(scope: Scope, effect: Effect, r: int, j: int, _: int) -> Effect:
    keep, gen = _written(_run(scope, r + 3, 1))
    return Effect(1 << LOOPS * LANE + r, keep, 0, keep, gen)


def _iterprep(scope: Scope, effect: Effect, w: int, r: int, _: int) -> Effect:
    return Effect(_run(scope, r, 3), *_written(1 << w, ITERATORS))


def _iternext(scope: Scope, effect: Effect, r: int, n: int, j: int) -> Effect:
    iterator, names = _run(scope, r, 1), _run(scope, r + 1, n, 1)
    keep, gen = _written(names)
    return Effect(iterator << ITERATORS * LANE, keep, gen, keep, 0)


def _key(scope: Scope, effect: Effect, w: int, r: int, n: int) -> Effect:
    return effect._replace(need=_run(scope, r, n, 2))


def _setlist(scope: Scope, effect: Effect, v: int, r: int, n: int) -> Effect:
    need = _run(scope, r, 1) << PACKS * LANE if n == PACK else _run(scope, r, n, 1)
    return effect._replace(need=effect.need | need)


def _closure(scope: Scope, effect: Effect, w: int, p: int, _: int) -> Effect:
    capture = scope.captures[p]
    if capture.registers > scope.registers or capture.upvalues > scope.upvalues:
        raise Wrong(f"function {p} has upvalues that are not there")
    return effect._replace(need=capture.boxes)


def _call(scope: Scope, effect: Effect, r: int, arguments: int, results: int) -> Effect:
    return Effect(_run(scope, r, 1 + arguments, 1), *_results(scope, r, results))


def _callx(scope: Scope, effect: Effect, r: int, arguments: int, results: int) -> Effect:
    need = _ending_in_pack(_run(scope, r, 1 + arguments, 2))
    return Effect(need, *_results(scope, r, results))


def _results(scope: Scope, first: int, count: int) -> tuple[int, int]:
    """What several values, or all of them as one pack, make of the state."""
    if count == PACK:
        return _written(_run(scope, first, 1), PACKS)
    return _written(_run(scope, first, count))


def _tailcall(scope: Scope, effect: Effect, r: int, n: int, _: int) -> Effect:
    return Effect(_run(scope, r, 1 + n, 1))


def _tailcallx(scope: Scope, effect: Effect, r: int, n: int, _: int) -> Effect:
    return Effect(_ending_in_pack(_run(scope, r, 1 + n, 2)))


def _return(scope: Scope, effect: Effect, r: int, n: int, _: int) -> Effect:
    return Effect(_run(scope, r, n))


def _returnx(scope: Scope, effect: Effect, r: int, n: int, _: int) -> Effect:
    return Effect(_ending_in_pack(_run(scope, r, n, 1)))


def _vararg(scope: Scope, effect: Effect, w: int, n: int, _: int) -> Effect:
    if not scope.variadic:
        raise Wrong("the function takes no `...`")
    return Effect(0, *_results(scope, w, n))


SPECIAL: dict[str, Callable[[Scope, Effect, int, int, int], Effect]] = {
    "FORPREP": _forprep,
    "FORLOOP": _forloop,
    "ITERPREP": _iterprep,
    "ITERNEXT": _iternext,
    "KEY": _key,
    "SETLIST": _setlist,
    "CLOSURE": _closure,
    "CALL": _call,
    "CALLX": _callx,
    "TAILCALL": _tailcall,
    "TAILCALLX": _tailcallx,
    "RETURN": _return,
    "RETURNX": _returnx,
    "VARARG": _vararg,
}
"""The rows whose operands say more than their kinds do: counts, runs of registers, contents other than values.

What a loop writes for its body is unset where the loop ends: machines may leave anything there.
"""

# -- names ------------------------------------------------------------------------------------


def _check_name(scope: Scope, use: str, number: int) -> None:
    """Raises Wrong unless constant `number` is of the type and form that its use as `use` needs."""
    if (use, number) in scope.checked:
        return
    value = scope.constants[number]
    if not (value is None and use == "filter"):
        if not isinstance(value, bytes):
            raise Wrong(f"constant {number} is no string")
        if not FORMS[use](value):
            raise Wrong(f"constant {number} names no {use}: {value[:40]!r}")
    scope.checked.add((use, number))


def _is_path(name: bytes) -> bool:
    """Names with dots between, as `args.file.f_inode`."""
    if len(name) > MAX_NAME_BYTES or not name.isascii():
        return False
    return all(part.isidentifier() for part in name.decode("ascii").split("."))


def _is_builtin(name: bytes) -> bool:
    if not _is_path(name):
        return False
    from vm.library import known  # it imports what the program is about to call anyway

    return known(name.decode("ascii"))


def _is_global(name: bytes) -> bool:
    return _is_path(name) and b"." not in name


def _is_event_value(name: bytes) -> bool:
    return name in EVENT_NAMES or (name.startswith((b"args.", b"curtask.")) and _is_path(name))


def _is_symbol(name: bytes) -> bool:
    return 0 < len(name) <= MAX_NAME_BYTES and name.isascii() and name.decode("ascii").isprintable()


def _is_filter(text: bytes) -> bool:
    """Text that can be given to a kernel. It may name files, so it need not be UTF-8."""
    return len(text) <= MAX_NAME_BYTES and b"\0" not in text


def _is_event(text: bytes) -> bool:
    return len(text) > 0 and _is_filter(text)


EVENT_NAMES = frozenset(variable.name.encode() for variable in VARIABLES)
NAMES: dict[str, dict[int, str]] = {
    "GETGLOBAL": {1: "global"},
    "SETGLOBAL": {0: "global"},
    "BUILTIN": {1: "builtin"},
    "EVENT": {1: "event value"},
    "SYMBOL": {1: "symbol"},
    "PROBE": {1: "event", 2: "filter"},
}
"""What the constant operands of a row name, by place."""
FORMS: dict[str, Callable[[bytes], bool]] = {
    "global": _is_global,
    "builtin": _is_builtin,
    "event value": _is_event_value,
    "symbol": _is_symbol,
    "event": _is_event,
    "filter": _is_filter,
}
