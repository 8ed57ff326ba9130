"""Registers split into webs: what the definitions that reach a common use have in common.

Bytecode uses a register again as soon as it is free; after this pass a register stands for one value
(or for one variable, where several definitions meet), so that a register with one definition can be
followed back to it. Source: S. Muchnick, Advanced Compiler Design and Implementation, 16.3.3.
"""

from __future__ import annotations

from typing import Dict, FrozenSet, List, Mapping, Tuple

from compiler.lower.flat import Block, Branch, Constant, FlatHandler, Operand, Operation, live, order, successors
from vm.program import Span

Place = Tuple[int, int]
"""A definition: block and position of the operation; (-1, register) where there is none."""
NOWHERE = Span(1, 1, 1, 1)

Reaching = Dict[int, FrozenSet[Place]]


def split(handler: FlatHandler) -> FlatHandler:
    """The same code with a register of its own for every web."""
    first = handler.blocks[0]
    unset = sorted(live(handler.blocks)[0])
    first.operations[:0] = [Operation("MOVE", r, (Constant(None),), NOWHERE) for r in unset]
    entries = _reaching(handler.blocks)
    webs = _Union()
    for number, block in enumerate(handler.blocks):
        reaching = dict(entries[number])
        for place, operation in enumerate(block.operations):
            for argument in operation.arguments:
                webs.use(argument, reaching)
            if operation.target is not None:
                reaching[operation.target] = frozenset({(number, place)})
        if isinstance(block.terminator, Branch):
            webs.use(block.terminator.condition, reaching)
    names: Dict[Place, int] = {}
    blocks = [
        _renamed(number, block, dict(entries[number]), webs, names) for number, block in enumerate(handler.blocks)
    ]
    return handler._replace(blocks=tuple(blocks), registers=len(names))


def _reaching(blocks: Tuple[Block, ...]) -> List[Reaching]:
    """The definitions that reach the entry of every block."""
    entries: List[Reaching] = [{} for _ in blocks]
    used = live(blocks)
    ways = order(blocks)
    changed = True
    while changed:
        changed = False
        for number in ways:
            leaving = dict(entries[number])
            for place, operation in enumerate(blocks[number].operations):
                if operation.target is not None:
                    leaving[operation.target] = frozenset({(number, place)})
            for target in successors(blocks[number].terminator):
                before = entries[target]
                after = {r: before.get(r, frozenset()) | leaving.get(r, frozenset()) for r in used[target]}
                if after != before:
                    entries[target] = after
                    changed = True
    return entries


class _Union:
    """Definitions that belong together (union-find)."""

    def __init__(self) -> None:
        self.parent: Dict[Place, Place] = {}

    def root(self, place: Place) -> Place:
        """The one that stands for all that belong with a definition."""
        while (parent := self.parent.get(place, place)) != place:
            place = parent
        return place

    def use(self, argument: Operand, reaching: Mapping[int, FrozenSet[Place]]) -> None:
        """All definitions that reach this use belong together."""
        if isinstance(argument, int):
            first, *others = sorted(reaching.get(argument) or {(-1, argument)})
            for other in others:
                self.parent[self.root(other)] = self.root(first)


def _renamed(number: int, block: Block, reaching: Reaching, webs: _Union, names: Dict[Place, int]) -> Block:
    def name(place: Place) -> int:
        return names.setdefault(webs.root(place), len(names))

    def use(argument: Operand) -> Operand:
        if not isinstance(argument, int):
            return argument
        return name(min(reaching.get(argument) or {(-1, argument)}))

    renamed = Block()
    for place, operation in enumerate(block.operations):
        arguments = tuple(use(argument) for argument in operation.arguments)
        target = operation.target
        if target is not None:
            reaching[target] = frozenset({(number, place)})
            target = name((number, place))
        renamed.operations.append(operation._replace(target=target, arguments=arguments))
    end = block.terminator
    renamed.terminator = end._replace(condition=use(end.condition)) if isinstance(end, Branch) else end
    return renamed


def definitions(handler: FlatHandler) -> Dict[int, List[Operation]]:
    """The operations that write each register."""
    found: Dict[int, List[Operation]] = {}
    for block in handler.blocks:
        for operation in block.operations:
            if operation.target is not None:
                found.setdefault(operation.target, []).append(operation)
    return found


def uses(handler: FlatHandler) -> Dict[int, List[Operation]]:
    """The operations that read each register; a branch is not among them."""
    found: Dict[int, List[Operation]] = {}
    for block in handler.blocks:
        for operation in block.operations:
            for argument in operation.arguments:
                if isinstance(argument, int):
                    found.setdefault(argument, []).append(operation)
    return found
