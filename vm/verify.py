"""The verifier: nothing runs that has not passed it, cached and freshly compiled scripts too.

What machines rely on, and this module holds every program to:

- each operand is in the range its kind gives it in the opcode table, unused ones are 0; constants have
  the type the row needs, and names are names (so that none can reach generated source as code);
- jumps stay within their function, no function runs off its end;
- a register that is read has been written on every path that leads there, and holds what the reader
  needs: a value, a box, a pack or an iterator (made by ITERPREP);
- FORLOOP's registers are those that FORPREP has checked, untouched since;
- a closure's upvalues are boxes of the function around it, or that one's upvalues;
- no function is nested in itself, however indirectly.
"""

from __future__ import annotations

from heapq import heappop, heappush
from typing import Optional, Sequence

from vm.blocks import Block, find_blocks
from vm.diagnostic import Diagnostic, Refusal
from vm.effect import ALL, CONTENTS, LANE, LOOPS, Effect, Wrong, capture, effects, scope
from vm.opcodes import BY_NAME
from vm.program import (
    MAX_CODE,
    MAX_COLUMN,
    MAX_CONSTANTS,
    MAX_FUNCTIONS,
    MAX_INSTRUCTIONS,
    MAX_REGISTERS,
    MAX_UPVALUES,
    Constant,
    Function,
    Program,
)

MAX_NESTING = 200
"""Functions within functions."""
ROUNDS = 30
"""Looks at a block, times the program's instructions, after which its jumps are too tangled (compiled code takes a few in all)."""
SPARE_ROUNDS = 20_000


def verify(program: Program) -> None:
    """Raises Refusal (status 1) with the first thing that is wrong with a program; one that passes can run."""
    function = None
    try:
        _check_program(program)
        for function in program.functions:
            _check_function(function)
        captures = [capture(each) for each in program.functions]
        checked: set[tuple[str, int]] = set()
        budget = SPARE_ROUNDS + ROUNDS * sum(len(each.code) for each in program.functions)
        for function in program.functions:
            made = effects(scope(program, function, captures, checked), function.code)
            budget = _check_flow(function, made, budget)
        function = None
        _check_nesting(program.functions)
    except Wrong as wrong:
        raise _refusal(program, function, wrong) from None


def _refusal(program: Program, function: Optional[Function], wrong: Wrong) -> Refusal:
    where, span = "", None
    if function is not None:
        where = f"function {function.name}: "
        if wrong.index is not None:
            where = f"function {function.name}, instruction {wrong.index} {function.code[wrong.index].op}: "
            span = function.spans[wrong.index]
    return Refusal([Diagnostic(program.source_name, span, f"bytecode refused: {where}{wrong}")], program.source)


# -- the program and its functions --------------------------------------------------------------


def _check_program(program: Program) -> None:
    if not program.functions:
        raise Wrong("no main chunk")
    if len(program.functions) > MAX_FUNCTIONS:
        raise Wrong(f"more than {MAX_FUNCTIONS} functions")
    if len(program.constants) > MAX_CONSTANTS:
        raise Wrong(f"more than {MAX_CONSTANTS} constants")
    if sum(len(function.code) + len(function.upvalues) for function in program.functions) > MAX_CODE:
        raise Wrong(f"more than {MAX_CODE} instructions")
    main = program.functions[0]
    if main.parameters or not main.variadic or main.upvalues:
        raise Wrong("the main chunk takes `...` and has no upvalues")
    for number, constant in enumerate(program.constants):
        _check_constant(number, constant)


def _check_constant(number: int, constant: Constant) -> None:
    if isinstance(constant, int):
        if not -(1 << 63) <= constant < 1 << 63:
            raise Wrong(f"constant {number} is beyond 64 bits")
    elif constant is not None and not isinstance(constant, bytes):
        raise Wrong(f"constant {number} is of no type a constant can have")


