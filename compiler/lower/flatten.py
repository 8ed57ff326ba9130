"""Bytecode to flat code: calls inlined, upvalues and boxes resolved, constants propagated.

A function is flattened block by block in the order of its code. What is known of a register at the
start of a block is what all blocks before it agree on; at the head of a loop, nothing is known of the
registers that the loop writes. That is enough for code as the compiler makes it: the function of a
call is loaded shortly before the call.
"""

from __future__ import annotations

from typing import Callable, Dict, List, Optional, Set, Tuple

from compiler.lower.control import assigned_by_closures, leaders, loop_writes, meet
from compiler.lower.flat import Block, FlatHandler, Known, NotLowered, Place, Stop
from compiler.lower.snapshot import Closure, Snapshot
from compiler.lower.walk import Frame, Walk, boxed
from vm.limits import MAX_CALL_DEPTH
from vm.values import Table

MAX_INLINED_CALLS = 200
MAX_BLOCKS = 600
"""Inference looks at every way through a handler's blocks, and so does the kernel's verifier."""


def flatten(
    snapshot: Snapshot, handler: Closure, is_fixed: Callable[[Table], bool], call_depth: int = MAX_CALL_DEPTH
) -> FlatHandler:
    """The handler as flat code; `is_fixed` tells of a table that nothing changes while events fire.

    `call_depth` is how deep calls may be nested.

    Raises NotLowered for what only the VM can do.
    """
    work = Flattener(snapshot, is_fixed, call_depth)
    entry = work.new_block()
    function = snapshot.program.functions[handler.function]
    frame = Frame(Place(handler.function), function, 0, boxed(snapshot, handler), (), None, None)
    work.registers = function.registers
    work.body(frame, entry, {}, (handler.function,))
    return FlatHandler(tuple(work.blocks), work.registers, tuple(dict.fromkeys(work.inlined)))


class Flattener:
    """The blocks made so far."""

    def __init__(self, snapshot: Snapshot, is_fixed: Callable[[Table], bool], call_depth: int) -> None:
        self.snapshot = snapshot
        self.is_fixed = is_fixed
        self.call_depth = call_depth
        self.blocks: List[Block] = []
        self.registers = 0
        self.inlined: List[int] = []
        self.loose: Set[int] = set()
        """Registers that functions made by the handler assign: in a loop nothing is known of them."""

    def new_block(self) -> int:
        """The number of a new, empty block."""
        self.blocks.append(Block())
        return len(self.blocks) - 1

    def fresh(self, count: int) -> int:
        """The first of `count` new registers."""
        self.registers += count
        return self.registers - count

    # -- one function -------------------------------------------------------------------------

    def body(self, frame: Frame, entry: int, known: Known, active: Tuple[int, ...]) -> Optional[Known]:
        """Flatten a function from block `entry`; gives what is known of its results where it returns."""
        self.inlined.append(frame.place.function)
        if len(self.inlined) > MAX_INLINED_CALLS:
            raise NotLowered(frame.function.spans[0], "calls functions in too many places", "call them less often")
        code = frame.function.code
        starts = leaders(code)
        if len(self.blocks) + len(starts) > MAX_BLOCKS:
            raise NotLowered(frame.function.spans[0], "has too many branches", "keep what they decide in a table")
        block_of = {start: entry if start == 0 else self.new_block() for start in starts}
        entering: Dict[int, List[Known]] = {0: [known]}
        loops = loop_writes(code)
        self.loose |= {frame.base + slot for slot in assigned_by_closures(self.snapshot.program, frame.function)}
        exits: List[Known] = []
        for start, end in zip(starts, [*starts[1:], len(code)]):
            arriving = entering.get(start)
            if arriving is None:  # no way leads here
                self.blocks[block_of[start]].terminator = Stop()
                continue
            state = meet(arriving)
            if start in loops:
                for register in self.loose | {frame.base + register for register in loops[start]}:
                    state.pop(register, None)
            walk = Walk(self, frame, block_of, state, active, start)
            for index in range(start, end):
                walk.step(index, code[index], frame.function.spans[index])
                if walk.ended:
                    break
            if not walk.ended:
                walk.go(end)
            for target in walk.targets:
                entering.setdefault(target, []).append(dict(walk.known))
            if walk.returned is not None:
                exits.append(walk.returned)
        return meet(exits) if exits else None