def _check_function(function: Function) -> None:
    if not 0 <= function.parameters <= function.registers <= MAX_REGISTERS:
        raise Wrong(f"{function.parameters} parameters and {function.registers} registers (at most {MAX_REGISTERS})")
    if len(function.upvalues) > MAX_UPVALUES:
        raise Wrong(f"more than {MAX_UPVALUES} upvalues")
    if any(not 0 <= upvalue.slot < LANE for upvalue in function.upvalues):
        raise Wrong("an upvalue's place is out of range")
    if not 0 < len(function.code) <= MAX_INSTRUCTIONS:
        raise Wrong(f"{len(function.code)} instructions (1 to {MAX_INSTRUCTIONS})")
    if len(function.spans) != len(function.code):
        raise Wrong(f"{len(function.spans)} places for {len(function.code)} instructions")
    for index, span in enumerate(function.spans):
        if min(span) < 1 or max(span) > MAX_COLUMN:
            raise Wrong(f"the place of instruction {index} is out of range")


def _check_nesting(functions: Sequence[Function]) -> None:
    """No function contains itself, and they do not lie deeper in each other than MAX_NESTING."""
    inner = [{i.b for i in function.code if i.op == "CLOSURE"} for function in functions]
    outer = [0] * len(functions)
    for numbers in inner:
        for number in numbers:
            outer[number] += 1
    depth = [0] * len(functions)
    ready = [number for number, count in enumerate(outer) if not count]
    for number in ready:
        for below in inner[number]:
            depth[below] = max(depth[below], depth[number] + 1)
            outer[below] -= 1
            if not outer[below]:
                ready.append(below)
    if len(ready) < len(functions):
        raise Wrong("a function contains itself")
    if max(depth) > MAX_NESTING:
        raise Wrong(f"functions are nested deeper than {MAX_NESTING}")


# -- flow -------------------------------------------------------------------------------------


def _check_flow(function: Function, effects: Sequence[Effect], budget: int) -> int:
    """Raises Wrong when an instruction can be reached without what it needs; returns what is left of `budget`."""
    code = function.code
    if not BY_NAME[code[-1].op].ends:
        raise Wrong("the code runs off its end", len(code) - 1)
    blocks = find_blocks(code)
    states, budget = _states(blocks, effects, (1 << function.parameters) - 1, budget)
    for number in sorted(states):
        state = states[number]
        for index in range(blocks[number].first, blocks[number].last + 1):
            effect = effects[index]
            if effect.need & ~state:
                raise Wrong(_lacking(effect.need & ~state, state), index)
            state = state & effect.keep | effect.gen
    return budget


def _states(blocks: Sequence[Block], effects: Sequence[Effect], entry: int, budget: int) -> tuple[dict[int, int], int]:
    """The state before each block that can be reached, by number; they are looked at in the order of the code."""
    ways = [_ways(block, effects) for block in blocks]
    states = {0: entry}
    waiting, changed = [0], {0}
    while waiting:
        number = heappop(waiting)
        changed.discard(number)
        state = states[number]
        for successor, keep, gen in ways[number]:
            old = states.get(successor, ALL)
            new = old & (state & keep | gen)
            if new != old or successor not in states:
                states[successor] = new
                if successor not in changed:
                    heappush(waiting, successor)
                    changed.add(successor)
        budget -= 1
        if budget < 0:
            raise Wrong("its jumps are too tangled")
    return states, budget


def _ways(block: Block, effects: Sequence[Effect]) -> list[tuple[int, int, int]]:
    """Where a block leads: the block there, and what the way to it keeps of the state and adds."""
    keep, gen = ALL, 0
    for effect in effects[block.first : block.last]:
        keep, gen = keep & effect.keep, gen & effect.keep | effect.gen
    last = effects[block.last]
    ways = []
    if block.fall is not None:
        ways.append((block.fall, keep & last.keep, gen & last.keep | last.gen))
    if block.jump is not None:
        ways.append((block.jump, keep & last.jump_keep, gen & last.jump_keep | last.jump_gen))
    return ways


def _lacking(lacking: int, state: int) -> str:
    """What a register lacks, in words."""
    lane, register = divmod((lacking & -lacking).bit_length() - 1, LANE)
    if lane == LOOPS:
        return f"no FORPREP has set up the loop in register {register}"
    for number, content in enumerate(CONTENTS):
        if state >> number * LANE + register & 1:
            return f"register {register} holds {content}, not {CONTENTS[lane]}"
    return f"register {register} may be unset, {CONTENTS[lane]} is needed"
